"""Models that processes share out: the steps of one process that holds all of it.

Two real processes run all cases once (`sharded_cases.py`); the tests read what they found.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from zopeft.blocks.shards import _numbers
from zopeft.cli.main import main
from zopeft.errors import InputError
from zopeft.kernels import runs
from zopeft.kernels.choice import kernels_for
from zopeft.kernels.plain_backend import PlainKernels
from zopeft.methods import METHODS
from zopeft.models import load_model
from zopeft.noise import Noise, rounding_words
from zopeft.noise.address import rounding_at

SCRIPT = Path(__file__).with_name("sharded_cases.py")
KINDS = ("tensor", "fsdp")


def together(command):
    """Starts a command as two processes; returns their exit codes and what they say is wrong."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(2):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **place, **own}
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, env=environment, text=True, **pipes))
    try:
        errors = [process.communicate(timeout=240)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], errors


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What both processes found, and the folder that they wrote to."""
    folder = tmp_path_factory.mktemp("sharded")
    codes, errors = together([sys.executable, str(SCRIPT), str(folder)])
    assert codes == [0, 0], errors
    found = [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(2)]
    return found, folder


@pytest.mark.parametrize("kind", [*KINDS, "own"])
def test_steps_are_those_of_one_process(run, kind):
    (first, second), _ = run
    for kept in ("full", "lora"):
        one, two = first[f"live {kind} {kept}"], second[f"live {kind} {kept}"]
        assert one["moved"] > 1e-4
        assert one["same"] and two["same"]
        # The forward passes of tensor parallelism add up in another order.
        assert one["losses"] < 1e-5
        assert one["weights"] < 1e-2 * one["moved"]
        assert one["digest"] == two["digest"]
    for case in ("16 bit", "16 bit lora", "binomial", "rademacher", "low_rank", "plain"):
        for found in (first, second):
            assert found[f"{case} {kind}"]["moved"] > 1e-4, case
            assert found[f"{case} {kind}"]["same"], case


def test_methods_write_the_same_bits_or_say_why_not(run):
    (first, second), _ = run
    known = {name.removeprefix("method ") for name in first if name.startswith("method ")}
    assert len(known) > 25
    for name in known:
        for found in (first[f"method {name}"], second[f"method {name}"]):
            if METHODS[name].shards:
                assert found["moved"] > 1e-5, name
                assert found["same"], name
            else:
                assert "needs whole matrices in each process" in found["refused"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_measured_and_written_is_that_of_the_whole(run, kind):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    (first, second), folder = run
    assert first[f"statistics {kind}"] < 1e-9
    assert len({*first[f"fingerprint {kind}"], *second[f"fingerprint {kind}"]}) == 1
    assert first[f"rebuilt {kind}"] == second[f"rebuilt {kind}"] == 0.0
    assert first[f"start {kind}"] == 0.0
    # A half of 24 rows of 16 numbers each.
    told = "model.layers.1.mlp.up_proj.weight (1 of 192 numbers)"
    assert first[f"spoilt {kind}"] == second[f"spoilt {kind}"] == told
    # Plain folders, that know of no processes.
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    saved = AutoModelForCausalLM.from_pretrained(folder / kind / "model")
    assert getattr(saved.config, "distributed_config", None) is None
    for (name, one), two in zip(base.named_parameters(), saved.parameters(), strict=True):
        assert torch.equal(one, two), name
    tuned = dict(PeftModel.from_pretrained(base, folder / kind / "adapter").named_parameters())
    ended = torch.load(folder / kind / "ended-0.pt")
    assert len(ended) == 12
    assert all(torch.equal(tuned[name], value) for name, value in ended.items())


@pytest.mark.slow
def test_a_run_of_the_command_line_is_that_of_one_process(tmp_path, capsys):
    words = ["tune", "--task", "sst2", "--lr", "1e-3", "--batch-size", "4", "--seed", "3"]
    words += ["task.train_examples=16", "task.eval_examples=8", "training.eval_before=false"]
    words += ["--steps", "3", "--json"]
    own = [*words, "model.sharded=tensor", "--out", str(tmp_path / "shared")]
    codes, told = together([sys.executable, "-m", "zopeft", *own])
    assert codes == [0, 0], told
    assert main([*words, "--out", str(tmp_path / "alone")]) == 0
    capsys.readouterr()
    files = (tmp_path / name / "adapter_model.safetensors" for name in ("alone", "shared"))
    one, two = map(load_file, files)
    assert one.keys() == two.keys()
    # Both start from the same random numbers, of which each process has its part.
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)


@pytest.mark.slow
def test_two_processes_that_offload_each_make_the_run_of_one_that_does_not(
    tiny_model, tiny_data, tmp_path, capsys
):
    words = ["tune", str(tiny_model), "--task", "sst2", "--data", str(tiny_data), "--full"]
    words += ["--lr", "1e-3", "--batch-size", "4", "--steps", "2", "method.directions=2"]
    words += ["task.eval_examples=4", "training.eval_before=false", "--json"]
    spread = ["model.device=auto", f"model.offload_folder={tmp_path / 'disk'}"]
    spread += ["model.max_memory={cpu: 200KB}", "--parallel", "probes"]
    out = str(tmp_path / "two")
    codes, told = together([sys.executable, "-m", "zopeft", *words, *spread, "--out", out])
    assert codes == [0, 0], told
    assert main([*words, "method.probes=separate", "--out", str(tmp_path / "one")]) == 0
    capsys.readouterr()
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    start = load_file(tiny_model / "model.safetensors")
    assert one.keys() == two.keys()
    assert any(not torch.equal(one[key], start[key]) for key in one)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_model_is_not_shared_out_by_one_process(monkeypatch, tmp_path):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(InputError, match=r"needs several processes.*torchrun"):
        load_model(sharded="tensor")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="cannot go with quantised layers"):
        load_model(sharded="fsdp", load_in_8bit=True)
    with pytest.raises(InputError, match=r"cannot go with model\.device=auto"):
        load_model(sharded="fsdp", device="auto")
    with pytest.raises(InputError, match="unknown way"):
        load_model(sharded="layers")


@pytest.mark.parametrize("family", ["gaussian", "binomial", "rademacher"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [(0, 150), (3, 70), (70, 150)])
def test_a_table_of_runs_is_the_slice_of_the_whole(family, dtype, columns):
    torch.manual_seed(0)
    rows, address, seed = np.array([1, 2, 5, 8]), 77, 1234567890123
    weight = torch.randn(9, 150).to(dtype)
    table = runs.of_stretches(rows, columns, 150, address)
    cut = (torch.from_numpy(rows), slice(*columns))
    for kernels in (PlainKernels(Noise(family)), kernels_for("auto", Noise(family), [])):
        shown, part = torch.empty_like(weight).view(-1), weight[cut].contiguous().view(-1)
        kernels.shift(seed, address, 0, weight.view(-1), 1e-2, torch.tensor(0.5), shown)
        own = torch.empty_like(part)
        kernels.shift_table(table, seed, part, 1e-2, torch.tensor(0.5), own)
        assert torch.equal(own, shown.view(9, 150)[cut].reshape(-1))
        written = weight.clone()
        kernels.update(seed, address, written.view(-1), -0.3, 0.99, None)
        kernels.update_table(table, seed, part, -0.3, 0.99, None)
        assert torch.equal(part, written[cut].reshape(-1))


def test_rounding_of_any_elements_is_that_of_the_run():
    words = rounding_words(5, 9, 3, 40)
    chosen = torch.tensor([3, 4, 11, 42])
    assert torch.equal(rounding_at(5, 9, chosen), words[chosen - 3])


def test_places_are_cut_as_pytorch_cuts_them():
    from torch.distributed.tensor import Shard

    assert [n.tolist() for n in _numbers(5, Shard, 1, 2)] == [[0, 1, 2], [3, 4]]
    assert [len(n) for n in _numbers(3, Shard, 1, 4)] == [1, 1, 1, 0]
