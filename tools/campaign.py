"""Runs that are broken off at every place where they write, and gone on with.

A run is made once and left alone; then again and again, and each time something happens at
one of its writes (creating, writing, renaming, waiting for the disk): the process is killed before
it or in the middle of it, is asked to stop by SIGTERM or SIGINT, or the disk is full or broken from
there on. After that no file may be half, what was said must be one line with the right exit
code, and the same command with ``--resume auto`` must end with the bits of the run that was left
alone. Places are drawn by chance; ``--every N`` takes every N-th instead.

    python tools/campaign.py                     # 20 places a job and kind of break
    python tools/campaign.py lora --kinds kill full-disk --every 1 --keep rows.jsonl

It needs Linux and a C compiler: what breaks is put between the process and the C library.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIBRARY = "ZOPEFT_BREAKING"
KINDS = {
    "kill": -1,
    "half": -2,
    "sigterm": -1000 - signal.SIGTERM,
    "sigint": -1000 - signal.SIGINT,
    "full-disk": errno.ENOSPC,
    "broken-disk": errno.EIO,
}
"""What happens, to what `breaking_arm` is told."""
OUT = "out"
ROWS = "".join(
    json.dumps({"text": f"The {word} was {mark}.", "label": mark}) + "\n"
    for word in ("dog", "film", "sun", "boat", "cake", "king", "tree", "song")
    for mark in ("good", "bad")
)
TUNE = ("tune", "--data", "rows.jsonl", "--steps", "6", "--batch-size", "2", "--lr", "1e-5")
SAVES = ("training.save_steps=2",)


@dataclass(frozen=True)
class Job:
    """A command that is broken off.

    Args:
        words: The command.
        again: What goes on with it; the same with ``--resume auto`` if left out.
        results: Names of the files whose bits are compared.
        before: A command whose result is in the folder before, and must not be lost.
    """

    words: tuple[str, ...]
    again: tuple[str, ...] = ("--resume", "auto")
    results: tuple[str, ...] = ("adapter_model.safetensors", "model.safetensors")
    before: tuple[str, ...] = ()


JOBS = {
    "lora": Job((*TUNE, "--lora", *SAVES)),
    "full": Job((*TUNE, "--full", "model.dtype=bfloat16", *SAVES)),
    "prefix": Job((*TUNE, "--prefix", *SAVES)),
    "state": Job((*TUNE, "--lora", "--method", "mezo_adam", *SAVES)),
    "directions": Job((*TUNE, "--lora", "method.directions=3", "method.sides=one", *SAVES)),
    "evaluating": Job((*TUNE, "--lora", "--eval-every", "2", "--keep-best")),
    "journal": Job((*TUNE, "--lora")),
    "scales": Job((*TUNE, "--peft", "scales", "--load-in-4bit", *SAVES)),
    "offloaded": Job((*TUNE, "--lora", *SAVES, "model.device=auto", "model.offload_folder=spread",
                      "model.max_memory={cpu: 2MB}")),
    "meta-train": Job(
        ("meta-train", "--task", "sst2", "--data", "sst2", "--steps", "4", "--batch-size", "2",
         "--hidden", "4"),
        ("--overwrite",),
        ("finetuner.safetensors",),
    ),
    "overwrite": Job(
        (*TUNE, "--lora", "--overwrite", *SAVES), (), before=(*TUNE, "--lora", "--seed", "5")
    ),
    "bench": Job(
        ("bench", "--task", "sst2", "--data", "sst2", "bench.forwards=8", "bench.lrs=[1e-5]",
         "bench.seeds=1", "bench.auto=false", "task.eval_examples=4"),
        ("--resume",),
        ("rows.jsonl",),
    ),
}  # fmt: skip


POINTS = {
    "the first snapshot": lambda call, path: "/checkpoint-" in path,
    "weights of a snapshot": lambda call, path: "/checkpoint-" in path and "model.safet" in path,
    "a snapshot's mark": lambda call, path: call == "rename" and path.endswith("complete.json"),
    "a journal's frame": lambda call, path: call == "write" and path.endswith("/journal.bin"),
    "the result's weights": lambda call, path: (
        "/.staged-" in path and path.endswith(".safetensors")
    ),
    "the result in place": lambda call, path: call == "rename" and path.endswith(".safetensors"),
    "the old result's end": lambda call, path: call == "unlink" and "/.staged-" not in path,
    "the record": lambda call, path: call == "rename" and path.endswith("run.json"),
}
"""Chosen points, by the calls that are made there; of several the first, middle and last."""
POINT_KINDS = ("kill", "half", "sigterm")
"""What happens at the first, middle and last place of a point."""


@dataclass
class Case:
    """What came of one break."""

    job: str
    kind: str
    place: int
    code: int = 0
    fault: str = ""
    said: str = field(default="", repr=False)


def build(folder: Path) -> Path:
    """Compiles what stands between the process and the C library."""
    library = folder / "breaking.so"
    source = Path(__file__).with_name("breaking.c")
    command = ["cc", "-shared", "-fPIC", "-O1", "-w", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return library


class Bench:
    """A folder to work in, and runs in processes of their own.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "rows.jsonl").write_text(ROWS)
        (folder / "sst2").mkdir(exist_ok=True)
        rows = [
            {"idx": n, "sentence": f"it was {w}", "label": n % 2} for n, w in enumerate("ab" * 8)
        ]
        for split in ("train", "validation"):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "sst2" / f"{split}.jsonl").write_text(text)
        self.calls = ctypes.CDLL(os.environ[LIBRARY])
        self.calls.breaking_counted.restype = ctypes.c_long

    def warm(self, words: Sequence[str]) -> None:
        """Runs a command here: what it loads and compiles is there for all that are forked."""
        from zopeft.cli.main import main

        before = os.getcwd()
        os.chdir(self.folder)
        with contextlib.redirect_stdout(io.StringIO()):
            code = main([*words, "--out", str(self.folder / "warm")])
        os.chdir(before)
        if code:
            raise SystemExit(code)

    def prepare(self, job: Job) -> None:
        """Empties the folder, and puts into it what is there before."""
        self.clear()
        if job.before:
            kept = self.folder / "before"
            if not kept.is_dir():
                code, said, _ = self.run(job.before)
                if code:
                    raise SystemExit(said)
                shutil.copytree(self.folder / OUT, kept)
                return
            shutil.copytree(kept, self.folder / OUT)

    def points(self) -> dict[str, list[int]]:
        """Returns the places of `POINTS` in the last run."""
        calls = [line.split(" ", 2) for line in (self.folder / "told").read_text().splitlines()]
        found = {}
        for name, is_one in POINTS.items():
            places = [int(number) for number, call, path in calls if is_one(call, path)]
            if places:
                found[name] = list(dict.fromkeys((places[0], places[len(places) // 2], places[-1])))
        return found

    def run(self, words: Sequence[str], place: int = -1, kind: int = 0) -> tuple[int, str, int]:
        """Runs a command, broken at a place; returns code, what it said, and writes counted."""
        said, counted = self.folder / "said", self.folder / "counted"
        counted.write_text("-1")
        child = os.fork()
        if not child:
            self._child(words, place, kind, said, counted)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return code, said.read_text(errors="replace"), int(counted.read_text())

    def _child(
        self, words: Sequence[str], place: int, kind: int, said: Path, counted: Path
    ) -> None:
        code = 70
        try:
            os.chdir(self.folder)
            file = os.open(said, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(file, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
            from zopeft.cli.main import main

            below = str(self.folder / OUT)
            flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY
            self.calls.breaking_tell(os.open(self.folder / "told", flags))
            self.calls.breaking_arm(below.encode(), ctypes.c_long(place), kind)
            with contextlib.redirect_stdout(io.StringIO()):
                code = main([*words, "--out", below])
            counted.write_text(str(self.calls.breaking_counted()))
        except BaseException as error:
            sys.stderr.write(f"UNCAUGHT {type(error).__name__}: {error}\n")
        finally:
            os._exit(code)

    def clear(self) -> None:
        """Takes the last run's folder away."""
        shutil.rmtree(self.folder / OUT, ignore_errors=True)

    def digest(self, job: Job) -> str:
        """Returns a digest of a run's result; "" without one."""
        names = [name for name in job.results if (self.folder / OUT / name).is_file()]
        contents = [_content(self.folder / OUT / name) for name in names]
        return hashlib.sha256(b"".join(contents)).hexdigest() if names else ""

    def halves(self) -> list[str]:
        """Returns files that are not whole, but those that are being written by their names."""
        from zopeft.errors import InputError
        from zopeft.models.checkpoint import check_weights

        found = []
        for path in (self.folder / OUT).rglob("*"):
            parts = path.relative_to(self.folder / OUT).parts
            sealed = (
                not parts[0].startswith("checkpoint-") or (path.parent / "complete.json").exists()
            )
            if not path.is_file() or not sealed or any(p.startswith(".staged-") for p in parts):
                continue
            try:
                if path.suffix == ".safetensors":
                    check_weights(path)
                elif path.suffix == ".json":
                    json.loads(path.read_text())
            except (InputError, ValueError) as error:
                found.append(f"{path.name} is half ({str(error)[:60]})")
        return found


def _content(path: Path) -> bytes:
    if path.name != "rows.jsonl":
        return path.read_bytes()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    timed = ("seconds", "peak", "when", "cpu_seconds", "step_seconds")
    kept = [{k: v for k, v in row.items() if not any(t in k for t in timed)} for row in rows]
    return json.dumps(sorted(kept, key=lambda row: row["key"]), sort_keys=True).encode()


def judged(code: int, said: str, kind: str, begun: bool) -> str:
    """Returns what is wrong with how a broken run ended."""
    lines = [line for line in said.splitlines() if line.startswith("zopeft: ")]
    if "UNCAUGHT" in said or "Traceback" in said:
        return "a traceback: " + said.strip().splitlines()[-1][:120]
    if kind in ("kill", "half"):
        return "" if code in (0, -signal.SIGKILL) else f"exit code {code}"
    if code == 0:
        return ""  # What could not be written was nothing that the run needs, or it was over.
    if code == 2 and not begun:
        code = 1  # The folder was refused: nothing has been done.
    if code != 1:
        return f"exit code {code}: {(lines or [''])[-1][:120]}"
    return "" if lines else "no line says what happened"


def lost(bench: Bench, job: Job) -> str:
    """Returns what is wrong where neither an old result nor a new run is left."""
    out = bench.folder / OUT
    aside = [out / ".replaced" / name for name in job.results]
    if not job.before or bench.digest(job) or any(path.is_file() for path in aside):
        return ""
    try:
        steps = json.loads((out / "run.json").read_text())["recipe"]
    except (OSError, ValueError, KeyError):
        return "neither the old result nor the new run is there"
    old = json.loads((bench.folder / "before" / "run.json").read_text())["recipe"]
    return "the old result is gone, and no new run has begun" if steps == old else ""


def broken(bench: Bench, name: str, kind: str, place: int, wanted: str) -> Case:
    """Breaks a job off at a place, goes on with it, and says what is wrong."""
    job, case = JOBS[name], Case(name, kind, place)
    bench.prepare(job)
    case.code, case.said, _ = bench.run(job.words, place, KINDS[kind])
    record, old = bench.folder / OUT / "run.json", bench.folder / "before" / "run.json"
    # An old result's record is no sign that the run has begun.
    begun = record.exists() and not (job.before and record.read_bytes() == old.read_bytes())
    case.fault = judged(case.code, case.said, kind, begun) or "; ".join(bench.halves())
    case.fault = case.fault or lost(bench, job)
    if case.fault:
        return case
    if case.code == 0 and bench.digest(job) == wanted:
        return case
    there = (bench.folder / OUT / "run.json").is_file() or "auto" in job.again
    code, said, _ = bench.run((*job.words, *(job.again if there else ())))
    if code:
        # A run that was broken off at its very end has nothing to go on with.
        case.fault = f"cannot be gone on with: {said.strip()[-160:]}"
        if "the run is done" in said and bench.digest(job) == wanted:
            case.fault = ""
    elif bench.digest(job) != wanted:
        case.fault = "ends with other bits"
    return case


def campaign(
    name: str, kinds: Sequence[str], places: int, every: int, seed: int, points: bool = False
) -> dict[str, Any]:
    """Breaks one job at many places; returns counts and faults."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder).resolve())
        bench.warm(JOBS[name].words)
        bench.prepare(JOBS[name])
        code, said, writes = bench.run(JOBS[name].words)
        wanted = bench.digest(JOBS[name])
        if code or not wanted:
            raise SystemExit(f"{name}: {said}")
        marked = bench.points()
        dice, faults, made = random.Random(f"{name} {seed}"), [], 0
        for kind in kinds:
            chosen = (
                range(0, writes, every)
                if every
                else dice.sample(range(writes), min(places, writes))
            )
            for place in sorted(chosen):
                case = broken(bench, name, kind, place, wanted)
                made += 1
                if case.fault:
                    faults.append({"kind": kind, "place": place, "fault": case.fault})
        for point, chosen in (marked if points else {}).items():
            for kind, place in zip(POINT_KINDS, chosen, strict=False):
                case = broken(bench, name, kind, place, wanted)
                made += 1
                if case.fault:
                    told = {"kind": kind, "place": place, "at": point, "fault": case.fault}
                    faults.append(told)
    return {
        "job": name, "writes": writes, "kinds": list(kinds), "breaks": made, "seed": seed,
        **({"points": {point: len(chosen) for point, chosen in marked.items()}} if points else {}),
        "faults": faults, "seconds": round(time.monotonic() - begun, 1),
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Runs the campaign; returns 1 where something was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=", ".join(JOBS))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--places", type=int, default=20, help="of each job and kind")
    parser.add_argument("--every", type=int, default=0, help="every so many writes instead")
    parser.add_argument("--points", action="store_true", help="break at chosen points, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="file that the counts are appended to")
    args = parser.parse_args(argv)
    if LIBRARY not in os.environ:
        with tempfile.TemporaryDirectory() as place:
            library = str(build(Path(place)))
            words = (
                [sys.executable, *sys.argv] if argv is None else [sys.executable, __file__, *argv]
            )
            env = {**os.environ, "LD_PRELOAD": library, LIBRARY: library, "HF_HUB_OFFLINE": "1"}
            return subprocess.run(words, env=env).returncode
    lost = False
    for name in args.jobs or JOBS:
        row = campaign(name, args.kinds, args.places, args.every, args.seed, args.points)
        print(json.dumps(row), flush=True)
        lost |= bool(row["faults"])
        if args.keep:
            with args.keep.open("a") as file:
                file.write(json.dumps(row) + "\n")
    return int(lost)


if __name__ == "__main__":
    sys.exit(main())
