"""Sampling: tokens drawn by random numbers that are addressed, never drawn in order.

Token v of row r at place t has ``log p(v) / temperature - log(-log(u))``, and the largest is
drawn, which is a draw from the distribution. ``u`` is read at (seed of the step, row, t, v): both
probes of a step, and every copy of a row, see the same numbers, so that what differs between them
is the weights' doing and not chance's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zopeft.noise.philox import philox4x32

WORD = 2.0**32


class ScoreError(Exception):
    """A score that is none: its text is the one line that names it."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Draw from the likeliest so many tokens.
        top_p: Draw from the likeliest tokens that have this share of the probability together.
    """

    temperature: float = 0.0
    top_k: int = 50
    top_p: float = 1.0

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature == 0.0


class Draw:
    """Chooses tokens for rows; a `zopeft.tasks.decoding.Pick`.

    Args:
        how: How tokens are chosen.
        seed: 64-bit key of the step.
        rows: 32-bit number of each row, [R].
    """

    def __init__(self, how: Sampling, seed: int, rows: Sequence[int]) -> None:
        self.how, self.seed, self.rows = how, seed, rows

    def __call__(self, logits: Tensor, rows: Sequence[int], place: int) -> Tensor:
        """Returns tokens [R] for logits [R, V].

        Raises:
            ScoreError: There are logits that are no numbers.
        """
        if bool(logits.isnan().any()):
            raise ScoreError("the model's logits are not finite; lower --lr or --eps")
        if self.how.greedy:
            return logits.argmax(-1)
        scaled = logits / self.how.temperature
        best, tokens = scaled.topk(min(self.how.top_k, scaled.shape[-1]), -1)
        if self.how.top_p < 1.0:
            share = best.softmax(-1)
            before = share.cumsum(-1) - share
            best = best.masked_fill(before >= self.how.top_p, float("-inf"))
        own = torch.tensor([self.rows[row] for row in rows], device=logits.device)
        word = philox4x32((tokens, place, own[:, None], 0), self.seed)[0]
        # In fp64: u is never 0 nor 1.
        uniform = (word.double() + 0.5) / WORD
        drawn = (best.double() - (-uniform.log()).log()).argmax(-1, keepdim=True)
        return tokens.gather(-1, drawn)[:, 0]


def row_numbers(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Returns a 32-bit number for each row, by its text and how often it has come before."""
    seen: dict[tuple[int, ...], int] = {}
    found = []
    for prompt in prompts:
        key = tuple(prompt)
        seen[key] = number = seen.get(key, -1) + 1
        text = f"zopeft row {number} {','.join(map(str, key))}".encode()
        found.append(int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little"))
    return found
