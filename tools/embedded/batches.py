"""Rows of tokens for pretraining: whole documents side by side, blind to one another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch

from embedded.corpus import documents
from embedded.markup import parse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROW_LENGTH = 96
"""Tokens in a row; a longer document is left out."""

CHANCE_SHARE = 0.1
"""Share of the tokens outside the marked parts that are trained on."""

_CHUNK = 2048


@dataclass(frozen=True)
class Batch:
    """One batch of packed rows.

    Attributes:
        tokens: Token ids, ``[B, T]``.
        positions: Position of each token in its document, ``[B, T]``.
        mask: Which token sees which, ``[B, 1, T, T]``.
        predicting: Where the next token is trained on, ``[B, T]``.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    predicting: torch.Tensor


def _rows(
    tokenizer: PreTrainedTokenizerFast, seed: int, last: bool
) -> Iterator[tuple[list[int], list[int], list[bool]]]:
    """Pack documents: token ids, document numbers (-1 for padding), marked tokens."""
    source = documents(seed, last=last)
    ids: list[int] = []
    owners: list[int] = []
    marked: list[bool] = []
    number = 0
    while True:
        parsed = [parse(document) for document in islice(source, _CHUNK)]
        texts = [text + tokenizer.eos_token for text, _ in parsed]
        encoded = tokenizer(texts, return_offsets_mapping=True)
        for row, offsets, (text, spans) in zip(
            encoded["input_ids"], encoded["offset_mapping"], parsed, strict=True
        ):
            if len(row) > ROW_LENGTH:
                continue
            if len(ids) + len(row) > ROW_LENGTH:
                gap = ROW_LENGTH - len(ids)
                yield (
                    ids + [tokenizer.pad_token_id] * gap,
                    owners + [-1] * gap,
                    marked + [False] * gap,
                )
                ids, owners, marked, number = [], [], [], 0
            ids += row
            owners += [number] * len(row)
            marked += [
                start >= len(text) or any(start < span[1] and end > span[0] for span in spans)
                for start, end in offsets
            ]
            number += 1


def batches(
    tokenizer: PreTrainedTokenizerFast, size: int, seed: int, *, last: bool = False
) -> Iterator[Batch]:
    """Make batches without end.

    Args:
        tokenizer: The trained tokenizer.
        size: Rows in a batch, B.
        seed: Seed of the text and of the choice of unmarked tokens.
        last: Whether the text is that of the last part (see ``documents``).

    Yields:
        Batches of ``size`` rows of ``ROW_LENGTH`` tokens.
    """
    chance = torch.Generator().manual_seed(seed)
    rows = _rows(tokenizer, seed, last)
    causal = torch.ones(ROW_LENGTH, ROW_LENGTH, dtype=torch.bool).tril()
    while True:
        packed = list(islice(rows, size))
        tokens = torch.tensor([row[0] for row in packed])
        owners = torch.tensor([row[1] for row in packed])
        marked = torch.tensor([row[2] for row in packed])
        same = owners[:, :, None] == owners[:, None, :]
        mask = same & causal
        picked = marked | (torch.rand(tokens.shape, generator=chance) < CHANCE_SHARE)
        predicting = torch.zeros_like(picked)
        predicting[:, :-1] = (
            picked[:, 1:] & (owners[:, 1:] == owners[:, :-1]) & (owners[:, 1:] >= 0)
        )
        yield Batch(tokens, mask.sum(-1) - 1, mask[:, None], predicting)
