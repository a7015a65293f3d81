"""Endings: what ends an answer, and what of its tokens is the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Endings:
    """Whether new tokens end an answer: an end token, or a text.

    Args:
        tokenizer: The tokenizer.
        ends: End tokens.
        stop: The text; None where only an end token does.

    Attributes:
        length: So many of the last tokens are read together.
    """

    def __init__(self, tokenizer: Any, ends: Sequence[int], stop: str | None) -> None:
        self.tokenizer, self.ends, self.stop = tokenizer, frozenset(ends), stop
        # A token holds one byte of text at least.
        self.length = 1 if stop == "\n" else len((stop or "").encode()) + 1
        self._known: dict[tuple[int, ...], bool] = {}

    def __call__(self, ids: Sequence[int]) -> bool:
        """Returns whether the last of the tokens is an end."""
        if ids[-1] in self.ends:
            return True
        if self.stop is None:
            return False
        tail = tuple(ids[-self.length :])
        if tail not in self._known:
            self._known[tail] = self.stop in self.tokenizer.decode(tail)
        return self._known[tail]


def text_of(
    tokenizer: Any,
    ids: Sequence[int],
    ends: Sequence[int],
    stop: str | None,
    strip: bool = True,
) -> str:
    """Returns the answer of new tokens: what comes after an end token is filling.

    Args:
        tokenizer: The tokenizer.
        ids: The new tokens.
        ends: End tokens.
        stop: Text that ends an answer, and is no part of it.
        strip: Whether surrounding spaces are left out.
    """
    size = next((place for place, one in enumerate(ids) if one in ends), len(ids))
    text: str = tokenizer.decode(ids[:size], skip_special_tokens=True)
    text = text if stop is None else text.split(stop, 1)[0]
    return text.strip() if strip else text


def end_ids(model: Any, tokenizer: Any, end_tokens: Sequence[int] = ()) -> list[int]:
    """Returns the tokens that end an answer: the model's, the tokenizer's, and others given."""
    return sorted({*_end_tokens(model, tokenizer), *end_tokens})


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """End tokens of the tokenizer and of the model's own settings (chat models have several)."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = own if isinstance(own, list) else [own]
    return sorted({int(end) for end in [*ends, tokenizer.eos_token_id] if end is not None})
