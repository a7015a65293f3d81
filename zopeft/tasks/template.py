"""Template: what a tokenizer puts before and after a text.

It is read off the tokenizer's own encoding, not off the names of its special tokens: GLM
puts two tokens in front, XGLM its end token, others nothing, or only something behind.

What stands in front belongs before every prompt, in training as in generation. What stands
behind (an end token) is left out everywhere: after a prompt the text goes on; options are
compared by their own tokens; and an answer ends with its newline, where generation stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Ids = tuple[int, ...]

TEXTS = ("a", "the cat", "1")
"""Texts to try a tokenizer on."""


@dataclass(frozen=True)
class Template:
    """The ids around a text.

    Attributes:
        before: In front of every text.
        after: Behind every text.
    """

    before: Ids
    after: Ids

    @classmethod
    def of(cls, tokenizer: Any, texts: Sequence[str] = ()) -> Template:
        """Returns a tokenizer's template.

        Args:
            tokenizer: A Hugging Face tokenizer, fast or slow.
            texts: More texts to try, for a tokenizer that knows none of `TEXTS`.
        """
        left: set[tuple[Ids, Ids]] | None = None
        whole: Ids = ()
        for text in (*TEXTS, *texts):
            plain, whole = _ids(tokenizer, text, False), _ids(tokenizer, text, True)
            if not plain:
                continue
            found = _places(plain, whole)
            left = found if left is None else left & found
            if len(left) < 2:
                break
        if left:
            return cls(*min(left))
        return cls._special(tokenizer, whole)

    @classmethod
    def _special(cls, tokenizer: Any, whole: Ids) -> Template:
        """The special tokens at both ends, where a text changes with what is around it."""
        special = set(tokenizer.all_special_ids)
        first = next((i for i, one in enumerate(whole) if one not in special), len(whole))
        last = next((i for i, one in enumerate(whole[::-1]) if one not in special), 0)
        return cls(whole[:first], whole[len(whole) - last :])

    def begun(self, ids: Sequence[int]) -> Sequence[int]:
        """Returns the ids of a text without the start, where the text itself spells it out.

        As chat templates do; the start is put before it afterwards, once.
        """
        count = len(self.before)
        return ids[count:] if tuple(ids[:count]) == self.before else ids


def _ids(tokenizer: Any, text: str, special: bool) -> Ids:
    return tuple(int(one) for one in tokenizer(text, add_special_tokens=special).input_ids)


def _places(plain: Ids, whole: Ids) -> set[tuple[Ids, Ids]]:
    """What can stand around `plain` in `whole`."""
    size = len(plain)
    return {
        (whole[:first], whole[first + size :])
        for first in range(len(whole) - size + 1)
        if whole[first : first + size] == plain
    }
