"""Question: a question, perhaps on a context, and the answers that are accepted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from zopeft.tasks.files import Source
from zopeft.tasks.kinds.kind import Kind, Made, Wishes, cell, column_of
from zopeft.tasks.task import Example, Row, RowError
from zopeft.tasks.values import words


def make(columns: Collection[str], sources: Sequence[Source], wishes: Wishes) -> Made:
    """Returns questions and answers, each ended by a line end, unless one has several lines."""
    asked, given = (str(column_of(accepted, columns)) for accepted in KIND.columns)
    stop = wishes.stop or ("\n" if not _several_lines(sources, given) else None)

    def build(row: Row) -> Example:
        parts = [
            f"{name.capitalize()}: {text}\n"
            for name in ("title", "context")
            if name in columns and (text := cell(row, name, empty=True).strip())
        ]
        prompt = "".join(parts) + f"Question: {cell(row, asked).strip()}\nAnswer:"
        answers = tuple(f" {one}{stop or ''}" for one in accepted(row[given], given))
        return Example(prompt, answers=answers, ends=stop is None)

    told = "" if stop else "answers of several lines: an end token ends them, not a line end"
    metric: Any = wishes.metric or "f1"
    return Made(build, "answer", metric, stop, wishes.max_new_tokens or 50, told)


def accepted(value: Any, column: str) -> list[str]:
    """Returns the answers in a cell: a text, texts, or SQuAD's ``{"text": [...]}``.

    Raises:
        RowError: There is none.
    """
    if isinstance(value, Mapping):
        value = value.get("text")
    if hasattr(value, "tolist"):
        value = value.tolist()
    values = value if isinstance(value, list | tuple) else [value]
    found = [one for one in (words(one, column).strip() for one in values) if one]
    if not found:
        raise RowError(f"column {column!r} holds no answer; leave such rows out")
    return found


def _several_lines(sources: Sequence[Source], column: str) -> bool:
    for source in sources:
        for row in source.rows:
            try:
                if "\n" in accepted(row.get(column), column)[0]:
                    return True
            except RowError:
                # It is told with its line when the rows are checked.
                continue
    return False


KIND = Kind(
    name="question",
    columns=("question", "answers|answer"),
    shape="question, answers (and context)",
    wishes=("metric", "stop", "max_new_tokens"),
    metrics=("f1", "accuracy"),
    make=make,
)
