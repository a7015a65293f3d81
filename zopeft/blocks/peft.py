"""Parameters that PEFT added: the base tensor each one adapts, and its role.

Told by the types of PEFT's wrappers on the way down to the parameter, not by its name alone.
Nothing here imports peft: a model that peft has wrapped has loaded it already.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from zopeft.blocks.bare import bare

# Attributes of a wrapper that lead to the frozen base tensor.
_BASE = ("base_layer", "original_module")
# Attributes of a wrapper that hold a whole trained copy of the base module, by adapter name.
_COPIES = ("modules_to_save", "ln_tuning_layers")
# Role words that differ from PEFT's attribute name.
_RENAMED = {
    "ia3_l": "ia3",
    "lora_magnitude_vector": "lora_magnitude",
    "trainable_tokens_delta": "token_delta",
    "adaption_prompt": "prompt",
    "adaption_gate": "prompt_gate",
}


@dataclass(frozen=True)
class Adapted:
    """What a parameter is to the base model.

    Attributes:
        key: Name of the base tensor in the bare model; None where there is none.
        role: The adapter's own role word; None where the parameter is a base tensor or a
            trained copy of one, whose role is the base tensor's.
    """

    key: str | None
    role: str | None


def is_adapted(model: nn.Module) -> bool:
    """Says whether the model is a PeftModel, or holds PEFT's layers."""
    if "peft" not in sys.modules:
        return False
    return is_peft_model(model) or any(isinstance(m, _wrappers()) for m in model.modules())


def is_peft_model(model: nn.Module) -> bool:
    """Says whether the model is one of PEFT's outer wrappers."""
    if "peft" not in sys.modules:
        return False
    from peft import PeftMixedModel, PeftModel

    return isinstance(bare(model), PeftModel | PeftMixedModel)


def base_of(model: nn.Module) -> nn.Module:
    """Returns the base model inside PEFT's outer wrapper, or the model itself."""
    inner: Any = bare(model)
    if not is_peft_model(inner):
        return bare(model)
    if hasattr(inner, "get_base_model"):
        base: nn.Module = inner.get_base_model()
    else:
        base = inner.base_model.model
    return bare(base)


def active_adapter(model: nn.Module) -> str | None:
    """Returns the name of the active adapter (names joined by ``+`` where several are)."""
    if not is_adapted(model):
        return None
    model = bare(model)
    found: Any = getattr(model, "active_adapters", None) or getattr(model, "active_adapter", None)
    if callable(found):
        found = found()
    if isinstance(found, str):
        return found
    return "+".join(found) if found else None


def _wrappers() -> tuple[type, ...]:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return (BaseTunerLayer, AuxiliaryTrainingWrapper)


class Unwrapper:
    """Finds, for any parameter of a model, the name it has or adapts in the bare model.

    Args:
        model: The model, wrapped or bare.
        modules: Every module by name (also under second names).
    """

    def __init__(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
        self.model = model
        self.modules = modules
        base = base_of(model)
        self.prefix = next((f"{name}." for name, m in modules.items() if m is base and name), "")
        self._types = _wrappers() if is_adapted(model) else ()

    def describe(self, name: str) -> Adapted:
        """Returns what the parameter `name` of the wrapped model is to the bare model."""
        if not name.startswith(self.prefix):
            return Adapted(None, self._prompt_role(name))
        here = self.prefix.removesuffix(".")
        clean: list[str] = []
        rest = name[len(self.prefix) :].split(".")
        while rest:
            module = self.modules.get(here)
            if module is not None and self._types and isinstance(module, self._types):
                if rest[0] in _BASE:
                    here, rest = f"{here}.{rest[0]}", rest[1:]
                    continue
                if rest[0] in _COPIES:
                    here, rest = ".".join([here, *rest[:2]]), rest[2:]
                    continue
                return Adapted(".".join([*clean, _base_leaf(module)]), _leaf_role(rest))
            if rest[0] in _RENAMED:
                return Adapted(None, _RENAMED[rest[0]])
            clean.append(rest[0])
            here, rest = f"{here}.{rest[0]}" if here else rest[0], rest[1:]
        return Adapted(".".join(clean), None)

    def _prompt_role(self, name: str) -> str:
        # A prompt encoder: the prompt's own table, and the network that some types put on it.
        parts = name.split(".")
        if parts[0] != "prompt_encoder":
            return "other"
        bias = "_bias" if parts[-1] == "bias" else ""
        if "transform" in parts:
            return f"prefix_transform{bias}"
        if "mlp_head" in parts or "lstm_head" in parts:
            return f"prompt_head{bias}"
        return "prefix" if f"prompt_encoder.{parts[1]}.transform" in self.modules else "prompt"


def _base_leaf(wrapper: nn.Module) -> str:
    # LoRA on a bare parameter (experts' stacked weights) says which one it adapts.
    return str(getattr(wrapper, "parameter_name", "weight"))


def _leaf_role(rest: list[str]) -> str:
    # A wrapper's inner adapter (token_adapter) carries no meaning of its own.
    leaf = rest[1] if rest[0] == "token_adapter" and len(rest) > 1 else rest[0]
    return _RENAMED.get(leaf, leaf)


def prefix_layers(model: nn.Module, module_name: str, leaf: str) -> int | None:
    """Returns how many layers' keys and values a parameter holds side by side, None if none.

    PEFT views a prefix tensor as ``[tokens, 2 * layers, heads, head_dim]`` and takes the pair
    (2L, 2L + 1) as layer L's keys and values, so with ``w = heads * head_dim`` the columns
    ``[2L * w, (2L + 1) * w)`` are layer L's keys, and the next w its values.

    Args:
        model: The wrapped model.
        module_name: Name of the module that holds the parameter.
        leaf: The parameter's key in that module.
    """
    if not is_peft_model(model) or "prompt_encoder" not in module_name.split("."):
        return None
    from peft import PeftType

    parts = module_name.split(".")
    adapter = parts[parts.index("prompt_encoder") + 1]
    config = dict(getattr(model, "peft_config", {})).get(adapter)
    kind = getattr(config, "peft_type", None)
    flat = (kind == PeftType.PREFIX_TUNING and parts[-1] == "embedding") or (
        str(getattr(kind, "value", "")) == "CARTRIDGE" and leaf.endswith("embedding")
    )
    if not flat or getattr(config, "prefix_projection", False):
        return None
    return int(config.num_layers) if config is not None else None
