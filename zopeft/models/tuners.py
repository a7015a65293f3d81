"""Tuners: PEFT types that add parameters to the layers of a model.

Every function takes the base model and the user's options and returns a
``PeftModel``. The defaults of LoRA are those of MeZO: rank 8, alpha 16, on the query
and value projections, no dropout (a probe must see the same function twice). Without
attention, they are on the input projections of state-space layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zopeft.blocks.offloaded import device_of
from zopeft.errors import input_error, warn
from zopeft.models.activations import STARTS, start_from_activations
from zopeft.models.options import build_config
from zopeft.models.targets import (
    FEED_FORWARD,
    KEY_VALUE,
    QUERY_VALUE,
    STATE_SPACE,
    Families,
    as_config,
    expert_parameters,
    find_targets,
    has_conv1d,
    linear_layers,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn

LORA_LIKE = ("lora", "dora", "rslora")
EXPERTS = "experts"
"""What ``targets`` takes besides names of layers: the weights of a mixture of experts."""


def targets_for(model: nn.Module, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Returns ``target_modules`` on queries and values, unless the user names their own.

    Args:
        model: The base model.
        name: The PEFT type, for messages.
        options: The user's options. ``targets: experts`` is taken out of them.

    Raises:
        InputError: Experts are asked for, and the model has none.
    """
    if options.get("targets") == EXPERTS:
        del options["targets"]
        stacked = expert_parameters(model)
        if not stacked:
            what = f"{type(model).__name__} has no stacked experts"
            raise input_error(f"peft {name}", what, do="leave targets out")
        return {"target_modules": [], "target_parameters": stacked}
    if chosen_by_user(options):
        return {}
    return {"target_modules": as_config(model, layers_for(model, name, QUERY_VALUE))}


def chosen_by_user(options: dict[str, Any]) -> bool:
    """Tells whether the options name target modules."""
    return "targets" in options or "target_modules" in options


def layers_for(model: nn.Module, name: str, families: Families) -> list[str]:
    """Returns the layers of `families`, else those of state spaces, else all linear ones.

    The last is told in a `ZopeftWarning`.

    Raises:
        InputError: There is no linear layer.
    """
    found = find_targets(model, families) or find_targets(model, STATE_SPACE)
    if found:
        return found
    found = linear_layers(model)
    kind = type(model).__name__
    if not found:
        raise input_error(f"peft {name}", f"{kind} has no linear layer to go on", do="use --prompt")
    leaves = ", ".join(sorted({layer.rpartition(".")[2] for layer in found}))
    warn(
        f"peft {name}",
        f"the attention of {kind} goes by no known name; its {len(found)} linear layers are taken"
        f" ({leaves})",
        do="set target_modules for others",
    )
    return found


def wrap(model: Any, name: str, config: Any) -> PeftModel:
    """Returns the model wrapped as the config says.

    Args:
        model: The base model.
        name: The PEFT type, for messages.
        config: PEFT's config.

    Raises:
        InputError: PEFT refuses; the line says why.
    """
    from peft import get_peft_model

    try:
        return get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        if device_of(model).type == "meta" and isinstance(error, NotImplementedError):
            raise  # It asks for values, which the shapes of a model do not have.
        other = "" if name in LORA_LIKE else ", or take lora"
        why = str(error).split(". ")[0].rstrip(".")
        if "Conv1D" in why and has_conv1d(model):
            why = f"PEFT does not have it for the Conv1D layers of {type(model).__name__}"
        raise input_error(f"peft {name}", why, do=f"set target_modules{other}") from error


def _conv1d(model: nn.Module) -> dict[str, Any]:
    return {"fan_in_fan_out": True} if has_conv1d(model) else {}


