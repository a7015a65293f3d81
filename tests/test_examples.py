"""The examples run, and what they add is known by name."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

import zopeft
from zopeft.errors import InputError
from zopeft.methods import METHODS

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def nesterov(monkeypatch):
    """The example's method, known for the time of a test."""
    module = loaded("own_method")
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))
    monkeypatch.setattr(METHODS, "_about", dict(METHODS._about))
    zopeft.register_method(module.Nesterov)
    return module.Nesterov


def test_a_method_of_ones_own_tunes_resumes_and_is_checked_by_name(nesterov, tmp_path, capsys):
    from zopeft.cli.main import main

    assert "nesterov" in METHODS and METHODS.about("nesterov").startswith("MeZO whose slope")
    words = ["tune", "--method", "nesterov", "--task", "sst2", "--lr", "3e-3", "--batch-size", "4"]
    words += ["task.train_examples=16", "task.eval_examples=4", "training.eval_before=false"]
    out = str(tmp_path / "out")
    assert main([*words, "method.beta=0.5", "--steps", "3", "--out", out, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["method"], told["steps"], told["forward_passes"]) == ("nesterov", 3, 6)
    resumed = [*words, "--steps", "5", "--out", out, "--resume"]
    assert main([*resumed, "method.beta=0.6"]) == 2
    assert "{'beta': 0.5} -> {'beta': 0.6}" in capsys.readouterr().err
    assert main([*resumed, "method.beta=0.5"]) == 0
    assert main([*words, "method.beta=2", "--out", str(tmp_path / "bad")]) == 2
    assert "beta: must be >= 0.0 and < 1.0, got 2.0" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


def test_a_method_that_breaks_the_contract_is_named(nesterov):
    from test_methods import Quadratic

    class Mute(nesterov):
        def plan(self, step):
            yield [step.direction().at(0.1)]

    class Wordy(nesterov):
        def plan(self, step):
            yield "losses, please"

    for kind, message in (
        (Mute, r"Mute.plan: must return a list of writes, got 'None'"),
        (Wordy, r"Wordy.plan: must yield lists of probes, got \"'losses"),
    ):
        model = Quadratic()
        method = kind(zopeft.discover(model), lr=1e-3, eps=1e-3)
        with pytest.raises(InputError, match=message):
            method.step(model.loss)
    with pytest.raises(InputError, match="there is one of that name already, got 'mezo'"):
        zopeft.register_method(nesterov, "mezo")
    with pytest.raises(InputError, match="takes a class of methods"):
        zopeft.register_method(object)
