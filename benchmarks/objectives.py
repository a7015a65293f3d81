"""What scores come to: F1 of SQuAD, sums and a form that programs check, a judge's choice.

Each is an example of ``examples/objectives``, over seeds; a row a run, and a picture of all.

    OMP_NUM_THREADS=1 python benchmarks/objectives.py squad --seeds 0 1 2 --keep
    OMP_NUM_THREADS=1 python benchmarks/objectives.py sums preference --keep
    OMP_NUM_THREADS=1 python benchmarks/objectives.py form --model SMOLLM2 --keep
    python benchmarks/objectives.py --plot           # draws the kept rows
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from rows import RESULTS, about, keep

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "examples" / "objectives"
ANCHORS = (0.0, 0.02, 0.05)
"""Prices of the divergence from the base model that are compared."""


def example(name: str) -> ModuleType:
    """Returns an example as a module."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def squad(seeds: list[int]) -> Iterator[dict[str, Any]]:
    """Tunes by F1, and by the loss for the same time."""
    for seed in seeds:
        yield {"case": "squad", **example("squad_f1").compare(seed)}


def sums(seeds: list[int]) -> Iterator[dict[str, Any]]:
    """Tunes by rewards that check sums."""
    for seed in seeds:
        yield {"case": "sums", **example("sums").tune(seed)}


def preference(seeds: list[int]) -> Iterator[dict[str, Any]]:
    """Tunes by a judge, with a price on leaving the base model and without."""
    for seed in seeds:
        for anchor in ANCHORS:
            yield {"case": "preference", **example("preference").compare(anchor, seed)}


def form(seeds: list[int], model: str = "HuggingFaceTB/SmolLM2-135M-Instruct") -> Iterator[Any]:
    """Tunes a chat model by a form that its answers must have."""
    for seed in seeds:
        yield {"case": "form", "model": Path(model).name, **example("yes_or_no").tune(model, seed)}


CASES = {"squad": squad, "sums": sums, "preference": preference, "form": form}


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Draws what the probes of each run have scored, a running mean over a tenth of the run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.7 * len(CASES), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for place, name in enumerate(CASES):
        axes = figure.add_subplot(1, len(CASES), place + 1)
        for row in (row for row in rows if row["case"] == name):
            curve = row["curve"]
            width = max(1, len(curve) // 10)
            means = [
                sum(curve[max(0, n - width) : n]) / min(n, width) for n in range(1, len(curve) + 1)
            ]
            label = f"anchor {row['anchor']:g}" if "anchor" in row else f"seed {row['seed']}"
            axes.plot(range(1, len(curve) + 1), means, label=label)
        axes.set(title=name, xlabel="step", ylabel="score of the probes")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Runs, prints, keeps and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="|".join(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--model", help="of the case form: its hub id or folder")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--plot", action="store_true")
    args = parser.parse_args()
    for case in args.cases:
        given = {"model": args.model} if case == "form" and args.model else {}
        for row in CASES[case](args.seeds, **given):
            row["curve"] = [round(score, 4) for score in row["curve"]]
            print({name: value for name, value in row.items() if name != "curve"}, flush=True)
            if args.keep:
                keep("objectives", [{**row, **about()}])
    if args.plot:
        lines = (RESULTS / "objectives.jsonl").read_text().splitlines()
        plot([json.loads(line) for line in lines], RESULTS / "objectives.png")


if __name__ == "__main__":
    main()
