"""Two processes draw the same noise and exchange losses only."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_run import tiny_model, trainer, with_lora

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("training_run.py")


def together(out, *flags, **options):
    """Runs the script as two gloo processes; returns their results."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"ddp_backend": "gloo", **options}
    command = [sys.executable, str(SCRIPT), str(out), "--distributed", *flags]
    command += ["--options", json.dumps(options)]
    processes = []
    for rank in range(2):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": "2",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
        }
        processes.append(
            subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        )
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    return [json.loads(Path(out, f"result-{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_are_one_of_twice_the_batch_and_resume(tmp_path):
    options = {"per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 5}
    out = tmp_path / "out"
    first, second = together(out, **options)
    assert first["world_size"] == second["world_size"] == 2
    assert first["digest"] == second["digest"]
    assert first["steps"] == 12
    torch.set_num_threads(1)
    alone = trainer(with_lora(tiny_model()), tmp_path / "alone")
    alone.train()
    losses = [e["loss"] for e in alone.state.log_history if "loss" in e]
    assert first["losses"] == pytest.approx(losses, rel=1e-5)
    # The tail of the journal is taken by both when the last checkpoints are gone.
    for step in (10, 12):
        (out / f"checkpoint-{step}" / "complete.json").unlink()
    resumed = together(out, "--resume", **options)
    assert {r["digest"] for r in resumed} == {first["digest"]}
    assert [r["forward_passes"] for r in resumed] == [10, 10]


def test_processes_with_different_weights_are_refused(tmp_path):
    code = (
        "import os, sys; sys.argv += ['--adapter-seed', os.environ['RANK']];"
        f"sys.path.insert(0, {str(SCRIPT.parent)!r}); import training_run; training_run.main()"
    )
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29713",
        "WORLD_SIZE": "2",
    }
    command = [sys.executable, "-c", code, str(tmp_path), "--options", '{"ddp_backend": "gloo"}']
    processes = [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert all(process.returncode == 1 for process in processes)
    assert all(
        "rank 1 has another start of the trained weights than rank 0" in error for error in errors
    )
