"""Marking: a text as token ids, with the tokens of some of its parts marked."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from zopeft.tasks.encoding import tokenize, unwarned


def mark(
    tokenizer: Any, text: str, spans: Sequence[tuple[int, int]]
) -> tuple[list[int], list[bool]]:
    """Returns the ids of a text, without special tokens of the tokenizer's own, and their marks.

    A token that lies across the beginning of a part belongs to it, as everywhere in zopeft
    (`zopeft.tasks.encoding`); one that lies across its end does, too.

    Args:
        tokenizer: A Hugging Face tokenizer, fast or slow.
        text: The text; special tokens in it are read as such.
        spans: Begin and end of each part in characters, in order.

    Returns:
        Token ids [T] and which of them are marked [T].
    """
    if not getattr(tokenizer, "is_fast", False):
        return _mark_by_prefixes(tokenizer, text, spans)
    found = unwarned(tokenizer)(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, marks = list(found.input_ids), []
    for begin, end in found.offset_mapping:
        marks.append(any(begin < stop and end > start for start, stop in spans))
    return ids, marks


def _mark_by_prefixes(
    tokenizer: Any, text: str, spans: Sequence[tuple[int, int]]
) -> tuple[list[int], list[bool]]:
    """`mark` for tokenizers that do not tell where their tokens stand."""
    borders = [place for span in spans for place in span]
    ids, *starts = tokenize(tokenizer, [text, *(text[:place] for place in borders)])
    marks = [False] * len(ids)
    for k, (start, stop) in enumerate(pairwise(starts)):
        if k % 2 == 0:
            first, last = _common(start, ids), _common(stop, ids)
            # The end lies inside a token where the text up to it has other tokens.
            last += last < len(stop) and last < len(ids)
            marks[first:last] = [True] * max(0, last - first)
    return ids, marks


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    same = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        same += 1
    return same
