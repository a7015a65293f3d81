"""Published settings that stand in where the user gives none."""

from __future__ import annotations

from dataclasses import dataclass

from zopeft.blocks import Blocks


@dataclass(frozen=True)
class Defaults:
    """What a space, or a type of adapter, starts from.

    Attributes:
        lr: Learning rate where none is given and none can be measured.
        eps: Finite-difference step.
    """

    lr: float
    eps: float


FULL = Defaults(1e-6, 1e-3)
LORA = Defaults(1e-4, 1e-2)
PROMPT = Defaults(1e-2, 1e-1)
SCALES = Defaults(1e-4, 1e-2)
BY_ROLE = {
    "lora_E": Defaults(1e-1, 1e-1),  # AdaLoRA: a product of three, all small
    "vera_lambda": Defaults(1e-1, 1e-1),
    "hada_": Defaults(1e-2, 1e-2),
    "lokr_": Defaults(1e-3, 1e-2),
    "ia3": Defaults(1e-2, 1e-2),
    "pvera_": Defaults(1e-1, 1e-1),
    **dict.fromkeys(
        ("c3a_", "deft_", "delora_", "hira_", "supertuning_", "unilora_", "vblora_"),
        Defaults(1e-2, 1e-2),
    ),
    **dict.fromkeys(
        ("adamss_", "beft_", "frod_", "lily_", "peanut_", "prompt_gate", "road_"),
        Defaults(1e-3, 1e-2),
    ),
}
"""Start of an adapter's roles to its type's own defaults. Nobody has published any; these are
ours, from runs on small models, where 30 steps at LoRA's would leave the loss as it was."""
NORM = Defaults(1e-3, 1e-2)
"""An adapter of norms alone, ours as well."""


def defaults(blocks: Blocks) -> Defaults:
    """Returns the defaults of what the blocks are.

    MeZO's published lr and eps: full weights 1e-6 and 1e-3, LoRA 1e-4 and 1e-2, prefixes and
    other prompts 1e-2 and 1e-1. For other adapters `BY_ROLE`. For quantisation scales 1e-4 and
    1e-2 of each, ours: about what 1e-3 is for weights of a tenth.

    References:
        Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", 2023,
        appendix D.
    """
    if blocks.space == "scales":
        return SCALES
    if blocks.space != "adapter":
        return FULL
    roles = {block.role for block in blocks}
    if any(block.kind == "prompt" for block in blocks):
        return PROMPT
    for start, found in BY_ROLE.items():
        if any(role.startswith(start) for role in roles):
            return found
    return NORM if all(role.removesuffix("_bias").endswith("norm") for role in roles) else LORA


def default_eps(blocks: Blocks) -> float:
    """Returns the finite-difference step of `defaults`."""
    return defaults(blocks).eps


def default_reach(blocks: Blocks) -> float:
    """Returns the longest step that lr="auto" takes, in multiples of eps: ours, by experiment.

    Full weights 2; adapters and scales 1, for the curvature of an adapter that starts at
    zero says little about the loss further away.
    """
    return 2.0 if blocks.space == "full" else 1.0


FLAT_REACH = 0.25
"""The part of that reach which steps on a score take, times sqrt(K) for K directions, whose mean is
so much surer. What bounds a step on a loss is its curvature; a score that is flat in places shows
chance instead, and steps of a whole eps lead a model away from all that it knows (measured: SQuAD's
F1 from 0.76 to 0.01 with one direction, right sums from 0.7 to 0.2 with four)."""


def fallback_lr(blocks: Blocks) -> float:
    """Returns the learning rate of `defaults`."""
    return defaults(blocks).lr
