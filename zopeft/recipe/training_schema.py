"""What a recipe may say about the steps of a run: how many, in which portions, what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from zopeft.recipe.fields import number


@dataclass(frozen=True)
class TrainingSection:
    """How long, in which portions, and what is kept.

    Attributes:
        steps: Optimizer steps.
        batch_size: Examples a forward pass.
        accumulation: Batches a step; their losses are averaged.
        layout: "packed" has the texts of a batch share rows, and options their prompt, so that
            no padding and nothing twice is computed; "padded" gives each text a row; "auto"
            packs where the first batch has the same loss both ways.
        schedule: Learning rate over the steps, after the warm-up.
        warmup: Steps over which the learning rate rises from 0.
        seed: Seed of everything random: batches, directions, adapter.
        eval_before: Measure the metric before the first step, too.
        eval_batch_size: Examples a forward pass while measuring.
        eval_steps: Measure the metric every so many steps, and at the end; 0 only there.
        keep_best: Make the weights of the evaluation with the lowest validation loss the result,
            not the last ones.
        best_by: What says which evaluation was best, for keep_best and patience: "loss", the
            lowest validation loss, or "metric", the task's highest accuracy or F1.
        patience: Stop after so many evaluations in a row without a lower validation loss; 0
            never does.
        report_to: Also send losses, rates and scores to a tracker, by transformers' callbacks.
        log_steps: A line of metrics (``metrics.jsonl``) every so many steps.
        save_steps: A checkpoint every so many steps; 0, with a journal, after 1000 steps or a
            64th of those made, whichever is more.
        journal: Write the journal, from which the weights can be rebuilt.
        parallel: What several processes share out: "rows", each its own batch; "probes", all over
            the same batch, so that the result does not depend on their number; or "both".
        fingerprint_steps: Steps after which the processes compare fingerprints of the weights;
            0 never does.
        ddp_timeout: Seconds after which a process that does not answer is given up.
    """

    steps: int = number(1000, least=1)
    batch_size: int = number(16, least=1)
    accumulation: int = number(1, least=1)
    layout: Literal["auto", "packed", "padded"] = "auto"
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: int = number(0, least=0)
    seed: int = number(0, least=0)
    eval_before: bool = True
    eval_batch_size: int = number(16, least=1)
    eval_steps: int = number(0, least=0)
    keep_best: bool = False
    best_by: Literal["loss", "metric"] = "loss"
    patience: int = number(0, least=0)
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    log_steps: int = number(10, least=1)
    save_steps: int = number(0, least=0)
    journal: bool = True
    parallel: Literal["rows", "probes", "both"] = "rows"
    fingerprint_steps: int = number(100, least=0)
    ddp_timeout: int = number(1800, least=1)
