"""Completion: a prompt and what follows it, as text or as turns.

As TRL has them: texts stand one behind the other as they are, with the end token after the
completion; lists of turns make one conversation.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from zopeft.tasks.conversation import conversation, turns
from zopeft.tasks.files import Source
from zopeft.tasks.kinds.kind import Kind, Made, Wishes, cell, column_of, free
from zopeft.tasks.task import Conversation, Example, Row, RowError


def make(columns: Collection[str], sources: Sequence[Source], wishes: Wishes) -> Made:
    """Returns prompts and completions."""
    names = [str(column_of(accepted, columns)) for accepted in KIND.columns]

    def build(row: Row) -> Example | Conversation:
        lists = [_is_list(row[name]) for name in names]
        if all(lists):
            both = [*turns(row[names[0]], names[0]), *turns(row[names[1]], names[1])]
            options = wishes.template_options
            return conversation(both, names[1], wishes.system, row.get("tools"), options)
        if any(lists):
            raise RowError(
                f"columns {names[0]!r} and {names[1]!r} must both be text, or both turns"
            )
        prompt, completion = (cell(row, name) for name in names)
        if wishes.system is not None:
            prompt = f"{wishes.system}\n\n{prompt}"
        return Example(prompt, answers=(completion + (wishes.stop or ""),), ends=not wishes.stop)

    lists = any(_is_list(row.get(names[0])) for source in sources for row in source.rows)
    return free(wishes, build, "must" if lists else "no", _unjoined(sources, names))


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple) or hasattr(value, "tolist")


def _unjoined(sources: Sequence[Source], names: Sequence[str]) -> str:
    """What to say of texts that run into each other without a space."""
    rows = [row for source in sources for row in source.rows]
    pairs = [[row.get(name) for name in names] for row in rows]
    texts = [(p, c) for p, c in pairs if isinstance(p, str) and isinstance(c, str) and p and c]
    joined = [p for p, c in texts if p[-1].isalnum() and c[0].isalnum()]
    if not texts or len(joined) < len(texts):
        return ""
    return "no space between any prompt and its completion: they are taught as one word"


KIND = Kind(
    name="completion",
    columns=("prompt", "completion|response"),
    shape="prompt, completion (text, or lists of role and content)",
    wishes=("system", "metric", "stop", "max_new_tokens", "template_options"),
    metrics=("perplexity", "f1", "accuracy"),
    make=make,
)
