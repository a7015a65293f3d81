"""Aliases: the short names of models."""

from __future__ import annotations

from dataclasses import dataclass

from zopeft.registry import Registry


@dataclass(frozen=True)
class Alias:
    """What a short name stands for.

    Attributes:
        path: The hub id.
        gated: True where the hub asks for a login and an accepted licence.
    """

    path: str
    gated: bool = False


def _sized(generation: str, sizes: str, organisation: str) -> dict[str, Alias]:
    return {
        f"{generation.lower()}-{size.lower()}": Alias(f"{organisation}/{generation}-{size}")
        for size in sizes.split()
    }


_OPT_SIZES = "125m 350m 1.3b 2.7b 6.7b 13b 30b 66b"

_ALIASES: dict[str, Alias] = {
    "llama-3.2-1b": Alias("meta-llama/Llama-3.2-1B", gated=True),
    "llama-3.2-1b-instruct": Alias("meta-llama/Llama-3.2-1B-Instruct", gated=True),
    "llama-3.2-3b": Alias("meta-llama/Llama-3.2-3B", gated=True),
    "llama-3.2-3b-instruct": Alias("meta-llama/Llama-3.2-3B-Instruct", gated=True),
    "llama-3.1-8b": Alias("meta-llama/Llama-3.1-8B", gated=True),
    "llama-3.1-8b-instruct": Alias("meta-llama/Llama-3.1-8B-Instruct", gated=True),
    "llama-2-7b": Alias("meta-llama/Llama-2-7b-hf", gated=True),
    "llama-2-13b": Alias("meta-llama/Llama-2-13b-hf", gated=True),
    **_sized("Qwen2.5", "0.5B 1.5B 3B 7B 14B", "Qwen"),
    **_sized("Qwen2.5", "0.5B-Instruct 1.5B-Instruct 3B-Instruct 7B-Instruct 14B-Instruct", "Qwen"),
    **_sized("Qwen3", "0.6B 1.7B 4B 8B 14B", "Qwen"),
    **_sized("Qwen3", "0.6B-Base 1.7B-Base 4B-Base 8B-Base 14B-Base", "Qwen"),
    **{f"opt-{size}": Alias(f"facebook/opt-{size}") for size in _OPT_SIZES.split()},
    "gpt2": Alias("openai-community/gpt2"),
    "gpt2-medium": Alias("openai-community/gpt2-medium"),
    "gpt2-large": Alias("openai-community/gpt2-large"),
    "gpt2-xl": Alias("openai-community/gpt2-xl"),
    "mistral-7b": Alias("mistralai/Mistral-7B-v0.3", gated=True),
    "mistral-7b-instruct": Alias("mistralai/Mistral-7B-Instruct-v0.3", gated=True),
    "gemma-2-2b": Alias("google/gemma-2-2b", gated=True),
    "gemma-2-2b-it": Alias("google/gemma-2-2b-it", gated=True),
    "gemma-2-9b": Alias("google/gemma-2-9b", gated=True),
    "gemma-3-270m": Alias("google/gemma-3-270m", gated=True),
    "gemma-3-270m-it": Alias("google/gemma-3-270m-it", gated=True),
    "gemma-3-1b": Alias("google/gemma-3-1b-pt", gated=True),
    "gemma-3-1b-it": Alias("google/gemma-3-1b-it", gated=True),
    "phi-2": Alias("microsoft/phi-2"),
    "tinyllama-1.1b": Alias("TinyLlama/TinyLlama_v1.1"),
    **_sized("SmolLM2", "135M 360M 1.7B", "HuggingFaceTB"),
    **_sized("SmolLM2", "135M-Instruct 360M-Instruct 1.7B-Instruct", "HuggingFaceTB"),
    **_sized("SmolLM3", "3B 3B-Base", "HuggingFaceTB"),
}

MODELS = Registry(
    "model",
    _ALIASES,
    about={
        name: alias.path + (" (gated: login needed)" if alias.gated else "")
        for name, alias in _ALIASES.items()
    },
)
"""Alias to `Alias`; a hub id or a folder works wherever an alias does."""
