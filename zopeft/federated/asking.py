"""What a server asks its clients, and what they answer: plain values that any transport takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from zopeft.journal.codec import decode, encode
from zopeft.optim.record import StepRecord


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
        """Takes what `to_dict` gave; an empty list may be missing."""
        return cls(**{name: values[name] for name in cls.__dataclass_fields__ if name in values})


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
        """Takes what `to_dict` gave; an empty list may be missing."""
        return cls(**{name: values[name] for name in cls.__dataclass_fields__ if name in values})


def packed(records: Sequence[StepRecord]) -> list[bytes]:
    """Returns steps as they are sent: the first one whole, the others on the one before."""
    before = [None, *records][: len(records)]
    return [encode(record, last) for record, last in zip(records, before, strict=True)]


def unpacked(payloads: Sequence[bytes]) -> list[StepRecord]:
    """Returns the steps that `packed` gave."""
    found: list[StepRecord] = []
    for payload in payloads:
        found.append(decode(payload, found[-1] if found else None))
    return found