def lora(model: Any, **options: Any) -> PeftModel:
    """LoRA: ``W + (alpha / r) B A`` with B = 0 at the start.

    The option ``train`` says which of the two matrices are trained: "AB", or "B" alone
    beside a fixed A (LoRA-FA), which halves what a direction has to cover. ``targets: experts``
    puts them on the weights of a mixture of experts, r for each expert. ``start`` says what A
    begins with: "random"; "activations", the directions of the layers' inputs (ZO-Act, see
    `zopeft.models.activations`): of random tokens, until a run has rows to take them from; or
    "finetuner", those that the run's fine-tuner has learned for the base's inputs.

    Raises:
        InputError: ``train`` or ``start`` is something else.

    References:
        LoRA: Low-Rank Adaptation of Large Language Models (Hu et al. 2021), equation 3.
        LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models
        Fine-tuning (Zhang et al. 2023), section 3.
    """
    from peft import LoraConfig

    train, start = options.pop("train", "AB"), options.pop("start", "random")
    if train not in ("AB", "B"):
        raise input_error("peft lora", "train must be AB or B", train)
    if start not in STARTS:
        raise input_error("peft lora", "start must be random, activations or finetuner", start)
    defaults: dict[str, Any] = {
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "task_type": "CAUSAL_LM",
    }
    defaults |= targets_for(model, "lora", options) | _conv1d(model)
    tuned = wrap(model, "lora", build_config("lora", LoraConfig, defaults, options))
    if start == "activations" and device_of(model).type != "meta":
        start_from_activations(tuned)
    if train == "B":
        for name, parameter in tuned.named_parameters():
            if ".lora_A." in name or ".lora_embedding_A." in name:
                parameter.requires_grad_(False)
    return tuned


def dora(model: Any, **options: Any) -> PeftModel:
    """DoRA: LoRA on the direction of W, beside a trained magnitude.

    References:
        DoRA: Weight-Decomposed Low-Rank Adaptation (Liu et al. 2024), equation 5.
    """
    # It reads the weights back at every forward. bitsandbytes 0.50 loses 8-bit row scales
    # over that, and on a CPU its first forward packs 4-bit weights so that they read wrong.
    for module in model.modules():
        kind = type(module).__name__
        if kind == "Linear8bitLt" or (kind == "Linear4bit" and module.weight.device.type == "cpu"):
            bits = "8-bit weights" if kind == "Linear8bitLt" else "4-bit weights on a CPU"
            raise input_error("peft dora", f"does not run on {bits}", do="use lora")
    return lora(model, **{"use_dora": True, **options})


def rslora(model: Any, **options: Any) -> PeftModel:
    """Rank-stabilised LoRA: LoRA scaled by ``alpha / sqrt(r)``.

    References:
        A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA (Kalajdzievski 2023).
    """
    return lora(model, **{"use_rslora": True, **options})


def ia3(model: Any, **options: Any) -> PeftModel:
    """IA3: one factor per key, value and feed-forward unit, 1 at the start.

    References:
        Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
        Learning (Liu et al. 2022), section 3.3.
    """
    from peft import IA3Config

    defaults: dict[str, Any] = {"task_type": "CAUSAL_LM", **_conv1d(model)}
    if not chosen_by_user(options):
        kinds = (find_targets(model, (family,)) for family in FEED_FORWARD)
        last: list[str] = next((found for found in kinds if found), [])
        layers = [*layers_for(model, "ia3", KEY_VALUE), *last]
        defaults["target_modules"] = as_config(model, dict.fromkeys(layers))
        defaults["feedforward_modules"] = as_config(model, last)
    return wrap(model, "ia3", build_config("ia3", IA3Config, defaults, options))


def vera(model: Any, **options: Any) -> PeftModel:
    """VeRA: fixed random matrices shared by all layers, trained vectors between them.

    References:
        VeRA: Vector-based Random Matrix Adaptation (Kopiczko et al. 2023), equation 2.
    """
    from peft import VeraConfig

    defaults: dict[str, Any] = {"r": 256, "task_type": "CAUSAL_LM", "vera_dropout": 0.0}
    defaults |= targets_for(model, "vera", options) | _conv1d(model)
    return wrap(model, "vera", build_config("vera", VeraConfig, defaults, options))
