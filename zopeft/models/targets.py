"""Targets: which layers of a model's text part an adapter goes on.

The layers are chosen by name, parent by parent, so that the layers of a hybrid may each
have their own kind of attention. What text never reaches (image and audio towers, cross
attention without an encoder), routers, experts and the indexers of sparse attention are
no default's target.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

Families = tuple[tuple[str, ...], ...]

FUSED: Families = (
    ("qkv_proj",),  # Phi-3, CodeGen
    ("c_attn",),  # GPT-2, GPT-BigCode
    ("query_key_value",),  # GPT-NeoX, Pythia, Bloom, Falcon
    ("Wqkv",),  # MPT, DBRX
)
"""Queries, keys and values in one layer."""

QUERY_VALUE: Families = (
    ("q_proj", "v_proj"),  # Llama, Qwen, OPT, Mistral, Gemma, Phi-2, GPT-J, ...
    ("q_b_proj", "kv_b_proj"),  # multi-head latent attention: DeepSeek V2 to V3.2, GLM, ...
    ("q_proj", "kv_b_proj"),  # the same, queries from the hidden state: DeepSeek V2 Lite
    ("q_gate_proj", "kv_b_proj"),  # the same, queries with their gate: AXK2
    ("q_b_proj", "kv_proj"),  # DeepSeek V4
    *FUSED,
    ("query", "value"),  # BERT and its kin
    ("q_proj.linear", "v_proj.linear"),  # Moshi
    ("q_proj", "v_proj_current", "v_proj_delayed"),  # Zaya
    ("query_proj", "value_proj"),  # ProphetNet
    ("project_q", "project_v"),  # CPM-Ant
    ("q_lin", "v_lin"),  # XLM
    ("Wq", "Wv"),  # CTRL
    ("q", "v"),  # T5, xLSTM
    ("attention.receptance", "attention.value"),  # RWKV
    ("kv_proj",),  # JetMoE, whose queries come from experts
    ("q_proj",),  # layers that share the values of another: Gemma 3n
)
"""Query and value projections, or the fused layer that holds them."""

KEY_VALUE: Families = (
    ("k_proj", "v_proj"),
    ("kv_b_proj",),
    ("kv_proj",),
    *FUSED,
    ("key", "value"),
    ("k_proj.linear", "v_proj.linear"),
    ("k_proj", "v_proj_current", "v_proj_delayed"),
    ("key_proj", "value_proj"),
    ("project_k", "project_v"),
    ("k_lin", "v_lin"),
    ("Wk", "Wv"),
    ("k", "v"),
    ("k_proj",),  # layers whose keys are their values
)
"""Key and value projections, or the fused layer that holds them."""

VALUE: Families = (
    ("v_proj",),
    ("kv_b_proj",),
    ("kv_proj",),
    *FUSED,
    ("value",),
    ("v_proj.linear",),
    ("v_proj_current", "v_proj_delayed"),
    ("value_proj",),
    ("project_v",),
    ("v_lin",),
    ("Wv",),
    ("v",),
    ("attention.value",),
)
"""Value projections, or the fused layer that holds them."""

STATE_SPACE: Families = (
    ("in_proj", "x_proj"),  # Mamba, Falcon Mamba: x_proj makes what stands for query and key
    ("in_proj",),  # Mamba 2 and hybrids without an attention layer
)
"""Input projections of state-space layers, for models that have no attention."""

FEED_FORWARD: Families = (
    ("down_proj",),  # Llama, Qwen, Mistral, Gemma, Phi-3
    ("fc2",),  # OPT, Phi-2
    ("mlp.c_proj",),  # GPT-2
    ("dense_4h_to_h",),  # GPT-NeoX, Bloom, Falcon
    ("fc_out",),  # GPT-J, CodeGen
)
"""Last linear layer of the feed-forward part."""

_CHOOSERS = re.compile(
    r"router|expert|indexer|compressor|(^|\.)(gate|patcher)(\.|$)", re.IGNORECASE
)
"""Names that choose tokens, experts or patches, and experts themselves."""

_TOWERS = re.compile(r"(^|\.)(vision|visual|image|video|audio|speech|protein)", re.IGNORECASE)
_CROSS = re.compile(r"cross|encoder_attn|encoder_decoder_attention|x_attn", re.IGNORECASE)


def text_modules(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yields the modules that a text passes through, with their names in `model`.

    Of a multimodal wrapper these are its decoder's, without towers for images or sound;
    of an encoder-decoder, all. Routers, experts and indexers are left out.

    Args:
        model: The base model.
    """
    whole = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    decoder = model if whole or not hasattr(model, "get_decoder") else model.get_decoder()
    if not hasattr(decoder, "config"):
        decoder = model  # ModernBERT calls its head the decoder.
    start = next(name for name, module in model.named_modules() if module is decoder)
    for inner, module in decoder.named_modules(prefix=start):
        unread = _TOWERS.search(inner) or (not whole and _CROSS.search(inner))
        chooser = _CHOOSERS.search(inner) or _CHOOSERS.search(type(module).__name__)
        if not unread and not chooser:
            yield inner, module


