"""The tables at the end of tune and meta-train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from .output import facts_table, shown

COMPARED = ("acc", "acc_norm", "acc_bytes")
"""Accuracies under the names of others, which the table of a run leaves to its record."""
LABELS = {"loss": "validation loss", "calibrated_accuracy": "calibrated accuracy"}
_LABELS_SHOWN = 6


def tune_table(summary: Mapping[str, Any]) -> Table:
    """Returns what a tuning run came to: first the scores at the weights, before and after."""
    facts: dict[str, Any] = {
        "model": summary["model"],
        "task": summary["task"],
        "space": summary["peft"],
        "method": _method(summary),
        "steps": _steps(summary),
        **_metric_changes(summary["metrics"]),
        **_training(summary),
        "lr": _rates(summary),
        "directions": summary.get("shapes") or None,
        "skipped steps": summary["skipped"] or None,
        "spikes": summary["spikes"] or None,
        "forward passes": summary["forward_passes"],
        "seconds": summary["seconds"],
        "peak memory": f"{summary['peak_bytes'] / 2**20:.0f} MiB",
        "out": summary["out"],
    }
    return facts_table("diverged" if summary.get("diverged") else "tuned", facts)


def _training(summary: Mapping[str, Any]) -> dict[str, str]:
    """Returns the row on what the steps saw: the loss, or the score."""
    if summary.get("score"):
        ends = change(summary["score_first"], summary["score_last"])
        return {f"training {summary['score']}": ends}
    return {"training loss": change(summary["loss_first"], summary["loss_last"])}


def dry_table(summary: Mapping[str, Any]) -> Table:
    """Returns what a run would do, all of which has been checked."""
    passes = summary.get("forward_passes")
    facts = {
        "steps": summary["steps"],
        "forward passes": None if passes is None else sum(passes.values()),
        "out": summary["out"],
    }
    return facts_table("would run", facts)


def remedy(summary: Mapping[str, Any]) -> str:
    """Returns what to do after a run that diverged."""
    given = summary["recipe"]["method"]["lr"] != "auto"
    do = f"lower --lr ({shown(summary['lr'])})" if given else "give a --lr of your own, or --warmup"
    return f"{do}; what it came to is in {summary['out']}, its losses in metrics.jsonl"


def _method(summary: Mapping[str, Any]) -> str:
    """Returns the method, with how it probes where that is not a pair along one direction."""
    settings = (summary.get("recipe") or {}).get("method") or {}
    count, one_sided = settings.get("directions", 1), settings.get("sides") == "one"
    words = [str(summary["method"])]
    words += [f"{count} directions a step"] if count > 1 else []
    words += ["one-sided"] if one_sided else []
    words += ["normalised"] if settings.get("normalise") else []
    return ", ".join(words)


def _steps(summary: Mapping[str, Any]) -> str:
    """Returns the steps made, with what was stopped and which weights were kept."""
    words = str(summary["steps"])
    if summary.get("stopped") is not None:
        words += f" of {summary['recipe']['training']['steps']}, stopped"
    if summary.get("best") is not None:
        words += f"; the best weights, of step {summary['best']}, are the result"
    return words


def _rates(summary: Mapping[str, Any]) -> str:
    first, last = shown(summary["lr"]), shown(summary["lr_last"])
    return f"{first if first == last else f'{first} -> {last}'} ({summary['lr_reason']})"


def meta_table(summary: Mapping[str, Any]) -> Table:
    """Returns what a meta-training run came to."""
    facts = {
        "model": summary["model"],
        "tasks": ", ".join(summary["tasks"]),
        "space": summary["peft"],
        "groups": summary["groups"],
        "directions": summary.get("shapes") or None,
        "size": f"{summary['file_bytes'] / 1e6:.2f} MB",
        "steps": summary["steps"],
        "loss": change(summary["loss_first"], summary["loss_last"]),
        "seconds": summary["seconds"],
        "peak memory": f"{summary['peak_bytes'] / 2**20:.0f} MiB",
        "out": summary["out"],
    }
    return facts_table("meta-trained", facts)


def _metric_changes(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Returns each metric as before -> after; of accuracies zopeft's own and the calibrated one."""
    before, after = metrics.get("before") or {}, metrics.get("after") or {}
    left_out = {"examples", "predicted", "labels", *COMPARED}
    names = sorted((name for name in after if name not in left_out), key=lambda n: n != "loss")
    found = {LABELS.get(name, name): change(before.get(name), after[name]) for name in names}
    return {**found, **prediction(after, before)}


def prediction(after: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Returns the share of rows that each label is predicted for, beside that which have it."""
    if "predicted" not in after:
        return {}
    now, then, rows = after["predicted"], (before or {}).get("predicted") or {}, after["labels"]
    first = sorted(now, key=lambda label: -now[label])[:_LABELS_SHOWN]
    words = [
        f"{label} {f'{then[label]:.0%} -> ' if label in then else ''}{now[label]:.0%}"
        f" (of {rows[label]:.0%})"
        for label in first
    ]
    more = f", {len(now) - len(first)} more" if len(now) > len(first) else ""
    return {"predicted": ", ".join(words) + more}


def change(before: float | None, after: float | None) -> str:
    """Returns two numbers with an arrow between them."""
    return f"{shown(before)} -> {shown(after)}"
