"""The job of ``zopeft finetuner score``: what benches measured goes into a fine-tuner's card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zopeft.errors import input_error
from zopeft.finetuner import storage
from zopeft.finetuner.artifact import FineTuner
from zopeft.finetuner.config import public_name
from zopeft.finetuner.digest import digest_of
from zopeft.finetuner.scores import KEY, OWN, comparisons, merged
from zopeft.jobs.bench.entry import BASELINE, LEARNED
from zopeft.report.rows import FILE, Row, check_rows, read_rows
from zopeft.report.standings import CellReport, Standing, plain, report


def score(finetuner: str, benches: Sequence[str]) -> dict[str, Any]:
    """Puts what benches measured of a fine-tuner, and of its controls, into its card.

    Args:
        finetuner: Its folder. Its networks and bases stay as they are, and so does its digest; of
            a card that was edited the section on scores alone is replaced.
        benches: Folders of benches that it competed in.

    Returns:
        ``finetuner``, ``added`` (how many comparisons came) and ``scores``, all of them.

    Raises:
        InputError: There is no such folder, it holds no fine-tuner, or a bench has no reported
            run of it.
    """
    folder = Path(finetuner).expanduser()
    if not folder.is_dir():
        do = "give the folder that it stands in"
        raise input_error("FINETUNER", "no such folder, whose card could be written", finetuner, do)
    found = FineTuner.from_pretrained(folder)
    new = [one for bench in benches for one in _compared(bench, digest_of(found))]
    scores = merged(comparisons(found.config.training), new)
    found.config.training[KEY] = scores
    storage.write_scores(found.config, folder)
    return {"job": "finetuner score", "finetuner": finetuner, "added": len(new), "scores": scores}


def _compared(bench: str, digest: str) -> list[dict[str, Any]]:
    """Returns the comparisons of a bench that a fine-tuner took part in."""
    rows = read_rows(bench)
    check_rows(rows, Path(bench).expanduser() / FILE)
    entries = {row["entry"]: row for row in rows}
    found = []
    for cell in report(rows):
        own = [one for one in cell.standings if _belongs(entries[one.entry], digest)]
        if any(entries[one.entry].get("content") and one.runs for one in own):
            found.append(_comparison(cell, own, entries))
    if not found:
        there = ", ".join(dict.fromkeys(row["name"] for row in rows)) or "no rows"
        do = "give a bench that was run with --finetuner of this folder as it is now"
        raise input_error("BENCH", "no reported run of this fine-tuner in it", there[:200], do)
    return found


def _belongs(row: Row, digest: str) -> bool:
    """Whether an entry is the fine-tuner, a control of it, or without any."""
    return row.get("content", "") in ("", digest)


def _comparison(
    cell: CellReport, own: Sequence[Standing], entries: Mapping[str, Row]
) -> dict[str, Any]:
    first = entries[own[0].entry]
    told = {one["entry"]: one for one in plain([cell])[0]["standings"]}
    return {
        "model": public_name(cell.model),
        "task": cell.task,
        "space": cell.space,
        "forwards": cell.budget,
        "batch_size": first.get("batch_size"),
        "rates": "best" if cell.searched else "auto",
        "seeds": list(cell.seeds),
        "metric": cell.metric_name,
        "entries": [_entry(told[one.entry], entries[one.entry]) for one in own if one.runs],
        "commit": first["commit"],
        "versions": first["versions"],
    }


def _entry(one: Mapping[str, Any], row: Row) -> dict[str, Any]:
    return {
        "name": _name(row),
        "lr": one["lr"] or one["auto_lr"],
        "validation_loss": one["validation"],
        "train_loss": one["train"],
        "metric": one["metric"],
        "below": one["wins_validation"],
        "pairs": one["pairs"],
        "saving": one["saving"],
        "diverged": one["diverged"],
    }


def _name(row: Row) -> str:
    """Returns what the card calls an entry: no folder of the machine that it was run on."""
    if not row.get("content"):
        return "MeZO" if row["entry"] == BASELINE else str(row["name"])
    options = row.get("options") or {}
    words = [f"{key}={options[key]}" for key in sorted(options)]
    method = [] if row.get("method") == LEARNED else [str(row.get("method"))]
    return ", ".join([row.get("control") or OWN, *method, *words])
