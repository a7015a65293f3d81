"""Places: where rows lie: a folder, a folder that ``datasets`` wrote, the package, or the hub."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zopeft import hub
from zopeft.errors import close_matches, input_error
from zopeft.tasks.files import Source
from zopeft.tasks.splits import known_formats, read_split, splits_in, unread_in
from zopeft.tasks.task import HubSource, Task

SAVED = "dataset_dict.json"
"""The file that tells a folder written by ``datasets``' save_to_disk."""


def folder_source(folder: Path, split: str) -> Source:
    """Returns the rows of a split of a local folder.

    Raises:
        InputError: No such folder or split, or a file that can't be read.
    """
    if not folder.exists():
        raise input_error("--data", "no such folder", str(folder), "check the path")
    if not folder.is_dir():
        raise input_error("--data", "a folder is needed", str(folder), f"give {folder.parent}")
    if (folder / SAVED).is_file():
        return saved_source(folder, split)
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


def saved_tables(folder: Path) -> Mapping[str, Any]:
    """Returns the splits of a folder written by ``datasets``' save_to_disk: name to table.

    Raises:
        InputError: It can't be loaded.
    """
    from datasets import load_from_disk

    try:
        saved: Mapping[str, Any] = load_from_disk(str(folder))
    except Exception as error:
        what = f"datasets can't load {folder} ({_first_line(error)})"
        raise input_error("--data", what, do="save it again") from error
    return saved


def saved_source(folder: Path, split: str) -> Source:
    """Returns the rows of a split of a folder written by ``datasets``' save_to_disk.

    Raises:
        InputError: It can't be loaded, or has no such split.
    """
    saved = saved_tables(folder)
    if split not in saved:
        raise input_error("--data", f"no split {split!r} in {folder}", ", ".join(saved))
    return table_source(f"{folder}, split {split}", saved[split])


def table_source(name: str, table: Any) -> Source:
    """Returns the rows of a ``datasets`` table, and the names of its classes."""
    features = getattr(table, "features", None) or {}
    labels = {
        column: tuple(feature.names)
        for column, feature in features.items()
        if type(feature).__name__ == "ClassLabel"
    }
    return Source(name, table.to_list(), None, tuple(table.column_names), labels=labels)


def embedded_source(task: Task, split: str) -> Source:
    """Returns the samples of a task inside the package.

    Raises:
        InputError: There are none.
    """
    from zopeft.embedded import DATA_DIR

    folder = DATA_DIR / task.name
    if not folder.is_dir():
        names = sorted(path.name for path in DATA_DIR.glob("*") if path.is_dir())
        raise input_error(
            "--task",
            f"no embedded samples for {task.name}",
            do="give --data DIR; there are samples for " + ", ".join(names),
        )
    return folder_source(folder, split)


@contextlib.contextmanager
def no_bars(datasets: Any) -> Iterator[None]:
    """Inside, ``datasets`` draws no progress bars."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def hub_source(task: Task, split: str) -> Source:
    """Returns the rows of a split of a task's data on the hub.

    Raises:
        InputError: The task names none, or it can't be had.
    """
    source = task.hub
    if source is None:
        raise input_error(
            task.name,
            "the task names no data",
            do="give --data DIR, or `hub` or `data` in its file",
        )
    if split not in source.splits and split not in source.splits.values():
        raise input_error("split", "unknown split", split, close_matches(split, source.splits))
    do = f"give --data DIR with {split}.jsonl (columns {task.needs})"
    table = hub_table(source, source.splits.get(split, split), task.name, do)
    return table_source(f"{source.path}, split {split}", table)


def hub_table(
    source: HubSource, split: str | None, where: str, do: str, streaming: bool = False
) -> Any:
    """Returns a data set on the hub as ``datasets`` has it.

    Args:
        source: Where it is.
        split: The hub's name of the split; None for a mapping of all.
        where: What asks for it, for messages.
        do: What the user can do where it can't be had.
        streaming: Whether rows are read as they are needed, and nothing is downloaded before.

    Raises:
        InputError: It can't be had.
    """
    offline = not hub.reachable()
    try:
        import datasets

        with hub.cache_only(offline), no_bars(datasets):
            return datasets.load_dataset(
                source.path,
                source.config,
                split=split,
                revision=source.revision,
                **({"streaming": True} if streaming else {}),
            )
    except ImportError as error:
        raise input_error(
            where, "hub data needs datasets, which is not installed", do="give --data DIR"
        ) from error
    except Exception as error:
        reason = (
            f"the hub can't be reached and {source.path} was not downloaded before"
            if offline
            else f"{source.path} can't be loaded ({_first_line(error)})"
        )
        raise input_error(where, reason, do=do) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
