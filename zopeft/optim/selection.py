"""Selection: the layers that a step is about, whatever the method."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from zopeft.blocks import Blocks
from zopeft.errors import input_error
from zopeft.optim.declared import Options
from zopeft.probing.dominant import dominant_layer

if TYPE_CHECKING:
    from zopeft.optim.step import Step

NOTE = "layer"
"""Name of the note in the first step's record that says which layer is the dominant one."""


class Selection:
    """Which blocks a step perturbs and writes; all others cost it nothing, and keep their state.

    "last": the upper `layer_count` layers. "cyclic": as many in turn, from below, the next ones
    each `layer_steps` steps. "dominant": the layer from which activations stand out
    (`zopeft.probing.dominant`), found in the run's first batch. What is in no layer, such as
    embeddings and the head, is part of a step with `layer_rest` alone. Where nothing is left out,
    the steps are those of the method without a selection, bit for bit.

    Args:
        blocks: The blocks, [N].
        options: The method's options.
        where: The method's name, for messages.

    Attributes:
        found: The dominant layer; None before it has been looked for.

    Raises:
        InputError: Layers are to be chosen, and the blocks are in none.

    References:
        Park et al., "Elucidating Subspace Perturbation in Zeroth-Order Optimization: Theory and
        Practice at Scale", 2025 (MeZO-BCD): blocks in turn.
        Dominant-layer zeroth-order tuning, arXiv 2606.05516, 2026: the first decoder layer whose
        activations stand out.
    """

    def __init__(self, blocks: Blocks, options: Options, where: str) -> None:
        self.blocks, self.options = blocks, options
        self.layers = sorted({block.layer for block in blocks if block.layer is not None})
        self.found: int | None = None
        if options.layers != "all" and not self.layers:
            raise input_error(
                f"{where} layers", "the blocks are in no layer", options.layers, "use all"
            )

    @property
    def looks(self) -> bool:
        """Whether the dominant layer is still to be found."""
        return self.options.layers == "dominant" and self.found is None

    def find(self, closure: Callable[[], Any], agree: Callable[[Any], Any] | None) -> None:
        """Finds the dominant layer by a forward pass over a batch.

        Args:
            closure: Runs the batch.
            agree: Makes what this process has seen that of all processes; None for one.
        """
        self.found = dominant_layer(self.blocks.model, closure, self.layers, agree)

    def settle(self, step: Step) -> None:
        """Tells a step which blocks it is about; a recorded one tells the dominant layer."""
        if self.options.layers == "dominant":
            if step.record is None and step.number == 0:
                step.note(NOTE, lambda: np.array([self.found], dtype=np.float32))
            elif self.looks and NOTE in ((step.record and step.record.notes) or {}):
                self.found = int(step.note(NOTE, lambda: np.zeros(1))[0])
        step.chosen = self.at(step.number)
        step.method.engine.forms.chosen = step.chosen

    def at(self, number: int) -> frozenset[int] | None:
        """Returns the indices of the blocks that a step is about; None for all.

        Args:
            number: The step's number, from 0.
        """
        kind, count = self.options.layers, min(self.options.layer_count, len(self.layers))
        if kind == "all":
            return None
        if kind == "dominant":
            layers: set[int | None] = {self.found}
        elif kind == "last":
            layers = set(self.layers[-count:])
        else:
            first = number // self.options.layer_steps * count
            layers = {self.layers[(first + n) % len(self.layers)] for n in range(count)}
        return self._of(layers)

    def most(self) -> frozenset[int]:
        """Returns the indices of the blocks that a run may ever be about.

        Of a dominant layer that has not been found yet, those of the largest one.
        """
        kind, everything = self.options.layers, frozenset(range(len(self.blocks)))
        if kind == "cyclic":
            return self._of(set(self.layers)) or everything
        if kind != "dominant" or self.found is not None:
            return self.at(0) or everything
        every = (self._of({layer}) or everything for layer in self.layers)
        return max(every, key=lambda own: sum(self.blocks[index].numel for index in own))

    def _of(self, layers: set[int | None]) -> frozenset[int] | None:
        wanted = {*layers, None} if self.options.layer_rest else layers
        own = frozenset(n for n, block in enumerate(self.blocks) if block.layer in wanted)
        return None if len(own) == len(self.blocks) else own
