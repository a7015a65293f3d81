"""Mask: attention in shared rows, each token seeing what it would see in a row of its own.

transformers makes the masks of a forward from an interface that models look up by the name of
their attention. While a layout is shown, that interface is asked with places in a text for
places in a row, and what a token does not see is taken away. So windows, chunks and a mixture of
local and global layers stay the model's own, and are counted in the text. Virtual tokens before
the text (a prefix or a prompt of PEFT's) belong to all texts of their row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.blocks.peft import base_of
from zopeft.engine.carrier import UnstackableError
from zopeft.probing.layout import Layout

FLASH = "flash"
"""What the names of attention begin with that takes its texts' borders from positions alone."""


class UnshownError(Exception):
    """A model has run without asking for a mask, and so has mixed the texts of a row."""


def attention_of(model: nn.Module) -> str:
    """Returns the name of a model's attention: "sdpa", "eager", "flash_attention_2", ..."""
    config = getattr(base_of(model), "config", None)
    return str(getattr(config, "_attn_implementation", None) or "")


def virtual_tokens(model: nn.Module) -> int:
    """Returns how many trained tokens PEFT puts before each row."""
    config = getattr(model, "active_peft_config", None)
    if not getattr(config, "is_prompt_learning", False):
        return 0
    return int(getattr(config, "num_virtual_tokens", None) or 0)


def predicts_first(model: nn.Module) -> bool:
    """Whether a row's first token is predicted, by the last of the virtual ones before it.

    Those of a prefix are keys and values, and predict nothing.
    """
    config = getattr(model, "active_peft_config", None)
    kind = getattr(getattr(config, "peft_type", None), "value", "")
    return virtual_tokens(model) > 0 and kind != "PREFIX_TUNING"


@contextmanager
def shown(model: nn.Module, layout: Layout) -> Iterator[None]:
    """Has forwards inside, of rows as `layout` has them, keep their texts apart.

    The forwards are to be given ``inputs_of(model, layout)``.

    Args:
        model: A causal language model, with or without an adapter.
        layout: The rows, of all copies if there are several.

    Raises:
        UnshownError: The model has masks of its own making.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as INTERFACE

    thread, asked = get_ident(), attention_of(model).startswith(FLASH)
    hook = _positioned(model, layout)
    before = dict(INTERFACE._local_mapping)

    def masked(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal asked
        if get_ident() != thread:
            return own(*args, **kwargs)
        asked = True
        return own(*args, **{**kwargs, **_asked(layout, kwargs)})

    try:
        for name, own in dict(INTERFACE).items():
            if not name.startswith(FLASH):
                INTERFACE[name] = partial(masked, own)
        yield
    finally:
        INTERFACE._local_mapping.clear()
        INTERFACE._local_mapping.update(before)
        if hook is not None:
            hook.remove()
    if not asked:
        raise UnshownError("its attention makes no mask that could be replaced")


def check_copies(model: nn.Module, count: int) -> None:
    """Refuses copies of rows where attention takes one row at a time.

    Raises:
        UnstackableError: There are several, and flash attention finds borders in one row alone.
    """
    if count > 1 and attention_of(model).startswith(FLASH):
        raise UnstackableError("texts in a line are not copied", True)


def inputs_of(model: nn.Module, layout: Layout) -> dict[str, Any]:
    """Returns what a model is to be given beside its usual settings, to run a layout."""
    inputs: dict[str, Any] = {"input_ids": layout.ids, "attention_mask": None}
    if not attention_of(model).startswith(FLASH):
        inputs["attention_mask"] = torch.ones_like(layout.ids)
    if not virtual_tokens(model):
        inputs["position_ids"] = layout.positions
    return inputs


def _positioned(model: nn.Module, layout: Layout) -> Any:
    """A hook by which the base model gets the positions that PEFT's prompts would keep back."""
    count = virtual_tokens(model)
    if not count:
        return None

    def positioned(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        positions = layout.positions + count
        embeds = kwargs.get("inputs_embeds")
        if embeds is not None and embeds.shape[1] == count + positions.shape[1]:
            first = torch.arange(count, device=positions.device).expand(len(positions), -1)
            positions = torch.cat([first, positions], 1)
        return args, {**kwargs, "position_ids": positions}

    return base_of(model).register_forward_pre_hook(positioned, with_kwargs=True)


def _asked(layout: Layout, wished: dict[str, Any]) -> dict[str, Any]:
    """Returns what a mask is to be asked for instead of what a model wished.

    Args:
        layout: The rows.
        wished: Arguments of the interface: ``mask_function`` of batch, head, query and key
            index, of which keys lie from ``kv_offset`` on, ``kv_length`` of them.
    """
    rows, width = layout.ids.shape
    whole = int(wished["kv_length"]) + int(wished.get("kv_offset", 0) or 0)
    before = whole - width
    positions, ends = layout.positions + before, layout.ends + before
    if before:
        virtual = torch.arange(before, device=positions.device).expand(rows, -1)
        positions = torch.cat([virtual, positions], 1)
        ends = torch.cat([torch.full_like(virtual, whole), ends], 1)
    given: Callable[..., Tensor] = wished["mask_function"]

    def inside(row: Any, head: Any, query: Any, key: Any) -> Tensor:
        within = (key <= query) & (query < ends[row, key])
        return within & given(row, head, positions[row, query], positions[row, key])

    return {
        "mask_function": inside,
        "allow_is_causal_skip": False,
        "allow_is_bidirectional_skip": False,
    }
