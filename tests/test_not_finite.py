"""Numbers that are not finite, wherever they come from: told, counted, and never written."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from zopeft.errors import RunError
from zopeft.models.soundness import spoilt
from zopeft.reading import to_json
from zopeft.training import save_result

WORDS = ("--task", "sst2", "--batch-size", 2)


def strictly(text):
    """Parses JSON in which there is no NaN."""

    def refused(name):
        raise AssertionError(name)

    return json.loads(text, parse_constant=refused)


def changed(base, out, change):
    """Writes a model folder with changed weights."""
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        change(model)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)
    return out


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("space", ["--lora", "--full"])
def test_weights_that_are_not_finite_are_refused_before_the_run(
    number, space, zopeft_command, tiny_model, tiny_data, tmp_path
):
    name = "model.layers.0.mlp.down_proj.weight"

    def spoil(model):
        model.get_parameter(name)[1, 2:4] = number

    base = changed(tiny_model, tmp_path / "base", spoil)
    out = tmp_path / "out"
    line = zopeft_command.refused(
        "tune", base, *WORDS, "--data", tiny_data, space, "--out", out, "--steps", 2
    )
    assert line.startswith(f"zopeft: model: has weights that are not finite: {name} (2 of ")
    assert not out.exists()


def test_activations_that_overflow_stop_the_run_with_the_last_good_state(
    zopeft_command, tiny_model, tiny_data, tmp_path
):
    """Finite weights, whose product leaves fp16."""

    def widen(model):
        model.lm_head.weight.mul_(6e4 / model.lm_head.weight.abs().max())
        model.model.norm.weight.fill_(6e4)

    base = changed(tiny_model, tmp_path / "base", widen)
    out = tmp_path / "out"
    line = zopeft_command.refused(
        *("tune", base, *WORDS, "--data", tiny_data, "--dtype", "float16", "--out", out),
        *("--steps", 30, "--lr", "1e-3", "method.max_bad_steps=3"),
        code=1,
    )
    assert "loss: not finite for 3 steps in a row" in line and "wider --dtype" in line
    record = strictly((out / "run.json").read_text())
    assert record["status"] == "failed"
    for path in out.rglob("*.safetensors"):
        assert all(bool(one.isfinite().all()) for one in load_file(path).values())
    for text in (out / "metrics.jsonl").read_text().splitlines():
        strictly(text)


def test_a_result_that_is_not_finite_is_not_written(tiny_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    (tmp_path / "model.safetensors").write_bytes(b"good")
    with torch.no_grad():
        model.model.norm.weight[0] = -math.inf
    assert spoilt(model).startswith("model.norm.weight (1 of ")
    with pytest.raises(RunError, match=r"result: has weights that are not finite: model\.norm"):
        save_result(model, None, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == b"good"


def test_large_sums_of_finite_weights_are_no_fault():
    model = torch.nn.Linear(4, 4)
    with torch.no_grad():
        model.weight.fill_(3e38)
    assert spoilt(model) == ""


def test_a_score_that_is_not_finite_is_null_in_records_and_output(
    zopeft_command, tiny_model, tiny_data, tmp_path, monkeypatch
):
    """A run whose validation loss is not finite has diverged, and its record is JSON."""
    from zopeft.jobs.evaluate import measure

    def spoiled(*args, **kwargs):
        return {**measure(*args, **kwargs), "loss": math.nan}

    monkeypatch.setattr("zopeft.jobs.tune.measure", spoiled)
    words = ("tune", tiny_model, *WORDS, "--data", tiny_data, "--lr", "1e-4")
    code, out, err = zopeft_command(*words, "--steps", 2, "--out", tmp_path / "out", "--json")
    assert code == 1 and "the validation loss is not finite" in err
    assert strictly(out)["metrics"]["after"]["loss"] is None
    assert strictly((tmp_path / "out" / "run.json").read_text())["status"] == "diverged"
    # One that goes on has a record without a loss before.
    code, _, err = zopeft_command("tune", "--resume", "--steps", 3, "--out", tmp_path / "out")
    assert code == 1 and "the validation loss is not finite" in err


def test_json_of_numbers_that_are_not_finite():
    told = {"a": [1.5, math.inf, (math.nan, "x")], "b": {"c": -math.inf}}
    assert strictly(to_json(told)) == {"a": [1.5, None, [None, "x"]], "b": {"c": None}}
    assert to_json({"a": 1.5}) == '{"a": 1.5}'
