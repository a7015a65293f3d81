"""Label: a text and its class; the options are the classes by name."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from zopeft.errors import input_error
from zopeft.tasks.files import Source
from zopeft.tasks.kinds.kind import Kind, Made, Wishes, cell, column_of
from zopeft.tasks.task import Example, Row, RowError
from zopeft.tasks.values import choice, index, words

MANY = 50
"""So many classes are many; more are refused where most rows have one of their own."""


def make(columns: Collection[str], sources: Sequence[Source], wishes: Wishes) -> Made:
    """Returns texts and their classes.

    The classes are those that the user names, those that the file names (a column of classes of
    ``datasets``), the texts of a column ``label_text`` or ``label_name``, or the labels themselves.

    Raises:
        InputError: There is one class, or nearly as many as rows.
    """
    read, column = (str(column_of(accepted, columns)) for accepted in KIND.columns)
    told = ""
    named = wishes.labels or next((s.labels[column] for s in sources if column in s.labels), ())
    if not named and (beside := column_of("label_text|label_name", columns)):
        column = beside
    names = tuple(named) or _labels(sources, column)
    if not named and all(name.lstrip("-").isdigit() for name in names):
        told = (
            f"the labels are numbers ({', '.join(names[:4])}): a model does better with names, "
            "data.labels=[...]"
        )
    by = None if named else "text"

    def build(row: Row) -> Example:
        text = cell(row, read).strip()
        right = choice(row.get(column), names, column, by)
        return Example(f"{text}\nLabel:", tuple(f" {name}" for name in names), right)

    return Made(build, "choice", "accuracy", "\n", told=told, labels=names)


def _labels(sources: Sequence[Source], column: str) -> tuple[str, ...]:
    """The labels in the rows, numbers by size and texts by the alphabet."""
    seen: dict[str, None] = {}
    count = 0
    for source in sources:
        for place, row in enumerate(source.rows):
            try:
                seen[words(row.get(column), column).strip()] = None
            except RowError as error:
                raise input_error(source.place(place), str(error)) from error
            count += 1
    if len(seen) < 2:
        what = "all rows have one label; a classification needs two"
        raise input_error(sources[0].name, what, next(iter(seen), ""))
    if len(seen) > MANY and len(seen) > count // 2:
        what = f"{len(seen)} different labels in {count} rows are no classes"
        do = "teach the label as text: data.columns={prompt: ..., completion: ...}"
        raise input_error(sources[0].name, what, ", ".join(list(seen)[:3]), do)
    return tuple(sorted(seen, key=_order))


def _order(name: str) -> tuple[int, Any]:
    number = index(name, 10**9)
    return (1, name) if number is None else (0, number)


KIND = Kind(
    name="label",
    columns=("text|sentence", "label"),
    shape="text, label",
    wishes=("labels",),
    metrics=("accuracy",),
    make=make,
)
