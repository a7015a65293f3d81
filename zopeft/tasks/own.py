"""Own data: a file, a folder or a data set on the hub as rows to train on and rows to score on.

Where there is no split for validation, a part of the rows is held out. It is drawn with a seed of
its own, so that runs with other seeds are compared on the same rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from zopeft.errors import close_matches, input_error
from zopeft.hub import is_repository
from zopeft.tasks.files import Source, kind_of, read_file
from zopeft.tasks.places import SAVED, hub_table, saved_tables, table_source
from zopeft.tasks.splits import check_split, known_formats, read_split, splits_in
from zopeft.tasks.streamed import Streaming, file_head, table_head, without
from zopeft.tasks.task import HubSource

HELD_OUT = 0.1
"""Share of the rows that is held out where there is no split for validation."""
MOST = 500
"""Most rows that are held out."""
SEED = 0
"""Seed of that draw."""
TRAIN, VALIDATION = "train", "validation"

Splits = Mapping[str, Callable[[Streaming | None], Source]]
"""What reads each split: all of it, or the first rows where it is told how to stream."""


@dataclass(frozen=True)
class OwnData:
    """Rows to train on and rows to score on.

    Attributes:
        name: The file, folder or hub id.
        train: The rows to train on.
        validation: The rows to score on.
        told: Where the rows to score on come from, for the user.
    """

    name: str
    train: Source
    validation: Source
    told: str

    def source(self, split: str) -> Source:
        """Returns the rows of "train" or "validation".

        Raises:
            InputError: Another split is asked for.
        """
        known = {TRAIN: self.train, VALIDATION: self.validation}
        if split not in known:
            raise input_error("split", "unknown split", split, close_matches(split, known))
        return known[split]

    def renamed(self, columns: Mapping[str, str]) -> OwnData:
        """Returns the data with columns under the names that kinds of data know.

        Args:
            columns: Known name to the name in the data.

        Raises:
            InputError: The data has no column of that name.
        """
        if not columns:
            return self
        train, validation = (_renamed(one, columns) for one in (self.train, self.validation))
        return replace(self, train=train, validation=validation)


def open_data(
    data: str | Path,
    split: str | None = None,
    validation: str | None = None,
    held_out: float = HELD_OUT,
    how: Streaming | None = None,
) -> OwnData:
    """Returns the rows of a file, a folder or a data set on the hub.

    Args:
        data: The file or folder; or ``organisation/name`` on the hub, with its configuration
            as ``organisation/name:configuration``.
        split: The split to train on; None takes "train", or the only one there is.
        validation: A file or folder with the rows to score on, or the name of a split; None
            takes "validation", or holds rows out.
        held_out: Share of the rows to hold out, between 0 and 1; of rows that are streamed, of
            the first ones that are held.
        how: How rows are streamed; None reads them all.

    Raises:
        InputError: It cannot be found or read, or has no such split.
    """
    path = Path(data).expanduser()
    if path.is_file():
        found = open_file(path, held_out, split, how)
        if validation is None:
            return found
        whole: Splits = {TRAIN: partial(_read, path)}
        return _chosen(str(path), whole, split, validation, held_out, how)
    splits = _splits(str(data), path, how is not None)
    return _chosen(str(data), splits, split, validation, held_out, how)


def open_file(
    path: Path, held_out: float, split: str | None = None, how: Streaming | None = None
) -> OwnData:
    """Returns the rows of one file, some of them held out.

    Raises:
        InputError: It can't be read, or has fewer than two rows; or a split is asked for.
    """
    if split not in (None, TRAIN):
        do = "leave it out, or give a folder with one file a split"
        raise input_error("--split", f"{path} is one file", split, do)
    return _held_out(str(path), _read(path, how), held_out)


def open_scored(
    data: str | Path,
    split: str | None = None,
    held_out: float = HELD_OUT,
    how: Streaming | None = None,
) -> OwnData:
    """Returns rows to score on alone: of one file all, of a folder or data set a split's.

    Args:
        data: As `open_data` takes it.
        split: The split; of one file "validation" is the part that training holds out. None
            takes "validation".
        held_out: The share that training holds out.
        how: How training streams the rows: of those that it holds out, it has drawn from the
            first; of others, the first are scored. None reads them all.

    Raises:
        InputError: As `open_data`.
    """
    path = Path(data).expanduser()
    first = None if how is None else how.for_scoring
    if path.is_file() and split is None:
        whole = _first(_read(path, first), first)
        told = "all there are (--split validation: those that training holds out)"
        told = told if how is None else f"the first {len(whole.rows):,} of the file"
        return OwnData(str(path), whole, whole, told)
    if path.is_file():
        parts = _held_out(str(path), _read(path, how), held_out)
        chosen = parts.source(split or VALIDATION)
        return OwnData(str(path), chosen, chosen, f"the {split} part of the file")
    splits = _splits(str(data), path, how is not None)
    if (split or VALIDATION) not in splits and (split is None or split == VALIDATION):
        parts = _chosen(str(data), splits, None, None, held_out, how)
        return replace(parts, train=parts.validation)
    chosen = _first(_split(str(data), splits, split or VALIDATION, "--split", first), first)
    some = "those" if how is None else f"the first {len(chosen.rows):,}"
    return OwnData(str(data), chosen, chosen, f"{some} of split {split or VALIDATION}")


def _read(path: Path, how: Streaming | None = None) -> Source:
    if not kind_of(path):
        raise input_error("--data", "a format that is not read", str(path), known_formats())
    return read_file(path) if how is None else file_head(str(path), [path], how)


def _splits(name: str, path: Path, streaming: bool) -> Splits:
    """The splits of a folder or data set, each read when it is asked for."""
    if path.is_dir() and (path / SAVED).is_file():
        tables = saved_tables(path)
        return {k: partial(_of_table, name, tables, k) for k in tables}
    if path.is_dir():
        files = splits_in(path)
        if not files:
            do = f"put train.jsonl there (or {known_formats()})"
            raise input_error("--data", "no data files in this folder", name, do)
        return {k: partial(_of_files, f"{path}, split {k}", files[k]) for k in files}
    repository, _, config = name.partition(":")
    if kind_of(path) or not is_repository(repository):
        do = "check the path; a data set on the hub is organisation/name"
        raise input_error("--data", "no such file or folder", name, do)
    place, do = HubSource(repository, config or None), "check the path, or the hub id"
    tables = hub_table(place, None, "--data", do, streaming=streaming)
    return {k: partial(_of_table, name, tables, k) for k in tables}


def _of_files(name: str, files: Sequence[Path], how: Streaming | None) -> Source:
    if how is None:
        return read_split(name, files)
    check_split(name, files)
    return file_head(name, files, how)


def _of_table(name: str, tables: Mapping[str, Any], split: str, how: Streaming | None) -> Source:
    told = f"{name}, split {split}"
    if how is None:
        return table_source(told, tables[split])
    return table_head(told, tables[split], how)


def _chosen(
    name: str,
    splits: Splits,
    split: str | None,
    validation: str | None,
    held_out: float,
    how: Streaming | None = None,
) -> OwnData:
    """The split to train on, and what it is scored on."""
    first, some = (None, "those") if how is None else (how.for_scoring, f"the first {how.scored:,}")
    wanted = split or (TRAIN if TRAIN in splits or len(splits) > 1 else next(iter(splits)))
    train = _split(name, splits, wanted, "--split", how)
    if validation is None and VALIDATION in splits and wanted != VALIDATION:
        validation = VALIDATION
    if validation is None:
        return _held_out(name, train, held_out)
    path = Path(validation).expanduser()
    if validation in splits:
        scored = _first(_split(name, splits, validation, "--validation", first), first)
        return OwnData(name, train, scored, f"{some} of split {validation}")
    if path.is_file():
        return OwnData(name, train, _first(_read(path, first), first), f"{some} of {validation}")
    if path.is_dir():
        inside = _splits(validation, path, how is not None)
        one = VALIDATION if VALIDATION in inside or len(inside) > 1 else next(iter(inside))
        scored = _first(_split(validation, inside, one, "--validation", first), first)
        return OwnData(name, train, scored, f"{some} of {validation}")
    do = f"give a file, or one of the splits {', '.join(splits)}"
    raise input_error("--validation", "no such file or split", validation, do)


def _split(name: str, splits: Splits, split: str, flag: str, how: Streaming | None) -> Source:
    if split not in splits:
        do = f"name one of its splits: {', '.join(splits)}"
        raise input_error(flag, f"no split {split!r} in {name}", do=do)
    return splits[split](how)


def _first(source: Source, how: Streaming | None) -> Source:
    """The first rows of what is scored on, where rows are streamed."""
    return (
        source if how is None else source.part(source.name, range(len(source.rows))[: how.buffer])
    )


def _held_out(name: str, source: Source, share: float) -> OwnData:
    """Draws some of the rows to score on; both parts keep the order of the data.

    Of rows that are streamed, it draws from the first, which are held.
    """
    count = len(source.rows)
    if count < 2:
        do = "give more rows, or --validation FILE"
        raise input_error(name, "too few rows to hold any out for validation", count, do)
    order = list(range(count))
    random.Random(SEED).shuffle(order)
    size = min(max(1, round(share * count)), MOST, count - 1)
    held, rest = sorted(order[:size]), sorted(order[size:])
    some = "" if source.streams is None else f" from the first {count:,}"
    return OwnData(
        name,
        without(source, source.part(name, rest), held),
        source.part(f"{name}, held out", held),
        f"held out by a draw{some} (--validation FILE: others)",
    )


def _renamed(source: Source, columns: Mapping[str, str]) -> Source:
    missing = [theirs for theirs in columns.values() if theirs not in source.columns]
    if missing:
        what = f"no column {missing[0]!r} in {source.name}"
        raise input_error("data.columns", what, ", ".join(source.columns))
    ours = {theirs: name for name, theirs in columns.items()}
    # A column that stands under a name which another now has, is left out.
    kept = [one for one in source.columns if one in ours or one not in columns]
    names = {one: ours.get(one, one) for one in kept}

    def named(row: dict[str, Any]) -> dict[str, Any]:
        return {names[key]: row[key] for key in kept if key in row}

    labels = {names[one]: value for one, value in source.labels.items() if one in names}
    return Source(
        source.name,
        [named(row) for row in source.rows],
        None,
        tuple(names.values()),
        labels=labels,
        taken=(source, range(len(source.rows))),
        streams=source.streams and source.streams.each(lambda one: one.changed(named)),
    )
