"""The learning rate that ``param_groups`` show, and the one beneath it that schedules multiply."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class ShownRate:
    """Makes ``lr`` of param groups the rate of the step, ``shown = lr * factor``.

    A running rate is a factor on the rate that a run began with, and a schedule another one.
    Schedulers of torch and transformers multiply what they find or what they remember from the
    start, so they are shown the rate without the factor (`hide`, `guard`), everybody else the
    rate of the step. What somebody else writes is a rate, too, from which the factor goes on.
    """

    def __init__(self) -> None:
        self.factor = self.origin = 1.0
        self._rates: list[tuple[Any, float, bool]] = []

    def show(self, groups: Sequence[dict[str, Any]], factor: float) -> None:
        """Puts the rate of a step into the groups.

        Args:
            groups: The optimizer's param groups.
            factor: Learning rate over the first one.
        """
        self.hide(groups)
        self.factor = factor
        times = factor / self.origin
        if times != 1.0:
            for group in groups:
                lr = group["lr"]
                group["lr"] = shown = float(lr) * times
                self._rates.append((lr, shown, "initial_lr" in group))

    def hide(self, groups: Sequence[dict[str, Any]]) -> None:
        """Puts the rate back that a schedule multiplies; does nothing where it stands there."""
        times, begun = self.factor / self.origin, False
        for group, (lr, shown, scheduled) in zip(groups, self._rates, strict=False):
            now = group["lr"]
            if "initial_lr" in group and not scheduled:
                # A schedule that was made since multiplies the rate that it found here.
                begun = True
            elif now == shown:
                group["lr"] = lr
            elif times:
                group["lr"] = now / times
        if begun:
            self.origin = self.factor
        self._rates = []

    @contextmanager
    def hidden(self, groups: Sequence[dict[str, Any]]) -> Iterator[bool]:
        """Hides the rate of the step for a while; yields whether it was shown."""
        showing = bool(self._rates)
        self.hide(groups)
        try:
            yield showing
        finally:
            if showing:
                self.show(groups, self.factor)

    def state_dict(self) -> dict[str, Any]:
        """Returns what `from_state` needs beside groups saved while hidden, and ``showing``."""
        return {"factor": self.factor, "origin": self.origin}

    @classmethod
    def from_state(cls, state: dict[str, Any], groups: Sequence[dict[str, Any]]) -> ShownRate:
        """Returns what `state_dict` was taken of, and shows what was shown.

        Args:
            state: The state; with ``showing``, whether the rate was shown.
            groups: Param groups that were saved while hidden.
        """
        found = cls()
        found.factor, found.origin = float(state["factor"]), float(state.get("origin", 1.0))
        if state["showing"]:
            found.show(groups, found.factor)
        return found


def guard(scheduler: Any) -> Any:
    """Has a scheduler multiply the rate that its optimizer's running one is a factor on.

    Both kinds come out right: those that compute from the first rate and those that go on
    from the last one. ``get_last_lr`` then tells the rate with the factor. In a loop of one's
    own: ``scheduler = guard(LambdaLR(optimizer, ...))``, made after the first `calibrate`.

    Args:
        scheduler: A scheduler of torch or transformers over a zeroth-order method; others, and
            those that are guarded already, are left as they are.

    Returns:
        The scheduler itself.
    """
    optimizer: Any = getattr(scheduler, "optimizer", None)
    if isinstance(getattr(optimizer, "shown", None), ShownRate):
        optimizer.pace.guarded = True
        if not isinstance(scheduler, _Guarded):
            kind: Any = type(scheduler)
            scheduler.__class__ = _guarded(kind)
    return scheduler


class _Guarded:
    """Marks schedulers that `guard` has changed; their state is as it was."""


@functools.cache
def _guarded(kind: Any) -> type:
    class Guarded(_Guarded, kind):  # type: ignore[misc]
        def step(self, *args: Any, **kwargs: Any) -> Any:
            with self.optimizer.shown.hidden(self.optimizer.param_groups):
                return super().step(*args, **kwargs)

        def get_last_lr(self) -> list[Any]:
            return [group["lr"] for group in self.optimizer.param_groups]

    Guarded.__name__, Guarded.__qualname__ = kind.__name__, kind.__qualname__
    Guarded.__module__ = kind.__module__
    return Guarded
