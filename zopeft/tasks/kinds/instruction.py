"""Instruction: what is to be done, perhaps with an input, and the output.

A turn of the user's and one of the assistant's in the tokenizer's chat template; where it has
none, Alpaca's headings: ``### Instruction:``, ``### Input:``, ``### Response:``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from zopeft.tasks.conversation import conversation
from zopeft.tasks.files import Source
from zopeft.tasks.kinds.kind import Kind, Made, Wishes, cell, column_of, free
from zopeft.tasks.task import Conversation, Example, Row


def make(columns: Collection[str], sources: Sequence[Source], wishes: Wishes) -> Made:
    """Returns instructions and outputs."""
    wanted, given = (str(column_of(accepted, columns)) for accepted in KIND.columns)
    extra = column_of("input|context", columns)

    def build(row: Row) -> Conversation:
        task = cell(row, wanted).strip()
        material = cell(row, extra, empty=True).strip() if extra else ""
        answer = cell(row, given).strip()
        parts = [wishes.system] if wishes.system else []
        parts += [f"### Instruction:\n{task}"] + ([f"### Input:\n{material}"] if material else [])
        plain = Example(
            "\n\n".join([*parts, "### Response:\n"]),
            answers=(answer + (wishes.stop or ""),),
            ends=not wishes.stop,
        )
        asked = {"role": "user", "content": f"{task}\n\n{material}" if material else task}
        both = [asked, {"role": "assistant", "content": answer}]
        options = wishes.template_options
        return conversation(both, wanted, wishes.system, options=options, plain=plain)

    return free(wishes, build, "may")


KIND = Kind(
    name="instruction",
    columns=("instruction", "output|response"),
    shape="instruction, output (and input)",
    wishes=("system", "metric", "stop", "max_new_tokens", "template_options"),
    metrics=("perplexity", "f1", "accuracy"),
    make=make,
)
