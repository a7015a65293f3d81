"""LoRA's A started from what a fine-tuner has learned of its base: directions of the inputs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zopeft.errors import input_error
from zopeft.finetuner.bases import input_side, orthonormal
from zopeft.models.activations import fresh_lora_layers

if TYPE_CHECKING:
    from zopeft.blocks import Blocks
    from zopeft.finetuner.artifact import FineTuner


def start_from_finetuner(blocks: Blocks, finetuner: FineTuner, seed: int = 0) -> int:
    """Makes each LoRA layer's A the directions that a fine-tuner has learned for its inputs.

    ``A <- Q_r^T / sqrt(3)``, with Q_r [I, r] the first r of the orthonormal directions on which the
    base weight's gradient reads its inputs, the strongest first; where fewer were learned, random
    ones orthogonal to them follow. Rows are as long as those of LoRA's own random start, so that
    learning rates mean the same. B stays 0, so the model says what it said. With ``train=B`` the
    directions stay for the run: ``B A`` is then an update of the base weight within the learned
    subspace of its inputs.

    Args:
        blocks: Of a ``PeftModel`` with LoRA layers whose B is still 0 (`zopeft.discover`).
        finetuner: One that was learned on whole matrices of the base model.
        seed: Seed of the random directions that follow.

    Returns:
        How many layers were started so; the others keep their start.

    Raises:
        InputError: There is no LoRA layer, one that has been trained already, or none whose inputs
            the fine-tuner has directions of.
    """
    layers = fresh_lora_layers(blocks.model, "finetuner")
    directions = _directions(blocks, finetuner)
    generator = torch.Generator().manual_seed(seed)
    started = 0
    with torch.no_grad():
        for name, (_, first, _) in layers.items():
            learned = directions.get(name)
            if learned is None or learned.shape[0] != first.in_features:
                continue
            basis = _filled(orthonormal(learned)[:, : first.out_features], first, generator)
            first.weight.copy_(basis.t() / math.sqrt(3.0))
            started += 1
    if not started:
        problem = "has no directions of the inputs of any LoRA layer"
        do = (
            "give one that was learned with --capacity subspace on this model, or start=activations"
        )
        raise input_error("start", f"the fine-tuner {problem}", "finetuner", do)
    return started


def _directions(blocks: Blocks, finetuner: FineTuner) -> dict[str, Tensor]:
    """Returns the learned directions [I, k] of LoRA layers' inputs, by the layers' names."""
    match = finetuner.match(blocks)
    found = {}
    for block, group in zip(match.blocks, match.group.tolist(), strict=True):
        name, ending, _ = block.name.partition(".lora_B.")
        if ending and group in finetuner.bases:
            kind = finetuner.config.groups[group].kind
            side = finetuner.bases[group].sides.get(input_side(kind))
            if side is not None:
                found[name] = side
    return found


def _filled(basis: Tensor, first: Any, generator: torch.Generator) -> Tensor:
    """Returns a basis [I, k] with random directions behind it, [I, r]."""
    missing = first.out_features - basis.shape[1]
    if missing <= 0:
        return basis
    more = torch.randn(basis.shape[0], missing, generator=generator)
    return torch.cat([basis, torch.linalg.qr(more - basis @ (basis.t() @ more))[0]], dim=1)
