"""Loss: cross-entropy over answer tokens or over the scores of options.

The logits of a long vocabulary are by far the largest tensor of a forward. They are
computed only where a token is predicted that the loss needs: the input of the output
layer is narrowed to those places, so nothing of shape [R, T, V] ever exists, whatever
the model's class. Log-probabilities are taken in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zopeft.blocks.offloaded import device_of
from zopeft.tasks.dataset import IGNORED
from zopeft.tasks.encoding import Encoded
from zopeft.tasks.neighbours import apart, by_length, try_out

LAST = 8
"""Tokens of a short text whose logits are compared with and without padding behind it."""


class TaskLoss:
    """The loss of a batch that `Collator` made.

    "answer" batches: the mean of ``-log p(token)`` over all answer tokens, which is what
    ``model(**batch).loss`` returns. "choice" batches: the mean over examples of the
    cross-entropy over options, the score of an option being the mean log-probability of
    its tokens (MeZO's length normalisation).

    References:
        Fine-Tuning Language Models with Just Forward Passes (Malladi et al. 2023),
        appendix E.2.
    """

    def __call__(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns the loss of a batch.

        Args:
            model: A causal language model, with or without a PEFT adapter.
            batch: A batch on the model's device.

        Returns:
            The loss, a float32 scalar. Runs under autograd as well as without.
        """
        return self.stacked(model, batch, 1)[0]

    def stacked(self, model: Any, batch: Mapping[str, Tensor], count: int) -> Tensor:
        """Runs the model once on copies of a batch and returns the loss of each.

        Args:
            model: A causal language model, whose layers may treat each copy in another way.
            batch: A batch on the model's device.
            count: Number of copies P, one below the other along the rows.

        Returns:
            float32 [P].
        """
        choice = "option_table" in batch
        places = batch["predictors"] if choice else _answer_places(batch)[0]
        logits = narrow_logits(model, batch, places, count)
        copies = logits.unflatten(0, (count, len(places)))
        if not choice:
            return torch.stack([_token_losses(copy, batch).mean() for copy in copies])
        right = batch["option_label"]
        scores = (_scores(copy, batch) for copy in copies)
        return torch.stack([torch.nn.functional.cross_entropy(one, right) for one in scores])


task_loss = TaskLoss()
"""The loss that tasks are trained with; a function of model and batch."""


def option_scores(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns the length-normalised log-probability of every option.

    Args:
        model: A causal language model.
        batch: A "choice" batch.

    Returns:
        float32 [B, C]; -inf where an example has fewer than C options.
    """
    return _scores(narrow_logits(model, batch, batch["predictors"]), batch)


def _scores(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
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
    places, rows = _answer_places(batch)
    return _token_losses(narrow_logits(model, batch, places), batch), rows


def _answer_places(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The flat places [M] that predict the answer tokens, and their rows [M]."""
    labels = batch["labels"]
    rows, positions = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    return rows * labels.shape[1] + positions, rows


def _token_losses(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    following = batch["labels"][:, 1:]
    targets = following[following != IGNORED]
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def narrow_logits(
    model: Any, batch: Mapping[str, Tensor], places: Tensor, count: int = 1
) -> Tensor:
    """Runs the model and returns its logits at some places.

    A model that is known to look at padding (`try_padding`) is given the rows of one length
    at a time, without any.

    Args:
        model: A causal language model.
        batch: ``input_ids`` and ``attention_mask`` [R, T].
        places: Flat places ``row * T + position`` [U].
        count: Number of copies P of the batch to run, one below the other.

    Returns:
        float32 logits [P U, V].
    """
    ids, mask, real = batch["input_ids"], _mask(batch), batch.get("attention_mask")
    if mask is None and real is not None and apart(model, "right", ids.shape[1]):
        return _by_length(model, ids, real, places, count)
    return _narrow(model, ids, mask, places, count)


def _by_length(model: Any, ids: Tensor, mask: Tensor, places: Tensor, count: int) -> Tensor:
    """`narrow_logits`, in a forward for each length that a row has."""
    rows, at = places // ids.shape[1], places % ids.shape[1]
    logits: Tensor | None = None
    for group in by_length(mask.sum(1).tolist()):
        chosen = torch.tensor(group, device=ids.device)
        inside = torch.isin(rows, chosen)
        if not bool(inside.any()):
            continue
        length = int(mask[group[0]].sum())
        number = torch.empty_like(ids[:, 0]).scatter_(
            0, chosen, torch.arange(len(group), device=ids.device)
        )
        local = number[rows[inside]] * length + at[inside]
        found = _narrow(model, ids[chosen, :length], None, local, count).unflatten(0, (count, -1))
        if logits is None:
            logits = found.new_empty(count, len(places), found.shape[-1])
        logits[:, inside] = found
    assert logits is not None
    return logits.flatten(0, 1)


def _narrow(model: Any, ids: Tensor, mask: Tensor | None, places: Tensor, count: int) -> Tensor:
    """One forward of `count` copies of rows [R, T], and its logits [P U, V] at places [U]."""
    if count > 1:
        places = torch.cat([places + copy * ids.numel() for copy in range(count)])
        ids, mask = ids.repeat(count, 1), None if mask is None else mask.repeat(count, 1)
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
        output = model(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        if hook is not None:
            hook.remove()
    logits: Tensor = output.logits
    return (logits[0] if narrowed else narrow(logits)).float()


def try_padding(model: Any, examples: Sequence[Encoded], pad: int) -> None:
    """Tries out whether losses of a model depend on the padding of a batch.

    Called once before a model is trained or scored on examples, outside of any probe. What
    is found is remembered for the model, and `narrow_logits` goes by it.

    Args:
        model: A causal language model, with or without a PEFT adapter.
        examples: The examples to come; only the longest is run.
        pad: The id that fills their batches.
    """
    texts = [text for example in examples for text in example.texts]
    if len({len(text) for text in texts}) < 2:
        return
    longest = max(texts, key=len)

    def last_logits(rows: Sequence[Sequence[int]]) -> list[Tensor]:
        size = max(map(len, rows))
        ids = torch.tensor([[*row, *[pad] * (size - len(row))] for row in rows])
        places = torch.arange(max(0, len(rows[0]) - LAST), len(rows[0]))
        ids, places = ids.to(device_of(model)), places.to(device_of(model))
        return [_narrow(model, ids, None, places, 1)[None]]

    training = model.training
    model.eval()
    try:
        # Not inference mode: what a layer keeps of its first forward may be trained through.
        with torch.no_grad():
            try_out(model, "right", longest, len(longest), last_logits)
    finally:
        model.train(training)


def _mask(batch: Mapping[str, Tensor]) -> Tensor | None:
    """The attention mask, or None where it can change nothing.

    With all padding on the right, a causal model never looks at it from a token that
    counts (`try_padding` finds those that do); without a mask, attention takes its faster
    path.
    """
    mask = batch.get("attention_mask")
    if mask is None or bool(mask[:, 0].all()):
        return None
    return mask
