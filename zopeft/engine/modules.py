"""Full weights: noise is added as each module runs, and the weights are never written.

While a probe is on, each module that owns a trained block runs with scratch weights
``w + step * u`` instead of its own, for the time of its forward alone. Embeddings make
noise only for the rows that the batch touches; the vocabulary matrix is done in chunks.
Where u is a product of thin factors, it runs beside the weight (`zopeft.engine.side_path`).
The wrapper goes inside a hook of ``accelerate.hooks`` where there is one, so offloaded
weights are already on their device when noise is added to them.

Forward passes inside may also be differentiated (meta-training does): a scratch weight
passes its gradient on to the parameter, and instead of being kept for the backward pass
it is made again from its address when the backward pass needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.blocks import Block
from zopeft.blocks.offloaded import Offload
from zopeft.engine import layers
from zopeft.engine.arena import returns_new_memory
from zopeft.engine.direction import Direction
from zopeft.engine.forms import Forms
from zopeft.engine.known import Known
from zopeft.engine.scratch import Scratch, remade
from zopeft.engine.side_path import add_product, has_side_path
from zopeft.engine.sums import terms_of, update_matrix, update_weight
from zopeft.engine.twins import Twins
from zopeft.kernels.plain_backend import PlainKernels, Statistics


@dataclass
class Place:
    """One tensor of one module: where a block's weights are read from."""

    module: nn.Module
    leaf: str
    number: int


class ModuleWeights:
    """The blocks of modules whose weights are perturbed on the fly.

    Args:
        indices: Where the blocks stand among all blocks of the engine, [n].
        blocks: The blocks, [n]; none of them a slice.
        kernels: What makes noise and adds it.
        forms: What shaped blocks' directions are made of.
        offload: The model's offloaded tensors.
    """

    def __init__(
        self,
        indices: Sequence[int],
        blocks: Sequence[Block],
        kernels: PlainKernels,
        forms: Forms,
        offload: Offload,
    ) -> None:
        self.kernels, self.forms, self.offload = kernels, forms, offload
        self.indices = list(indices)
        self.blocks = list(blocks)
        self._places: dict[nn.Module, list[Place]] = {}
        for number, block in enumerate(self.blocks):
            for owner in block.owners:
                place = Place(owner.module, owner.leaf, number)
                self._places.setdefault(owner.module, []).append(place)
        self._resident: set[nn.Module] = set()
        self._reached: set[nn.Module] = set()
        self._settled = False
        self._twins = Twins(self.indices, self.blocks, kernels, forms)
        self._known: list[Known | None] = [None] * len(self.blocks)
        self._measured = False

    @contextmanager
    def perturbed(self, direction: Direction, step: float) -> Iterator[None]:
        """Shows ``w + step * u`` to the forwards inside."""
        wrapped: list[tuple[nn.Module, str, Any]] = []
        twins = self._twins
        twins.direction, twins.step = direction, step
        self._reached.clear()
        resident = [place for module in self._resident for place in self._places[module]]
        with self._swapped(resident):
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
                twins.direction = None

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
    def _swapped(self, places: Iterable[Place], product: bool = True) -> Iterator[list[Scratch]]:
        """Puts scratch weights in place of the modules' own."""
        kept: list[tuple[Place, Tensor]] = []
        made: list[Scratch] = []
        try:
            for place in places:
                weight = place.module._parameters[place.leaf]
                assert weight is not None
                reuse = returns_new_memory(place.module)
                scratch = self._twins.make(place.number, weight, reuse=reuse, product=product)
                kept.append((place, weight))
                made.append(scratch)
                place.module._parameters[place.leaf] = scratch.weight  # type: ignore[assignment]
            yield made
        finally:
            for place, own in kept:
                place.module._parameters[place.leaf] = own  # type: ignore[assignment]
            self._twins.free(made)

    def _wrap(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        places, twins = self._places[module], self._twins
        main = next((place for place in places if place.leaf == "weight"), None)
        alone = main is not None and len(places) == 1
        by_rows = isinstance(module, nn.Embedding) and alone and layers.takes_ids(forward)
        product_beside = (
            main is not None and twins.has_product(main.number) and has_side_path(module, forward)
        )
        changed = [
            p for p in places if p is not main or not product_beside or twins.noisy(p.number)
        ]
        wide = type(module) is nn.Linear and module.weight.numel() > layers.CHUNK
        by_chunks = wide and alone and bool(changed)

        def perturbed_forward(*args: Any, **kwargs: Any) -> Any:
            if twins.direction is None:
                return forward(*args, **kwargs)
            self._reached.add(module)
            if len(args) != 1 or kwargs:
                with self._swapped(places) as made, remade(made):
                    return forward(*args, **kwargs)
            if by_rows and main is not None:
                return layers.embedding(twins, module, main.leaf, main.number, forward, args[0])
            if by_chunks and main is not None:
                product = not product_beside
                output = layers.wide_linear(twins, module, main.number, args[0], product)
            else:
                with self._swapped(changed, not product_beside) as made, remade(made):
                    output = forward(args[0])
            if product_beside and main is not None:
                factors = twins.form(main.number, args[0].device).factors
                assert factors is not None
                output = add_product(module, output, args[0], factors, twins.step)
            return output

        return perturbed_forward

    def update(self, directions: Sequence[Direction], coefficients: Tensor, decays: Tensor) -> None:
        """Writes ``decay * w + sum_k coefficient_k * u_k``; [K, N] and [N], float64."""
        with torch.no_grad():
            for number, block in enumerate(self.blocks):
                index = self.indices[number]
                terms, decay = terms_of(directions, coefficients[:, index]), float(decays[index])
                if terms[0][1] == 0.0 and decay == 1.0:
                    continue
                weight, *copies = self.offload.writable(block)
                if index in self.forms:
                    found = update_matrix(
                        self.kernels, self.forms, index, terms, decay, weight, self._measured
                    )
                else:
                    found = update_weight(
                        self.kernels, index, block, terms, decay, weight.view(-1), self._measured
                    )
                for copy in copies:
                    copy.copy_(weight)
                self._known[number] = None if found is None else Known(found, weight)

    def statistics(self) -> Statistics:
        """Returns mean and unbiased variance of each block, float64 [n].

        Once asked for, they are measured by each update pass, and not read again unless
        somebody else has written the weight since.
        """
        self._measured = True
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
