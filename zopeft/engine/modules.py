"""Full weights: noise is added as each module runs, and the weights are never written.

While a probe is on, each module that owns a trained block runs with scratch weights
``w + step * u`` instead of its own, for the time of its forward alone; the norms of a 16-bit
model in fp32 where that gives the same numbers (`zopeft.engine.exact`). Embeddings make
noise only for the rows that the batch touches; the vocabulary matrix is done in chunks.
Where u is a product of thin factors, it runs beside the weight (`zopeft.engine.side_path`).
The weights of a compiled model are all perturbed at once, which takes their memory again.
The wrapper goes inside a hook of ``accelerate.hooks`` where there is one, so offloaded
weights are already on their device when noise is added to them.

Forward passes inside may also be differentiated (meta-training does): a scratch weight
passes its gradient on to the parameter, and instead of being kept for the backward pass
it is made again from its address when the backward pass needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn

from zopeft.blocks import Block
from zopeft.blocks.offloaded import Offload
from zopeft.engine.carrier import Carrier, CopiedBatch, UnstackableError
from zopeft.engine.direction import Direction, Probe
from zopeft.engine.elements import Elements
from zopeft.engine.exact import ExactVectors
from zopeft.engine.flips import flips_of
from zopeft.engine.layer_forward import LayerForward
from zopeft.engine.own_weights import OwnWeights
from zopeft.engine.reads import Reads
from zopeft.engine.residents import Residents
from zopeft.engine.side_path import has_side_path
from zopeft.engine.swaps import Place, Swaps
from zopeft.engine.twins import Twins
from zopeft.engine.vector import Vector
from zopeft.errors import input_error
from zopeft.kernels.plain_backend import Statistics


class ModuleWeights(Carrier):
    """The blocks of modules whose weights are perturbed on the fly.

    Args:
        indices: Where the blocks stand among all blocks of the engine, [n].
        blocks: The blocks, [n]; none of them a slice.
        elements: What makes the numbers of vectors.
        offload: The model's offloaded tensors.
        reads: What watches the forward passes.

    Attributes:
        whole: Whether all weights are perturbed at once, see `show_whole`.
    """

    def __init__(
        self,
        indices: Sequence[int],
        blocks: Sequence[Block],
        elements: Elements,
        offload: Offload,
        reads: Reads,
    ) -> None:
        self.indices, self.blocks = list(indices), list(blocks)
        self.offload, self.forms, self.reads = offload, elements.forms, reads
        self.whole = False
        self._own = OwnWeights(self.indices, self.blocks, elements, offload)
        self._twins = Twins(self.indices, self.blocks, elements)
        self._swaps = Swaps(self.blocks, self._twins, offload)
        self._exact = ExactVectors()
        self._residents = Residents(self.indices, self.blocks, self._swaps, offload, reads)
        self._layers: dict[nn.Module, LayerForward] = {}
        self._stack: tuple[Sequence[Probe], CopiedBatch] | None = None

    @contextmanager
    def perturbed(self, direction: Vector, step: float) -> Iterator[None]:
        """Shows ``w + step * u`` to the forwards inside."""
        self._twins.show(direction, step)
        self._residents.shown.clear()
        self._residents.reached.clear()
        try:
            with self._swaps.everywhere() if self.whole else self._wrapped():
                yield
        finally:
            self._twins.show(None)
        self._residents.note()

    @contextmanager
    def _wrapped(self) -> Iterator[None]:
        """Has each module run with a twin of its weights, for the time of its forward."""
        wrapped: list[tuple[nn.Module, str, Any]] = []
        self._swaps.begin()
        resident = [
            place for module in self._residents.modules for place in self._swaps.moved(module)
        ]
        with self._swaps.swapped(resident):
            try:
                for module in self._swaps.places:
                    # The first probe looks at which modules run, moved or not.
                    moved = self._swaps.moved(module)
                    if (self._residents.settled and not moved) or module in self._residents.modules:
                        continue
                    self._residents.shown.add(module)
                    slot = "_old_forward" if "_old_forward" in module.__dict__ else "forward"
                    wrapped.append((module, slot, module.__dict__.get(slot)))
                    module.__dict__[slot] = self._wrap(module, moved, getattr(module, slot))
                yield
            finally:
                for module, slot, before in wrapped:
                    if before is None:
                        del module.__dict__[slot]
                    else:
                        module.__dict__[slot] = before

    def show_whole(self) -> None:
        """From now on shows a twin of all weights at once: for a compiled model.

        Compiled code would be made anew for each wrapper of a forward, and cannot be wrapped. The
        norms of a 16-bit model are then rounded as all other weights are.

        Raises:
            InputError: The weights are offloaded.
        """
        if self.offload and not self.whole:
            raise input_error(
                "model",
                "is compiled, and its trained weights are offloaded",
                do="leave out torch.compile, or keep the model on one device",
            )
        self.whole = True

    @property
    def settled(self) -> bool:
        """Whether all weights that are read outside of their modules have been found."""
        return self._residents.settled or self.whole

    @property
    def ungroupable(self) -> str:
        """Why the patterns of a direction (`Flips`) cannot share a forward; "" if they can."""
        if self.whole:
            return "the model is compiled"
        if self.offload or self._residents.modules:
            return "the model's weights are not all where its layers are"
        return ""

    @property
    def unstackable(self) -> str:
        """Why the probes of several directions cannot share a forward; "" if they can.

        They can where each reads the weights of linear layers as they are, low rank, and where
        one draw of noise serves both probes of a pair.
        """
        if self.ungroupable:
            return self.ungroupable
        if self.twinned and not self._twins.kernels.pairs:
            return "the directions are not of low rank"
        for module, places in self._swaps.places.items():
            matrices = any(len(self.blocks[place.number].shape) > 1 for place in places)
            known = isinstance(module, nn.Embedding) or has_side_path(module, module.forward)
            if matrices and not known:
                return "a trained matrix is not that of a linear layer"
        return ""

    @property
    def twinned(self) -> bool:
        """Whether layers have weights of their own for each probe of a forward."""
        return any(
            len(self.blocks[place.number].shape) > 1
            and not isinstance(module, nn.Embedding)
            and not (self._twins.has_product(place.number) and not self._twins.noisy(place.number))
            for module, places in self._swaps.places.items()
            for place in places
        )

    @contextmanager
    def stacked(
        self, probes: Sequence[Probe], copies: CopiedBatch
    ) -> Iterator[Mapping[int, Tensor]]:
        """Shows ``w + step * u`` of probe p to copy p of the batch.

        Linear layers run once, with a product beside them for each copy; what else is
        perturbed, norms, biases and embeddings, runs once for each copy.

        Args:
            probes: Directions and steps, [P].
            copies: Where the copies lie.

        Raises:
            UnstackableError: A module's weights are read by something else than its forward.
        """
        if self.whole:
            raise UnstackableError(self.unstackable, True)
        if self._residents.modules:
            # They show one probe to all copies.
            raise UnstackableError(self.ungroupable, True)
        if flips_of(probes) is None and any(vector.plain is None for vector, _ in probes):
            raise UnstackableError("a probe is along more than one direction", False)
        seeds = {seed for vector, _ in probes for seed in vector.seeds}
        self.forms.kept = max(self.forms.kept, len(seeds))
        self._stack = probes, copies
        try:
            with self.perturbed(*probes[0]):
                yield {}
        finally:
            self._stack = None
        if self._residents.missed():
            raise UnstackableError("weights are read outside of their layer", True)
        self._residents.settled = True

    def settle(self) -> bool:
        """See `Residents.settle`; where all weights are shown at once none is missed."""
        return not self.whole and self._residents.settle()

    def _wrap(
        self, module: nn.Module, moved: Sequence[Place], forward: Callable[..., Any]
    ) -> Callable[..., Any]:
        layer = self._layers.get(module)
        if layer is None or not layer.fits(forward, [place.number for place in moved]):
            layer = LayerForward(module, forward, self._swaps, self._exact)
            self._layers[module] = layer

        def run(*args: Any, **kwargs: Any) -> Any:
            single = len(args) == 1 and not kwargs
            if self._stack is not None:
                if not single:
                    raise UnstackableError("a trained layer takes more than its input", True)
                return layer.copied(args[0], *self._stack)
            return layer.one(args[0]) if single else layer.anyhow(*args, **kwargs)

        def perturbed_forward(*args: Any, **kwargs: Any) -> Any:
            if self._twins.vector is None:
                return forward(*args, **kwargs)
            self._residents.reached.add(module)
            if not self.reads.touching:
                return run(*args, **kwargs)
            with self.reads.own(self._residents.numbers(module)):
                return run(*args, **kwargs)

        return perturbed_forward

    def update(self, directions: Sequence[Direction], coefficients: Tensor, decays: Tensor) -> None:
        """See `OwnWeights.update`."""
        self._own.update(directions, coefficients, decays)

    def stored(self, index: int) -> Tensor:
        """See `OwnWeights.stored`."""
        return self._own.stored(index)

    def edited(self, index: int, seed: int) -> AbstractContextManager[Tensor]:
        """See `OwnWeights.edited`."""
        return self._own.edited(index)

    @property
    def at_once(self) -> bool:
        """See `Carrier.at_once`: not what is fetched from elsewhere."""
        return not self.offload

    def statistics(self) -> Statistics:
        """See `OwnWeights.statistics`."""
        return self._own.statistics()
