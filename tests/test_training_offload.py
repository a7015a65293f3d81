"""Runs over a model that is half on disk: the command line, saving, and resuming."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from zopeft.errors import InputError
from zopeft.models import load_model

QUICK = ("--batch-size", 2, "--lr", "1e-3")


@pytest.fixture
def base(tiny_model, tiny_data):
    return (tiny_model, "--task", "sst2", "--data", tiny_data)


@pytest.fixture
def spread(tmp_path):
    """Settings that leave room in memory for about half of the tiny model."""
    folder = tmp_path / "offload"
    return ("model.device=auto", f"model.offload_folder={folder}", "model.max_memory={cpu: 200KB}")


def weights(out):
    (file,) = (
        out / n for n in ("adapter_model.safetensors", "model.safetensors") if (out / n).is_file()
    )
    return load_file(file)


def moved(found, base):
    """Whether saved weights are others than a run begins with: LoRA's B begins at zero."""
    start = load_file(base[0] / "model.safetensors")
    return any(
        bool(weight.any()) if "lora_B" in name else not torch.equal(weight, start[name])
        for name, weight in found.items()
        if "lora_B" in name or name in start
    )


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_load_model_spreads_over_memory_and_disk(tiny_model, tmp_path):
    model, _ = load_model(
        str(tiny_model), device="auto", offload_folder=tmp_path, max_memory={"cpu": "200KB"}
    )
    assert sorted(set(model.hf_device_map.values())) == ["cpu", "disk"]
    assert model.dtype == torch.float32
    with pytest.raises(
        InputError, match="max_memory: no device of that name, got 'gpu'; use \"0\""
    ):
        load_model(str(tiny_model), device="auto", max_memory={"gpu": "1GB"})


@pytest.mark.parametrize("space", ["--lora", "--full"])
def test_tune_over_disk_gives_the_same_result(zopeft_command, base, spread, space, tmp_path):
    results, metrics = [], []
    for name, settings in (("here", ()), ("spread", spread)):
        out = tmp_path / name
        summary = zopeft_command.json(
            "tune", *base, *QUICK, space, "--steps", 3, "--out", out, *settings
        )
        results.append(weights(out))
        metrics.append((summary["metrics"], summary["loss_first"], summary["loss_last"]))
    assert same(*results)
    assert moved(results[0], base)
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("space", ["--lora", "--full"])
@pytest.mark.parametrize("save_steps", [0, 2])
def test_a_run_over_disk_resumes_bit_for_bit(
    zopeft_command, base, spread, space, save_steps, tmp_path
):
    words = ("tune", *base, *QUICK, space, *spread, f"training.save_steps={save_steps}")
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    zopeft_command.json(*words, "--steps", 5, "--out", whole)
    zopeft_command.json(*words, "--steps", 3, "--out", parted)
    summary = zopeft_command.json(*words, "--steps", 5, "--out", parted, "--resume")
    assert summary["steps"] == 5
    assert same(weights(whole), weights(parted))
    assert moved(weights(whole), base)


def test_full_weights_on_disk_need_a_folder(zopeft_command, base):
    line = zopeft_command.refused(
        "tune", *base, "--full", "--steps", 1, "model.device=auto", "model.max_memory={cpu: 200KB}"
    )
    assert "offload_folder=FOLDER" in line
