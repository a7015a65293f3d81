"""What meta-training and a bench tell before their first pass, and that it is so."""

import pytest
import torch
import transformers

from zopeft.jobs.bench.bench import bench
from zopeft.jobs.bench.cells import Request
from zopeft.jobs.meta_train import meta_train
from zopeft.recipe.load import load_recipe

SMALL = ("meta.batch_size=2", "task.max_length=64", "training.batch_size=4")


@pytest.fixture
def passes(monkeypatch):
    """Counts forward passes of Llama models, and backward passes of all; nothing is tried out."""
    found = {"forward": 0, "backward": 0}
    kind, backward = transformers.LlamaForCausalLM, torch.Tensor.backward
    forward = kind.forward

    def passed(self, *args, **kwargs):
        found["forward"] += 1
        return forward(self, *args, **kwargs)

    def back(self, *args, **kwargs):
        found["backward"] += 1
        return backward(self, *args, **kwargs)

    monkeypatch.setattr("zopeft.meta.train.try_padding", lambda *_: None)
    monkeypatch.setattr(kind, "forward", passed)
    monkeypatch.setattr(torch.Tensor, "backward", back)
    return found


@pytest.fixture
def heard():
    """A listener, and the reports it was given."""
    reports = []
    return reports.append, reports


def notes(reports):
    return {r.note.partition(":")[0]: r.note for r in reports if ": " in r.note}


@pytest.mark.parametrize(
    ("words", "learned"),
    [
        (("meta.steps=9",), "scales and subspaces of rank 16, by the objective signal"),
        (("meta.steps=7", "meta.capacity=scales", "meta.mask=0.01"), "scales, by the objective"),
        (("meta.steps=3", "meta.objective=paper", "meta.sharing=role"), "one PertNN a role"),
    ],
)
def test_meta_training_is_told_from_its_beginning(
    tiny_model, tiny_data, tmp_path, heard, passes, words, learned
):
    listener, reports = heard
    flags = {
        "model.name": ("MODEL", str(tiny_model)),
        "meta.tasks": ("--task", ["sst2"]),
        "task.data": ("--data", str(tiny_data)),
        "peft.name": ("--full", "full"),
    }
    recipe = load_recipe("meta-train", None, (*SMALL, *words), flags)
    plan = meta_train(recipe, str(tmp_path / "dry"), listener=listener, dry=True)
    told = notes(reports)
    assert passes == {"forward": 0, "backward": 0}
    assert "LlamaForCausalLM, float32, cpu" in told["model"] and "full, " in told["trained"]
    assert told["rows"] == "rows: 16 of sst2" and learned in told["learned"]
    planned = plan["forward_passes"]
    spelled = f"about {planned['forward']} forward, {planned['backward']} backward planned"
    assert spelled in told["passes"] and f"{plan['steps']} meta-steps" in told["passes"]

    reports.clear()
    meta_train(recipe, str(tmp_path / "out"), listener=listener)
    assert notes(reports) == told
    steps = [r for r in reports if r.stage == "meta-train"]
    assert [(r.step, r.total) for r in steps] == [(n, plan["steps"]) for n in range(len(steps))]
    assert steps[0].loss is None and steps[-1].loss > 0 and steps[-1].seconds > 0
    # The paper's networks have a backward pass of their own, which is none of the model.
    own = plan["steps"] if recipe.meta.objective == "paper" else 0
    assert passes == {"forward": planned["forward"], "backward": planned["backward"] + own}


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_bench_is_told_from_its_beginning(tiny_model, tiny_data, tmp_path, heard, workers):
    listener, reports = heard
    words = ("bench.forwards=12", "bench.seeds=1", "bench.grid=2", "bench.extensions=0")
    flags = {
        "bench.models": ("MODEL", [str(tiny_model)]),
        "bench.tasks": ("--task", ["sst2"]),
        "bench.entries": ("--method", ["mezo clip=1"]),
        "task.data": ("--data", str(tiny_data)),
        "bench.workers": ("--workers", str(workers)),
    }
    request = Request(None, (*SMALL, *words, "bench.auto=false"), flags)
    out = tmp_path / "out"
    summary = bench(request, str(out), listener=listener)
    told = notes(reports)
    assert told["cells"] == f"cells: 1: sst2 full on {tiny_model}"
    assert told["entries"] == "entries: 2: mezo; mezo clip=1"
    assert told["each"] == "each: 2 learning rates on 1 seed, then the best on 1 seed"
    assert "about 72 planned: 6 runs of 12, and 2 rates to begin a grid with" in told["passes"]
    assert summary["runs"] == 6
    assert "LlamaForCausalLM, float32, cpu" in told["model"] and "full, " in told["trained"]
    assert told["rows"] == "rows: sst2, 16 to train and 16 to score on"
    assert sum(r.note == told["model"] for r in reports) == 1
    assert [(r.step, r.total) for r in reports if r.total] == [(n, 8) for n in range(9)]
    first = next(n for n, r in enumerate(reports) if r.total)
    assert [r.note.split(":")[0] for r in reports[:first]] == ["cells", "entries", "each", "passes"]

    reports.clear()
    bench(request, str(out), resume=True, listener=listener)
    assert "about 0 planned: 0 runs of 12" in notes(reports)["passes"]
