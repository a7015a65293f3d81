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
from zopeft.engine.bundles import Group
from zopeft.engine.copies import Copies, UnstackableError
from zopeft.engine.direction import Probe
from zopeft.engine.elements import Elements
from zopeft.engine.exact import ExactVectors
from zopeft.engine.flip_path import add_flips
from zopeft.engine.flips import flips_of
from zopeft.engine.own_weights import OwnWeights
from zopeft.engine.reads import Reads
from zopeft.engine.scratch import Scratch, remade
from zopeft.engine.side_path import add_product, has_side_path
from zopeft.engine.tied import View, turned, views_of
from zopeft.engine.twins import Twins
from zopeft.engine.vector import Vector
from zopeft.errors import input_error


@dataclass
class Place:
    """One tensor of one module: where a block's weights are read from.

    Attributes:
        view: How it reads them where that is another layout than the block's.
    """

    module: nn.Module
    leaf: str
    number: int
    view: View | None = None


class ModuleWeights(OwnWeights):
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

    groups: Sequence[Group] = ()

    def __init__(
        self,
        indices: Sequence[int],
        blocks: Sequence[Block],
        elements: Elements,
        offload: Offload,
        reads: Reads,
    ) -> None:
        super().__init__(indices, blocks, elements, offload)
        self._places: dict[nn.Module, list[Place]] = {}
        for number, block in enumerate(self.blocks):
            for owner in block.owners:
                view = None if offload.holds(block) else turned(block, owner)
                place = Place(owner.module, owner.leaf, number, view)
                self._places.setdefault(owner.module, []).append(place)
        self._turned = {p.number for own in self._places.values() for p in own if p.view}
        self._sources: dict[int, nn.Parameter] = {}
        self.reads = reads
        self.whole = False
        self._resident: set[nn.Module] = set()
        self._reached: set[nn.Module] = set()
        self._settled = False
        self._stack: tuple[Sequence[Probe], Copies] | None = None
        self._twins = Twins(self.indices, self.blocks, elements)
        self._exact = ExactVectors()

    @contextmanager
    def perturbed(self, direction: Vector, step: float) -> Iterator[None]:
        """Shows ``w + step * u`` to the forwards inside."""
        self._twins.vector, self._twins.step = direction, step
        self._reached.clear()
        try:
            with self._replaced() if self.whole else self._wrapped():
                yield
        finally:
            self._twins.vector = None
        if self.reads.latest:
            self.reads.note(n for module in self._reached for n in self._numbers(module))

    @contextmanager
    def _replaced(self) -> Iterator[None]:
        """Puts twins of all weights in the parameters' place, where compiled code finds them."""
        kept: list[tuple[nn.Parameter, Tensor]] = []
        made: list[Scratch] = []
        try:
            for number, block in enumerate(self.blocks):
                if not self._twins.touches(number):
                    continue
                own, others = block.parameter, list(views_of(block))
                with torch.no_grad():
                    scratch = self._twins.make(number, own, reuse=True)
                made.append(scratch)
                for parameter, view in ((own, None), *others):
                    kept.append((parameter, parameter.data))
                    shown = scratch.weight
                    parameter.data = shown if view is None else view.of(shown)
            yield
        finally:
            for parameter, data in kept:
                parameter.data = data
            self._twins.free(made)

    @contextmanager
    def _wrapped(self) -> Iterator[None]:
        """Has each module run with a twin of its weights, for the time of its forward."""
        wrapped: list[tuple[nn.Module, str, Any]] = []
        # A resident layer holds a scratch, from which no other must be made.
        self._sources = {number: self.blocks[number].parameter for number in self._turned}
        resident = [p for module in self._resident for p in self._places[module] if self._moves(p)]
        with self._swapped(resident):
            try:
                for module, places in self._places.items():
                    # The first probe looks at which modules run, moved or not.
                    idle = self._settled and not any(map(self._moves, places))
                    if idle or module in self._resident:
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

    def show_whole(self) -> None:
        """From now on shows a twin of all weights at once: for a compiled model.

        Compiled code would be made anew for each wrapper of a forward, and cannot be wrapped. The
        norms of a 16-bit model are then rounded as all other weights are.

        Raises:
            InputError: The weights are offloaded.
        """
        if self.offload:
            raise input_error(
                "model",
                "is compiled, and its trained weights are offloaded",
                do="leave out torch.compile, or keep the model on one device",
            )
        self.whole = True

    def _numbers(self, module: nn.Module) -> frozenset[int]:
        """Indices of the blocks of a module, among all of the engine's."""
        return frozenset(self.indices[place.number] for place in self._places[module])

    @property
    def settled(self) -> bool:
        """Whether all weights that are read outside of their modules have been found."""
        return self._settled or self.whole

    def _moves(self, place: Place) -> bool:
        return self._twins.touches(place.number)

    @property
    def ungroupable(self) -> str:
        """Why the patterns of a direction (`Flips`) cannot share a forward; "" if they can."""
        if self.whole:
            return "the model is compiled"
        if self.offload or self._resident:
            return "the model's weights are not all where its layers are"
        return ""

    @property
    def unstackable(self) -> str:
        """Why the probes of several directions cannot share a forward; "" if they can.

        They can where each reads the weights of linear layers as they are: low rank.
        """
        if self.ungroupable:
            return self.ungroupable
        for module, places in self._places.items():
            beside = has_side_path(module, module.forward)
            for number in (p.number for p in places if not isinstance(module, nn.Embedding)):
                product = self._twins.has_product(number) and not self._twins.noisy(number)
                if len(self.blocks[number].shape) > 1 and not (beside and product):
                    return "the directions are not of low rank"
        return ""

    @contextmanager
    def stacked(self, probes: Sequence[Probe], copies: Copies) -> Iterator[None]:
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
        if flips_of(probes) is None and any(vector.plain is None for vector, _ in probes):
            raise UnstackableError("a probe is along more than one direction", False)
        seeds = {seed for vector, _ in probes for seed in vector.seeds}
        self.forms.kept = max(self.forms.kept, len(seeds))
        self._stack = probes, copies
        try:
            with self.perturbed(*probes[0]):
                yield
        finally:
            self._stack = None
        if self._missed():
            raise UnstackableError("weights are read outside of their layer", True)
        self._settled = True

    def settle(self) -> bool:
        """Checks after a probe that what was read ran through its module's own forward.

        A module whose parameters are read by its parent, instead or as well, gets its
        scratch weights for the whole of each later probe. Offloaded ones are there in their
        own forward alone: a module that has not run was not used.

        Returns:
            True if the probe just done has missed such weights and must be done again.

        Raises:
            InputError: Something reads the weights themselves, whatever its module holds.
        """
        if self.whole:
            return False
        missed = self._missed()
        if not self._settled:
            self._refuse_references()
        self._settled = self._settled or not missed
        self._resident |= missed
        return bool(missed)

    def _missed(self) -> set[nn.Module]:
        """Returns the modules whose weights the latest probe has read unperturbed."""
        read, outside = self.reads.latest, self.reads.outside
        if not read:
            return set()
        found = set()
        for module in self._places.keys() - self._resident:
            numbers = self._numbers(module)
            if (module not in self._reached and numbers & read) or numbers & outside:
                found.add(module)
        return self.offload.always_there(found)

    def _refuse_references(self) -> None:
        for module in self._resident:
            for place in self._places[module]:
                if self.indices[place.number] in self.reads.outside:
                    raise input_error(
                        "model",
                        "a trained weight is read through a reference of its own",
                        self.blocks[place.number].name,
                        "read it from its module, or take carrier='flat'",
                    )

    @contextmanager
    def _swapped(
        self, places: Iterable[Place], product: bool = True, exact: bool = False
    ) -> Iterator[list[Scratch]]:
        """Puts scratch weights in place of the modules' own, or fp32 ones (`exact`)."""
        kept: list[tuple[Place, Tensor]] = []
        made: list[Scratch] = []
        try:
            for place in places:
                weight = place.module._parameters.get(place.leaf)
                assert weight is not None
                reuse, view = returns_new_memory(place.module), place.view
                source = weight if view is None else self._sources[place.number]
                scratch = self._twins.make(
                    place.number, source, reuse=reuse, product=product, exact=exact
                )
                kept.append((place, weight))
                made.append(scratch)
                shown = scratch.weight if view is None else view.of(scratch.weight)
                place.module._parameters[place.leaf] = shown  # type: ignore[assignment]
            yield made
        finally:
            for place, own in kept:
                place.module._parameters[place.leaf] = own  # type: ignore[assignment]
            self._twins.free(made)

    def _run(
        self,
        module: nn.Module,
        places: Sequence[Place],
        forward: Callable[..., Any],
        inputs: Any,
        product: bool,
    ) -> Any:
        """Runs a module with scratch weights: a norm's in fp32 where it is the same layer."""
        dtype = None
        if self.kernels.rounding == "stochastic":
            dtype = self._exact.output(module, [place.leaf for place in places], forward, inputs)
        with self._swapped(places, product, exact=dtype is not None) as made, remade(made):
            output = forward(inputs)
        return output if dtype is None else output.to(dtype)

    def _wrap(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        twins = self._twins
        places = [place for place in self._places[module] if self._moves(place)]
        main = next((place for place in places if place.leaf == "weight"), None)
        straight = all(place.view is None for place in places)
        alone = main is not None and len(places) == 1 and straight
        by_rows = isinstance(module, nn.Embedding) and alone and layers.takes_ids(forward)
        product_beside = (
            main is not None
            and main.view is None
            and twins.has_product(main.number)
            and has_side_path(module, forward)
        )
        changed = [
            p for p in places if p is not main or not product_beside or twins.noisy(p.number)
        ]
        bias = next((place.number for place in places if place.leaf == "bias"), None)
        known = main is not None and len(places) == 1 + (bias is not None)
        flips_beside = known and straight and has_side_path(module, forward)
        wide = type(module) is nn.Linear and module.weight.numel() > layers.CHUNK
        by_chunks = wide and alone and bool(changed)

        def one(inputs: Tensor) -> Any:
            if by_rows and main is not None:
                return layers.embedding(twins, module, main.leaf, main.number, forward, inputs)
            if by_chunks and main is not None:
                product = not product_beside
                output = layers.wide_linear(twins, module, main.number, inputs, product)
            else:
                output = self._run(module, changed, forward, inputs, not product_beside)
            return beside(output, inputs) if product_beside else output

        def beside(output: Tensor, inputs: Tensor) -> Tensor:
            assert main is not None
            factors = twins.form(main.number, inputs.device).factors
            assert factors is not None
            return add_product(module, output, inputs, factors, twins.step)

        def copied(inputs: Tensor) -> Tensor:
            assert self._stack is not None
            probes, copies = self._stack
            dim = copies.dimension(module, inputs, len(probes))
            flips = flips_of(probes) if flips_beside else None
            if flips is not None and main is not None:
                whole, numbers = forward(inputs), (main.number, bias)
                seen = (whole, inputs, dim, flips, probes[0][1])
                return add_flips(twins, module, *seen, numbers)
            once = product_beside and not changed
            whole = forward(inputs) if once else inputs
            parts, own = (tensor.chunk(len(probes), dim) for tensor in (inputs, whole))
            pieces = []
            for probe, part, output in zip(probes, parts, own, strict=True):
                twins.vector, twins.step = probe
                pieces.append(beside(output, part) if once else one(part))
            written = once and all(a is b for a, b in zip(pieces, own, strict=True))
            return whole if written else torch.cat(pieces, dim)

        def run(*args: Any, **kwargs: Any) -> Any:
            single = len(args) == 1 and not kwargs
            if self._stack is not None:
                if not single:
                    raise UnstackableError("a trained layer takes more than its input", True)
                return copied(args[0])
            if not single:
                with self._swapped(places) as made, remade(made):
                    return forward(*args, **kwargs)
            return one(args[0])

        def perturbed_forward(*args: Any, **kwargs: Any) -> Any:
            if twins.vector is None:
                return forward(*args, **kwargs)
            self._reached.add(module)
            if not self.reads.touching:
                return run(*args, **kwargs)
            with self.reads.own(self._numbers(module)):
                return run(*args, **kwargs)

        return perturbed_forward
