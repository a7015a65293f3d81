"""Tied weights: adapters on an embedding and a head that are one tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zopeft.errors import warn

if TYPE_CHECKING:
    from peft import PeftModel


def warn_tied(tuned: PeftModel, name: str) -> None:
    """Gives a `ZopeftWarning` where merging the adapter would make another model.

    PEFT adds an adapter to the weights of its layer when it merges. Where the layer shares
    them with another, that one moves, too; with ``ensure_weight_tying``, PEFT 0.21 adds the
    same update twice. As an adapter, the folder is exact, and so is a merge of copies that
    ``modules_to_save`` trains.

    Args:
        tuned: The model with its adapter.
        name: What the adapter is called in the line.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    base: Any = tuned.get_base_model()
    try:
        ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    except (AttributeError, NotImplementedError):
        return
    kept = [end.get_base_layer() if isinstance(end, BaseTunerLayer) else end for end in ends]
    weights = [getattr(end, "weight", None) for end in kept]
    adapted = [end for end in ends if isinstance(end, BaseTunerLayer)]
    if not adapted or weights[0] is None or weights[0] is not weights[1]:
        return
    names = [key for key, module in base.named_modules() if any(module is one for one in adapted)]
    warn(
        name,
        f"the weight of {' and '.join(names)} is tied, so merging gives another model",
        do="keep it an adapter, untie the weights first, or train a copy with modules_to_save",
    )
