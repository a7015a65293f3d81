"""Counts: what a data set comes to in tokens."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from zopeft.tasks.dataset import TaskDataset
from zopeft.tasks.encoding import Encoded


@dataclass(frozen=True)
class Counts:
    """What the rows of a split come to.

    Attributes:
        rows: Rows.
        available: Rows that they were drawn from.
        texts: Examples; running text that is too long makes several of a row.
        tokens: Tokens of all, padding left out; of a classification those of the right option.
        taught: Tokens among them that are taught.
        longest: Tokens of the longest example, all options counted.
        cut: Examples that lost tokens for want of room.
    """

    rows: int
    available: int
    texts: int
    tokens: int
    taught: int
    longest: int
    cut: int

    @classmethod
    def of(cls, data: TaskDataset, rows: Any) -> Counts:
        """Returns the counts of encoded rows.

        Args:
            data: The rows as token ids.
            rows: The rows, as `zopeft.tasks.load_rows` gives them.
        """
        texts = [shown_text(one) for one in data.encoded]
        return cls(
            rows=len(rows),
            available=getattr(rows, "available", len(rows)),
            texts=len(texts),
            tokens=sum(len(ids) for ids, _ in texts),
            taught=sum(sum(marks) for _, marks in texts),
            longest=max(map(len, data.encoded)),
            cut=sum(one.cut > 0 for one in data.encoded),
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the counts, and the share of the tokens that is taught."""
        return {**asdict(self), "share_taught": round(self.taught / self.tokens, 4)}


def shown_text(one: Encoded) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Returns an example's ids and which of them are taught; of options the right one's."""
    right = one.label or 0
    prompt, answer = one.prompts[right], one.options[right]
    marks = one.taught or (True,) * len(answer)
    return prompt + answer, (False,) * len(prompt) + marks
