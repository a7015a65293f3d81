"""Mixture: several files or data sets of one's own, drawn from by weights.

What each row becomes, its own part's columns tell; how many of each part there are,
`zopeft.tasks.shares`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from zopeft.errors import input_error
from zopeft.tasks.files import Source, joined
from zopeft.tasks.kinds import recognise
from zopeft.tasks.kinds.kind import Wishes
from zopeft.tasks.own import HELD_OUT, OwnData, open_data, open_scored
from zopeft.tasks.own_task import Own, own_task
from zopeft.tasks.shares import Share, epoch, shares_of
from zopeft.tasks.streamed import Streamed, Streaming, Streams
from zopeft.tasks.task import AnyExample, Row, Task


class PartRow(dict[str, Any]):
    """A row that knows which part of a mixture it is of."""

    part = 0

    @classmethod
    def of(cls, row: Mapping[str, Any], part: int) -> PartRow:
        """Returns a row of a part."""
        found = cls(row)
        found.part = part
        return found


def mixed_task(
    mixture: Mapping[str, float | None],
    split: str | None = None,
    validation: str | None = None,
    held_out: float = HELD_OUT,
    kind: str | None = None,
    columns: Mapping[str, str] | None = None,
    wishes: Wishes | None = None,
    seed: int = 0,
    how: Streaming | None = None,
) -> Task:
    """Returns the task of several files or data sets.

    Args:
        mixture: File, folder or hub id to its weight. Weights are taken as shares of their sum;
            parts without one share what is left below 1 by their numbers of rows.
        split: The split of each to train on, as `open_data` takes it.
        validation: A file or folder with the rows to score on, or a split that each part has;
            None takes those of each part, as `open_data` does.
        held_out: Share of each part that is held out.
        kind: What the rows are; None asks each part's columns.
        columns: Known name to the name in the data, for the parts that have it.
        wishes: What else the user wants; each goes to the parts that heed it.
        seed: Seed of the draw of rows that stand once more than others.
        how: How rows are streamed; None reads them all.

    Raises:
        InputError: As `open_data` and `own_task`; or a weight is none, or the parts are not
            learned and scored alike.
    """
    if how is not None:
        _check_weights(mixture)
    each = None if how is None else how.shared(len(mixture))
    beside = validation is not None and Path(validation).expanduser().exists()
    own = None if beside else validation
    opened = [open_data(name, split, own, held_out, each) for name in mixture]
    if beside:
        opened.append(open_scored(str(validation), how=how))
    parts = _alike(opened, kind, columns or {}, wishes or Wishes())
    trained = parts[: len(mixture)]
    sizes = [len(part.source("train").rows) for part in trained]
    shares = shares_of(mixture, sizes)
    chosen = epoch(sizes, shares, seed)
    name = " + ".join(mixture)
    whole = _tagged(name, [part.source("train") for part in trained])
    scored = parts[-1:] if beside else parts
    first = len(mixture) if beside else 0
    held = _tagged(name, [part.source("validation") for part in scored], first)
    told = f"those of {validation}" if beside else f"of each part: {opened[0].told}"
    train = whole.part(name, chosen)
    if how is not None:
        # Of what is streamed so many rows are looked at, the parts evenly among another.
        train = whole.part(name, chosen[: how.buffer])
        train = replace(train, streams=_streams(trained, shares, how))
    data = OwnData(name, train, held, told)
    ends, counts = [sum(sizes[: k + 1]) for k in range(len(sizes))], [0] * len(sizes)
    for one in chosen:
        counts[next(k for k, end in enumerate(ends) if one < end)] += 1
    facts = zip(mixture, trained, shares, sizes, counts, strict=True)
    told_shares = tuple(
        Share(n, p.kind.name, s, *((r, c) if how is None else (0, 0))) for n, p, s, r, c in facts
    )
    return _task(parts, data, told_shares)


def mixed_scored(
    names: Sequence[str],
    split: str | None = None,
    held_out: float = HELD_OUT,
    kind: str | None = None,
    columns: Mapping[str, str] | None = None,
    wishes: Wishes | None = None,
    columns_before: Mapping[str, str] | None = None,
    wishes_before: Wishes | None = None,
    how: Streaming | None = None,
) -> Task:
    """Returns the task of several files or data sets to score on alone, all rows of them.

    Args:
        names: Files, folders or hub ids; what is not said here is as `mixed_task` has it.
        split: The split of each, as `open_scored` takes it.
        held_out: The share that training holds out.
        kind: What the rows are.
        columns: Known name to the name in the data.
        wishes: What else the user wants.
        columns_before: The same of an earlier use of such data, for the parts that have it.
        wishes_before: The same, for the parts that heed it and where nothing else is asked for.
        how: How training streams the rows; None where it does not.

    Raises:
        InputError: As `mixed_task`.
    """
    each = None if how is None else how.shared(len(names))
    opened = [open_scored(name, split, held_out, each) for name in names]
    seen = {column for data in opened for column in data.train.columns}
    known = {ours: one for ours, one in (columns_before or {}).items() if one in seen}
    parts = _alike(opened, kind, columns or known, wishes or Wishes(), wishes_before)
    name = " + ".join(names)
    held = _tagged(name, [part.source("validation") for part in parts])
    data = OwnData(name, held, held, f"of each part: {opened[0].told}")
    return _task(parts, data, ())


def _alike(
    opened: Sequence[OwnData],
    kind: str | None,
    columns: Mapping[str, str],
    wishes: Wishes,
    before: Wishes | None = None,
) -> list[Own]:
    """What each part is, with the task that it makes; they are learned and scored alike."""
    for theirs in columns.values():
        if not any(theirs in data.train.columns for data in opened):
            seen = "; ".join(", ".join(data.train.columns) for data in opened)
            raise input_error("data.columns", f"no column {theirs!r} in any part", seen)
    renamed = [
        data.renamed({ours: one for ours, one in columns.items() if one in data.train.columns})
        for data in opened
    ]
    kinds = [recognise(data.train.columns, data.name, kind) for data in renamed]
    heeded = {name for one in kinds for name in one.wishes}
    for one in wishes.given:
        if one not in heeded:
            kinds[0].check(wishes)
    tasks = [
        own_task(data, one.name, None, Wishes().filled(wishes, one.wishes), None, before)
        for data, one in zip(renamed, kinds, strict=True)
    ]
    for task in tasks[1:]:
        _compare(tasks[0], task)
    return [_Part.of(task) for task in tasks]


@dataclass(frozen=True)
class _Part(Own):
    """What a part is, with its task."""

    task: Any = None

    @classmethod
    def of(cls, task: Task) -> _Part:
        own = task.own
        assert own is not None
        return cls(own.data, own.kind, own.labels, own.told, own.turns, task=task)


def _compare(first: Task, other: Task) -> None:
    """Refuses parts of which one is learned or scored in another way."""
    one, two = first.own, other.own
    assert one is not None and two is not None
    names = f"{one.data.name} ({one.kind.name}) and {two.data.name} ({two.kind.name})"
    if (first.kind, first.metric) != (other.kind, other.metric):
        got = f"{first.metric} and {other.metric}"
        do = "mix what is scored alike (messages, completion, instruction, text), or run them apart"
        raise input_error("data.mixture", f"{names} are not scored alike", got, do)
    if one.labels != two.labels:
        got = f"{', '.join(one.labels[:6])} and {', '.join(two.labels[:6])}"
        do = "name them all for both, data.labels=[...]"
        raise input_error("data.mixture", f"{names} have different classes", got, do)
    if first.stop != other.stop:
        got = f"{first.stop!r} and {other.stop!r}"
        do = "give data.stop=TEXT"
        raise input_error("data.mixture", f"answers of {names} end differently", got, do)


def _check_weights(mixture: Mapping[str, float | None]) -> None:
    """Refuses parts without a weight, where nobody knows how many rows they have."""
    bare = [name for name, weight in mixture.items() if weight is None]
    if bare:
        what = "parts that are streamed need a weight each, for their rows are not counted"
        raise input_error("data.mixture", what, ", ".join(bare), "give a share, for example 0.3")


def _streams(trained: Sequence[Own], shares: Sequence[float], how: Streaming) -> Streams:
    """What a mixture is streamed from: each part's rows, with the number of their part."""
    parts: list[Streamed] = []
    for number, (one, share) in enumerate(zip(trained, shares, strict=True)):
        streams = one.source("train").streams
        assert streams is not None
        tagged = partial(PartRow.of, part=number)
        parts += [replace(part.changed(tagged), share=share) for part in streams.parts]
    return Streams(tuple(parts), how)


def _tagged(name: str, sources: Sequence[Source], first: int = 0) -> Source:
    """The rows of several parts one after the other, each with the number of its part."""
    rows: list[dict[str, Any]] = [
        PartRow.of(row, first + part) for part, source in enumerate(sources) for row in source.rows
    ]
    return replace(joined(name, sources), rows=rows)


def _task(parts: Sequence[Own], data: OwnData, shares: tuple[Share, ...]) -> Task:
    """The task of all parts: rows are read as their part says."""
    tasks: list[Task] = [part.task for part in parts if isinstance(part, _Part)]
    turns = [part.turns for part in parts]

    def build(row: Row) -> AnyExample:
        return tasks[getattr(row, "part", 0)].example(row)

    return replace(
        tasks[0],
        name="-".join(dict.fromkeys(task.name for task in tasks)),
        columns=(),
        build=build,
        max_new_tokens=max(task.max_new_tokens for task in tasks),
        own=Own(
            data=data,
            kind=next((part.kind for part in parts if part.kind.chats), parts[0].kind),
            labels=parts[0].labels,
            told="; ".join(dict.fromkeys(part.told for part in parts if part.told)),
            turns="must" if "must" in turns else "may" if "may" in turns else "no",
            shares=shares,
        ),
    )
