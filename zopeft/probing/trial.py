"""Trial: whether a model gives texts that share rows the losses that it gives them padded.

Nothing in a model's configuration tells, so it is tried out once, before a run: the first
batch's loss both ways. Most models can have the texts of a batch share rows and what they begin
with; some only rows (positions that are counted along the row); recurrent models, and those with
masks of their own making, run padded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from zopeft.blocks.bare import is_compiled
from zopeft.blocks.peft import base_of
from zopeft.errors import input_error
from zopeft.probing.mask import FLASH, UnshownError, attention_of, virtual_tokens
from zopeft.probing.outputs import outputs
from zopeft.probing.packed import JOINED, PACKED, PADDED, with_layout

AUTO = "auto"
LAYOUTS = (AUTO, PACKED, PADDED)
"""What can be asked for."""
TOLERANCE, EPSILONS = 1e-5, 2
"""Largest difference of two losses that is rounding, as a part of the loss (of 1 where it is
smaller): 1e-5 in fp32, two machine epsilons of a 16-bit model."""
WIDER = 16
"""Largest difference of a logit, in standard deviations of the logits, for one of the loss: a
model whose logits are nearly even has the same loss whatever it looks at."""
BY_ROW = ("gpt_neo", "bloom", "mpt")
"""Types of models that count places along the row, whatever the positions that they are given:
GPT-Neo's local window, and ALiBi. Texts that are whole in a row are right with them."""
TOLD_APART = ("POLY", "XLORA", "CPT", "MULTITASK_PROMPT_TUNING")
"""PEFT's types that ask something of a row as a whole."""


@dataclass(frozen=True)
class Choice:
    """How batches are laid out.

    Attributes:
        way: "joined", "packed" or "padded".
        reason: Why not joined; "" if they are.
    """

    way: str
    reason: str = ""


_KNOWN: WeakKeyDictionary[Any, dict[tuple[str, str], Choice]] = WeakKeyDictionary()


def choose(model: nn.Module, batch: Mapping[str, Any], loss_function: Any, asked: str) -> Choice:
    """Returns how the batches of a run are laid out, tried out on its first.

    Args:
        model: A causal language model, with or without an adapter.
        batch: The first batch, on the model's device.
        loss_function: Called with model and batch, returns the loss. With a method ``needed``
            it can be given batches that have a layout, see `BatchLoss`.
        asked: One of `LAYOUTS`.

    Raises:
        InputError: `asked` is unknown, or "packed" for what cannot be packed.
    """
    if asked not in LAYOUTS:
        raise input_error("layout", "unknown way of laying out batches", asked, f"use {LAYOUTS}")
    if asked == PADDED:
        return Choice(PADDED, "asked for")
    reason = unfit(model, loss_function)
    choice = Choice(PADDED, reason) if reason else _tried(model, batch, loss_function)
    return _granted(choice, asked)


def _granted(choice: Choice, asked: str) -> Choice:
    if asked == PACKED and choice.way == PADDED:
        raise input_error("layout", f"cannot be packed: {choice.reason}", asked, "use auto")
    return choice


def known_choice(
    model: nn.Module, batch: Mapping[str, Any], loss_function: Any, asked: str
) -> Choice:
    """As `choose`, but tries a model out once for a kind of loss, and remembers what was found."""
    if asked not in (AUTO, PACKED):
        return choose(model, batch, loss_function, asked)
    # Each adapter of a model is another model.
    adapter = repr(model.active_adapter) if hasattr(model, "peft_config") else ""
    known, key = _KNOWN.setdefault(model, {}), (type(loss_function).__qualname__, adapter)
    if key not in known:
        known[key] = choose(model, batch, loss_function, AUTO)
    return _granted(known[key], asked)


