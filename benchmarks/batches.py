"""Time of whole steps on real samples, as a ratio to two bare forwards of the padded batch.

Steps of ``zopeft tune`` (its collator, its loss, its probes) on batches of real samples, LoRA and
full weights, beside two bare forwards of the padded batch with labels, a plain MeZO step, and with
``--before`` another build's steps in a process of its own. Each is asked in turn. Scores of option
tasks are measured beside the other build's. Models may be random: a folder of SmolLM2, or
``--random`` for its shape with the tokenizer of that folder.

    OMP_NUM_THREADS=1 python benchmarks/batches.py MODEL --data DIR --before WORKTREE --keep
    OMP_NUM_THREADS=1 python benchmarks/batches.py MODEL --data DIR --dtype bfloat16 --keep
    python benchmarks/batches.py --means             # geometric means of the kept rows
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batches_worker import BARE, NOISES, PLAIN, SCORE, arguments
from rich.console import Console
from rich.table import Table
from rows import RESULTS, about, keep

HERE = Path(__file__).resolve().parent
TASKS = {
    "sst2": ("answer", "choice"),
    "copa": ("choice", "answer"),
    "boolq": ("answer", "choice"),
    "squad": ("answer",),
}
"""Tasks and their losses; the first is what a geometric mean is taken over."""
SCORED = ("copa", str(HERE / "boolq_sentences.yaml"))
"""Option tasks whose answers have several tokens."""
NOW, BEFORE = "now", "before"


class Build:
    """A build of zopeft in a process of its own.

    Args:
        tree: Its checkout.
        args: The command line.
    """

    def __init__(self, tree: str, args: argparse.Namespace) -> None:
        shared = {
            "--data": args.data,
            "--batch-size": args.batch_size,
            "--max-length": args.max_length,
            "--dtype": args.dtype,
            "--device": args.device,
            "--clock": args.clock,
        }
        flags = [str(word) for pair in shared.items() for word in pair]
        command = [sys.executable, str(HERE / "batches_worker.py"), "--tree", str(Path(tree))]
        command += ["--model", args.model, *flags]
        command += ["--spaces", *args.spaces, "--noise", *args.noise]
        command += ["--random"] if args.random else []
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **wish: Any) -> dict[str, Any]:
        """Has a case run, and returns what it took."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(wish) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a build has ended: {wish}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def steps(builds: dict[str, Build], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Times the steps of each task, loss and space; yields a row a case."""
    for task in args.tasks:
        for loss in TASKS[task]:
            if args.losses and loss not in args.losses:
                continue
            for space in args.spaces:
                cases = [(NOW, BARE), (NOW, PLAIN)]
                cases += [
                    (name, noise)
                    for noise in args.noise
                    for name in builds
                    if name == NOW or noise in args.before_noise
                ]
                wish = {"task": task, "loss": loss, "space": space}
                found = _in_turn(builds, cases, wish, args)
                for case, answers in found.items():
                    yield _row(wish, case, answers, found[NOW, BARE], args)


def scores(builds: dict[str, Build], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Times the scoring of option tasks; yields a row a build, with its ratio to the other's."""
    for task in args.score:
        space = args.spaces[0]
        wish = {"task": task, "loss": "choice", "space": space, "rows": args.rows}
        cases = [(name, SCORE) for name in builds]
        found = _in_turn(builds, cases, wish, args)
        for case, answers in found.items():
            yield _row(wish, case, answers, found[next(reversed(builds)), SCORE], args)


def _in_turn(
    builds: dict[str, Build],
    cases: list[tuple[str, str]],
    wish: dict[str, Any],
    args: argparse.Namespace,
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = {case: [] for case in cases}
    for batch in range(args.batches):
        for name, case in cases:
            found[name, case].append(builds[name].ask(**wish, case=case, batch=batch))
    return found


def _row(
    wish: dict[str, Any],
    case: tuple[str, str],
    answers: list[dict[str, Any]],
    beside: list[dict[str, Any]],
    args: argparse.Namespace,
) -> dict[str, Any]:
    taken, bare = ([one["seconds"] for one in some] for some in (answers, beside))
    return {
        "model": args.label,
        "task": Path(wish["task"]).stem,
        "loss": wish["loss"],
        "space": wish["space"],
        "dtype": args.dtype,
        "build": case[0],
        "case": case[1],
        "value": round(statistics.mean(taken), 3),
        "unit": "s, mean of the batches",
        "ratio": round(sum(taken) / sum(bare), 3),
        "tokens": sum(one["tokens"] for one in answers),
        "tokens_ratio": round(
            sum(one["tokens"] for one in answers) / sum(one["tokens"] for one in beside), 3
        ),
        "found": answers[-1]["found"],
        "batches": len(answers),
        "batch": f"{args.batch_size}, at most {args.max_length} tokens",
        "clock": args.clock,
        **about(args.device),
    }


def means(rows: list[dict[str, Any]]) -> Table:
    """Returns the geometric means over the tasks, each with its first loss."""
    last: dict[tuple[str, ...], dict[str, Any]] = {}
    keys = ("model", "space", "dtype", "build", "case")
    for row in rows:
        if row["case"] != SCORE and row["loss"] == TASKS[row["task"]][0]:
            last[(*(row[key] for key in keys), row["task"])] = row
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for (*group, _), row in last.items():
        groups.setdefault(tuple(group), []).append(row)
    table = Table(*keys, *TASKS, "geometric mean")
    for group, found in groups.items():
        ratios = {row["task"]: row["ratio"] for row in found}
        mean = math.exp(statistics.fmean(math.log(one) for one in ratios.values()))
        shown = [f"{ratios[task]:.2f}" if task in ratios else "" for task in TASKS]
        table.add_row(*group, *shown, f"{mean:.3f}" if len(ratios) == len(TASKS) else "")
    return table


def command_line() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="folder of a model and its tokenizer")
    parser.add_argument("--label", help="what rows call the model; its folder's name")
    parser.add_argument("--before", help="a checkout of another build")
    parser.add_argument("--before-noise", nargs="*", default=list(NOISES), choices=NOISES)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--losses", nargs="*", default=[], choices=("answer", "choice"))
    parser.add_argument("--score", nargs="*", default=list(SCORED), help="tasks that are scored")
    parser.add_argument("--rows", type=int, default=100, help="validation rows that are scored")
    parser.add_argument("--batches", type=int, default=2, help="batches a case is timed on")
    parser.add_argument("--means", action="store_true", help="print means of the kept rows alone")
    parser.add_argument("--keep", action="store_true", help="append to results/batches.jsonl")
    if "--means" not in sys.argv:
        arguments(parser)
    args = parser.parse_args()
    if not args.means and not args.model:
        parser.error("MODEL is missing")
    args.label = args.label or Path(args.model or "").name
    return args


def main() -> None:
    """Measures and prints."""
    args = command_line()
    console = Console(width=160)
    if args.means:
        kept = (RESULTS / "batches.jsonl").read_text().splitlines()
        console.print(means([json.loads(line) for line in kept]))
        return
    builds = {NOW: Build(str(HERE.parent), args)}
    if args.before:
        builds[BEFORE] = Build(args.before, args)
    rows = []
    for row in (*steps(builds, args), *scores(builds, args)):
        rows.append(row)
        print(json.dumps(row), flush=True)
        if args.keep:
            keep("batches", [row])
    console.print(means(rows))


if __name__ == "__main__":
    main()
