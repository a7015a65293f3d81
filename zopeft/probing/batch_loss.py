"""The loss of one batch as a closure, which can also be taken for several probes at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from zopeft.blocks.bare import COMPILED
from zopeft.engine.carrier import UnstackableError
from zopeft.errors import input_error
from zopeft.probing.closure import Closure
from zopeft.probing.model_loss import ModelLoss
from zopeft.probing.packed import LAYOUT, PADDED, laid_out
from zopeft.probing.trial import known_choice


class BatchLoss:
    """A closure for `ZerothOrder.step` that can run several probes in one forward.

    Called, it returns the batch's loss, as any closure does. ``stacked(count)`` runs the
    model once on the batch repeated ``count`` times, and returns the loss of each copy; any
    object with these two and ``tokens`` may stand in its place::

        for batch in loader:
            optimizer.step(zopeft.BatchLoss(model, batch))

    Args:
        model: The model.
        batch: Named tensors on the model's device, as ``model(**batch)`` takes them.
        loss_function: Called with model and batch, returns the loss as a 0-dim tensor;
            None for ``model(**batch).loss``. It can be stacked if it has a method
            ``stacked(model, batch, count)`` that returns the losses of the copies, [count].
            It can be packed if it has a method ``needed(batch)`` that returns the flat places
            ``row * T + position`` whose logits it reads (None for all), and if it finds them
            by the batch's ``layout``, as `zopeft.tasks.logits.narrow_logits` does. A method
            ``grouped(model, batch, count, only)``, see `grouped`, serves methods that give
            groups of examples a direction each. One that runs the model many times says by
            ``tokens(batch)`` how many tokens most of its forwards have, and one that may find no
            loss by ``problem`` why. One that compares the probes of a step has ``shaped(losses)``.
        layout: "padded" runs the batch as it is. "packed" has its texts share rows, and what
            they begin with where the loss allows it: no padding is computed, and the loss is
            the same but for rounding. "auto" packs where the model can be packed, which its
            first batch tells (`zopeft.probing.trial`).

    Raises:
        InputError: `layout` is unknown, or "packed" for what cannot be packed.
    """

    def __init__(
        self,
        model: Any,
        batch: Mapping[str, Any],
        loss_function: Callable[[Any, Any], Tensor] | None = None,
        layout: str = PADDED,
    ) -> None:
        self.model = model
        self.loss_function = ModelLoss() if loss_function is None else loss_function
        way = known_choice(model, batch, self.loss_function, layout).way
        self.batch = laid_out(model, batch, self.loss_function, way)

    def __call__(self) -> Tensor:
        """Returns the loss of the batch, 0-dim."""
        return self.loss_function(self.model, self.batch)

    @property
    def tokens(self) -> int:
        """Tokens of one forward, with padding; 0 where the batch has no ids."""
        own = getattr(self.loss_function, "tokens", None)
        if own is not None:
            return int(own(self.batch))
        layout = self.batch.get(LAYOUT)
        ids = self.batch.get("input_ids") if layout is None else layout.ids
        return ids.numel() if isinstance(ids, Tensor) else 0

    def shaped(self, losses: Tensor) -> Tensor | None:
        """Returns what the losses [P] of a step's probes are turned into; None for nothing."""
        own = getattr(self.loss_function, "shaped", None)
        found: Tensor | None = None if own is None else own(losses)
        return found

    @property
    def flat(self) -> bool:
        """Whether the loss is flat in places, as the negative of a score is."""
        return bool(getattr(self.loss_function, "flat", False))

    @property
    def problem(self) -> str:
        """Why the batch had no loss when it was last run; "" where that is not known."""
        return str(getattr(self.loss_function, "problem", ""))

    def stacked(self, count: int) -> Tensor:
        """Returns the losses [count] of as many copies of the batch, from one forward.

        Args:
            count: Number of copies, the P of `zopeft.engine.Engine.stacked`.

        Raises:
            UnstackableError: This batch or its loss function cannot be run so.
        """
        stacked = getattr(self.loss_function, "stacked", None)
        if stacked is None or not self.tokens:
            raise UnstackableError("the loss function is for one batch at a time", False)
        if runs_compiled(self):
            raise UnstackableError("the model is compiled, and would be so at every step", True)
        losses: Tensor = stacked(self.model, self.batch, count)
        return losses

    def grouped(self, count: int, only: int | None) -> Tensor:
        """Returns the losses of groups of the batch's examples, example i of group i mod count.

        A group's loss is `count` times its part of the batch's loss: they have the batch's mean.

        Args:
            count: Number of groups, K.
            only: One group, whose rows alone are run; None for all in one forward, in which the
                rows of group k are the k-th of K equal parts of the model's batch.

        Returns:
            fp32 [K], or 0-dim for one group.

        Raises:
            InputError: The loss function gives no losses of single examples.
            UnstackableError: The groups of this batch cannot be run in one forward.
        """
        own = getattr(self.loss_function, "grouped", None)
        if own is None:
            name = getattr(self.loss_function, "__qualname__", type(self.loss_function).__name__)
            do = "give it a method grouped, as zopeft.tasks.task_loss has, or another method"
            raise input_error("loss function", "gives no losses of single examples", name, do)
        if only is None and runs_compiled(self):
            raise UnstackableError("the model is compiled, and would be so at every step", True)
        # Its texts may share rows, which groups do not.
        padded = {name: value for name, value in self.batch.items() if name != LAYOUT}
        losses: Tensor = own(self.model, padded, count, only)
        return losses


def runs_compiled(closure: Closure) -> bool:
    """Says whether a closure is known to run a compiled model, its attribute ``model``."""
    model = getattr(closure, "model", None)
    return hasattr(model, COMPILED) or getattr(model, "_compiled_call_impl", None) is not None
