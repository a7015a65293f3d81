"""Layers that make the same twins at every probe: what does not change is looked up once.

A small layer's noise takes less time than finding out where it goes. A layer that has run once
keeps, for each of its weights, the kernel with its memory and its twin's in hand; a probe then
gives seed, step and scale alone. The twins of linear layers all lie in one memory, which one
layer uses after another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.engine.arena import returns_new_memory
from zopeft.engine.swaps import Place
from zopeft.engine.twins import Twins, room
from zopeft.kernels.plain_backend import Standing


@dataclass(frozen=True)
class Twin:
    """A weight of a layer and what makes its twin.

    Args:
        leaf: The weight's name in its module.
        number: The block's number among those of the carrier.
        index: Where the block stands among all blocks of the engine.
        own: The parameter.
        address: Where its memory lies.
        write: The kernel.
        memory: Where the twin goes; None for new memory each time.
        dtype: What the twin is made of.
        share: What its noise is multiplied by before the block's scale.
    """

    leaf: str
    number: int
    index: int
    own: Tensor
    address: int
    write: Standing
    memory: Tensor | None
    dtype: torch.dtype
    share: float

    def scale(self, scales: list[float] | None) -> float:
        """What its noise is multiplied by, of two fp32 numbers an exact product.

        Args:
            scales: Of all blocks of the engine; None for ones.
        """
        return self.share if scales is None else self.share * scales[self.index]

    def here(self, parameters: Mapping[str, Tensor | None]) -> bool:
        """Whether the layer still holds the weight that the kernel has in hand."""
        return parameters.get(self.leaf) is self.own and self.own.data_ptr() == self.address


class StandingLayer:
    """A layer's forward under a probe along one direction, whose noise alone its twins have.

    A product of factors that is part of the direction runs beside, see `LayerForward`.

    Args:
        module: The layer.
        forward: Its forward as it stands.
        twins: What says the probe.
        weights: Its weights' twins.
        dtype: What its output is rounded to; None for nothing.
    """

    def __init__(
        self,
        module: nn.Module,
        forward: Callable[..., Any],
        twins: Twins,
        weights: Sequence[Twin],
        dtype: torch.dtype | None,
    ) -> None:
        self._module, self._forward, self._twins = module, forward, twins
        self._weights, self._dtype = weights, dtype
        self._both: list[tuple[Standing, Tensor]] | None = None

    def here(self) -> bool:
        """Whether the layer's weights are where they were."""
        own = self._module._parameters
        return all(twin.here(own) for twin in self._weights)

    def __call__(self, inputs: Tensor) -> Any:
        """Runs it."""
        own: dict[str, Any] = self._module._parameters
        twins = self._twins
        seed, step, scales = twins.seed, twins.step, twins.scales
        try:
            for twin in self._weights:
                memory = twin.memory
                if memory is None:
                    memory = torch.empty_like(twin.own, dtype=twin.dtype, requires_grad=False)
                twin.write(seed, step, twin.scale(scales), memory)
                own[twin.leaf] = memory
            output = self._forward(inputs)
        finally:
            for twin in self._weights:
                own[twin.leaf] = twin.own
        return output if self._dtype is None else output.to(self._dtype)

    @property
    def pairs(self) -> bool:
        """Whether two probes' twins are made of one draw."""
        return self._twins.kernels.pairs and all(twin.memory is not None for twin in self._weights)

    def both(self, ahead: Tensor, behind: Tensor) -> list[Tensor]:
        """Runs it under two probes, of the twins' own step and of minus that step.

        Args:
            ahead: The input under the step.
            behind: The input under minus the step.
        """
        if self._both is None:
            self._both = self._made_for_both()
        own: dict[str, Any] = self._module._parameters
        twins = self._twins
        seed, step, scales = twins.seed, twins.step, twins.scales
        outputs = []
        try:
            for twin, (write, _) in zip(self._weights, self._both, strict=True):
                assert twin.memory is not None
                write(seed, step, twin.scale(scales), twin.memory)
                own[twin.leaf] = twin.memory
            outputs.append(self._forward(ahead))
            for twin, (_, back) in zip(self._weights, self._both, strict=True):
                own[twin.leaf] = back
            outputs.append(self._forward(behind))
        finally:
            for twin in self._weights:
                own[twin.leaf] = twin.own
        return outputs

    def _made_for_both(self) -> list[tuple[Standing, Tensor]]:
        found, at = [], 0
        for twin in self._weights:
            weight = twin.own.detach()
            back = self._twins.memory_for(weight, at, second=True)
            at += room(weight)
            address = self._twins.blocks[twin.number].address
            write = self._twins.kernels.standing(address, weight, twin.memory, back)
            assert write is not None
            found.append((write, back))
        return found


def standing_layer(
    module: nn.Module,
    forward: Callable[..., Any],
    twins: Twins,
    places: Sequence[Place],
    dtype: torch.dtype | None,
) -> StandingLayer | None:
    """Returns what runs a layer from now on; None where nothing would be saved.

    Args:
        module: The layer, with its own weights in place.
        forward: Its forward as it stands.
        twins: What makes its twins otherwise.
        places: Its weights that probes move, none of them in another layout than its block's.
        dtype: What its output is rounded to where its twins are fp32; else None.
    """
    reuse, weights, at = returns_new_memory(module), [], 0
    for place in places:
        own = module._parameters[place.leaf]
        assert own is not None
        weight = own.detach()
        memory = twins.memory_for(weight, at) if reuse else None
        at += room(weight)
        write = twins.kernels.standing(twins.blocks[place.number].address, weight, memory)
        if write is None:
            return None
        made = weight.dtype if dtype is None else torch.float32
        index = twins.indices[place.number]
        share = twins.share(place.number)
        assert share is not None
        given = (place.leaf, place.number, index, own, weight.data_ptr(), write, memory, made)
        weights.append(Twin(*given, share))
    return StandingLayer(module, forward, twins, weights, dtype)
