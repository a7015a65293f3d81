"""Pretraining of the embedded model on the generator's text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from embedded.batches import Batch, batches
from embedded.tokenizer import train_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Pretraining:
    """Settings of a pretraining run.

    Attributes:
        seed: Seed of the text, the tokenizer's sample and the weights.
        steps: Optimizer steps on the whole mixture.
        last: Optimizer steps after them, from a fresh optimizer, on the text with many
            pronouns.
        rows: Rows of ``batches.ROW_LENGTH`` tokens in a step.
        lr: Highest learning rate: it rises over ``warmup`` steps, stays, and falls
            in a straight line to a fiftieth over the last part.
        warmup: Steps of the rise.
        decay: Share of the steps over which it falls.
        weight_decay: AdamW's decay of the matrices.
    """

    seed: int = 0
    steps: int = 6500
    last: int = 1500
    rows: int = 16
    lr: float = 2e-3
    warmup: int = 200
    decay: float = 0.3
    weight_decay: float = 0.05


MAX_POSITION = 512


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make the model with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITION,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.04,
    )
    return LlamaForCausalLM(config)


def batch_loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Mean loss over the tokens of a batch that are trained on.

    The vocabulary matrix is applied to those positions only.
    """
    hidden = model.model(
        input_ids=batch.tokens,
        position_ids=batch.positions,
        attention_mask=batch.mask,
        use_cache=False,
    ).last_hidden_state
    targets = batch.tokens.roll(-1, dims=1)[batch.predicting]
    logits = model.lm_head(hidden[batch.predicting])
    return functional.cross_entropy(logits, targets)


def _factor(step: int, steps: int, settings: Pretraining) -> float:
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    left = (steps - step) / max(1.0, steps * settings.decay)
    return 0.02 + 0.98 * min(1.0, left)


def pretrain(
    settings: Pretraining, report: Callable[[int, float], None] | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train the tokenizer and the model.

    The same settings give the same text and the same tokenizer everywhere; the
    weights are the same on the same machine with the same number of threads and
    the same versions of the libraries.

    Args:
        settings: What to run.
        report: Called with the step and the mean loss of the last 100 steps.

    Returns:
        The model, in evaluation mode, and the tokenizer.
    """
    torch.manual_seed(settings.seed)
    tokenizer = train_tokenizer(settings.seed, MAX_POSITION)
    model = new_model(tokenizer)
    first = batches(tokenizer, settings.rows, settings.seed + 1)
    train(model, first, settings.steps, settings, report)
    last = batches(tokenizer, settings.rows, settings.seed + 2, last=True)
    train(model, last, settings.last, settings, report)
    return model.eval(), tokenizer


def train(
    model: LlamaForCausalLM,
    source: Iterator[Batch],
    steps: int,
    settings: Pretraining,
    report: Callable[[int, float], None] | None = None,
) -> None:
    """Train the model in place with a fresh AdamW.

    Args:
        model: The model.
        source: Batches without end.
        steps: Optimizer steps.
        settings: Learning rate, its course and weight decay.
        report: Called with the step and the mean loss of the last 100 steps.
    """
    model.train()
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _factor(step, steps, settings)
    )
    total = 0.0
    for step in range(1, steps + 1):
        loss = batch_loss(model, next(source))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 100 == 0:
            if report is not None:
                report(step, total / 100)
            total = 0.0


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model, its generation settings and the tokenizer into a folder."""
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
