"""Role words: what a tensor does, from the name its model family gives it.

A family is one entry in `FAMILIES`: leaf names to role words. Keys are the last parts of the
dotted name without ``.weight``; ``*`` stands for a layer's number, so that a norm of a layer
and one after the last layer can share a name. The longest matching key wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

OTHER = "other"

_COMMON: dict[str, str] = {
    "embed_tokens": "embed",
    "q_proj": "q_proj",
    "k_proj": "k_proj",
    "v_proj": "v_proj",
    "o_proj": "o_proj",
    "gate_proj": "gate_proj",
    "up_proj": "up_proj",
    "down_proj": "down_proj",
    "qkv_proj": "qkv_proj",
    "gate_up_proj": "gate_up_proj",
    "q_norm": "q_norm",
    "k_norm": "k_norm",
    "input_layernorm": "input_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "pre_feedforward_norm",
    "post_feedforward_layernorm": "post_feedforward_norm",
    "model.norm": "final_norm",
    "lm_head": "head",
}

_PHI: dict[str, str] = {
    **_COMMON,
    "self_attn.dense": "o_proj",
    "mlp.fc1": "up_proj",
    "mlp.fc2": "down_proj",
    "q_layernorm": "q_norm",
    "k_layernorm": "k_norm",
    "final_layernorm": "final_norm",
}

_OPT: dict[str, str] = {
    **_COMMON,
    "embed_positions": "position",
    "out_proj": "o_proj",
    "fc1": "up_proj",
    "fc2": "down_proj",
    "self_attn_layer_norm": "input_norm",
    "*.final_layer_norm": "post_attention_norm",
    "final_layer_norm": "final_norm",
    "project_in": "project_in",
    "project_out": "project_out",
}

_GPT2: dict[str, str] = {
    "wte": "embed",
    "wpe": "position",
    "attn.c_attn": "qkv_proj",
    "attn.c_proj": "o_proj",
    "mlp.c_fc": "up_proj",
    "mlp.c_proj": "down_proj",
    "ln_1": "input_norm",
    "ln_2": "post_attention_norm",
    "ln_f": "final_norm",
    "lm_head": "head",
}

_GENERIC: dict[str, str] = {
    **_GPT2,
    **_OPT,
    **_PHI,
    "embed_in": "embed",
    "word_embeddings": "embed",
    "embeddings": "embed",
    "embed_out": "head",
    "word_embeddings_layernorm": "embed_norm",
    "query_key_value": "qkv_proj",
    "Wqkv": "qkv_proj",
    "attention.dense": "o_proj",
    "self_attention.dense": "o_proj",
    "fc_in": "up_proj",
    "fc_out": "down_proj",
    "dense_h_to_4h": "up_proj",
    "dense_4h_to_h": "down_proj",
    "mlp.gate": "router",
    "norm_1": "input_norm",
    "norm_2": "post_attention_norm",
    "norm_f": "final_norm",
}

FAMILIES: dict[str, Mapping[str, str]] = {
    "llama": _COMMON,
    "mistral": _COMMON,
    "qwen2": _COMMON,
    "qwen3": _COMMON,
    "gemma": _COMMON,
    "gemma2": _COMMON,
    "phi": _PHI,
    "phi3": _COMMON,
    "opt": _OPT,
    "gpt2": _GPT2,
    "generic": _GENERIC,
}


def family_of(model: nn.Module) -> str:
    """Returns the key of `FAMILIES` that serves the model, by its config's ``model_type``."""
    config = getattr(model, "config", None)
    kind = str(getattr(config, "model_type", ""))
    return kind if kind in FAMILIES else "generic"


def role_of(name: str, owner: nn.Module, family: str) -> str:
    """Returns the role of a tensor of a bare model.

    Args:
        name: Name of the tensor in the bare model, ``model.layers.0.mlp.up_proj.weight``.
        owner: The module that holds it; its type decides where the name says nothing.
        family: A key of `FAMILIES`.

    Returns:
        A role word; with ``_bias`` behind it for a bias; ``other`` where nothing is known.
    """
    bias = name == "bias" or name.endswith(".bias")
    path = name.removesuffix(".weight").removesuffix(".bias")
    parts = ["*" if part.isdigit() else part for part in path.split(".")]
    tables = (FAMILIES[family], FAMILIES["generic"])
    for table in tables:
        for start in range(len(parts)):
            word = table.get(".".join(parts[start:]))
            if word is not None:
                return f"{word}_bias" if bias else word
    word = _role_of_type(owner)
    return f"{word}_bias" if bias and word != OTHER else word


def _role_of_type(owner: nn.Module) -> str:
    from torch import nn

    if isinstance(owner, nn.Embedding):
        return "embed"
    if "norm" in type(owner).__name__.lower():
        return "norm"
    return OTHER


def kind_of(owner: nn.Module, leaf: str, shape: tuple[int, ...]) -> str:
    """Returns the kind of a tensor (see `Block.kind`), from its module's type and its shape."""
    from torch import nn

    if len(shape) == 1:
        return "vector"
    if len(shape) == 2 and leaf == "weight":
        if isinstance(owner, nn.Embedding):
            return "embedding"
        if isinstance(owner, nn.Linear):
            return "linear"
        # GPT-2's Conv1D is told by its name, so that transformers need not be imported.
        if type(owner).__name__ == "Conv1D" and hasattr(owner, "nf"):
            return "conv1d"
    return "tensor"
