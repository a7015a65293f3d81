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
from zopeft.engine.direction import Direction
from zopeft.kernels import plain
from zopeft.noise import Noise

CHUNK = 1 << 22
"""Elements of a matrix that are perturbed at a time (16 MB of fp32)."""


@dataclass
class Place:
    """One tensor of one module: where a block's weights are read from."""

    leaf: str
    index: int


@dataclass
class Scratch:
    """A perturbed weight, where it lies in memory, and how to make it again."""

    weight: Tensor
    address: int
    remake: Callable[[], Tensor]


class _Shift(torch.autograd.Function):
    """Replaces a weight by its perturbed twin; the gradient passes through unchanged."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, shifted: Tensor) -> Tensor:
        """Returns `shifted`."""
        return shifted

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Hands the gradient to `weight`."""
        return gradients[0], None


class ModuleWeights:
    """The blocks of modules whose weights are perturbed on the fly.

    Args:
        indices: Where the blocks stand among all blocks of the engine, [n].
        blocks: The blocks, [n]; none of them a slice.
        noise: The noise family.
    """

    def __init__(self, indices: Sequence[int], blocks: Sequence[Block], noise: Noise) -> None:
        self.noise = noise
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

    def scale(self, index: int, direction: Direction) -> Tensor | None:
        """The block's scale under `direction` as a 0-dim tensor, None for one."""
        return None if direction.scales is None else direction.scales[self.indices[index]]

    def _scaled(self, noise: Tensor, index: int, direction: Direction) -> Tensor:
        scale = self.scale(index, direction)
        return noise if scale is None else noise.mul_(scale.to(noise.device))

    def run(
        self, index: int, weight: Tensor, start: int, count: int, direction: Direction
    ) -> Tensor:
        """Returns u of elements start ... start + count of a block, fp32 [count]."""
        noise = self.noise.at_elements(
            direction.seed, self.blocks[index].address, start, count, weight.device
        )
        return self._scaled(noise, index, direction)

    def _shifted(
        self, index: int, weight: Tensor, direction: Direction, step: float, start: int = 0
    ) -> Tensor:
        """The perturbed copy of a contiguous weight (or of rows of it from `start` on)."""
        scratch = torch.empty_like(weight, memory_format=torch.contiguous_format)
        flat, source = scratch.view(-1), weight.reshape(-1)
        for at in range(0, flat.numel(), CHUNK):
            count = min(CHUNK, flat.numel() - at)
            u = self.run(index, weight, start + at, count, direction)
            flat[at : at + count] = plain.perturb(source[at : at + count], u, step)
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
        for the whole of each later probe.

        Returns:
            True if the probe just done has missed such weights and must be done again.
        """
        if self._settled:
            return False
        self._settled = True
        self._resident = set(self._places) - self._reached
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
                    scratch = self._make(place.index, weight, direction, step)
                    kept.append((module, place.leaf, weight))
                    made.append(scratch)
                    module._parameters[place.leaf] = scratch.weight  # type: ignore[assignment]
            yield made
        finally:
            for module, leaf, weight in kept:
                module._parameters[leaf] = weight  # type: ignore[assignment]

    def _make(
        self, index: int, weight: Tensor, direction: Direction, step: float, start: int = 0
    ) -> Scratch:
        with torch.no_grad():
            shifted = self._shifted(index, weight, direction, step, start)
        address = shifted.data_ptr()
        if torch.is_grad_enabled():
            shifted = _Shift.apply(weight, shifted)  # type: ignore[no-untyped-call]

        def remake() -> Tensor:
            with torch.no_grad():
                return self._shifted(index, weight.detach(), direction, step, start)

        return Scratch(shifted, address, remake)

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
            with self._swapped((module,), direction, step) as made, _remade(made):
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
        some = weight[rows]
        with torch.no_grad():
            noise = self.noise.at_rows(
                direction.seed, self.blocks[place.index].address, rows, weight.shape[1]
            )
            shifted = plain.perturb(some, self._scaled(noise, place.index, direction), step)
        if torch.is_grad_enabled():
            shifted = _Shift.apply(some, shifted)  # type: ignore[no-untyped-call]
        padding, module.padding_idx = module.padding_idx, None
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
        parts = []
        for first in range(0, weight.shape[0], rows):
            start = first * weight.shape[1]
            some = weight[first : first + rows]
            scratch = self._make(place.index, some, direction, step, start)
            piece = None if bias is None else bias[first : first + rows]
            with _remade([scratch]):
                parts.append(nn.functional.linear(inputs, scratch.weight, piece))
        return torch.cat(parts, dim=-1)

    def update(self, direction: Direction, coefficients: Tensor, decays: Tensor) -> None:
        """Writes ``decay * w + coefficient * u``; both [N] over all blocks, float64."""
        with torch.no_grad():
            for index, block in enumerate(self.blocks):
                at = self.indices[index]
                coefficient, decay = float(coefficients[at]), float(decays[at])
                if coefficient == 0.0 and decay == 1.0:
                    continue
                weight = block.parameter
                flat = weight.data.view(-1)
                for start in range(0, flat.numel(), CHUNK):
                    count = min(CHUNK, flat.numel() - start)
                    u = self.run(index, weight, start, count, direction)
                    plain.update_(
                        flat[start : start + count],
                        u,
                        coefficient,
                        decay,
                        direction.seed,
                        block.address,
                        start,
                    )

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Returns mean and unbiased variance of each block, float64 [n]."""
        with torch.no_grad():
            moments = [_moments(block.parameter.detach()) for block in self.blocks]
        return torch.stack([m for m, _ in moments]), torch.stack([v for _, v in moments])


@contextmanager
def _remade(made: list[Scratch]) -> Iterator[None]:
    """Keeps scratch weights out of the autograd graph: they are made again when needed."""
    if not torch.is_grad_enabled():
        yield
        return

    def pack(tensor: Tensor) -> Any:
        for scratch in made:
            whole = tensor.numel() == scratch.weight.numel()
            if whole and tensor.data_ptr() == scratch.address:
                return scratch.remake, tensor.shape, tensor.stride()
        return tensor

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        remake, shape, stride = packed
        weight: Tensor = remake()
        return weight.as_strided(shape, stride)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def _takes_ids(forward: Callable[..., Any]) -> bool:
    """Whether an embedding's forward takes token ids and nothing else."""
    names = list(inspect.signature(forward).parameters)
    return len(names) == 1 and names[0] in ("input", "input_ids")


def _moments(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance in float64, a chunk at a time."""
    flat = weight.reshape(-1)
    total = torch.zeros((), dtype=torch.float64, device=flat.device)
    for chunk in flat.split(CHUNK):
        total += chunk.double().sum()
    mean = total / flat.numel()
    squares = torch.zeros_like(total)
    for chunk in flat.split(CHUNK):
        squares += (chunk.double() - mean).square_().sum()
    return mean, squares / max(1, flat.numel() - 1)
