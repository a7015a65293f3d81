"""Runs of several processes, of which one or all are killed at random and started again.

What torchrun does with ``--max-restarts`` is done here with forks of one process that has imported
everything: when a rank dies the others are ended, and all are started again with the same command,
``zopeft tune ... --resume auto``, as many as before or not. At the end the weights must be
those of the run that was left alone (probes shared out), or those that one process makes of the
journal without a forward pass (rows shared out).

    python tools/campaign_ranks.py --kills 50 --keep rows.jsonl
    python tools/campaign_ranks.py --kills 4 --launcher torchrun      # the real one; slow to start
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEPS, MOST_RESTARTS, LONGEST = 24, 6, 240.0
RESULT, JOURNAL = "adapter_model.safetensors", "journal.bin"
ROWS = "".join(
    json.dumps({"text": f"The {word} was {mark}.", "label": mark}) + "\n"
    for word in ("dog", "film", "sun", "boat", "cake", "king", "tree", "song")
    for mark in ("good", "bad")
)
TUNE = (
    *("tune", "embedded", "--data", "rows.jsonl", "--lora", "--steps", str(STEPS)),
    *("--batch-size", "2", "--lr", "1e-4", "method.directions=2", "training.save_steps=7"),
    *("--resume", "auto"),
)


@dataclass
class Trial:
    """One run, and what was done to it.

    Attributes:
        parallel: What was shared out.
        moments: When ranks were killed, in seconds after a start.
        victims: Which, for each moment.
        counts: Ranks of each start.
        starts: How often it was started.
        fault: What is wrong with its end; "" for nothing.
    """

    parallel: str
    moments: list[float] = field(default_factory=list)
    victims: list[list[int]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    starts: int = 0
    fault: str = ""


def words_of(parallel: str, out: Path) -> list[str]:
    """Returns the command of a run."""
    return [*TUNE, "--parallel", parallel, "--out", str(out)]


def free_port() -> int:
    """Returns a port that nobody uses now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def rank_of(folder: Path, words: Sequence[str], rank: int, count: int, port: int, turn: int) -> int:
    """Forks a rank that runs a command; returns its number."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.chdir(folder)
        place = os.open(folder / f"said-{rank}", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.dup2(place, 1)
        os.dup2(place, 2)
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
        if count > 1:
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
            own |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RESTART_COUNT": turn}
            os.environ |= {name: str(value) for name, value in own.items()}
        from zopeft.cli.main import main as zopeft

        code = zopeft(list(words))
    finally:
        os._exit(code)


def ended(children: dict[int, int], codes: dict[int, int]) -> None:
    """Takes note of ranks that have ended."""
    for rank, child in list(children.items()):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            codes[rank] = os.waitstatus_to_exitcode(status)
            del children[rank]


def started(
    folder: Path, words: Sequence[str], count: int, turn: int, moment: float, victims: Sequence[int]
) -> tuple[dict[int, int], bool]:
    """Starts ranks, kills some at a moment, and waits for all as an elastic agent does.

    Returns:
        The exit codes by rank, and whether any was killed.
    """
    port, begun, struck = free_port(), time.monotonic(), False
    children = {r: rank_of(folder, words, r, count, port, turn) for r in range(count)}
    codes: dict[int, int] = {}
    asked = 0.0
    while children:
        time.sleep(0.01)
        ended(children, codes)
        now = time.monotonic() - begun
        if victims and not struck and now >= moment:
            for rank in victims:
                if rank in children:
                    os.kill(children[rank], signal.SIGKILL)
                    struck = True
            victims = ()
        if any(codes.values()) and not asked:
            asked = now
            for child in children.values():
                os.kill(child, signal.SIGTERM)
        if (asked and now > asked + 30.0) or now > LONGEST:
            for child in children.values():
                os.kill(child, signal.SIGKILL)
    return codes, struck


def digest(folder: Path) -> str:
    """Returns a digest of a run's result; "" without one."""
    file = folder / RESULT
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def in_child(what: Callable[[], bool]) -> bool:
    """Whether something is true, found out in a process of its own."""
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if what() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def replays(out: Path) -> bool:
    """Whether a run's journal alone makes the weights that it has saved."""
    import torch
    from safetensors.torch import load_file

    import zopeft
    from zopeft.jobs.build import load_base, wrap
    from zopeft.journal.replay import rebuild
    from zopeft.recipe.load import load_recipe

    recipe = load_recipe("tune", None, ["peft.name=lora"], {}, None)
    model, _, _ = load_base(recipe, lambda progress: None)
    blocks = wrap(recipe, model)
    method = zopeft.MeZO(blocks, lr=1e-4, directions=2, seed=recipe.training.seed)
    if rebuild(out / JOURNAL, method) != STEPS:
        return False
    saved = load_file(out / RESULT)
    own = {b.parameter_name.replace(".default.", "."): b.parameter.detach() for b in blocks}
    same = [torch.equal(saved[name], value) for name, value in own.items() if name in saved]
    return len(same) == len(saved) and all(same)


def forked(folder: Path, trial: Trial, dice: random.Random, usual: float, kills: int) -> str:
    """Makes a trial with forks; returns what is wrong."""
    out = folder / "out"
    words = words_of(trial.parallel, out)
    for turn in range(MOST_RESTARTS + kills):
        count = dice.choice((1, 2, 2, 3)) if turn else 2
        strikes = turn < kills
        victims = sorted(dice.sample(range(count), dice.randint(1, count))) if strikes else []
        moment = dice.uniform(0.0, usual)
        codes, struck = started(folder, words, count, turn, moment, victims)
        trial.counts.append(count)
        trial.starts += 1
        if struck:
            trial.moments.append(round(moment, 2))
            trial.victims.append(victims)
        if not any(codes.values()):
            return ""
        if not struck:
            said = "".join(f.read_text() for f in folder.glob("said-*"))
            return f"ended with {codes}, not killed: {said.strip()[-300:]}"
    return "does not come to its end"


