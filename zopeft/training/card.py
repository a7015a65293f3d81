"""The model card that a trainer writes, where transformers says another optimizer than was used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zopeft.staging import staged


def correct_card(path: Path, args: Any, method: Any) -> None:
    """Puts the method and its learning rate in place of what the arguments stand for otherwise.

    Args:
        path: The card; without one, nothing is done.
        args: The trainer's arguments.
        method: Its optimizer; None before training.
    """
    if not path.is_file():
        return
    facts = {"optimizer": _optimizer(args, method), "learning_rate": _rate(args, method)}
    lines, left = [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        name = line.removeprefix("- ").partition(":")[0] if line.startswith("- ") else ""
        # What else stands under it, the first-order optimizer's own arguments, goes along.
        if left == "optimizer" and line and not name and not line.startswith("#"):
            continue
        left = name
        lines.append(f"- {name}: {facts[name]}" if name in facts else line)
    with staged(path) as place:
        place.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _optimizer(args: Any, method: Any) -> str:
    words = [f"{args.method} of zopeft"]
    if args.order:
        return words[0]
    eps = args.eps if method is None else method.eps
    words += ["zeroth-order: forward passes only"]
    words += [f"eps {eps:g}"] if eps is not None else []
    words += [f"{args.directions} directions a step"] if args.directions > 1 else []
    words += [f"fine-tuner {Path(args.finetuner).name}"] if args.finetuner else []
    return ", ".join([*words, f"{args.noise} noise"])


def _rate(args: Any, method: Any) -> str:
    if args.learning_rate != "auto":
        return f"{args.learning_rate:g}"
    if method is None:
        return "auto"
    first = method.param_groups[0]
    rate = getattr(method, "rate", None)
    begun = first.get("initial_lr", first["lr"]) if rate is None else rate.began
    reason = getattr(method, "lr_reason", "the default").removeprefix("auto: ")
    return f"auto, {begun:.4g} at the start ({reason})"
