"""Prompt: what a model is to continue, and columns that a reward may ask for."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from zopeft.tasks.conversation import conversation, turns
from zopeft.tasks.files import Source
from zopeft.tasks.kinds.kind import Kind, Made, Wishes, cell
from zopeft.tasks.task import Conversation, Example, Row

ANSWER = {"role": "assistant", "content": "."}
"""Stands where the answer will be; it is generated, never taught."""


def make(columns: Collection[str], sources: Sequence[Source], wishes: Wishes) -> Made:
    """Returns prompts, as text or as turns."""

    def build(row: Row) -> Example | Conversation:
        value = row["prompt"]
        if isinstance(value, list | tuple) or hasattr(value, "tolist"):
            both = [*turns(value, "prompt"), ANSWER]
            options = wishes.template_options
            return conversation(both, "prompt", wishes.system, row.get("tools"), options)
        prompt = cell(row, "prompt")
        return Example(
            prompt if wishes.system is None else f"{wishes.system}\n\n{prompt}", ends=True
        )

    first = next((row.get("prompt") for one in sources for row in one.rows), "")
    return Made(
        build=build,
        kind="prompt",
        metric="reward",
        stop=wishes.stop,
        max_new_tokens=wishes.max_new_tokens or 128,
        turns="no" if isinstance(first, str) else "must",
    )


KIND = Kind(
    name="prompt",
    columns=("prompt",),
    shape="prompt (and others, for a reward)",
    wishes=("system", "stop", "max_new_tokens", "template_options"),
    metrics=("reward",),
    make=make,
)
