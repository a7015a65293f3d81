"""Runs that several processes make together; a script that each of them runs, case by case."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__)


def started(count, out, *cases, **environment):
    """Starts the script as so many gloo processes; returns them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = []
    for rank in range(count):
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(count),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            **environment,
        }
        words = [sys.executable, str(SCRIPT), str(out), *cases]
        made.append(subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True))
    return made


def together(count, out, *cases):
    """Runs cases in so many processes; returns what each said of each case, [count][case]."""
    processes = started(count, out, *cases)
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * count, errors
    return [json.loads(Path(out, f"said-{rank}.json").read_text()) for rank in range(count)]


class Traffic:
    """Counts the bytes that a process gives to any exchange of torch.distributed."""

    NAMES = ("all_gather", "gather", "broadcast", "all_reduce", "all_gather_into_tensor", "send")

    def __init__(self):
        import torch.distributed as dist

        self.bytes, self.kinds = 0, set()
        for name in self.NAMES:
            setattr(dist, name, self._counted(name, getattr(dist, name)))

    def _counted(self, name, own):
        import torch

        def call(*args, **kwargs):
            tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
            self.kinds.add(name)
            return own(*args, **kwargs)

        return call


def run(out, case):
    """Makes one run; a case is a name and options of its trainer, and of its model."""
    import torch
    from training_run import digest, tiny_model, trainer, with_lora
    from transformers import TrainerCallback

    options = json.loads(case)
    name, rank = options.pop("name"), int(os.environ.get("RANK", "0"))
    resume, seed = options.pop("resume", None), options.pop("seeds", None)
    wrong = options.pop("wrong", None)
    model = with_lora(tiny_model(), seed=1 if seed is None else seed[rank])
    if wrong == "weights" and rank == 1:
        with torch.no_grad():
            next(iter(model.base_model.model.parameters())).add_(1.0)
    if wrong == "dtype" and rank == 1:
        model = model.to(torch.bfloat16)

    class Drifting(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if wrong == "drift" and rank == 1 and state.global_step == 3:
                with torch.no_grad():
                    next(p for p in model.parameters() if p.requires_grad).add_(1.0)

    if "WORLD_SIZE" in os.environ:
        options = {"ddp_backend": "gloo", **options}
    made = trainer(model, Path(out, name), callbacks=[Drifting()], **options)
    if wrong == "data" and rank == 1:
        made.train_dataset.rows[0] += 1
    traffic = Traffic() if wrong is None and "traffic" in name else None
    try:
        made.train(resume_from_checkpoint=resume)
    except Exception as error:
        return {"error": str(error), "kind": type(error).__name__}
    method = made.method
    return {
        "digest": digest(model),
        "passes": method.forward_passes,
        "steps": method.steps,
        "probes": len(method.last_record.losses),
        "bytes": made.ranks.sent + made.ranks.received,
        "counted": None if traffic is None else traffic.bytes,
        "kinds": None if traffic is None else sorted(traffic.kinds),
        "lr": method.last_record.lr[0],
        "grid": [made.grid.rows, made.grid.columns, made.grid.line],
    }


def main():
    out, cases = Path(sys.argv[1]), sys.argv[2:]
    sys.path.insert(0, str(SCRIPT.parent))
    import torch

    torch.set_num_threads(1)
    found = {json.loads(case)["name"]: run(out, case) for case in cases}
    rank = os.environ.get("RANK", "alone")
    Path(out, f"said-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
