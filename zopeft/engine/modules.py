"""Full weights: noise is added as each module runs, and the weights are never written.

While a probe is on, each module that owns a trained block runs with scratch weights
``w + step * u`` instead of its own, for the time of its forward alone. Embeddings make
noise only for the rows that the batch touches; the vocabulary matrix is done in chunks.
The wrapper goes inside a hook of ``accelerate.hooks`` where there is one, so offloaded
weights are already on their device when noise is added to them.

Forward passes inside may also be differentiated (meta-training does): a scratch weight
passes its gradient on to the parameter, and instead of being kept for the backward pass
it is made again from its address when the backward pass needs it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.blocks import Block
from zopeft.blocks.offloaded import Offload
from zopeft.engine.arena import Arena, returns_new_memory
from zopeft.engine.direction import Direction
from zopeft.engine.known import Known
from zopeft.engine.scratch import Scratch, Shift, remade
from zopeft.kernels.plain_backend import PlainKernels, Statistics

CHUNK = 1 << 22
"""Elements of a matrix that are perturbed at a time (16 MB of fp32)."""


@dataclass
class Place:
    """One tensor of one module: where a block's weights are read from."""

    leaf: str
    index: int


class ModuleWeights:
    """The blocks of modules whose weights are perturbed on the fly.

    Args:
        indices: Where the blocks stand among all blocks of the engine, [n].
        blocks: The blocks, [n]; none of them a slice.
        kernels: What makes noise and adds it.
        offload: The model's offloaded tensors.
    """

    def __init__(
        self,
        indices: Sequence[int],
        blocks: Sequence[Block],
        kernels: PlainKernels,
        offload: Offload,
    ) -> None:
        self.kernels = kernels
        self.offload = offload
        self.indices = list(indices)
        self.blocks = list(blocks)
        self._places: dict[nn.Module, list[Place]] = {}
        for index, block in enumerate(self.blocks):
            for owner in block.owners:
                self._places.setdefault(owner.module, []).append(Place(owner.leaf, index))
        self._resident: set[nn.Module] = set()
        self._reached: set[nn.Module] = set()
        self._settled = False
        self._direction: Direction | None = None
        self._step = 0.0
        self._arena = Arena()
        self._known: list[Known | None] = [None] * len(self.blocks)

    def scale(self, index: int, direction: Direction) -> Tensor | None:
        """The block's scale under `direction` as a 0-dim tensor, None for one."""
        return None if direction.scales is None else direction.scales[self.indices[index]]

    def _shifted(
        self,
        index: int,
        weight: Tensor,
        direction: Direction,
        step: float,
        start: int,
        scratch: Tensor,
    ) -> Tensor:
        """Fills a scratch with perturbed weights (or rows of them, from `start` on)."""
        self.kernels.shift(
            direction.seed,
            self.blocks[index].address,
            start,
            weight.detach().reshape(-1),
            step,
            self.scale(index, direction),
            scratch.view(-1),
        )
        return scratch

    @contextmanager
    def perturbed(self, direction: Direction, step: float) -> Iterator[None]:
        """Shows ``w + step * u`` to the forwards inside."""
        wrapped: list[tuple[nn.Module, str, Any]] = []
        self._direction, self._step = direction, step
        self._reached.clear()
        with self._swapped(self._resident, direction, step):
            try:
                for module in self._places:
                    if module in self._resident:
                        continue
                    slot = "_old_forward" if "_old_forward" in module.__dict__ else "forward"
                    wrapped.append((module, slot, module.__dict__.get(slot)))
                    setattr(module, slot, self._wrap(module, getattr(module, slot)))
                yield
            finally:
                for module, slot, before in wrapped:
                    if before is None:
                        delattr(module, slot)
                    else:
                        setattr(module, slot, before)
                self._direction = None

    def settle(self) -> bool:
        """Checks after the first probe that each module ran through its own forward.

        A module whose parameters are read by its parent instead gets its scratch weights
        for the whole of each later probe. Offloaded ones are there in their own forward
        alone: a module that has not run was not used.

        Returns:
            True if the probe just done has missed such weights and must be done again.
        """
        if self._settled:
            return False
        self._settled = True
        self._resident = self.offload.always_there(set(self._places) - self._reached)
        return bool(self._resident)

    @contextmanager
    def _swapped(
        self, modules: Iterable[nn.Module], direction: Direction, step: float
    ) -> Iterator[list[Scratch]]:
        """Puts scratch weights in place of the modules' own."""
        kept: list[tuple[nn.Module, str, Tensor]] = []
        made: list[Scratch] = []
        try:
            for module in modules:
                for place in self._places[module]:
                    weight = module._parameters[place.leaf]
                    assert weight is not None
                    reuse = returns_new_memory(module)
                    scratch = self._make(place.index, weight, direction, step, reuse=reuse)
                    kept.append((module, place.leaf, weight))
                    made.append(scratch)
                    module._parameters[place.leaf] = scratch.weight  # type: ignore[assignment]
            yield made
        finally:
            for module, leaf, own in kept:
                module._parameters[leaf] = own  # type: ignore[assignment]
            self._free(made)

    def _make(
        self,
        index: int,
        weight: Tensor,
        direction: Direction,
        step: float,
        start: int = 0,
        reuse: bool = False,
    ) -> Scratch:
        # A graph may hold on to a scratch, so only a forward alone can use one again.
        differentiable = torch.is_grad_enabled()
        buffer = self._arena.take(weight) if reuse and not differentiable else None

        def remake() -> Tensor:
            memory = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
            with torch.no_grad():
                return self._shifted(index, weight, direction, step, start, memory)

        if buffer is None:
            shifted = remake()
        else:
            memory = buffer[: weight.numel()].view(weight.shape)
            shifted = self._shifted(index, weight, direction, step, start, memory)
        address = shifted.data_ptr()
        if differentiable:
            shifted = Shift.apply(weight, shifted)  # type: ignore[no-untyped-call]
        return Scratch(shifted, address, remake, buffer)

    def _free(self, made: Iterable[Scratch]) -> None:
        for scratch in made:
            if scratch.buffer is not None:
                self._arena.give_back(scratch.buffer)
                scratch.buffer = None

    def _wrap(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        places = self._places[module]
        alone = len(places) == 1 and places[0].leaf == "weight"
        by_rows = isinstance(module, nn.Embedding) and alone and _takes_ids(forward)
        by_chunks = type(module) is nn.Linear and alone and module.weight.numel() > CHUNK

        def perturbed_forward(*args: Any, **kwargs: Any) -> Any:
            direction, step = self._direction, self._step
            if direction is None:
                return forward(*args, **kwargs)
            self._reached.add(module)
            if by_rows and len(args) == 1 and not kwargs:
                return self._embedding(module, places[0], forward, args[0], direction, step)
            if by_chunks and len(args) == 1 and not kwargs:
                return self._linear(module, places[0], args[0], direction, step)
            with self._swapped((module,), direction, step) as made, remade(made):
                return forward(*args, **kwargs)

        return perturbed_forward

    def _embedding(
        self,
        module: nn.Module,
        place: Place,
        forward: Callable[..., Any],
        ids: Tensor,
        direction: Direction,
        step: float,
    ) -> Any:
        """Runs an embedding on a small matrix of just the rows that `ids` names."""
        weight = module._parameters[place.leaf]
        assert weight is not None
        rows, inverse = ids.unique(return_inverse=True)
        with torch.no_grad():
            shifted = self.kernels.shift_rows(
                direction.seed,
                self.blocks[place.index].address,
                rows,
                weight.detach(),
                step,
                self.scale(place.index, direction),
            )
        if torch.is_grad_enabled():
            shifted = Shift.apply(weight[rows], shifted)  # type: ignore[no-untyped-call]
        padding, module.padding_idx = module.padding_idx, None  # type: ignore[assignment]
        module._parameters[place.leaf] = shifted  # type: ignore[assignment]
        try:
            return forward(inverse)
        finally:
            module._parameters[place.leaf] = weight
            module.padding_idx = padding

    def _linear(
        self, module: nn.Module, place: Place, inputs: Tensor, direction: Direction, step: float
    ) -> Tensor:
        """Runs a wide linear layer in chunks of output rows."""
        weight, bias = module.weight, module.bias
        assert isinstance(weight, Tensor) and isinstance(bias, Tensor | None)
        rows = max(1, CHUNK // weight.shape[1])
        # Writing the parts where they belong is not open to autograd and autocast.
        apart = torch.is_grad_enabled() or torch.is_autocast_enabled(inputs.device.type)
        flat = inputs.reshape(-1, weight.shape[1])
        parts: list[Tensor] = []
        outputs = flat.new_empty((0 if apart else len(flat), weight.shape[0]))
        for first in range(0, weight.shape[0], rows):
            start = first * weight.shape[1]
            some = weight[first : first + rows]
            scratch = self._make(place.index, some, direction, step, start, reuse=True)
            piece = None if bias is None else bias[first : first + rows]
            try:
                with remade([scratch]):
                    own = outputs[:, first : first + rows]
                    if apart:
                        parts.append(nn.functional.linear(inputs, scratch.weight, piece))
                    elif piece is None:
                        torch.mm(flat, scratch.weight.t(), out=own)
                    else:
                        torch.addmm(piece, flat, scratch.weight.t(), out=own)
            finally:
                self._free([scratch])
        return torch.cat(parts, dim=-1) if apart else outputs.view(*inputs.shape[:-1], -1)

    def update(self, direction: Direction, coefficients: Tensor, decays: Tensor) -> None:
        """Writes ``decay * w + coefficient * u``; both [N] over all blocks, float64."""
        with torch.no_grad():
            for index, block in enumerate(self.blocks):
                at = self.indices[index]
                coefficient, decay = float(coefficients[at]), float(decays[at])
                if coefficient == 0.0 and decay == 1.0:
                    continue
                weight, *twins = self.offload.writable(block)
                statistics = self.kernels.update(
                    direction.seed,
                    block.address,
                    weight.view(-1),
                    coefficient,
                    decay,
                    self.scale(index, direction),
                )
                for twin in twins:
                    twin.copy_(weight)
                known = None if statistics is None else Known(statistics, weight)
                self._known[index] = known

    def statistics(self) -> Statistics:
        """Returns mean and unbiased variance of each block, float64 [n].

        What the update pass has measured is not read again, unless somebody else has
        written the weight since.
        """
        values: list[Statistics] = []
        with torch.no_grad():
            for block, known in zip(self.blocks, self._known, strict=True):
                weight = self.offload.value(block)
                if known is not None and known.fits(weight):
                    values.append(known.statistics)
                else:
                    values.append(self.kernels.statistics(weight))
        device = values[0][0].device
        means, variances = (
            [each.to(device) for each in part] for part in zip(*values, strict=True)
        )
        return torch.stack(means), torch.stack(variances)


def _takes_ids(forward: Callable[..., Any]) -> bool:
    """Whether an embedding's forward takes token ids and nothing else."""
    names = list(inspect.signature(forward).parameters)
    return len(names) == 1 and names[0] in ("input", "input_ids")