def find_targets(model: nn.Module, families: Families) -> list[str]:
    """Returns the full names of the layers that fit `families`.

    Of each parent module, the layers of the first family are taken whose every name is a
    layer of it.

    Args:
        model: The base model.
        families: Names of layers below their parent, the preferred family first.

    Returns:
        Names in the order of the model; [] where no parent has a whole family.
    """
    wanted = {leaf for family in families for leaf in family}
    parents: dict[str, set[str]] = {}
    order: dict[str, None] = {}
    for name, module in text_modules(model):
        for leaf in wanted:
            if name.endswith("." + leaf) and not _holds_layers(module):
                parents.setdefault(name[: -len(leaf)], set()).add(leaf)
                order[name] = None
    chosen: set[str] = set()
    for parent, leaves in parents.items():
        family = next((one for one in families if leaves.issuperset(one)), ())
        chosen.update(parent + leaf for leaf in family)
    return [name for name in order if name in chosen]


def linear_layers(model: Any) -> list[str]:
    """Returns the full names of the linear layers of the text part, the head left out."""
    from torch import nn

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [
        name
        for name, module in text_modules(model)
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
        and module is not head
        # The projection of a time step is read by its parent, past any adapter.
        and not name.endswith("dt_proj")
    ]


def expert_parameters(model: nn.Module) -> list[str]:
    """Returns the ends of the names of the experts' stacked weights [E, O, I] or [E, I, O].

    A mixture of experts keeps the weights of all experts of a layer in one parameter, which
    no linear layer holds: PEFT's ``target_parameters`` name them.
    """
    found = [
        f"{name}.{leaf}"
        for name, module in model.named_modules()
        if "expert" in type(module).__name__.lower() and not _TOWERS.search(name)
        for leaf, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3
    ]
    return list(dict.fromkeys(".".join(name.split(".")[-3:]) for name in found))


def as_config(model: nn.Module, names: Iterable[str]) -> list[str] | str:
    """Writes layers as PEFT's ``target_modules``, as short as they can be told.

    Args:
        model: The base model.
        names: Full names of layers.

    Returns:
        Ends of names where those alone tell the layers; else a pattern that matches all of
        them and nothing else; else the names.
    """
    chosen = list(names)
    known = [name for name, _ in model.named_modules() if name]
    for parts in (1, 2):
        ends = list(dict.fromkeys(".".join(name.split(".")[-parts:]) for name in chosen))
        dotted = tuple("." + end for end in ends)
        if {name for name in known if ("." + name).endswith(dotted)} == set(chosen):
            return ends
    stems: dict[str, dict[str, None]] = {}
    for name in chosen:
        parent, _, leaf = name.rpartition(".")
        stem = r"\.".join(r"\d+" if part.isdigit() else part for part in parent.split("."))
        stems.setdefault(stem, {})[leaf] = None
    pattern = "|".join(rf"{stem}\.({'|'.join(own)})" for stem, own in stems.items())
    if {name for name in known if re.fullmatch(pattern, name)} == set(chosen):
        return pattern
    return chosen


def has_conv1d(model: nn.Module) -> bool:
    """Tells whether the model keeps its weights as [I, O] (GPT-2's Conv1D)."""
    return any(type(module).__name__ == "Conv1D" for module in model.modules())


def _holds_layers(module: nn.Module) -> bool:
    """Tells whether a module is a container of layers, whatever it is called."""
    from torch import nn

    return any(isinstance(part, nn.Linear) for part in module.modules() if part is not module)
