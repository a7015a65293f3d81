"""LoRA probes scored by a server of vLLM's routes: the losses of this process."""

from __future__ import annotations

import copy
import socket

import pytest
import torch
from fake_vllm import FakeVLLM
from training_run import tiny_model, with_lora

import zopeft
from zopeft.errors import InputError, RunError
from zopeft.executors import VLLM
from zopeft.methods import METHODS

IDS = torch.arange(24).reshape(3, 8) % 60 + 2
LABELS = IDS.clone()
LABELS[:, :3] = -100
MASK = torch.ones_like(IDS)
MASK[1, 5:] = 0
LABELS[1, 5:] = -100
BATCH = {"input_ids": IDS, "labels": LABELS, "attention_mask": MASK}


def made(name="mezo", batch=None, **options):
    model = with_lora(tiny_model()).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(generator=torch.Generator().manual_seed(7), std=0.05)
    options = {"lr": 1e-2, "probes": "separate", "directions": 2, **options}
    method = METHODS[name](zopeft.discover(model), **options)
    return method, zopeft.BatchLoss(model, BATCH if batch is None else batch)


@pytest.fixture
def served():
    fake = FakeVLLM(tiny_model().eval())
    with fake as url:
        yield fake, url


@pytest.mark.parametrize("name", ["mezo", "mezo_adam"])
def test_steps_are_those_of_this_process(served, name, tmp_path):
    fake, url = served
    here, loss = made(name)
    there, other = made(name)
    there.executor = VLLM(there.engine, url, folder=tmp_path, adapters=3)
    for _ in range(3):
        here.step(loss)
        there.step(other)
        assert there.last_record.losses == pytest.approx(here.last_record.losses, abs=2e-6)
    assert fake.asked == there.forward_passes
    assert fake.most <= 3
    # Nothing is left, neither there nor here.
    assert fake.adapters == {}
    assert list(tmp_path.iterdir()) == []
    moved = [b.data for b in here.blocks], [b.data for b in there.blocks]
    assert all(torch.allclose(a, b, atol=2e-3) for a, b in zip(*moved, strict=True))


def test_the_adapter_here_is_as_it_was_and_padding_is_left_out(served):
    fake, url = served
    method, loss = made()
    before = [block.data.clone() for block in method.blocks]
    executor = VLLM(method.engine, url)
    probes = [u.at(1e-2) for u in (method_direction(method, k) for k in range(3))]
    found, passes = executor.losses(probes, loss)
    assert passes == 3
    for (vector, step), there in zip(probes, found.tolist(), strict=True):
        with method.engine.perturbed(vector, step), torch.no_grad():
            assert there == pytest.approx(float(loss()), abs=2e-6)
    assert all(torch.equal(a, b.data) for a, b in zip(before, method.blocks, strict=True))
    assert fake.asked == 3


def method_direction(method, number):
    from zopeft.engine.direction import Direction

    return Direction(1000 + number)


def test_answers_of_tasks_are_scored(served):
    from zopeft.tasks import task_loss

    _, url = served
    method, _ = made()
    loss = zopeft.BatchLoss(method.blocks.model, BATCH, task_loss)
    found, _ = VLLM(method.engine, url).losses([method_direction(method, 1).at(1e-2)], loss)
    with method.engine.perturbed(*method_direction(method, 1).at(1e-2)), torch.no_grad():
        assert float(found) == pytest.approx(float(loss()), abs=2e-6)


def test_a_server_that_is_away_or_slow_is_one_line(served):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    method, loss = made()
    with pytest.raises(InputError, match=r"no server answers .*--enable-lora"):
        VLLM(method.engine, f"http://127.0.0.1:{port}")
    with pytest.raises(InputError, match="is no address of a server"):
        VLLM(method.engine, "localhost:8000")
    fake, url = served
    method.executor = VLLM(method.engine, url, timeout=0.2)
    fake.delay = 1.0
    with pytest.raises(RunError, match=r"no answer within 0\.2 s"):
        method.step(loss)
    fake.delay = 0.0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"slots": 1}, r"No free lora slots\); start it with more --max-loras"),
        ({"rank": 1}, r"max_lora_rank 1\.\); start it with a larger --max-lora-rank"),
        ({"updating": False}, r"Not Found\); start it: VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
        ({"broken": {"choices": []}}, "its scores cannot be read"),
        ({"broken": "no JSON"}, "its scores cannot be read"),
    ],
)
def test_what_a_server_refuses_is_one_line_and_leaves_nothing(served, change, told, tmp_path):
    fake, url = served
    vars(fake).update(change)
    method, loss = made()
    before = [block.data.clone() for block in method.blocks]
    method.executor = VLLM(method.engine, url, folder=tmp_path)
    with pytest.raises(RunError, match=told) as found:
        method.step(loss)
    assert "\n" not in str(found.value)
    assert fake.adapters == {}
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(a, b.data) for a, b in zip(before, method.blocks, strict=True))


