"""LayerNorm tuning: the normalisation layers' own weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zopeft.errors import input_error
from zopeft.models.options import build_config
from zopeft.models.targets import as_config, text_modules
from zopeft.models.tuners import chosen_by_user, wrap

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn


def layernorm(model: Any, **options: Any) -> PeftModel:
    """LayerNorm tuning: copies of the text part's normalisation layers are trained.

    Raises:
        InputError: The model has no normalisation layer with weights.

    References:
        Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning (Zhao et
        al. 2023), section 3.
    """
    from peft import LNTuningConfig

    defaults: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    if not chosen_by_user(options):
        found = norm_names(model)
        if not found:
            raise input_error("peft layernorm", "the model has no norm with weights", do="use lora")
        defaults["target_modules"] = as_config(model, found)
    return wrap(model, "layernorm", build_config("layernorm", LNTuningConfig, defaults, options))


def norm_names(model: nn.Module) -> list[str]:
    """Returns the full names of the text part's norms that have weights."""
    return [
        name
        for name, module in text_modules(model)
        if "norm" in type(module).__name__.lower()
        and any(True for _ in module.parameters(recurse=False))
    ]
