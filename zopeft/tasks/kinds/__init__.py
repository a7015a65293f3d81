"""Kinds: what rows of the user's own data are, told by their columns. One kind, one file."""

from __future__ import annotations

from collections.abc import Collection

from zopeft.errors import close_matches, input_error
from zopeft.registry import Registry
from zopeft.tasks.kinds.kind import Kind, Wishes

KINDS = Registry(
    "kind of data",
    {
        "messages": "zopeft.tasks.kinds.messages:KIND",
        "completion": "zopeft.tasks.kinds.completion:KIND",
        "instruction": "zopeft.tasks.kinds.instruction:KIND",
        "question": "zopeft.tasks.kinds.question:KIND",
        "label": "zopeft.tasks.kinds.label:KIND",
        "text": "zopeft.tasks.kinds.text:KIND",
        "prompt": "zopeft.tasks.kinds.prompt:KIND",
    },
    about={
        "messages": "conversations, of which the assistant's turns are taught",
        "completion": "prompts and what follows them",
        "instruction": "instructions and their outputs",
        "question": "questions and their answers",
        "label": "texts and their classes",
        "text": "running text, all of it taught",
        "prompt": "prompts alone, whose completions a reward scores",
    },
)
"""Kind name to `Kind`."""

__all__ = ["KINDS", "Kind", "Wishes", "recognise", "understood"]


def understood() -> str:
    """Returns the columns that would be understood, for messages."""
    return "; ".join(kind.shape for kind in KINDS.values())


def recognise(columns: Collection[str], where: str, name: str | None = None) -> Kind:
    """Returns the kind of data that columns tell.

    Where the columns of one kind are among those of another, the other is meant: text with a
    label is no running text. So is every other kind, where there is a ``text`` beside it, and a
    prompt with a completion is not one alone.

    Args:
        columns: The names of the columns.
        where: The file or data set, for messages.
        name: The kind's name, where the user says it.

    Raises:
        InputError: None fits, or several do, or the one that is named does not.
    """
    seen = ", ".join(columns)
    if name is not None:
        if name not in KINDS:
            raise input_error("data.kind", "unknown kind of data", name, close_matches(name, KINDS))
        kind: Kind = KINDS[name]
        missing = kind.missing(columns)
        if missing:
            what = f"{kind.name} needs a column {missing[0].replace('|', ' or ')}"
            raise input_error(where, what, seen, RENAME)
        return kind
    fitting = [kind for kind in KINDS.values() if not kind.missing(columns)]
    for least in ("text", "prompt"):
        if len(fitting) > 1:
            fitting = [kind for kind in fitting if kind.name != least]
    if not fitting:
        do = f"understood: {understood()}. {RENAME}"
        raise input_error(where, "columns that tell of no known kind of data", seen, do)
    if len(fitting) > 1:
        names = [kind.name for kind in fitting]
        do = "say which with " + " or ".join(f"data.kind={name}" for name in names)
        what = f"columns that may be {' or '.join(names)}"
        raise input_error(where, what, seen, do)
    return fitting[0]


RENAME = (
    'Other names: "data.columns={text: review, label: stars}"; '
    "other data: a task of your own, --task FILE.yaml"
)
"""What to do about columns of other names."""