def test_another_model_is_refused(served):
    _, url = served
    method, _ = made()
    method.blocks.base_name = "somewhere/other"
    with pytest.raises(InputError, match=r"serves tiny, and the adapter is on another model"):
        VLLM(method.engine, url)
    VLLM(method.engine, url, model="tiny")
    with pytest.raises(InputError, match=r"executor.model: is not served there, got 'nobody'"):
        VLLM(method.engine, url, model="nobody")
    method.blocks.base_name = "somewhere/Tiny"
    VLLM(method.engine, url + "/v1/")


def test_what_it_cannot_serve_is_refused_by_name(served):
    _, url = served
    model = tiny_model()
    full = METHODS["mezo"](zopeft.discover(model), lr=1e-3)
    with pytest.raises(InputError, match="serves LoRA adapters alone"):
        VLLM(full.engine, url)
    method, loss = made("forward_gradient", directions=1)
    method.executor = VLLM(method.engine, url)
    with pytest.raises(InputError, match=r"cannot serve a look into the model, got 'Tangent'"):
        method.step(loss)
    method, _ = made()
    method.executor = VLLM(method.engine, url)
    with pytest.raises(InputError, match="serves the loss of labelled tokens alone"):
        method.step(lambda: loss())
    own = zopeft.BatchLoss(method.blocks.model, BATCH, lambda model, batch: torch.tensor(1.0))
    with pytest.raises(InputError, match="serves the loss of labelled tokens alone"):
        method.step(own)
    long = {"input_ids": torch.ones(1, 40).long(), "labels": torch.ones(1, 40).long()}
    with pytest.raises(InputError, match="takes texts of less than 32 tokens, got 40"):
        method.step(zopeft.BatchLoss(method.blocks.model, long))
    wrong = copy.deepcopy(BATCH)
    wrong["labels"][0, 5] = 1
    with pytest.raises(InputError, match="a label is another token"):
        method.step(zopeft.BatchLoss(method.blocks.model, wrong))


def test_a_run_of_the_command_line_asks_a_server(tmp_path, capsys):
    import json

    from safetensors.torch import load_file

    from zopeft.cli.main import main
    from zopeft.models import load_model

    words = ["tune", "--task", "sst2", "--lr", "1e-3", "--batch-size", "4", "--steps", "3"]
    words += ["task.train_examples=16", "task.eval_examples=4", "training.eval_before=false"]
    words += ["objective.name=answer", "--json"]
    assert main([*words, "--out", str(tmp_path / "here"), "method.probes=separate"]) == 0
    here = json.loads(capsys.readouterr().out)
    model, _ = load_model()
    fake = FakeVLLM(model, name="base")
    with fake as url:
        there = [*words, "executor.name=vllm", f"executor.url={url}", "executor.model=base"]
        assert main([*there, "--out", str(tmp_path / "there")]) == 0
        told = json.loads(capsys.readouterr().out)
        assert fake.asked == told["forward_passes"] == 6
        assert main([*there, "--full", "--out", str(tmp_path / "full")]) == 2
        assert "vllm serves LoRA adapters alone" in capsys.readouterr().err
        reward = ["objective.name=metric", "task.name=squad"]
        assert main([*there, *reward, "--out", str(tmp_path / "metric")]) == 2
        assert "vllm scores texts, and generates none" in capsys.readouterr().err
    alone = [word for word in there if "vllm" not in word]
    assert main([*alone, "--out", str(tmp_path / "alone")]) == 2
    assert "executor.url: goes with a server; add executor.name=vllm" in capsys.readouterr().err
    # What cannot be is told before anything is written.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "there"]
    assert told["loss_last"] == pytest.approx(here["loss_last"], abs=1e-5)
    one, two = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("here", "there"))
    assert all(torch.allclose(one[key], two[key], atol=2e-3) for key in one)
    # The server has gone: one line, and the run can go on from its journal.
    again = [*there, "--out", str(tmp_path / "there"), "--resume", "--steps", "5"]
    assert main(again) == 2
    assert "no server answers" in capsys.readouterr().err
