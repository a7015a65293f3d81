"""A block is one named parameter tensor that can be perturbed: the paper's "parameter block"."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from zopeft.blocks.shards import Shard, local

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, eq=False)
class Owner:
    """A place that holds a parameter.

    Attributes:
        module_name: Dotted name of the module in the model it was discovered in.
        module: The module (for PEFT's parameter dicts, the dict itself).
        leaf: The parameter's key in ``module._parameters``.
    """

    module_name: str
    module: nn.Module
    leaf: str


def address_of(parameter_name: str, salt: int = 0) -> int:
    """Returns the 32-bit address of a parameter: it names the block in the noise's counter.

    The first 4 bytes (big endian) of blake2b of the name, so that it depends on nothing but
    the name: neither on order, nor on what is frozen.

    Args:
        parameter_name: The parameter's name in ``model.named_parameters()``.
        salt: 0; larger where two names of one model share an address (see `Block.salt`).
    """
    text = parameter_name if salt == 0 else f"{parameter_name}#{salt}"
    return int.from_bytes(hashlib.blake2b(text.encode()).digest()[:4], "big")


@dataclass(frozen=True, eq=False)
class Block:
    """One parameter tensor, or one layer's slice of a prefix tensor.

    Attributes:
        name: Name as in ``model.named_parameters()``; a slice of a prefix tensor is
            ``<parameter name>[3.key]`` or ``[3.value]``.
        role: What the tensor does: ``q_proj``, ``down_proj``, ``input_norm``, ``embed``,
            ``q_proj_bias``, ``lora_A``, ``prefix_key``, ..., ``other``.
        layer: Index of the transformer layer, None outside the layers.
        depth: ``layer / max(1, num_layers - 1)``, in [0, 1]; None outside the layers.
        kind: ``linear`` [O, I], ``conv1d`` [I, O], ``embedding`` [V, D], ``vector`` [D],
            ``prompt`` [T, D] or ``tensor`` (any other layout).
        shape: Shape of the block (of the slice, where it is one).
        owners: Every place that holds the tensor; tied weights have several.
        parameter_name: Name of the whole parameter; equals `name` unless a slice.
        key: Name, in the bare base model, of the tensor this block is or adapts, for
            example ``model.layers.0.self_attn.q_proj.weight`` for the LoRA matrices on it;
            the block's own name where there is no such tensor.
        base_role: Role of the tensor that `key` names.
        columns: The slice ``[first, last)`` of the parameter's last dimension, or None.
        salt: 0, or what told this parameter's address apart from another's.
        shard: What this process holds of it, where processes share it out; None for all.
    """

    name: str
    role: str
    layer: int | None
    depth: float | None
    kind: str
    shape: tuple[int, ...]
    owners: tuple[Owner, ...]
    parameter_name: str
    key: str
    base_role: str
    columns: tuple[int, int] | None = None
    salt: int = 0
    shard: Shard | None = None

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter as it stands in the model now (the whole of it, also for a slice)."""
        found = self.owners[0].module._parameters.get(self.owners[0].leaf)
        assert found is not None
        return found

    @property
    def data(self) -> torch.Tensor:
        """A view of this block's values, detached, as far as this process holds them."""
        whole = local(self.parameter)
        return whole if self.columns is None else whole[..., self.columns[0] : self.columns[1]]

    @property
    def numel(self) -> int:
        """Number of elements of the block, of all processes together."""
        return math.prod(self.shape)

    @property
    def own_shape(self) -> tuple[int, ...]:
        """Shape of what this process holds; `shape` where the block is not shared out."""
        return self.shape if self.shard is None else self.shard.shape

    @property
    def address(self) -> int:
        """32-bit address of the whole parameter in the noise (see `address_of`)."""
        return address_of(self.parameter_name, self.salt)

    def __repr__(self) -> str:
        return f"Block({self.name}, role={self.role}, layer={self.layer}, shape={self.shape})"


class Blocks(Sequence[Block]):
    """The blocks of a model, in the order of ``model.named_parameters()``.

    Attributes:
        model: The model they were discovered in.
        space: ``full``, ``adapter`` or ``scales``.
        num_layers: Number of transformer layers (0 where none were found).
        base_name: ``config._name_or_path`` of the base model ("" if it has none).
        architecture: Class name of the base model, for example ``LlamaForCausalLM``.
        adapter: Name of the active adapter, None on a bare model.
        compiled: Whether the model, or a part of it, was compiled when they were discovered.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        model: nn.Module,
        space: str,
        num_layers: int,
        base_name: str,
        architecture: str,
        adapter: str | None = None,
        compiled: bool = False,
    ) -> None:
        self._blocks = tuple(blocks)
        self.model = model
        self.space = space
        self.num_layers = num_layers
        self.base_name = base_name
        self.architecture = architecture
        self.adapter = adapter
        self.compiled = compiled

    @overload
    def __getitem__(self, index: int) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> Blocks: ...
    def __getitem__(self, index: int | slice) -> Block | Blocks:
        """Returns a block; a slice of blocks stays `Blocks` of the same model."""
        if isinstance(index, slice):
            return self.only(self._blocks[index])
        return self._blocks[index]

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[Block]:
        return iter(self._blocks)

    def only(self, blocks: Sequence[Block]) -> Blocks:
        """Returns the given blocks as `Blocks` of the same model and space."""
        return Blocks(
            blocks,
            self.model,
            self.space,
            self.num_layers,
            self.base_name,
            self.architecture,
            self.adapter,
            self.compiled,
        )

    @property
    def names(self) -> list[str]:
        """The blocks' names, in order."""
        return [block.name for block in self._blocks]

    @property
    def numels(self) -> list[int]:
        """The blocks' element counts, in order."""
        return [block.numel for block in self._blocks]

    @property
    def numel(self) -> int:
        """Elements of all blocks together: the paper's d."""
        return sum(self.numels)

    def parameters(self) -> list[nn.Parameter]:
        """The parameters behind the blocks, each once, in order."""
        return list({id(b.parameter): b.parameter for b in self._blocks}.values())

    def named(self, name: str) -> Block:
        """Returns the block of that name.

        Raises:
            InputError: There is none; close matches are offered.
        """
        from zopeft.errors import close_matches, input_error

        for block in self._blocks:
            if block.name == name:
                return block
        raise input_error("blocks", "no block of that name", name, close_matches(name, self.names))

    def rows(self) -> list[dict[str, Any]]:
        """The table as one dict a block: name, role, layer, kind, shape, elements, tied."""
        from zopeft.blocks.table import rows

        return rows(self)

    def __str__(self) -> str:
        from zopeft.blocks.table import text

        return text(self)

    def __repr__(self) -> str:
        return f"Blocks({self.architecture}, space={self.space!r}, {len(self)} blocks)"
