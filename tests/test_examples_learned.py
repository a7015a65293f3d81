"""The example of a learned optimizer: from a fine-tuner to curves and their picture."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import zopeft
from zopeft.embedded import MODEL_DIR
from zopeft.models import load_model

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "learned"


def example(name):
    spec = importlib.util.spec_from_file_location(f"learned_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def finetuner(tmp_path_factory):
    model, _ = load_model(str(MODEL_DIR), "float32", device="cpu")
    folder = tmp_path_factory.mktemp("learned") / "finetuner"
    settings = {"steps": 8, "batch_size": 2, "rank": 2, "train_examples": 20, "max_length": 64}
    data = MODEL_DIR.parent / "data" / "cb"
    zopeft.meta_train(model, tasks=["cb"], data=data, **settings).save_pretrained(folder)
    return str(folder)


def test_all_are_tuned_from_one_start_by_the_same_batches_and_drawn(finetuner, tmp_path, capsys):
    tune, plot = example("tune"), example("plot")
    told = tune.compare(finetuner, "copa", 7, 1)
    curves = told["curves"]
    assert list(curves) == ["MeZO", "learned", "shuffled", "untrained"]
    # The first step of each is at the same start: its loss differs by the probes alone.
    firsts = [curve[0][1] for curve in curves.values()]
    assert max(firsts) - min(firsts) < 0.05 * firsts[0]
    assert all(7 <= curve[-1][0] <= 9 for curve in curves.values())
    assert len({json.dumps(curve) for curve in curves.values()}) == 4
    assert "learned: loss" in capsys.readouterr().out
    plot.plot(json.loads(json.dumps(told)), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_model_is_put_back_after_each(finetuner):
    tune = example("tune")
    model, tokenizer = load_model(str(MODEL_DIR), "float32", device="cpu")
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    task = tune.load_task("copa")
    rows = tune.load_rows(task, "train", embedded=True, limit=16)
    data = tune.TaskDataset(task, rows, tokenizer, 64)
    make = tune.entries(zopeft.FineTuner.from_pretrained(finetuner), 1)["learned"]
    collate = tune.Collator(tokenizer)
    curve = tune.tune(model, data, collate, make, 4, 1)
    assert len(curve) == 2 and curve[0][1] != curve[1][1]
    assert all(torch.equal(one, before[name]) for name, one in model.named_parameters())
    assert tune.tune(model, data, collate, make, 4, 1) == curve


def test_a_curve_is_drawn_by_the_means_of_its_parts():
    plot = example("plot")
    passes, losses = plot.smoothed([[2 * n, float(n)] for n in range(1, 41)])
    assert (passes[0], passes[-1], len(passes)) == (4, 80, 20)
    assert (losses[0], losses[-1]) == (1.5, 39.5)
