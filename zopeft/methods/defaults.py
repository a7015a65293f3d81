"""Published settings that stand in where the user gives none."""

from __future__ import annotations

from zopeft.blocks import Blocks


def default_eps(blocks: Blocks) -> float:
    """Returns MeZO's published finite-difference step for the blocks' space.

    Full weights 1e-3, LoRA and other weight adapters 1e-2, prefixes and prompts 1e-1. For
    quantisation scales 1e-2 of each, ours: about what 1e-3 is for weights of a tenth.

    References:
        Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", 2023,
        appendix D.
    """
    if blocks.space == "scales":
        return 1e-2
    if blocks.space != "adapter":
        return 1e-3
    prompts = any(block.kind == "prompt" for block in blocks)
    return 1e-1 if prompts else 1e-2


def default_reach(blocks: Blocks) -> float:
    """Returns the longest step that lr="auto" takes, in multiples of eps: ours, by experiment.

    Full weights 2; adapters and scales 1, for the curvature of an adapter that starts at
    zero says little about the loss further away.
    """
    return 2.0 if blocks.space == "full" else 1.0


def fallback_lr(blocks: Blocks) -> float:
    """Returns MeZO's published learning rate for the blocks' space.

    Full weights 1e-6, LoRA and other weight adapters 1e-4, prefixes and prompts 1e-2;
    quantisation scales 1e-4, as a share of each, ours.
    """
    if blocks.space == "scales":
        return 1e-4
    if blocks.space != "adapter":
        return 1e-6
    prompts = any(block.kind == "prompt" for block in blocks)
    return 1e-2 if prompts else 1e-4
