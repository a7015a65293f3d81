"""The job of ``zopeft finetuner score``: what benches measured goes into a fine-tuner's card."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

from zopeft.errors import input_error
from zopeft.finetuner import storage
from zopeft.finetuner.artifact import FineTuner
from zopeft.finetuner.config import public_name
from zopeft.finetuner.digest import digest_of
from zopeft.finetuner.scores import OWN, comparisons, merged
from zopeft.jobs.bench.entry import BASELINE, LEARNED
from zopeft.methods import METHODS
from zopeft.reading import fits
from zopeft.report.measures import mean, reaching, reported_runs, searched, spread, wins
from zopeft.report.rows import FILE, Row, check_rows, read_rows
from zopeft.report.standings import by_cell

_KINDS = {
    **dict.fromkeys(("control", "method", "finetuner", "content"), "text"),
    **{"options": "object", "batch_size": "count"},
}
Runs = dict[int, Row]
"""Seed to an entry's reported run."""


def score(finetuner: str, benches: Sequence[str]) -> dict[str, Any]:
    """Puts what benches measured of a fine-tuner, and of its controls, into its card.

    Args:
        finetuner: Its folder. Its networks and bases stay as they are, and so does its digest; of
            the card, the section on comparisons alone is replaced.
        benches: Folders of benches that it competed in.

    Returns:
        ``finetuner``, ``added`` (how many comparisons came) and ``comparisons``, all of them.

    Raises:
        InputError: There is no such folder, it holds no fine-tuner, or a bench has no reported
            run of it or of MeZO.
    """
    folder = Path(finetuner).expanduser()
    if not folder.is_dir():
        do = "give the folder that it stands in"
        raise input_error("FINETUNER", "no such folder, whose card could be written", finetuner, do)
    found = FineTuner.from_pretrained(folder)
    digest = digest_of(found)
    new = merged([], [one for bench in benches for one in _compared(bench, digest)])
    every = merged(comparisons(found.config.training, digest), new)
    storage.write_comparisons(folder, every)
    return {"job": "finetuner score", "finetuner": finetuner} | {
        "added": len(new),
        "comparisons": every,
    }


def _compared(bench: str, digest: str) -> list[dict[str, Any]]:
    """Returns the comparisons of a bench that a fine-tuner took part in."""
    path = Path(bench).expanduser()
    if path.exists() and not path.is_dir():
        raise input_error("BENCH", "is a file", bench, "give the folder of a bench")
    rows = read_rows(path, "BENCH")
    check_rows(rows, path / FILE)
    _checked(rows, path / FILE)
    found = [one for cell in by_cell(rows) if (one := _comparison(cell, digest))]
    if not found:
        there = ", ".join(dict.fromkeys(str(row["name"]) for row in rows)) or "no rows"
        what = "has no reported runs of both MeZO and this fine-tuner as it is now"
        do = "run zopeft bench --finetuner with this folder, to its end"
        raise input_error("BENCH", f"{bench} {what}", there[:200], do)
    return found


def _comparison(rows: Sequence[Row], digest: str) -> dict[str, Any] | None:
    """Returns what a cell's rows say of a fine-tuner; None where it or MeZO has no run."""
    tried = searched(rows)
    # What has part in it: entries without a fine-tuner, and with this one as it is now.
    part = [row for row in rows if not row.get("finetuner") or row.get("content") == digest]
    firsts: dict[str, Row] = {}
    for row in part:
        firsts.setdefault(row["entry"], row)
    runs = {
        entry: reported_runs([row for row in part if row["entry"] == entry], tried)[0]
        for entry in firsts
    }
    own = [e for e, row in firsts.items() if row.get("finetuner") and not row.get("control")]
    seeds = sorted({seed for entry in own for seed in runs[entry]})
    kept = {entry: {s: one[s] for s in seeds if s in one} for entry, one in runs.items()}
    base = kept.get(BASELINE)
    if not seeds or not base:
        return None
    first, last = firsts[own[0]], part[-1]
    metrics = {str(row["metric_name"]) for row in rows if row.get("metric_name")}
    return {
        "digest": digest,
        "model": _model(first["model"]),
        "task": public_name(first["task"]),
        "space": first["space"],
        "settings": first["settings"],
        "rates": "best" if tried else "auto",
        "forwards": first["budget"],
        "batch_size": int(first.get("batch_size") or 0),
        "seeds": seeds,
        "metric": min(metrics, default=""),
        "entries": _told_apart(
            [_entry(firsts[e], one, base, tried) for e, one in kept.items() if one]
        ),
        "commit": last["commit"],
        "versions": last["versions"],
    }


def _entry(row: Row, runs: Runs, base: Runs, tried: bool) -> dict[str, Any]:
    held = [one for one in runs.values() if not one["diverged"]]
    saved = reaching(runs, base)
    return {
        "name": _name(row, tried),
        "control": (row.get("control") or "") if row.get("finetuner") else "",
        "seeds": sorted(runs),
        "validation_loss": _plain(spread(held, "val_loss")),
        "train_loss": _plain(spread(held, "train_loss")),
        "metric": _plain(spread(held, "metric")),
        "below": None if row["entry"] == BASELINE else wins(runs, base, "val_loss"),
        "pairs": len(runs.keys() & base.keys()),
        "saving": mean([1 - mine / theirs for mine, theirs in saved]),
        "reached": len(saved),
        "ends": sum(not base[seed]["diverged"] for seed in runs.keys() & base.keys()),
        "diverged": len(runs) - len(held),
    }


def _told_apart(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Numbers entries of one name: two folders of one fine-tuner, two masks of one file name."""
    names = [one["name"] for one in entries]
    alike = [names[:number].count(name) for number, name in enumerate(names)]
    return [
        {**one, "name": f"{one['name']} ({before + 1})"} if before else one
        for one, before in zip(entries, alike, strict=True)
    ]


def _model(name: str) -> str:
    """Returns a model's name as it may be shared; owner/name may be a folder of this machine."""
    return Path(name).name if Path(name).expanduser().is_dir() else public_name(name)


def _checked(rows: Sequence[Row], file: Path) -> None:
    """Refuses rows whose other fields, which a report does not need, are of another kind."""
    for row in rows:
        for name, kind in _KINDS.items():
            if row.get(name) is not None and not fits(row[name], kind):
                where, got = f"{file}, the row {row['key']!r:.80}", f"{row[name]!r:.60}"
                raise input_error(where, f"is no row of a bench: {name}", got)


def _plain(found: Any) -> dict[str, Any] | None:
    return None if found is None else asdict(found)


def _name(row: Row, tried: bool) -> str:
    """Returns what the card calls an entry: no folder of the machine that it was run on."""
    if row["entry"] == BASELINE:
        return "MeZO"
    options: Mapping[str, Any] = row.get("options") or {}
    method = str(row.get("method"))
    words = [f"{key}={_last_part(options[key])}" for key in sorted(options)]
    words += [word for word in shlex.split(row["entry"]) if word.startswith("shuffle=")]
    if not tried and method in METHODS and METHODS[method].order and row["lr"]:
        # Of gradients lr=auto is their method's own default.
        words.append(f"lr={row['lr']:g}")
    if not row.get("finetuner"):
        return " ".join([method, *words])
    return ", ".join([row.get("control") or OWN, *([] if method == LEARNED else [method]), *words])


def _last_part(value: Any) -> str:
    text = str(value)
    return PurePath(text.replace("\\", "/")).name if "/" in text or "\\" in text else text
