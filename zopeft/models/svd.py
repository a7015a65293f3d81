"""AdaLoRA: an update in the form of a singular value decomposition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zopeft.errors import input_error
from zopeft.models.options import build_config
from zopeft.models.targets import has_conv1d
from zopeft.models.tuners import targets_for, wrap

if TYPE_CHECKING:
    from peft import PeftModel

ORTHOGONALITY = 1e-12
"""Weight of PEFT's penalty. It is added to the model's own loss even in evaluation, and must
be positive; this little is below the last bit of any loss."""


def adalora(model: Any, **options: Any) -> PeftModel:
    """AdaLoRA at a fixed rank: ``W + (alpha / r) P diag(E) Q`` with E = 0 at the start.

    The paper moves rank between layers by the size of their gradients, which forward
    passes do not give; here every layer keeps the rank that it starts with. The penalty
    that keeps P and Q orthogonal is left out, too.

    PEFT 0.21 computes that penalty wherever labels are given, and has no name for it in an
    adapter that was loaded for inference: a saved folder answers there without labels, and
    with them raises ``AttributeError: ... 'trainable_adapter_name'``. Load it with
    ``is_trainable=True``, as `zopeft.models.load_adapter` does, to have its loss.

    Raises:
        InputError: ``target_r`` and ``init_r`` differ, which asks for a change of rank.

    References:
        Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning (Zhang et al. 2023),
        equation 3.
    """
    from peft import AdaLoraConfig

    given = dict(options)
    rank = given.pop("rank", given.pop("r", None))
    first = given.pop("init_r", rank if rank is not None else given.get("target_r", 8))
    last = given.pop("target_r", first)
    if first != last or (rank is not None and rank != first):
        raise input_error(
            "peft adalora",
            "the rank stays fixed without gradients",
            f"init_r {first}, target_r {last}",
            "give one rank, or take lora",
        )
    defaults: dict[str, Any] = {
        "init_r": first,
        "target_r": first,
        "total_step": 1000,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "orth_reg_weight": ORTHOGONALITY,
        "task_type": "CAUSAL_LM",
    }
    if has_conv1d(model):
        defaults["fan_in_fan_out"] = True
    defaults |= targets_for(model, "adalora", options)
    return wrap(model, "adalora", build_config("adalora", AdaLoraConfig, defaults, given))
