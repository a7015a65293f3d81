"""Filling: templates of task files, ``{column}`` for a column's text."""

from __future__ import annotations

import string

from zopeft.tasks.task import Row, RowError
from zopeft.tasks.values import words


def fields(template: str) -> tuple[list[str], list[str]]:
    """Returns the columns that a template names, and what is wrong with it."""
    columns: list[str] = []
    try:
        for _, field, spec, conversion in string.Formatter().parse(template):
            if field is None:
                continue
            if not field or field.isdigit() or spec or conversion or set(field) & set(".["):
                return [], [f"{{column}} is needed, got {{{field}}} in {template!r}"]
            columns.append(field)
    except ValueError as error:
        return [], [f"{error} in {template!r}; a brace in the text is written twice"]
    return columns, []


def fill(template: str, row: Row) -> str:
    """Returns the template with its columns' text; braces inside the text stay as they are.

    Raises:
        RowError: A column holds no text.
    """
    parts = []
    for before, field, _, _ in string.Formatter().parse(template):
        parts.append(before)
        if field is not None:
            parts.append(words(row[field], field))
    return "".join(parts)


def fill_prompt(template: str, row: Row) -> str:
    """Returns a prompt, without trailing spaces.

    Raises:
        RowError: It is empty, or a column holds no text.
    """
    prompt = fill(template, row).rstrip(" ")
    if not prompt.strip():
        raise RowError("the prompt is empty")
    return prompt


def joined(prompt: str, option: str) -> str:
    """Returns an option as it stands behind a prompt: after a space, or on a new line."""
    return option if prompt.endswith("\n") or option[:1].isspace() else " " + option
