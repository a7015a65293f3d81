"""Shards: tensors of which each process holds a part, as tensor parallelism and FSDP2 make them.

Such a parameter is a ``DTensor``. Its noise is that of the whole tensor, addressed element by
element; so all that a process has to know is which of the elements are its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zopeft.errors import input_error

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zopeft.blocks.block import Block

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Shard:
    """The part of a tensor that this process holds.

    The whole is read as a matrix [R, W], W its last dimension; a vector is one row.

    Attributes:
        rows: Numbers of the whole's rows that are held, int64 [n], in the order of the part.
        columns: First and last (exclusive) of the columns that are held.
        width: W.
        shape: Shape of the part.
        group: The processes that hold the whole together; None where each holds all of it.
    """

    rows: Numbers
    columns: tuple[int, int]
    width: int
    shape: tuple[int, ...]
    group: Any = None

    @property
    def own_width(self) -> int:
        """Columns that are held."""
        return self.columns[1] - self.columns[0]

    @property
    def numel(self) -> int:
        """Elements that are held."""
        return len(self.rows) * self.own_width

    def rows_of(self, rows: slice | Tensor) -> Numbers:
        """Returns the whole's numbers of some rows of the part."""
        if isinstance(rows, slice):
            return self.rows[rows]
        chosen: Numbers = rows.cpu().numpy()
        return self.rows[chosen]


