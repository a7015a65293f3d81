"""The forward of one module while a probe is on: the cheapest way to the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.engine import layers
from zopeft.engine.arena import returns_new_memory
from zopeft.engine.carrier import CopiedBatch
from zopeft.engine.direction import Probe
from zopeft.engine.exact import ExactVectors
from zopeft.engine.flip_path import add_biases, add_flips, own_flips
from zopeft.engine.flips import flips_of
from zopeft.engine.scratch import remade
from zopeft.engine.side_path import add_product, has_side_path, sides_of
from zopeft.engine.standing import StandingLayer, standing_layer
from zopeft.engine.swaps import Place, Swaps
from zopeft.kernels.form import Factors


class LayerForward:
    """A module's forward with the weights that the probe shows.

    An embedding makes the rows that the batch names, a wide linear layer its weight in chunks; a
    product of thin factors runs beside the weight. All others have scratch weights.

    Args:
        module: The module.
        forward: Its forward as it stands.
        swaps: What puts scratch weights into it.
        exact: What knows the norms that take their step in fp32.
    """

    def __init__(
        self, module: nn.Module, forward: Callable[..., Any], swaps: Swaps, exact: ExactVectors
    ) -> None:
        self.module, self.forward = module, forward
        self.swaps, self.exact, self.twins = swaps, exact, swaps.twins
        self.places = places = swaps.moved(module)
        self.main = main = next((place for place in places if place.leaf == "weight"), None)
        straight = all(place.view is None for place in places)
        alone = main is not None and len(places) == 1 and straight
        self._by_rows = isinstance(module, nn.Embedding) and alone and layers.takes_ids(forward)
        self._product_beside = (
            main is not None
            and main.view is None
            and self.twins.has_product(main.number)
            and has_side_path(module, forward)
        )
        self.mixed = self.twins.mixed
        self._changed = [
            place
            for place in places
            if place is not main or not self._product_beside or self.twins.noisy(place.number)
        ]
        self._bias = next((place.number for place in places if place.leaf == "bias"), None)
        known = main is not None and len(places) == 1 + (self._bias is not None)
        self._flips_beside = known and straight and has_side_path(module, forward)
        wide = type(module) is nn.Linear and module.weight.numel() > layers.CHUNK
        self._by_chunks = wide and alone and bool(self._changed)
        # Whether all that its twins have of a direction is noise.
        self._noises = not self.mixed and all(map(self._only_noise, self._changed))
        shares = [self.twins.share(place.number) for place in self._changed]
        self._stands = self._noises and None not in shares and straight and bool(shares)
        self._stands = self._stands and self.twins.kernels.stands
        self._stands = self._stands and not (self._by_rows or self._by_chunks)
        # What comes from CPU or disk for a forward must not be held beyond it.
        self._stands = self._stands and not swaps.offload
        self._rounding = self.twins.kernels.rounding
        if returns_new_memory(module) and (self._stands or self._by_chunks):
            own = (module._parameters[place.leaf] for place in self._changed)
            weights = [weight for weight in own if weight is not None]
            parts = (weight[: layers.chunk_rows(weight)] for weight in weights)
            self.twins.reserve(weights if self._stands else parts)
        self._standing: StandingLayer | None = None
        self._sides: tuple[Any, Factors] | None = None

    def _only_noise(self, place: Place) -> bool:
        if not self.twins.shaped(place.number):
            return True
        beside = place is self.main and self._product_beside
        return self.twins.noisy(place.number) and (
            beside or not self.twins.has_product(place.number)
        )

    def fits(self, forward: Callable[..., Any], numbers: Sequence[int]) -> bool:
        """Whether it is the forward of a layer still.

        Args:
            forward: The layer's forward as it stands.
            numbers: The numbers of the blocks that the probe moves in it.
        """
        own = self.forward == forward and self.mixed == self.twins.mixed
        own = own and self._rounding == self.twins.kernels.rounding
        return own and [place.number for place in self.places] == numbers

    def one(self, inputs: Tensor) -> Any:
        """Runs it on its input under the twins' own probe."""
        output = self._without_product(inputs)
        return self._beside(output, inputs, [self.twins.step]) if self._product_beside else output

    def _without_product(self, inputs: Tensor) -> Any:
        """Does `one` but for a product that runs beside."""
        standing = self._standing
        apart = torch.is_grad_enabled() or self.twins.mixed
        if standing is not None and not apart and standing.here():
            return standing(inputs)
        module, main, product = self.module, self.main, not self._product_beside
        if self._by_rows and main is not None:
            return layers.embedding(
                self.twins, module, main.leaf, main.number, self.forward, inputs
            )
        if self._by_chunks and main is not None:
            return layers.wide_linear(self.twins, module, main.number, inputs, product)
        return self._swapped(inputs, product) if self._changed else self.forward(inputs)

    def copied(self, inputs: Tensor, probes: Sequence[Probe], copies: CopiedBatch) -> Tensor:
        """Runs it on copies of a batch, each under a probe of its own.

        Args:
            inputs: What it is given.
            probes: The probes, [P].
            copies: Where the copies lie.
        """
        twins = self.twins
        dim = copies.dimension(self.module, inputs, len(probes))
        flips = flips_of(probes) if self._flips_beside else None
        if flips is not None and self.main is not None:
            seen = (inputs, dim, flips, probes[0][1], self.main.number)
            found = own_flips(twins, self.module, *seen)
            if found is None:
                found = add_flips(twins, self.module, self.forward(inputs), *seen)
            return add_biases(twins, found, dim, flips, probes[0][1], self._bias)
        beside = self._product_beside
        if beside and not self._changed:
            whole = self.forward(inputs)
        else:
            parts = inputs.chunk(len(probes), dim)
            whole = torch.cat(self._pieces(parts, probes), dim)
        if not beside:
            return whole
        if dim == 0:
            return self._all_beside(whole, inputs, probes)
        pieces = []
        own = (tensor.chunk(len(probes), dim) for tensor in (whole, inputs))
        for probe, output, given in zip(probes, *own, strict=True):
            twins.show(*probe)
            pieces.append(self._beside(output, given, [probe[1]]))
        return torch.cat(pieces, dim)

    def _pieces(self, parts: Sequence[Tensor], probes: Sequence[Probe]) -> list[Tensor]:
        """Runs it on each copy under its probe, but for a product that runs beside."""
        pieces: list[Tensor] = []
        while (place := len(pieces)) < len(probes):
            pair = slice(place, place + 2)
            self.twins.show(*probes[place])
            both = self._both(probes[pair], parts[pair])
            pieces += [self._without_product(parts[place])] if both is None else both
        return pieces

    def _both(self, probes: Sequence[Probe], parts: Sequence[Tensor]) -> list[Tensor] | None:
        """Runs it under a pair of probes with one draw of noise; None where that cannot be.

        Args:
            probes: The next two; the first is what the twins show.
            parts: Their copies of the batch.
        """
        if len(probes) < 2 or torch.is_grad_enabled() or not self.twins.pairs(*probes):
            return None
        if self._by_chunks and self.main is not None and self._noises:
            return layers.wide_pair(self.twins, self.module, self.main.number, parts)
        standing = self._standing
        if standing is None or not (standing.pairs and standing.here()):
            return None
        return standing.both(*parts)

    def anyhow(self, *args: Any, **kwargs: Any) -> Any:
        """Runs it on whatever it takes, with scratch weights for all that is moved."""
        with self.swaps.swapped(self.places) as made, remade(made):
            return self.forward(*args, **kwargs)

    def _swapped(self, inputs: Any, product: bool) -> Any:
        """Runs it with scratch weights: a norm's in fp32 where it is the same layer."""
        dtype, places = None, self._changed
        if self.twins.kernels.rounding != "nearest":
            leaves = [place.leaf for place in places]
            dtype = self.exact.output(self.module, leaves, self.forward, inputs)
        exact = dtype is not None
        alone = self._stands and not exact and not torch.is_grad_enabled()
        with self.swaps.swapped(places, product, exact, alone) as made, remade(made):
            output = self.forward(inputs)
        if self._stands and not torch.is_grad_enabled():
            given = (self.module, self.forward, self.twins, places, dtype)
            self._standing = standing_layer(*given)
            self._stands = self._standing is not None
        return output if dtype is None else output.to(dtype)

    def _all_beside(self, whole: Tensor, inputs: Tensor, probes: Sequence[Probe]) -> Tensor:
        """Does `_beside` for the copies of a batch, those of one direction at once."""
        rows, own = len(inputs) // len(probes), []
        for _, group in groupby(range(len(probes)), lambda place: id(probes[place][0])):
            places = list(group)
            part = slice(places[0] * rows, (places[-1] + 1) * rows)
            self.twins.show(*probes[places[0]])
            steps = [probes[place][1] for place in places]
            output = whole[part]
            own.append((output, self._beside(output, inputs[part], steps)))
        written = all(before is after for before, after in own)
        return whole if written else torch.cat([after for _, after in own])

    def _beside(self, output: Tensor, inputs: Tensor, steps: Sequence[float]) -> Tensor:
        """Adds the product of factors to what the layer gave without it, see `add_product`."""
        assert self.main is not None
        key = (self.twins.direction, inputs.dtype, inputs.device)
        if self._sides is None or self._sides[0] != key:
            factors = self.twins.form(self.main.number, inputs.device).factors
            assert factors is not None
            # Both probes of a direction take them.
            self._sides = key, sides_of(self.module, factors, inputs.dtype)
        return add_product(self.twins.kernels, output, inputs, self._sides[1], steps)