def by_torchrun(folder: Path, trial: Trial, dice: random.Random, usual: float, kills: int) -> str:
    """Makes a trial with torchrun itself; returns what is wrong."""
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    words += ["--max-restarts", str(kills + 2), "-m", "zopeft"]
    words += words_of(trial.parallel, folder / "out")
    with open(folder / "said-torchrun", "w") as said:
        agent = subprocess.Popen(words, cwd=folder, stdout=said, stderr=said)
    begun = time.monotonic()
    due = sorted(dice.uniform(0.3, 1.0) * usual + n * usual for n in range(kills))
    while agent.poll() is None and time.monotonic() - begun < LONGEST * 2:
        time.sleep(0.05)
        if not due or time.monotonic() - begun < due[0]:
            continue
        workers = _workers(agent.pid)
        if len(workers) == 2:
            victims = sorted(dice.sample(range(2), dice.randint(1, 2)))
            for number in victims:
                with suppress(ProcessLookupError):
                    os.kill(workers[number], signal.SIGKILL)
            trial.moments.append(round(time.monotonic() - begun, 2))
            trial.victims.append(victims)
            due.pop(0)
    if agent.poll() is None:
        agent.kill()
    trial.starts, trial.counts = 1 + len(trial.moments), [2]
    code = agent.wait()
    text = (folder / "said-torchrun").read_text().strip()
    return "" if code == 0 else f"torchrun ended with {code}: {text[-300:]}"


def _workers(agent: int) -> list[int]:
    place = Path(f"/proc/{agent}/task/{agent}/children")
    try:
        return [int(number) for number in place.read_text().split()]
    except OSError:
        return []


def warm(folder: Path) -> dict[str, Any]:
    """Makes the run that is left alone; returns its digest and how long two ranks take for it."""
    found: dict[str, Any] = {}
    for turn in range(2):
        out = folder / f"alone-{turn}"
        begun = time.monotonic()
        codes, _ = started(folder, words_of("probes", out), 2, 0, 0.0, ())
        if any(codes.values()):
            raise SystemExit("".join(f.read_text() for f in folder.glob("said-*")))
        found = {"seconds": time.monotonic() - begun, "digest": digest(out)}
    codes, _ = started(folder, words_of("probes", folder / "one"), 1, 0, 0.0, ())
    if digest(folder / "one") != found["digest"]:
        raise SystemExit("one process ends with other weights than two")
    return found


def campaign(kills: int, launcher: str, seed: int) -> dict[str, Any]:
    """Makes trials until so many times ranks have been killed; returns counts and faults."""
    dice, begun, done, trials = random.Random(seed), time.monotonic(), 0, []
    make = forked if launcher == "fork" else by_torchrun
    with tempfile.TemporaryDirectory() as place:
        root = Path(place).resolve()
        (root / "rows.jsonl").write_text(ROWS)
        alone = warm(root)
        usual = alone["seconds"] if launcher == "fork" else alone["seconds"] + 20.0
        while done < kills:
            folder = root / f"trial-{len(trials)}"
            folder.mkdir()
            (folder / "rows.jsonl").write_text(ROWS)
            trial = Trial("probes" if len(trials) % 3 else "rows")
            trial.fault = make(folder, trial, dice, usual, min(dice.randint(1, 2), kills - done))
            if not trial.fault:
                trial.fault = judged(folder / "out", trial, alone["digest"])
            trials.append(trial)
            done += len(trial.moments)
            print(json.dumps(trial.__dict__), file=sys.stderr, flush=True)
    return {
        "launcher": launcher,
        "trials": len(trials),
        "kills": done,
        "killed": sum(len(one) for t in trials for one in t.victims),
        "rank_0_among_them": sum(0 in one for t in trials for one in t.victims),
        "other_number_of_ranks": sum(len(set(t.counts)) > 1 for t in trials),
        "probes": sum(t.parallel == "probes" for t in trials),
        "rows": sum(t.parallel == "rows" for t in trials),
        "seed": seed,
        "faults": [t.__dict__ for t in trials if t.fault],
        "seconds": round(time.monotonic() - begun, 1),
    }


def judged(out: Path, trial: Trial, wanted: str) -> str:
    """Returns what is wrong with the end of a run."""
    if trial.parallel == "probes":
        return "" if digest(out) == wanted else "ends with other bits than the run left alone"
    return "" if in_child(lambda: replays(out)) else "its journal makes other weights"


def main(argv: list[str] | None = None) -> int:
    """Runs the campaign; returns 1 where something was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--launcher", choices=("fork", "torchrun"), default="fork")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="file that the counts are appended to")
    args = parser.parse_args(argv)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for name in ("datasets", "bitsandbytes"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    import peft  # noqa: F401
    import torch

    import zopeft.jobs.tune
    import zopeft.training  # noqa: F401

    torch.set_num_threads(1)
    row = campaign(args.kills, args.launcher, args.seed)
    print(json.dumps(row), flush=True)
    if args.keep:
        with args.keep.open("a") as file:
            file.write(json.dumps(row) + "\n")
    return int(bool(row["faults"]))


if __name__ == "__main__":
    sys.exit(main())
