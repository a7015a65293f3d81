"""Rows: a task's data from a local folder, the embedded samples or the hub."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zopeft import hub
from zopeft.errors import InputError, close_matches, input_error
from zopeft.tasks.catalog import TASKS
from zopeft.tasks.files import Source
from zopeft.tasks.splits import known_formats, read_split, splits_in, unread_in
from zopeft.tasks.task import RowError, Task

SPLITS = ("train", "validation", "test")
"""The usual names of splits."""


def load_rows(
    task: Task,
    split: str,
    data: str | Path | None = None,
    embedded: bool = False,
    limit: int | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Loads and checks the rows of one split.

    Args:
        task: The task; its columns and labels are checked on every row returned.
        split: "train", "validation", "test", or what the data has.
        data: A folder with ``<split>.jsonl`` (or json, csv, tsv, parquet, each also
            compressed as ``.gz``) in the hub's columns. It goes before `embedded`, and
            so does a custom task's own data.
        embedded: Take the samples inside the package.
        limit: Most rows; they are drawn without replacement by `seed`, and a smaller
            limit draws the beginning of the same sequence. None: all, in file order.
        seed: Seed of the draw. No global generator is used or changed.

    Returns:
        Rows as dicts.

    Raises:
        InputError: No such folder or split, unreadable file, no rows, missing columns, a
            label out of range, or the hub can't be reached.
    """
    if limit is not None and limit < 1:
        raise input_error("limit", "at least 1 row is needed", limit)
    data = task.data if data is None else data
    if data is not None:
        source = _local(task, split, Path(data).expanduser())
    elif embedded and (task.hub is None or task.name in TASKS):
        source = _embedded(task, split)
    else:
        source = _hub(task, split)
    if not source.rows:
        raise input_error(source.name, "no rows in it", do="give a file with rows")
    _check_columns(task, source)
    order = list(range(len(source.rows)))
    if limit is not None:
        random.Random(seed).shuffle(order)
        order = order[:limit]
    for index in order:
        try:
            task.example(source.rows[index])
        except RowError as error:
            raise InputError(f"{source.place(index)}: {error}") from error
    return [source.rows[index] for index in order]


def _check_columns(task: Task, source: Source) -> None:
    missing = task.missing(source.columns)
    if missing:
        names = ", ".join("'" + column.replace("|", "' or '") + "'" for column in missing)
        raise input_error(
            source.name,
            f"column{'s' if len(missing) > 1 else ''} {names} missing",
            ", ".join(source.columns),
            f"{task.name} needs {task.needs}",
        )


def _local(task: Task, split: str, folder: Path) -> Source:
    if not folder.exists():
        raise input_error("--data", "no such folder", str(folder), "check the path")
    if not folder.is_dir():
        raise input_error("--data", "a folder is needed", str(folder), f"give {folder.parent}")
    if (folder / "dataset_dict.json").is_file():
        return _saved(split, folder)
    if (folder / "state.json").is_file():
        raise input_error(
            "--data",
            "one split saved by datasets, without its name",
            str(folder),
            f"save a DatasetDict with {split!r} in it",
        )
    found = splits_in(folder)
    unread = unread_in(folder, split)
    if split not in found and unread:
        do = f"convert it to one of {known_formats()}"
        raise input_error("--data", f"a format in {folder} that is not read", unread[0], do)
    if not found:
        inner = sorted(p.name for p in folder.iterdir() if p.is_dir() and splits_in(p))
        do = (
            f"give one of its folders: {', '.join(inner)}"
            if inner
            else f"put {split}.jsonl there (or {known_formats()})"
        )
        raise input_error("--data", "no data files in this folder", str(folder), do)
    if split not in found:
        raise input_error(
            "--data", f"no split {split!r} in {folder}", ", ".join(found), f"add {split}.jsonl"
        )
    return read_split(f"{folder}, split {split}", found[split])


def _saved(split: str, folder: Path) -> Source:
    """A folder written by ``datasets``' save_to_disk."""
    from datasets import load_from_disk

    try:
        saved = load_from_disk(str(folder))
    except Exception as error:
        why = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise input_error(
            "--data", f"datasets can't load {folder} ({why})", do="save it again"
        ) from error
    if split not in saved:
        raise input_error("--data", f"no split {split!r} in {folder}", ", ".join(saved))
    table = saved[split]
    return Source(f"{folder}, split {split}", table.to_list(), None, tuple(table.column_names))


def _embedded(task: Task, split: str) -> Source:
    from zopeft.embedded import DATA_DIR

    folder = DATA_DIR / task.name
    if not folder.is_dir():
        names = sorted(path.name for path in DATA_DIR.glob("*") if path.is_dir())
        raise input_error(
            "--task",
            f"no embedded samples for {task.name}",
            do="give --data DIR; there are samples for " + ", ".join(names),
        )
    return _local(task, split, folder)


@contextlib.contextmanager
def _no_bars(datasets: Any) -> Iterator[None]:
    """Inside, ``datasets`` draws no progress bars."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _hub(task: Task, split: str) -> Source:
    source = task.hub
    if source is None:
        raise input_error(
            task.name,
            "the task names no data",
            do="give --data DIR, or `hub` or `data` in its file",
        )
    if split not in source.splits and split not in source.splits.values():
        raise input_error("split", "unknown split", split, close_matches(split, source.splits))
    offline = not hub.reachable()
    try:
        import datasets

        with hub.cache_only(offline), _no_bars(datasets):
            table = datasets.load_dataset(
                source.path,
                source.config,
                split=source.splits.get(split, split),
                revision=source.revision,
            )
    except ImportError as error:
        raise input_error(
            task.name, "hub data needs datasets, which is not installed", do="give --data DIR"
        ) from error
    except Exception as error:
        reason = (
            f"the hub can't be reached and {source.path} was not downloaded before"
            if offline
            else f"{source.path} can't be loaded ({str(error).splitlines()[0][:120]})"
        )
        raise input_error(
            task.name, reason, do=f"give --data DIR with {split}.jsonl (columns {task.needs})"
        ) from error
    name = f"{source.path}, split {split}"
    return Source(name, table.to_list(), None, tuple(table.column_names))
