"""The scripts that start several processes: whole, and one of them run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "processes"
SCRIPTS = sorted(FOLDER.iterdir())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_shell_reads_it(script):
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_torchrun_and_zopeft_know_its_flags(script, tmp_path, capsys, monkeypatch):
    """Each is run with what it starts replaced by something that keeps its words."""
    kept = tmp_path / "words"
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {kept}\n')
    for name, line in (("srun", 'shift; exec "$@"'), ("scontrol", "echo first")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
    for path in tmp_path.iterdir():
        path.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_NNODES": "2",
           "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "first"}  # fmt: skip
    env.pop("PYTHON", None)
    given = ["embedded"] if script.suffix == ".sbatch" else []
    words = ["bash", str(script), *given, "rows.jsonl", str(tmp_path / "out"), "--steps", "3"]
    subprocess.run(words, env=env, check=True)
    module, name, *rest = kept.read_text().splitlines()
    assert (module, name) == ("-m", "torch.distributed.run")
    from torch.distributed.run import parse_args

    started = parse_args(rest)
    assert (started.module, started.training_script) == (True, "zopeft")
    from zopeft.cli.main import main

    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "a", "label": "b"}) + "\n")
    monkeypatch.chdir(tmp_path)
    # All of its flags and keys are known: what is wrong is the data, of one row.
    assert main(started.training_script_args) == 2
    assert "rows.jsonl" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_by_torchrun(tmp_path):
    rows = [{"text": f"The {w} was {m}.", "label": m} for w in "abcdefgh" for m in ("good", "bad")]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    env = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    words = ["bash", str(FOLDER / "torchrun.sh"), str(data), str(tmp_path / "out")]
    words += ["--steps", "4", "--batch-size", "2", "--lr", "1e-4", "--json"]
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout)["ranks"] == 2
