"""Text: running text, taught from end to end."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from zopeft.tasks.files import Source
from zopeft.tasks.kinds.kind import Kind, Made, Wishes, cell
from zopeft.tasks.task import Passage, Row


def make(columns: Collection[str], sources: Sequence[Source], wishes: Wishes) -> Made:
    """Returns passages; the end token follows each."""

    def build(row: Row) -> Passage:
        return Passage(cell(row, "text").strip("\n"))

    return Made(build, "text", "perplexity", None, 1)


KIND = Kind(
    name="text",
    columns=("text",),
    shape="text",
    wishes=(),
    metrics=("perplexity",),
    make=make,
)
