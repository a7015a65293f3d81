"""Messages: conversations with a chat model."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from zopeft.tasks.conversation import conversation
from zopeft.tasks.files import Source
from zopeft.tasks.kinds.kind import Kind, Made, Wishes, column_of, free
from zopeft.tasks.task import Conversation, Row


def make(columns: Collection[str], sources: Sequence[Source], wishes: Wishes) -> Made:
    """Returns conversations in the tokenizer's chat template."""
    column = str(column_of(KIND.columns[0], columns))

    def build(row: Row) -> Conversation:
        options = wishes.template_options
        return conversation(row[column], column, wishes.system, row.get("tools"), options)

    return free(wishes, build, "must")


KIND = Kind(
    name="messages",
    columns=("messages|conversations",),
    shape="messages (a list of role and content)",
    wishes=("system", "metric", "stop", "max_new_tokens", "template_options"),
    metrics=("perplexity", "f1", "accuracy"),
    make=make,
)
