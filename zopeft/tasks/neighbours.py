"""Neighbours: whether what a model says of a row depends on the rows beside it.

Rows of unequal length are padded to be one batch. Most models give each row what it would
get alone; some do not: a recurrent model that reads the padding, a prefix or a trained
prompt that stands before padding on the left and so leaves a sliding window, positions
that are counted from the padded length. Nothing in a model's configuration tells, so it is
tried out: a long row and a short one together, and the short one alone. A model that
fails is given rows of one length at a time.

A row may matter only from some length on, so what was found is kept by length: a longer
batch than those tried is tried again, which costs about as much as two of its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

SHORT = 4
"""So many times as long is the long row as the short one."""
LEAST, EPSILONS = 1e-4, 32
"""Largest difference of logits that is rounding, in units of their standard deviation: at
least 1e-4, and 32 machine epsilons of the model's dtype (0.03 in fp16, 0.25 in bf16, and so
for a quantised base). Clean models of the survey were below 4e-6 in fp32, others above 1e-3."""

Run = Callable[[Sequence[Sequence[int]]], Sequence[Tensor]]


class _Known:
    """What trials of a model have shown: the longest clean length, the shortest that is not."""

    def __init__(self) -> None:
        self.clean = 0
        self.mixed: int | None = None


_TRIED: WeakKeyDictionary[Any, dict[str, _Known]] = WeakKeyDictionary()


def apart(model: Any, side: str, length: int) -> bool:
    """Returns, without a trial, whether rows of this length must not be padded.

    Of a model that mixes rows at some length, only lengths that were seen to be clean are.

    Args:
        model: The model, with or without an adapter.
        side: "left" or "right", where the padding stands.
        length: Tokens of the longest row.
    """
    if model not in _TRIED:
        return False
    known = _known(model, side)
    return known.mixed is not None and length > known.clean


def try_out(model: Any, side: str, tokens: Sequence[int], length: int, run: Run) -> bool:
    """Returns whether rows must not be padded, tried out unless it is known.

    Args:
        model: The model, with or without an adapter, in eval mode.
        side: "left" or "right", where `run` pads.
        tokens: Tokens of a real text, which are repeated as often as needed.
        length: Tokens of the longest row to come.
        run: Runs rows as one padded batch and returns, for one step or more, logits
            [rows, ...] at places that are the short row's in every batch.
    """
    known = _known(model, side)
    if known.mixed is not None and length >= known.mixed:
        return True
    if length > known.clean:
        if _mixes(model, tokens, length, run):
            known.mixed = length
            return True
        known.clean = length
    return False


def _mixes(model: Any, tokens: Sequence[int], length: int, run: Run) -> bool:
    long = (list(tokens) * -(-length // len(tokens)))[:length]
    short = long[: max(1, length // SHORT)]
    if len(short) == len(long):
        return False
    together, alone = run([short, long]), run([short])
    limit = rounding_limit(model)
    for one, other in zip(together, alone, strict=True):
        padded, bare = one[0].float(), other[0].float()
        if not bool(bare.isfinite().all()):
            break  # A model that has diverged tells nothing.
        if not float((padded - bare).abs().max()) <= limit * float(bare.std()):
            return True
        if not torch.equal(padded.argmax(-1), bare.argmax(-1)):
            break  # A tie: the next step would be after another token.
    return False


def rounding_limit(model: Any) -> float:
    """Returns the largest difference of logits that is rounding, in their standard deviations."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    dtype = getattr(base, "dtype", torch.float32)
    if getattr(base, "is_quantized", False):
        dtype = torch.bfloat16
    return max(LEAST, EPSILONS * torch.finfo(dtype).eps)


def _known(model: Any, side: str) -> _Known:
    """Each adapter of a model is another model."""
    adapter = repr(model.active_adapter) if hasattr(model, "peft_config") else ""
    return _TRIED.setdefault(model, {}).setdefault(f"{side} {adapter}", _Known())


def by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Returns the indices of rows, those of one length together, the longest first."""
    groups: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        groups.setdefault(length, []).append(index)
    return [groups[length] for length in sorted(groups, reverse=True)]
