"""Few numbers a layer: coefficients of a transform, single weights, biases, embeddings of tokens.

Where PEFT starts a transform from random coefficients, which changes the model before the
first step, zopeft starts from zero: the update is linear in them.
"""

from __future__ import annotations

from typing import Any

from zopeft.errors import input_error
from zopeft.models.options import build_config
from zopeft.models.targets import VALUE
from zopeft.models.tuner import Sizes, Tuner, peft_config
from zopeft.models.tuners import wrap


def _at_most(count: int) -> Any:
    def fit(sizes: Sizes) -> dict[str, int]:
        return {"n_frequency": min(count, min(sizes.inputs) * min(sizes.outputs) // 4)}

    return fit


fourierft = Tuner(
    "fourierft",
    "FourierFTConfig",
    "Parameter-Efficient Fine-Tuning with Discrete Fourier Transform (2024, arXiv:2405.03003)",
    {"init_weights": True},
    fit=_at_most(1000),
)

waveft = Tuner(
    "waveft",
    "WaveFTConfig",
    "Exploring Sparsity for Parameter Efficient Fine Tuning Using Wavelets (2025, "
    "arXiv:2505.12532)",
    fit=_at_most(2592),
)

c3a = Tuner(
    "c3a",
    "C3AConfig",
    "Parameter-Efficient Fine-Tuning via Circular Convolution (2024, arXiv:2407.19342)",
    {"init_weights": True},
    fit=lambda sizes: {"block_size": sizes.divisor(256)},
)

shira = Tuner(
    "shira",
    "ShiraConfig",
    "Sparse High Rank Adapters (2024, arXiv:2406.13175)",
    fit=lambda sizes: {"r": min(8, max(1, sizes.least // 4))},
)
"""As many numbers as a LoRA of that rank has, at random places of the weight."""

supertuning = Tuner(
    "supertuning",
    "SupertuningConfig",
    "Super-Tuning, as PEFT has it (2026, arXiv:2607.09287)",
    packed=(),
)

beft = Tuner(
    "beft",
    "BeftConfig",
    "BEFT: Bias-Efficient Fine-Tuning of Language Models in Low-Data Regimes (2025, "
    "arXiv:2509.15974)",
    families=VALUE,
)
"""It cannot be merged into a layer that has no bias: there it stays an adapter."""


def trainable_tokens(model: Any, **options: Any) -> Any:
    """Trainable tokens: the embeddings of the tokens that ``token_indices`` names.

    Raises:
        InputError: No tokens are named.
    """
    if not options.get("token_indices"):
        raise input_error(
            "peft trainable-tokens",
            "the tokens must be named",
            do='give "peft.options.token_indices=[5, 6]"',
        )
    kind = peft_config("trainable-tokens", "TrainableTokensConfig")
    defaults = {"task_type": "CAUSAL_LM"}
    return wrap(
        model, "trainable-tokens", build_config("trainable-tokens", kind, defaults, options)
    )