def unfit(model: nn.Module, loss_function: Any) -> str:
    """Returns why a model and a loss are not even tried; "" if they are."""
    if getattr(loss_function, "needed", None) is None:
        return "the loss function does not say what it needs of a batch"
    if is_compiled(model):
        return "the model is compiled"
    for config in getattr(model, "peft_config", {}).values():
        kind = str(getattr(config.peft_type, "name", config.peft_type))
        if kind in TOLD_APART or getattr(config, "alora_invocation_tokens", None):
            return f"an adapter of type {kind} asks something of each row as a whole"
    if virtual_tokens(model) and _by_row(model):
        return "it counts places along the row, where virtual tokens stand, too"
    if virtual_tokens(model) and _in_line(model):
        return "virtual tokens would stand before the first text of a line alone"
    return ""


def _tried(model: nn.Module, batch: Mapping[str, Any], loss_function: Any) -> Choice:
    needed, reason = loss_function.needed(batch), ""
    whole = needed is None or _by_row(model) or _in_line(model)
    ways = [PACKED] if whole else [JOINED, PACKED]
    training = model.training
    model.eval()
    try:
        # Not inference mode: what a layer keeps of its first forward may be trained through.
        with torch.no_grad():
            padded = _run(model, loss_function, batch, needed)
            for way in ways:
                laid = with_layout(model, batch, needed, way == JOINED, trial=True)
                if laid is None:
                    why = "the batch is not of texts alone that begin in the first column"
                else:
                    why = _differs(model, loss_function, laid, needed, padded)
                if not why:
                    return Choice(way, reason)
                reason = reason or why
    finally:
        model.train(training)
    return Choice(PADDED, reason)


Ran = tuple[Tensor, Tensor | None]
"""A loss, and some logits that it has read, where one forward has given them out."""


def _run(
    model: nn.Module, loss_function: Any, batch: Mapping[str, Any], needed: Tensor | None
) -> Ran:
    with outputs(model, batch, needed) as found:
        loss = loss_function(model, batch).detach().float()
    return loss, found[0] if len(found) == 1 else None


def _differs(
    model: nn.Module,
    loss_function: Any,
    batch: Mapping[str, Any],
    needed: Tensor | None,
    padded: Ran,
) -> str:
    """Returns why the loss of a batch with a layout is not that of the padded one, or ""."""
    try:
        loss, logits = _run(model, loss_function, batch, needed)
    except UnshownError as error:
        return str(error)
    except Exception as error:  # A model's own code may fail in any way.
        return f"it fails on shared rows ({str(error).splitlines()[0] if str(error) else error!r})"
    if not bool(padded[0].isfinite()):
        return "the loss of the first batch is not finite"
    dtype = getattr(loss_function, "dtype", None)
    difference = float((loss - padded[0]).abs() / padded[0].abs().clamp(min=1.0))
    if not difference <= tolerance(model, dtype):
        return f"shared rows change its loss, by {difference:.1g} of it"
    if logits is not None and padded[1] is not None:
        spread = float((logits - padded[1]).abs().max() / padded[1].std())
        if not spread <= WIDER * tolerance(model, dtype):
            return f"shared rows change its logits, by {spread:.1g} of their spread"
    return ""


def tolerance(model: nn.Module, dtype: torch.dtype | None = None) -> float:
    """Returns the largest difference of losses that is rounding, see `TOLERANCE`.

    Args:
        model: The model.
        dtype: What a loss has products rounded to; None for the model's own dtype.
    """
    base: Any = base_of(model)
    dtype = getattr(base, "dtype", torch.float32) if dtype is None else dtype
    if getattr(base, "is_quantized", False):
        dtype = torch.bfloat16
    return TOLERANCE if dtype == torch.float32 else EPSILONS * torch.finfo(dtype).eps


def _by_row(model: nn.Module) -> bool:
    config = getattr(base_of(model), "config", None)
    return getattr(config, "model_type", "") in BY_ROW or bool(getattr(config, "alibi", False))


def _in_line(model: nn.Module) -> bool:
    return attention_of(model).startswith(FLASH)
