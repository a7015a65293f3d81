"""A fine-tuner beside MeZO and its controls: what benches measured, as its card tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from zopeft.reading import fits

KEY = "comparisons"
"""Name in a fine-tuner's training under which they stand: a list of mappings."""
FIRST, LAST = "<!-- comparisons -->", "<!-- end of comparisons -->"
"""Lines of the card that they stand between."""
OWN = "this fine-tuner"
"""What a comparison calls it."""
PLACE = ("model", "task", "space", "settings", "rates", "seeds")
"""What tells comparisons from each other; of two alike, the later one's entries stand."""
CONTROLS = {
    "shuffled": "all that it learned serves other blocks",
    "untrained": "networks at a random start, subspaces of the same ranks in random directions",
    "random": "subspaces of the same ranks in random directions",
    "scales": "without its subspaces",
}
"""A control, and what it is."""
_RATES = {"best": "each at its best learning rate", "auto": "lr auto"}
_KINDS = {
    **dict.fromkeys((*PLACE[:-1], "metric", "digest"), "text"),
    **dict.fromkeys(("forwards", "batch_size"), "count"),
    **{"seeds": "counts", "entries": "list"},
}
_KINDS_OF_ENTRY = {
    **dict.fromkeys(("name", "control"), "text"),
    **dict.fromkeys(("pairs", "reached", "ends", "diverged"), "count"),
    **{"seeds": "counts", "below": "count?", "saving": "number?"},
    **dict.fromkeys(("validation_loss", "train_loss", "metric"), "numbers?"),
}


def comparisons(training: Mapping[str, Any], digest: str | None = None) -> list[dict[str, Any]]:
    """Returns the comparisons that a fine-tuner's training holds; what is none is left out.

    Args:
        training: Facts of its training.
        digest: The fine-tuner's: comparisons of another one are left out. None takes all.
    """
    found = training.get(KEY)
    return [
        one
        for one in (found if isinstance(found, list) else [])
        if _are(one, _KINDS)
        and all(_are(entry, _KINDS_OF_ENTRY) for entry in one["entries"])
        and digest in (None, one["digest"])
    ]


def _are(values: Any, kinds: Mapping[str, str]) -> bool:
    return isinstance(values, dict) and all(_is(values, *pair) for pair in kinds.items())


def _is(values: Mapping[str, Any], name: str, kind: str) -> bool:
    value = values.get(name)
    if kind.endswith("?") and value is None:
        return name in values
    if not fits(value, kind.rstrip("?")):
        return False
    return not isinstance(value, dict) or {"mean", "std"} <= value.keys()


def merged(
    known: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Returns all comparisons; entries of the new ones stand in the place of those like them."""
    found: dict[str, dict[str, Any]] = {}
    for one in (*known, *new):
        place = repr([one[name] for name in PLACE])
        entries = {e["name"]: e for e in found.get(place, {"entries": []})["entries"]}
        entries |= {entry["name"]: entry for entry in one["entries"]}
        found[place] = {**one, "entries": list(entries.values())}
    return list(found.values())


def title(one: Mapping[str, Any]) -> str:
    """Returns what a comparison is of, in a line."""
    seeds = ", ".join(map(str, one["seeds"]))
    return (
        f"{one['task']}, {one['space']}, {one['model']}: {one['forwards']} forward passes of "
        f"{one['batch_size']} rows, {_RATES.get(one['rates'], one['rates'])}, seeds {seeds} "
        f"(settings {one['settings']})"
    )


def columns(one: Mapping[str, Any]) -> list[str]:
    """Returns the names of the columns of a comparison."""
    metric = [str(one["metric"])] if one["metric"] else []
    return ["entry", "validation loss", *metric, "training loss", "below MeZO", "passes saved"]


def cells(one: Mapping[str, Any]) -> list[list[str]]:
    """Returns a comparison's rows, an entry each, in the order of `columns`."""
    body = []
    for entry in one["entries"]:
        seeds = entry["seeds"]
        name = entry["name"]
        if seeds != one["seeds"]:
            name += f" (seeds {', '.join(map(str, seeds))})"
        lost = f" ({entry['diverged']} of {len(seeds)} diverged)" if entry["diverged"] else ""
        metric = [_spread(entry["metric"])] if one["metric"] else []
        row = [name, _spread(entry["validation_loss"]) + lost, *metric]
        row += [_spread(entry["train_loss"]), *_beside(entry)]
        body.append(row)
    return body


def _beside(entry: Mapping[str, Any]) -> list[str]:
    """Returns the cells that set an entry beside MeZO."""
    if entry["below"] is None:
        return ["", ""]
    saved = "never" if entry["saving"] is None else f"{entry['saving']:.0%}"
    # Where MeZO diverged there is no end to come to.
    told = f"{saved} ({entry['reached']} of {entry['ends']})" if entry["ends"] else "-"
    return [f"{entry['below']} of {entry['pairs']}", told if entry["pairs"] else ""]


def section(found: Sequence[Mapping[str, Any]]) -> str:
    """Returns comparisons as the card tells them, with their marks; "" of none."""
    if not found:
        return ""
    parts = [_ABOUT]
    controls = {entry["control"] for one in found for entry in one["entries"]}
    told = [f"{name}: {what}" for name, what in CONTROLS.items() if name in controls]
    if told:
        parts.append(f"Controls, which what was learned has to beat: {'; '.join(told)}.\n")
    for one in found:
        lines = [columns(one), ["---"] * len(columns(one)), *cells(one)]
        table = "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)
        parts.append(f"### {_plain(title(one))}\n\n{table}\n")
    return "\n".join([FIRST, "## Beside MeZO and its controls\n", *parts, LAST]) + "\n"


_ABOUT = """Means over the seeds ± standard deviations, of the runs that did not diverge; the
training loss is of a run's last tenth. Below MeZO: seeds whose validation loss is below that of
MeZO's run of the same seed and batches. Passes saved: by the seeds (how many of them) whose
training loss comes to MeZO's at its end, against MeZO's own first time there.
"""


def put_into(card: str, own: str) -> str:
    """Returns a card with its section on comparisons replaced, or added at the end.

    Nothing else of it is changed; line ends are the card's.

    Args:
        card: The card, as it may have been edited.
        own: The section, with its marks.
    """
    end = "\r\n" if "\r\n" in card else "\n"
    lines = card.splitlines(keepends=True)
    own = own.replace("\n", end)
    marks = _marks(lines)
    for (first, opens), (last, closes) in pairwise(marks):
        if (opens, closes) == (FIRST, LAST):
            return "".join([*lines[:first], own, *lines[last + 1 :]])
    gap = "" if not card else end if card.endswith(("\n", "\r")) else end * 2
    return card + gap + own


def _marks(lines: Sequence[str]) -> list[tuple[int, str]]:
    """Returns the marks among a card's lines and their numbers; none of blocks of code."""
    found, fence = [], ""
    for number, line in enumerate(lines):
        bare = line.strip()
        if fence:
            fence = "" if bare.startswith(fence) else fence
        elif bare.startswith(("```", "~~~")):
            fence = bare[:3]
        elif bare in (FIRST, LAST):
            found.append((number, bare))
    return found


def _spread(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    text = f"{found['mean']:.3f}"
    return f"{text} ± {found['std']:.3f}" if found["std"] else text


def _plain(text: str) -> str:
    return " ".join(str(text).replace("|", "/").split())
