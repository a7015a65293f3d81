"""What the steps of a run depend on besides weights and data, and where it may begin."""

from __future__ import annotations

from typing import Any

import torch

from zopeft.blocks import Blocks
from zopeft.errors import run_error
from zopeft.finetuner.digest import digest_like
from zopeft.journal.journal import Journal
from zopeft.journal.start import fingerprint
from zopeft.optim.zeroth_order import ZerothOrder
from zopeft.probing.packed import PADDED
from zopeft.training.arguments import ZOTrainingArguments

NAMES = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "data_seed",
    "learning_rate",
    "weight_decay",
    "mixed_precision",
)
"""Arguments that must be the same for a run to be gone on with."""


def settings_of(
    args: ZOTrainingArguments,
    method: ZerothOrder,
    max_steps: int,
    examples: int | None,
    journal: Journal | None,
) -> dict[str, Any]:
    """Returns the settings that a run's journal is kept under.

    Args:
        args: The arguments.
        method: The method.
        max_steps: Steps of the whole run, which a schedule depends on.
        examples: Training examples; None where nobody knows.
        journal: The journal that is gone on with, if any: its fine-tuner's digest is made anew
            as it was made then.
    """
    settings: dict[str, Any] = {name: getattr(args, name) for name in NAMES}
    settings["schedule"] = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    if settings["schedule"] not in ("constant", "constant_with_warmup"):
        settings["max_steps"] = max_steps
    settings["warmup"] = args.get_warmup_steps(max_steps)
    if examples is not None:
        settings["examples"] = examples
    settings["eps"] = method.eps
    settings["rows"] = args.rows
    settings["clip"] = method.clip.factor
    settings["probes"] = args.probes
    settings["stacked_tokens"] = method.probing.most_tokens
    settings["layout"] = PADDED if args.layout == PADDED else method.probing.layout
    before = "" if journal is None else str(journal.header.settings.get("finetuner", ""))
    settings["finetuner"] = digest_like(getattr(method, "finetuner", None), before)
    return settings


def check_processes(accelerator: Any, blocks: Blocks, device: torch.device) -> None:
    """Refuses to train if the processes of a distributed run hold different weights.

    Raises:
        RunError: They do.
    """
    mine = torch.tensor([int(fingerprint(blocks)[:15], 16)], device=device)
    if accelerator.gather(mine).unique().numel() > 1:
        raise run_error(
            "distributed",
            "the processes start from different weights",
            None,
            "load the same model, and make adapters from the same seed",
        )
