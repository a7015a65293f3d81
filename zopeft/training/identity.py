"""What the steps of a run depend on besides weights and data, and where it may begin."""

from __future__ import annotations

from typing import Any

from zopeft.finetuner.digest import digest_like
from zopeft.journal.journal import Journal
from zopeft.optim.zeroth_order import ZerothOrder
from zopeft.probing.packed import PADDED
from zopeft.training.arguments import ZOTrainingArguments

NAMES = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
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
    rows: int = 1,
) -> dict[str, Any]:
    """Returns the settings that a run's journal is kept under.

    Args:
        args: The arguments.
        method: The method.
        max_steps: Steps of the whole run, which a schedule depends on.
        examples: Training examples; None where nobody knows.
        journal: The journal that is gone on with, if any: its fine-tuner's digest is made anew
            as it was made then, and the ranks that its rows come from may be others.
        rows: Ranks that the rows of a step come from.
    """
    settings: dict[str, Any] = {name: getattr(args, name) for name in NAMES}
    before = rows if journal is None else journal.header.settings.get("world_size", rows)
    settings["world_size"] = before
    settings["schedule"] = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    if settings["schedule"] not in ("constant", "constant_with_warmup"):
        settings["max_steps"] = max_steps
    settings["warmup"] = args.get_warmup_steps(max_steps)
    if examples is not None:
        settings["examples"] = examples
    settings["eps"] = method.eps
    settings["rows"] = args.rows
    settings["clip"] = method.clip.factor
    settings["taming"] = method.clip.taming
    settings["probes"] = args.probes
    settings["stacked_tokens"] = method.probing.most_tokens
    settings["twins_together"] = method.probing.twins_together
    settings["layout"] = PADDED if args.layout == PADDED else method.probing.layout
    digest = "" if journal is None else str(journal.header.settings.get("finetuner", ""))
    settings["finetuner"] = digest_like(getattr(method, "finetuner", None), digest)
    return settings
