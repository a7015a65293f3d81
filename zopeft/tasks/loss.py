"""Loss: cross-entropy over answer tokens or over the scores of options.

The logits of a long vocabulary are by far the largest tensor of a forward. They are
computed only where a token is predicted that the loss needs: the input of the output
layer is narrowed to those places, so nothing of shape [R, T, V] ever exists, whatever
the model's class. Log-probabilities are taken in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zopeft.tasks.dataset import IGNORED


def task_loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns the loss of a batch that `Collator` made.

    "answer" batches: the mean of ``-log p(token)`` over all answer tokens, which is what
    ``model(**batch).loss`` returns. "choice" batches: the mean over examples of the
    cross-entropy over options, the score of an option being the mean log-probability of
    its tokens (MeZO's length normalisation).

    Args:
        model: A causal language model, with or without a PEFT adapter.
        batch: A batch on the model's device.

    Returns:
        The loss, a float32 scalar. Runs under autograd as well as without.

    References:
        Fine-Tuning Language Models with Just Forward Passes (Malladi et al. 2023),
        appendix E.2.
    """
    if "option_table" in batch:
        scores = option_scores(model, batch)
        return torch.nn.functional.cross_entropy(scores, batch["option_label"])
    return answer_losses(model, batch)[0].mean()


def option_scores(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns the length-normalised log-probability of every option.

    Args:
        model: A causal language model.
        batch: A "choice" batch.

    Returns:
        float32 [B, C]; -inf where an example has fewer than C options.
    """
    logits = narrow_logits(model, batch, batch["predictors"])
    slot, option = batch["target_predictor"], batch["target_option"]
    picked = logits[slot, batch["target_token"]] - logits.logsumexp(-1)[slot]
    table = batch["option_table"]
    # One place more than there can be options, for those that are missing.
    zeros = picked.new_zeros(table.numel() + 1)
    sums = zeros.index_add(0, option, picked)
    counts = zeros.index_add(0, option, torch.ones_like(picked))
    means = sums / counts.clamp(min=1)
    present = torch.arange(table.shape[1], device=table.device) < batch["num_options"][:, None]
    return torch.where(present, means[table], float("-inf"))


def answer_losses(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Returns ``-log p(token)`` of every answer token and the row it is in.

    Args:
        model: A causal language model.
        batch: A batch with ``input_ids`` and ``labels`` [R, T].

    Returns:
        float32 [M] and row numbers [M], in reading order.
    """
    labels = batch["labels"]
    rows, places = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    logits = narrow_logits(model, batch, rows * labels.shape[1] + places)
    targets = labels[rows, places + 1]
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none"), rows


def narrow_logits(model: Any, batch: Mapping[str, Tensor], places: Tensor) -> Tensor:
    """Runs the model and returns its logits at some places.

    Args:
        model: A causal language model.
        batch: ``input_ids`` and ``attention_mask`` [R, T].
        places: Flat places ``row * T + position`` [U].

    Returns:
        float32 logits [U, V].
    """
    ids = batch["input_ids"]
    narrowed = []

    def narrow(hidden: Tensor) -> Tensor:
        # Prompt tuning puts its vectors before the text: the text is at the end.
        hidden = hidden[:, hidden.shape[1] - ids.shape[1] :]
        return hidden.flatten(0, 1)[places.to(hidden.device)]

    def before_head(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if inputs[0].dim() != 3:
            return inputs
        narrowed.append(True)
        return (narrow(inputs[0]).unsqueeze(0), *inputs[1:])

    bare = model if hasattr(model, "get_output_embeddings") else model.module  # DDP
    head = bare.get_output_embeddings()
    hook = head.register_forward_pre_hook(before_head) if head is not None else None
    try:
        output = model(input_ids=ids, attention_mask=_mask(batch), use_cache=False)
    finally:
        if hook is not None:
            hook.remove()
    logits: Tensor = output.logits
    return (logits[0] if narrowed else narrow(logits)).float()


def _mask(batch: Mapping[str, Tensor]) -> Tensor | None:
    """The attention mask, or None where it can change nothing.

    With all padding on the right, a causal model never looks at it from a token that
    counts; without a mask, attention takes its faster path.
    """
    mask = batch.get("attention_mask")
    if mask is None or bool(mask[:, 0].all()):
        return None
    return mask
