"""Fitting: texts of the user's own that are longer than a model can read, or is to read.

A task's answer is never cut (`zopeft.tasks.encoding`). Own data has answers of any length: one of
at most half the room is kept whole, and the prompt loses its beginning; a longer one loses its
end, but never below half the room. So each row keeps something to learn, after something to
learn it from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from zopeft.errors import input_error
from zopeft.tasks.encoding import Encoded
from zopeft.tasks.template import Ids


def fit(
    prompt: Sequence[int],
    answer: Sequence[int],
    marks: Sequence[bool] | None,
    start: Ids,
    max_length: int,
) -> Encoded:
    """Returns prompt and answer in at most `max_length` tokens.

    Args:
        prompt: Tokens in front of the first that is taught, without `start`.
        answer: Tokens from the first that is taught.
        marks: Which tokens of the answer are taught; None for all.
        start: Tokens that stand before every text.
        max_length: Most tokens, from 2.

    Raises:
        InputError: `max_length` has no room for a prompt and an answer.
    """
    room = max_length - len(start)
    if room < 2:
        raise input_error(
            "max_length", "no room for a prompt and an answer", max_length, "raise it"
        )
    kept = min(len(answer), max(room - len(prompt), room - room // 2))
    front = min(len(prompt), room - kept)
    cut = len(prompt) - front + len(answer) - kept
    whole = marks is None or all(marks[:kept])
    return Encoded(
        prompts=((*start, *prompt[len(prompt) - front :]),),
        options=(tuple(answer[:kept]),),
        taught=None if whole or marks is None else tuple(marks[:kept]),
        cut=cut,
    )


def pieces(ids: Sequence[int], start: Ids, max_length: int) -> Iterator[Encoded]:
    """Yields a text in pieces of at most `max_length` tokens; all of them are taught.

    Each piece stands after `start`. Where a tokenizer has no start, the first token of a piece
    follows nothing, and is not taught.

    Raises:
        InputError: `max_length` has no room.
    """
    before = 0 if start else 1
    room = max_length - len(start)
    if room < 1 + before:
        raise input_error("max_length", "no room for a text", max_length, "raise it")
    for first in range(0, len(ids), room):
        piece = tuple(ids[first : first + room])
        if len(piece) > before:
            yield Encoded(((*start, *piece[:before]),), (piece[before:],))
