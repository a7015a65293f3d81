"""What a server asks its clients, and what they answer: plain values that any transport takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from zopeft.errors import InputError, input_error
from zopeft.journal.codec import decode, encode
from zopeft.optim.record import StepRecord

MOST_ROWS = 1 << 53
"""Rows of a batch, at most: above it not every whole number is a float."""


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def _loss(value: Any) -> bool:
    # One that is not finite is a loss as well: who takes it says what becomes of it.
    return isinstance(value, float) or _whole(value)


def _every(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(fits, value))


FITS: dict[str, Callable[[Any], bool]] = {
    "step": _whole,
    "header": lambda value: isinstance(value, bytes),
    "first": lambda value: _whole(value) and value >= 0,
    "records": _every(lambda value: isinstance(value, bytes)),
    "asked": _every(_loss),
    "checks": lambda value: isinstance(value, bool),
    "losses": _every(_loss),
    "rows": lambda value: _whole(value) and 0 <= value <= MOST_ROWS,
    "fingerprint": lambda value: isinstance(value, str),
    "problem": lambda value: isinstance(value, str),
}
"""What is a value of a message's field."""


@dataclass(frozen=True)
class Question:
    """The losses of which points are wanted, and what a client has to do before it looks.

    Attributes:
        step: The step that is due, from 0.
        header: The journal's header, for a client that is not known to have it; b"" for others.
        first: The first step of `records`.
        records: The steps from `first` to `step`, as the journal holds them; each but the first
            may leave out what is as in the one before.
        asked: The losses of all clients that this step has had, of its rounds before this one.
        checks: Whether a fingerprint of the weights is wanted.
    """

    step: int
    header: bytes = b""
    first: int = 0
    records: list[bytes] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)
    checks: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Returns the values by name."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Takes what `to_dict` gave; an empty list may be missing.

        Raises:
            InputError: It is no such message.
        """
        return cls(**_fields(cls, values))


@dataclass(frozen=True)
class Answer:
    """What a client has seen.

    Attributes:
        step: Steps that it has made; -1 where it has no header yet.
        losses: The losses of the round's points on its own batch; empty where it is not at the
            step that was asked for.
        rows: Rows of its batch, by which losses are weighted.
        fingerprint: That of its weights; "" where none was asked for.
        problem: Why it cannot answer, in a line; "" where it can.
    """

    step: int
    losses: list[float] = field(default_factory=list)
    rows: int = 0
    fingerprint: str = ""
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns the values by name."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Takes what `to_dict` gave; an empty list may be missing.

        What is no such message becomes an answer that says so: it is no other client's problem.
        """
        try:
            return cls(**_fields(cls, values))
        except InputError as error:
            return cls(-1, problem=str(error))


def _fields(cls: type[Question | Answer], values: Any) -> dict[str, Any]:
    """Returns a message's fields.

    Raises:
        InputError: One is missing, or of another kind.
    """
    what = f"no {cls.__name__.lower()} that can be read"
    if not isinstance(values, Mapping) or "step" not in values:
        raise input_error("federated", f"{what} (it has no step)")
    found = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
    for name, value in found.items():
        if not FITS[name](value):
            raise input_error("federated", f"{what} ({name})", f"{value!r:.60}")
    return found


def packed(records: Sequence[StepRecord]) -> list[bytes]:
    """Returns steps as they are sent: the first one whole, the others on the one before."""
    before = [None, *records][: len(records)]
    return [encode(record, last) for record, last in zip(records, before, strict=True)]


def unpacked(payloads: Sequence[bytes]) -> list[StepRecord]:
    """Returns the steps that `packed` gave.

    Raises:
        ValueError: One is no step.
    """
    found: list[StepRecord] = []
    for payload in payloads:
        found.append(decode(payload, found[-1] if found else None))
    return found
