"""Targets: which linear layers of a model an adapter goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

QUERY_VALUE: tuple[tuple[str, ...], ...] = (
    ("q_proj", "v_proj"),  # Llama, Qwen, OPT, Mistral, Gemma, Phi-2, GPT-J, ...
    ("qkv_proj",),  # Phi-3, CodeGen
    ("c_attn",),  # GPT-2, GPT-BigCode
    ("query_key_value",),  # GPT-NeoX, Pythia, Bloom, Falcon
    ("Wqkv",),  # MPT
    ("query", "value"),
)
"""Query and value projections, or the fused layer that holds them."""

KEY_VALUE: tuple[tuple[str, ...], ...] = (
    ("k_proj", "v_proj"),
    *QUERY_VALUE[1:5],
    ("key", "value"),
)
"""Key and value projections, or the fused layer that holds them."""

FEED_FORWARD: tuple[tuple[str, ...], ...] = (
    ("down_proj",),  # Llama, Qwen, Mistral, Gemma, Phi-3
    ("fc2",),  # OPT, Phi-2
    ("mlp.c_proj",),  # GPT-2
    ("dense_4h_to_h",),  # GPT-NeoX, Bloom, Falcon
    ("fc_out",),  # GPT-J, CodeGen
)
"""Last linear layer of the feed-forward part."""


def find_targets(model: nn.Module, families: tuple[tuple[str, ...], ...]) -> list[str]:
    """Returns the first family whose every name is a module of `model`.

    Args:
        model: The base model.
        families: Name suffixes, the preferred family first.

    Returns:
        Name suffixes for PEFT's ``target_modules``; [] when no family fits.
    """
    names = ["." + name for name, _ in model.named_modules()]
    for family in families:
        if all(any(name.endswith("." + leaf) for name in names) for leaf in family):
            return list(family)
    return []


def has_conv1d(model: nn.Module) -> bool:
    """Tells whether the model keeps its weights as [I, O] (GPT-2's Conv1D)."""
    return any(type(module).__name__ == "Conv1D" for module in model.modules())
