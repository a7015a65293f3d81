"""Legacy: the fine-tuners that the paper's authors released, as artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from zopeft.blocks import Blocks
from zopeft.blocks.roles import FAMILIES, role_of
from zopeft.errors import input_error
from zopeft.finetuner.artifact import FineTuner
from zopeft.finetuner.config import FineTunerConfig, Group, public_name
from zopeft.finetuner.feature_sets import PAPER_FEATURES
from zopeft.finetuner.pertnn import PertNN
from zopeft.finetuner.pickled import read_pickle
from zopeft.installed import library_versions

TOKENS = 15
"""Tokens of an example that the authors' code counts for an embedding."""

_SHOWN = 3


def import_pickle(
    file: str | Path,
    base_model: str = "",
    batch_size: int = 16,
    world_size: int = 1,
    blocks: Blocks | None = None,
) -> FineTuner:
    """Converts a released fine-tuner of the paper's authors.

    The result gives the scales of the authors' code: the same networks on the same five
    features, normalised with the same weights, where an embedding counts
    ``hidden_size * 15 * batch_size * world_size`` elements (see `normalisation_weights`). That code
    evaluates a half-precision file in half precision; here its numbers are evaluated in
    fp32. Names in the file are those of the model's parameters, and say roles and layers.

    Args:
        file: The ``.pth`` file.
        base_model: Hub id or folder of the model it was learned on, for the record.
        batch_size: Examples a step on each device in the tuning runs to come; the authors'
            scripts tune with 16.
        world_size: Devices of those runs.
        blocks: The model's blocks where it is at hand (weights are not needed): the file is
            then checked against them, and roles, layers and architecture are theirs.

    Raises:
        InputError: The file is refused (see `read_pickle`), its networks read other than
            five features, or it is of another model than `blocks`.

    References:
        Zhang et al., "Learning a Zeroth-Order Optimizer for Fine-Tuning LLMs", 2025,
        equations 2 and 3; the weights of the normalisation are those of the authors' code.
    """
    for name, count in (("batch_size", batch_size), ("world_size", world_size)):
        if type(count) is not int or count < 1:
            raise input_error(name, "must be a whole number, 1 or more", count)
    file = Path(file).expanduser()
    networks, archive = read_pickle(file)
    first = next(iter(networks.values()))
    hidden, inputs = first["w1"].shape
    if inputs != len(PAPER_FEATURES):
        raise input_error(
            str(file),
            f"its networks must read {len(PAPER_FEATURES)} features ({', '.join(PAPER_FEATURES)})",
            f"{inputs}",
        )
    groups = groups_of_names(list(networks)) if blocks is None else _groups(networks, blocks, file)
    config = FineTunerConfig(
        groups=groups,
        base_model=public_name(base_model) if base_model else "",
        architecture=architecture_of(list(networks)) if blocks is None else blocks.architecture,
        num_layers=_num_layers(list(networks)) if blocks is None else blocks.num_layers,
        hidden=hidden,
        normalisation="authors",
        embed_rows=TOKENS * batch_size * world_size,
        training={
            "objective": "paper",
            "imported_from": file.name,
            "archive": archive,
            "dtype": str(first["w1"].dtype).removeprefix("torch."),
            "tuned_with": {"batch_size": batch_size, "world_size": world_size},
        },
        versions=library_versions(),
    )
    return FineTuner(config, _stacked(networks))


def architecture_of(names: Sequence[str]) -> str:
    """Returns the architecture that parameter names point to: the class, or its nearest twin.

    Args:
        names: Names as in ``model.named_parameters()``.
    """
    if any(name.startswith("model.decoder.") for name in names):
        return "OPTForCausalLM"
    if any(name.startswith("transformer.h.") for name in names):
        return "GPT2LMHeadModel"
    if any(name.endswith("self_attn.q_norm.weight") for name in names):
        return "Qwen3ForCausalLM"
    if any(name.endswith("self_attn.q_proj.bias") for name in names):
        return "Qwen2ForCausalLM"
    if any(name.endswith("self_attn.q_proj.weight") for name in names):
        return "LlamaForCausalLM"
    return ""


def groups_of_names(names: Sequence[str]) -> list[Group]:
    """Returns the group table that parameter names alone give: roles, layers, depths.

    Args:
        names: Names as in ``model.named_parameters()`` of the bare model.
    """
    architecture = architecture_of(names).lower()
    family = next((f for f in FAMILIES if architecture.startswith(f + "f")), "generic")
    if architecture.startswith("gpt2"):
        family = "gpt2"
    last = max(1, _num_layers(names) - 1)
    nobody = nn.Module()
    groups = []
    for name in names:
        role, layer = role_of(name, nobody, family), _layer_of(name)
        depth = None if layer is None else layer / last
        groups.append(Group(name, role, role, layer, depth))
    return groups


def _groups(networks: Mapping[str, object], blocks: Blocks, file: Path) -> list[Group]:
    """Returns the groups of the blocks that the file names; refuses another model's file."""
    known = {block.key: block for block in blocks}
    foreign = [name for name in networks if name not in known]
    if foreign:
        without = [key for key in known if key not in networks]
        told = f"{len(networks) - len(foreign)} of its {len(networks)} names are there; not "
        told += _some(foreign)
        if without:
            told += f"; the model has {_some(without)} besides"
        raise input_error(
            str(file),
            f"it was learned on another model than {blocks.architecture} with "
            f"{blocks.num_layers} layers ({told})",
            do="give the model that it was learned on",
        )
    found = [known[name] for name in networks]
    return [Group(b.key, b.role, b.base_role, b.layer, b.depth) for b in found]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _layer_of(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _num_layers(names: Sequence[str]) -> int:
    layers = [layer for layer in map(_layer_of, names) if layer is not None]
    return 1 + max(layers, default=-1)


def _stacked(networks: Mapping[str, Mapping[str, Tensor]]) -> PertNN:
    nets = PertNN(1, 1, 1, torch.Generator())
    for part in ("w1", "b1", "w2", "b2"):
        stacked = torch.stack([network[part].float() for network in networks.values()])
        setattr(nets, part, nn.Parameter(stacked.contiguous()))
    return nets
