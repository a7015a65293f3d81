"""A fine-tuner's scores beside its controls': what a bench measured of it, as its card tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

KEY = "scores"
"""Name in a fine-tuner's training under which they stand: a list, a mapping a comparison."""
HEADING = "## Scores"
OWN = "this fine-tuner"
"""What a comparison calls it."""
PLACE = ("model", "task", "space", "forwards", "batch_size", "rates")
"""What tells comparisons from each other; of two alike, the later one stands."""
CONTROLS = {
    "shuffled": "all that it learned serves other blocks",
    "untrained": "its networks at a random start, no subspaces",
    "random": "subspaces of the same ranks in random directions",
    "scales": "without its subspaces",
}
"""A control, and what it is."""
_RATES = {"best": "each at its best learning rate", "auto": "lr auto"}


def comparisons(training: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the comparisons that a fine-tuner's training holds; what is none is left out."""
    found = training.get(KEY)
    wanted = {*PLACE, "seeds", "metric", "entries"}
    return [
        one
        for one in (found if isinstance(found, list) else [])
        if isinstance(one, dict) and wanted <= one.keys() and _are_entries(one["entries"])
    ]


def _are_entries(value: Any) -> bool:
    wanted = {"name", "validation_loss", "train_loss", "metric", "below", "pairs", "diverged"}
    return isinstance(value, list) and all(
        isinstance(one, dict) and wanted <= one.keys() for one in value
    )


def merged(
    known: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Returns all comparisons, the new ones in the place of those like them."""
    found = {tuple(one[name] for name in PLACE): dict(one) for one in (*known, *new)}
    return list(found.values())


def title(one: Mapping[str, Any]) -> str:
    """Returns what a comparison is of, in a line."""
    seeds = ", ".join(map(str, one["seeds"]))
    return (
        f"{one['task']}, {one['space']}, {one['model']}: {one['forwards']} forward passes of "
        f"{one['batch_size']} rows, {_RATES.get(one['rates'], one['rates'])}, seeds {seeds}"
    )


def columns(one: Mapping[str, Any]) -> list[str]:
    """Returns the names of the columns of a comparison."""
    metric = [str(one["metric"])] if one["metric"] else []
    return ["entry", "validation loss", *metric, "training loss", "below MeZO", "passes saved"]


def cells(one: Mapping[str, Any]) -> list[list[str]]:
    """Returns a comparison's rows, an entry each, in the order of `columns`."""
    body = []
    for entry in one["entries"]:
        lost = f" ({entry['diverged']} diverged)" if entry["diverged"] else ""
        metric = [_spread(entry["metric"])] if one["metric"] else []
        below = "" if entry["below"] is None else f"{entry['below']} of {entry['pairs']}"
        saved = entry.get("saving")
        saving = "" if saved is None or entry["below"] is None else f"{saved:.0%}"
        row = [entry["name"], _spread(entry["validation_loss"]) + lost, *metric]
        body.append([*row, _spread(entry["train_loss"]), below, saving])
    return body


def section(training: Mapping[str, Any]) -> str:
    """Returns the comparisons as Markdown; "" without any."""
    found = comparisons(training)
    if not found:
        return ""
    parts = []
    for one in found:
        lines = [columns(one), ["---"] * len(columns(one)), *cells(one)]
        table = "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)
        parts.append(f"### {_plain(title(one))}\n\n{table}\n")
    names = {entry["name"] for one in found for entry in one["entries"]}
    told = [f"{name}: {what}" for name, what in CONTROLS.items() if name in names]
    about = (
        "Means ± standard deviations over the seeds. Below MeZO: seeds whose validation loss is."
    )
    controls = f" Controls: {'; '.join(told)}." if told else ""
    return "\n".join([about + controls + "\n", *parts])


def put_into(card: str, own: str) -> str:
    """Returns a card with its section on scores replaced, or added at the end.

    Args:
        card: The card, as it may have been edited.
        own: The section, with its heading.
    """
    lines = card.splitlines()
    if HEADING not in lines:
        return card.rstrip("\n") + "\n\n" + own
    first = lines.index(HEADING)
    ends = (k for k in range(first + 1, len(lines)) if lines[k].startswith(("# ", "## ")))
    end = next(ends, len(lines))
    before, after = "\n".join(lines[:first]), "\n".join(lines[end:])
    return before + "\n" + own + (f"\n{after}\n" if after else "")


def _spread(found: Any) -> str:
    if not isinstance(found, Mapping) or not isinstance(found.get("mean"), int | float):
        return "-"
    text = f"{found['mean']:.3f}"
    return f"{text} ± {found['std']:.3f}" if found.get("std") else text


def _plain(text: str) -> str:
    return " ".join(str(text).replace("|", "/").split())
