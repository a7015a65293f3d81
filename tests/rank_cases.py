"""Runs that several processes make together: all of them forked from one that has imported it all.

As a script it takes the path of a plan, a JSON list of groups::

    {"name": "two", "count": 2, "runs": [{"name": "probes", ...options of a trainer}]}
    {"name": "cli", "count": 2, "words": ["tune", ...]}

and writes beside it what each process said, ``NAME-RANK.json``, ``.out`` and ``.err``.
"""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from meta_cases import learn

SCRIPT = Path(__file__)
MOST = 400.0


def played(folder, groups):
    """Plays groups, one after the other; returns for each what its processes said, by rank."""
    plan = Path(folder, "plan.json")
    plan.write_text(json.dumps(groups))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(plan)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(Path(folder, "played.json").read_text())


def played_once(tmp_path_factory, name, play):
    """Returns what `play` returns for a folder; played once, however many workers ask."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return play(tmp_path_factory.mktemp(name))
    folder = base.parent / name
    try:
        folder.mkdir()
    except FileExistsError:
        until = time.monotonic() + 600
        while not (folder / "done").exists():
            assert time.monotonic() < until, "the other worker has not played the groups"
            time.sleep(0.2)
        return json.loads((folder / "played.json").read_text())
    try:
        return play(folder)
    finally:
        (folder / "done").touch()


class Traffic:
    """Counts the bytes of the numbers that a process gives to any exchange of torch.distributed."""

    NAMES = (
        *("all_gather", "gather", "broadcast", "all_reduce", "reduce", "send", "isend"),
        *("all_gather_into_tensor", "reduce_scatter", "scatter", "all_to_all"),
    )

    def __enter__(self):
        import torch.distributed as dist

        self.bytes, self._own = 0, {name: getattr(dist, name) for name in self.NAMES}
        for name, own in self._own.items():
            setattr(dist, name, self._counted(own))
        return self

    def __exit__(self, *_):
        import torch.distributed as dist

        for name, own in self._own.items():
            setattr(dist, name, own)

    def _counted(self, own):
        import torch

        def call(*args, **kwargs):
            tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
            return own(*args, **kwargs)

        return call


def run(folder, case):
    """Makes one run.

    Args:
        folder: Where its output folder is.
        case: Its name and a trainer's options; and ``resume``, ``full`` weights, ``wrong``: what
            is wrong with the second process.
    """
    import torch
    from training_run import digest, tiny_model, trainer, with_lora
    from transformers import TrainerCallback

    options = dict(case)
    name, rank = options.pop("name"), int(os.environ.get("RANK", "0"))
    resume, wrong = options.pop("resume", None), options.pop("wrong", "")
    second, full = rank == 1 and wrong, options.pop("full", False)
    model = tiny_model()
    if not full:
        model = with_lora(model, seed=2 if second == "start" else 1)
    if second == "model":
        with torch.no_grad():
            model.get_input_embeddings().weight[5] += 1.0
    if second == "dtype":
        model = model.to(torch.bfloat16)

    class Mishap(TrainerCallback):
        counted = None

        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2 and wrong == "traffic":
                self.counted = Traffic().__enter__()

        def on_step_end(self, args, state, control, **kwargs):
            if second == "drift" and state.global_step == 3:
                with torch.no_grad():
                    next(p for p in model.parameters() if p.requires_grad).add_(1.0)
            if second == "kill" and state.global_step == 7:
                os.kill(os.getpid(), signal.SIGKILL)
            if second == "hang" and state.global_step == 5:
                until = time.monotonic() + 60
                while not Path(folder, "told").exists() and time.monotonic() < until:
                    time.sleep(0.1)

    if "WORLD_SIZE" in os.environ:
        options = {"ddp_backend": "gloo", **options}
    mishap = Mishap()
    made = trainer(model, Path(folder, name), callbacks=[mishap], **options)
    if second == "data":
        made.train_dataset.rows[0] += 1
    try:
        made.train(resume_from_checkpoint=resume)
    except Exception as error:
        if wrong == "hang" and rank == 0:
            Path(folder, "told").touch()
        return {"error": str(error), "kind": type(error).__name__}
    finally:
        if mishap.counted is not None:
            mishap.counted.__exit__()
    method = made.method
    return {
        "digest": digest(model),
        "passes": method.forward_passes,
        "steps": method.steps,
        "probes": method.forwards,
        "counted": mishap.counted and mishap.counted.bytes,
        "lr": method.last_record.lr[0],
        "grid": [made.grid.rows, made.grid.columns],
        "line": made.grid.line,
    }


def _child(folder, group, rank):
    code = 70
    try:
        for number, ending in ((1, "out"), (2, "err")):
            file = folder / f"{group['name']}-{rank}.{ending}"
            os.dup2(os.open(file, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), number)
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
        os.chdir(folder)
        if group.get("apart"):
            place = folder / f"place-{rank}"
            place.mkdir(exist_ok=True)
            os.chdir(place)
        if "words" in group:
            from zopeft.cli.main import main

            code = main(list(group["words"]))
        else:
            found = {}
            for case in group["runs"]:
                made = learn if case.get("meta") else run
                found[case["name"]] = made(folder, case)
                (folder / f"{group['name']}-{rank}.json").write_text(json.dumps(found))
            code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def play(folder, group):
    """Forks the processes of a group; returns what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(group["count"]):
        child = os.fork()
        if not child:
            if group["count"] > 1:
                os.environ |= {
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "WORLD_SIZE": str(group["count"]),
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                }
            _child(folder, group, rank)
        children.append(child)
    begun, codes = time.monotonic(), {}
    while len(codes) < len(children):
        for rank, child in enumerate(children):
            if rank not in codes:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    codes[rank] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() - begun > MOST:
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    said = []
    for rank in range(group["count"]):
        text = {e: (folder / f"{group['name']}-{rank}.{e}").read_text() for e in ("out", "err")}
        place = folder / f"{group['name']}-{rank}.json"
        runs = json.loads(place.read_text()) if place.exists() else {}
        said.append({"code": codes[rank], **text, "runs": runs})
    return said


def main():
    plan = Path(sys.argv[1]).resolve()
    sys.path.insert(0, str(SCRIPT.parent))
    for name in ("datasets", "bitsandbytes"):
        # What these runs have no use for, and takes seconds to import.
        sys.modules.setdefault(name, None)
    import peft  # noqa: F401
    import torch
    import training_run  # noqa: F401

    import zopeft.jobs.meta_train
    import zopeft.jobs.tune
    import zopeft.meta.train
    import zopeft.training  # noqa: F401

    torch.set_num_threads(1)
    found = {}
    for group in json.loads(plan.read_text()):
        begun = time.monotonic()
        found[group["name"]] = play(plan.parent, group)
        print(group["name"], round(time.monotonic() - begun, 1), file=sys.stderr)
    (plan.parent / "played.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
