"""Data: a file of one's own, or a task's rows, as the data sets that a trainer takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zopeft.errors import input_error
from zopeft.tasks.catalog import load_task
from zopeft.tasks.chat import read_template
from zopeft.tasks.dataset import Collator, TaskDataset
from zopeft.tasks.evaluation import fit_length
from zopeft.tasks.kinds.kind import Wishes
from zopeft.tasks.mixture import mixed_task
from zopeft.tasks.own import HELD_OUT, open_data
from zopeft.tasks.own_task import own_task
from zopeft.tasks.rows import Rows, load_rows
from zopeft.tasks.stream import TaskStream, as_needed
from zopeft.tasks.streamed import BUFFER, Streaming
from zopeft.tasks.table import table_rows
from zopeft.tasks.task import Task


@dataclass(frozen=True)
class Data:
    """Rows to train on and rows to score on, encoded.

    Attributes:
        task: What they are; `zopeft.tasks.evaluate` takes it.
        train: The examples to train on, a torch data set; of rows that are streamed, one that is
            iterated over.
        validation: The examples to score on.
        rows: The rows of both, by "train" and "validation"; of rows that are streamed, the first.
        collator: Makes batches of examples, for the Trainer's ``data_collator``.
    """

    task: Task
    train: TaskDataset | TaskStream
    validation: TaskDataset
    rows: Mapping[str, Rows]
    collator: Collator


def load_data(
    data: str | Path | Mapping[str, float | None] | None,
    tokenizer: Any,
    *,
    task: str | Task | None = None,
    model: Any = None,
    max_length: int = 512,
    kind: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    validation: str | None = None,
    held_out: float = HELD_OUT,
    template: str | None = None,
    seed: int = 0,
    streaming: bool = False,
    shuffle_buffer: int = BUFFER,
    **wishes: Any,
) -> Data:
    """Loads own data, whose columns tell what it is, as ``zopeft tune --data`` does.

    Args:
        data: A file, a folder or a hub id; or several with their weights, a mixture. With a
            task, rows in its columns, or None for the hub's.
        tokenizer: A Hugging Face tokenizer.
        task: A task by name; None for own data.
        model: The model, whose places for text and whose tokens are then heeded.
        max_length: Most tokens of a text.
        kind: What the rows are, an entry of `zopeft.tasks.kinds.KINDS`; None asks their columns.
        columns: Names of columns as kinds know them, to their names in the data.
        split: The split to train on; None takes "train", or the only one there is.
        validation: A file with the rows to score on, or the name of a split; None takes the
            split of that name, or holds rows out.
        held_out: Share of the rows that is held out then.
        template: "plain", or a file with a chat template, which the tokenizer is given.
        seed: Seed of a mixture's draw, and of the order of rows that are streamed, as that of the
            run.
        streaming: Whether rows to train on are read and encoded as they are needed, for data that
            does not fit in memory; ``train`` is then a `zopeft.tasks.stream.TaskStream`.
        shuffle_buffer: Rows that are held then, from which the next one is drawn.
        **wishes: Fields of `zopeft.tasks.kinds.Wishes`: ``labels``, ``system``, ``metric``,
            ``stop``, ``max_new_tokens``, ``template_options``.

    Raises:
        InputError: The data cannot be read, tells of no kind, or has a faulty row.
    """
    own: str | Path | None = None
    if streaming and task is not None:
        raise input_error("load_data", "a task is not streamed", do="leave out streaming")
    how = Streaming(shuffle_buffer, seed) if streaming else None
    if isinstance(data, Mapping):
        if task is not None:
            do = "give one, or leave out the task"
            raise input_error("load_data", "a task takes no mixture", ", ".join(data), do)
        where = (data, split, validation, held_out, kind, columns, Wishes(**wishes), seed, how)
        found = mixed_task(*where)
    elif task is not None:
        found, own = load_task(task) if isinstance(task, str) else task, data
    else:
        opened = open_data(data or "", split, validation, held_out, how)
        found = own_task(opened, kind, columns, Wishes(**wishes))
    if template is not None:
        tokenizer.chat_template = read_template(template)
    known = None if model is None else table_rows(model)
    length = max_length if model is None else fit_length(model, max_length)
    rows = {name: load_rows(found, name, own) for name in ("train", "validation")}

    def encoded(some: Any) -> TaskDataset:
        return TaskDataset(found, some, tokenizer, length, table_rows=known)

    head, scored = (encoded(one) for one in rows.values())
    train = as_needed(head, rows["train"], encoded)
    return Data(found, train, scored, rows, Collator(tokenizer, known))
