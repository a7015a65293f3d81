"""LoRA's A started from activations: the directions that its layers' inputs take most."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from zopeft.blocks.offloaded import device_of
from zopeft.errors import input_error
from zopeft.models.prompts import random_tokens

if TYPE_CHECKING:
    from torch import Tensor, nn

STARTS = ("random", "activations", "finetuner")
ITERATIONS = 3
"""Power iterations of a basis on one batch's inputs."""
TAKEN = ("input_ids", "attention_mask")
"""What of a batch is run."""
TOKENS = 64
"""Random tokens that a start without any data is made of."""


def start_from_activations(
    tuned: Any, batches: Iterable[Mapping[str, Any]] | None = None, seed: int = 0
) -> int:
    """Makes each LoRA layer's A the leading directions of the layer's inputs.

    ``A <- A_r^T / sqrt(3)`` with A_r [I, r] an orthonormal basis of what power iterations on the
    inputs of some forward passes of the base model span: rows as long as those of LoRA's own
    random start, so that learning rates mean the same. B stays 0, so the model says what it said.
    With ``train=B`` the directions stay for the run, and forward passes train their coefficients.

    Args:
        tuned: A ``PeftModel`` with LoRA layers whose B is still 0.
        batches: What the model takes, on its device, of the data to come; places where
            ``attention_mask`` is 0 are left out. None for random tokens of the model.
        seed: Seed of the bases that the iterations begin with.

    Returns:
        How many layers were started so.

    Raises:
        InputError: There is no LoRA layer, or one that has been trained already.

    References:
        ZO-Act, arXiv 2607.01125, 2026: coefficients of a basis of input activations, by
        zeroth-order steps. (Its optimizer is a choice of its own here: ``--method mezo_adam``.)
    """
    import torch

    layers = fresh_lora_layers(tuned, "activations")
    generator = torch.Generator().manual_seed(seed)
    bases = {
        name: torch.randn(first.in_features, first.out_features, generator=generator)
        for name, (_, first, _) in layers.items()
    }
    kept: list[Tensor | None] = [None]
    hooks = [
        base.register_forward_pre_hook(_watch(name, bases, kept))
        for name, (base, _, _) in layers.items()
    ]
    training = tuned.training
    tuned.eval()
    try:
        with torch.no_grad():
            for batch in [_random(tuned)] if batches is None else batches:
                inputs = {name: batch[name] for name in TAKEN if name in batch}
                kept[0] = inputs.get("attention_mask")
                tuned(**inputs, use_cache=False)
    finally:
        tuned.train(training)
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        for name, (_, first, _) in layers.items():
            first.weight.copy_(bases[name].t() / math.sqrt(3.0))
    return len(layers)


def lora_layers(tuned: Any) -> dict[str, tuple[nn.Module, Any, Any]]:
    """Returns the LoRA layers of the active adapter: base layer, A and B by name."""
    adapter = getattr(tuned, "active_adapter", None)
    found = {}
    for name, module in tuned.named_modules():
        first, second = getattr(module, "lora_A", None), getattr(module, "lora_B", None)
        if first is not None and second is not None and adapter in first:
            found[name] = (module.base_layer, first[adapter], second[adapter])
    return found


def fresh_lora_layers(tuned: Any, start: str) -> dict[str, tuple[nn.Module, Any, Any]]:
    """Does `lora_layers` for a start: there have to be some, and none that has been trained.

    Raises:
        InputError: They are none, or one has been trained.
    """
    layers = lora_layers(tuned)
    if not layers:
        raise input_error("start", "the model has no LoRA layer", start, "use --lora")
    for name, (_, _, second) in layers.items():
        if bool(second.weight.any()):
            problem, do = f"{name} has a B that is not 0", "start before training"
            raise input_error("start", problem, start, do)
    return layers


def _random(tuned: Any) -> dict[str, Tensor]:
    tokens: Tensor = random_tokens(tuned, TOKENS).to(device_of(tuned))
    return {"input_ids": tokens}


def _watch(name: str, bases: dict[str, Tensor], kept: list[Tensor | None]) -> Callable[..., None]:
    from zopeft.engine.kept import orthonormal

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        hidden = inputs[0].detach()
        mask = kept[0]
        if mask is not None and hidden.shape[:-1] == mask.shape:
            hidden = hidden[mask.bool()]
        tokens = hidden.flatten(0, -2).float()
        basis = bases[name].to(tokens.device)
        for _ in range(ITERATIONS):
            basis = orthonormal(tokens.t() @ (tokens @ basis))
        bases[name] = basis

    return look