def is_sharded(parameter: Any) -> bool:
    """Whether a parameter is one of which processes may hold parts."""
    found = sys.modules.get("torch.distributed.tensor")
    return found is not None and isinstance(parameter, found.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Returns what this process holds of a tensor, detached, in its own memory."""
    tensor = tensor.detach()
    if not is_sharded(tensor):
        return tensor
    held: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return held


def whole(tensor: Tensor) -> Tensor:
    """Returns all of a tensor, detached; of a sharded one a copy, gathered by all its processes."""
    tensor = tensor.detach()
    if not is_sharded(tensor):
        return tensor
    gathered: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return gathered


def put(tensor: Tensor, values: Tensor) -> None:
    """Writes a tensor's values, of a sharded one those that this process holds.

    Args:
        tensor: The parameter.
        values: The whole's, on any device.
    """
    shard = shard_of("", tensor)
    if shard is None:
        tensor.detach().copy_(values)
        return
    matrix = values.reshape(-1, shard.width)
    import torch

    rows = torch.from_numpy(shard.rows).to(matrix.device)
    part = matrix[rows, shard.columns[0] : shard.columns[1]]
    local(tensor).copy_(part.reshape(shard.shape))


def shard_of(name: str, parameter: Tensor) -> Shard | None:
    """Returns which part of a parameter this process holds; None for one that is no DTensor.

    Args:
        name: The parameter's name.
        parameter: The parameter.

    Raises:
        InputError: It is cut in a way whose elements have no simple numbers here.
    """
    if not is_sharded(parameter):
        return None
    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    shape, own = tuple(parameter.shape), tuple(local(parameter).shape)
    held: list[Numbers] = [np.arange(size) for size in shape]
    group = None
    for number, placement in enumerate(placements):
        if placement.is_replicate() or mesh.size(number) == 1:
            continue
        cut = getattr(placement, "dim", None)
        if cut is None or group is not None:
            raise _odd(name, placements)
        group = mesh.get_group(number)
        split = _split(shape[cut], placement, mesh.size(number))
        held[cut] = split[mesh.get_local_rank(number)]
    if tuple(map(len, held)) != own:
        raise _odd(name, placements)
    last = held[-1] if shape else np.zeros(1, dtype=np.int64)
    if len(last) and int(last[-1]) - int(last[0]) + 1 != len(last):
        raise _odd(name, placements)
    first = int(last[0]) if len(last) else 0
    rows = np.zeros(1, dtype=np.int64)
    for size, numbers in zip(shape[:-1], held[:-1], strict=True):
        rows = (rows[:, None] * size + numbers).reshape(-1)
    width = shape[-1] if shape else 1
    return Shard(rows, (first, first + len(last)), width, own, group)


def sums_over(blocks: Iterable[Block], sums: Tensor) -> Tensor:
    """Adds up what the processes have found, each in its parts of some blocks.

    Args:
        blocks: The blocks, [N].
        sums: One number or row a block, [N, ...], float64. Those of blocks of which each
            process holds all stay as they are.

    Returns:
        The sums, the same bits on all processes.
    """
    import torch.distributed as dist

    groups: dict[int, tuple[Any, list[int]]] = {}
    for index, block in enumerate(blocks):
        if block.shard is not None and block.shard.group is not None:
            group = block.shard.group
            groups.setdefault(id(group), (group, []))[1].append(index)
    for group, indices in groups.values():
        own = sums[indices].contiguous()
        dist.all_reduce(own, group=group)
        sums[indices] = own
    return sums


def gatherers(model: nn.Module) -> list[Any]:
    """Returns the modules whose parameters FSDP2 gathers for their forward passes."""
    found = sys.modules.get("torch.distributed.fsdp")
    if found is None or not hasattr(found, "FSDPModule"):
        return []
    return [module for module in model.modules() if isinstance(module, found.FSDPModule)]


def let_go(modules: Sequence[Any]) -> None:
    """Has FSDP2 forget gathered weights, so that parameters are parts and are gathered anew."""
    for module in modules:
        module.reshard()


def sharing_group(model: nn.Module) -> Any:
    """Returns the processes that hold a model together; None where each holds all of it."""
    let_go(gatherers(model))
    for name, parameter in model.named_parameters():
        shard = shard_of(name, parameter)
        if shard is not None and shard.group is not None:
            return shard.group
    return None


def leads(model: nn.Module) -> bool:
    """Whether this process is the first of those that hold a model together, or holds it alone."""
    if not how_sharded(model):
        return True
    import torch.distributed as dist

    return dist.get_rank() == 0


def how_sharded(model: nn.Module) -> str:
    """Returns how a model is shared out: "" (not at all), "tensor" or "fsdp"."""
    if gatherers(model):
        return "fsdp"
    return "tensor" if any(map(is_sharded, model.parameters())) else ""


def refuse_sharded(model: nn.Module, where: str) -> None:
    """Refuses a model of which no process has whole gradients.

    Args:
        model: The model.
        where: What needs the gradients.

    Raises:
        InputError: Processes hold it together.
    """
    held = how_sharded(model)
    if held:
        what = "needs all of the model in each process"
        raise input_error(where, what, held, "leave model.sharded out")


def gathered_state(model: Any) -> dict[str, Tensor]:
    """Returns a model's state dict, whole and on the CPU, gathered tensor by tensor.

    All processes that hold the model call it; the first has the tensors, the others nothing. Of a
    model with an adapter only the adapter is gathered.
    """
    let_go(gatherers(model))
    keeps, adapted = leads(model), hasattr(model, "peft_config")
    trained = {name for name, own in model.named_parameters() if own.requires_grad}
    owners = {name: id(own) for name, own in model.named_parameters(remove_duplicate=False)}
    once: dict[int, Tensor] = {}
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if adapted and name not in trained and is_sharded(tensor):
            continue
        # Tied names stay one tensor, which a file holds once.
        owner = owners.get(name, -1)
        all_of_it = once[owner] if owner in once else whole(tensor)
        if keeps:
            found[name] = all_of_it if owner in once else all_of_it.cpu()
        if owner >= 0:
            once[owner] = found[name] if keeps else all_of_it[:0]
    return found


def _split(size: int, placement: Any, parts: int) -> list[Numbers]:
    kind: Any = type(placement)
    return _numbers(size, kind, getattr(placement, "split_factor", 1), parts)


@lru_cache(maxsize=256)
def _numbers(size: int, kind: type, factor: int, parts: int) -> list[Numbers]:
    """Returns which of a dimension's places each process has, as PyTorch itself cuts them."""
    import torch

    places = torch.arange(size)
    if kind.__name__ == "Shard":
        cut = list(places.chunk(parts))
        found = cut + [places[:0]] * (parts - len(cut))
    else:
        found, _ = kind(0, split_factor=factor)._split_tensor(  # type: ignore[attr-defined]
            places, parts, with_padding=False, contiguous=True
        )
    return [one.numpy() for one in found]


def _odd(name: str, placements: Sequence[Any]) -> Exception:
    return input_error(
        name or "model",
        "is cut among processes in a way that is not known here",
        " ".join(map(str, placements)),
        "shard each tensor along one dimension of one mesh dimension",
    )
