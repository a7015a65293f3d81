"""Signals at every stage of a run: what is kept is told, and the run goes on to the same end."""

import importlib
import json
import signal

import pytest

ADAPTER = "adapter_model.safetensors"
STAGES = {
    "loading": ("zopeft.jobs.tune.load_base", 1),
    "measuring": ("zopeft.jobs.tune.measure", 1),
    "tuning": ("zopeft.tasks.task_loss", 6),
    "evaluating": ("zopeft.jobs.validating.measure", 1),
    "writing": ("zopeft.training.result._save", 1),
}
"""A stage: a function that is called in it, and in which of its calls the signal comes."""
KEPT = {
    "loading": {"SIGINT": None, "SIGTERM": None},
    "measuring": {"SIGINT": "no steps are", "SIGTERM": "no steps are"},
    # Ctrl-C has the step finished, SIGTERM does not wait.
    "tuning": {"SIGINT": "3 steps are", "SIGTERM": "2 steps are", "twice": "2 steps are"},
    "evaluating": {"SIGINT": "2 steps are", "SIGTERM": "2 steps are"},
    "writing": {"SIGINT": "4 steps are", "SIGTERM": "4 steps are"},
}
_straight = {}


@pytest.fixture
def words(tiny_model, tiny_data, tmp_path):
    return (
        *("tune", tiny_model, "--task", "sst2", "--data", tiny_data, "--steps", 4),
        *("--batch-size", 2, "--lr", "1e-3", "--eval-every", 2),
        # As they are with a loss that is put in another's place; else last bits may differ.
        *("training.layout=padded", "method.probes=separate", "--out", tmp_path / "out"),
    )


def signalled(monkeypatch, place, how, call):
    """Has signals come while a function runs."""
    module, _, name = place.rpartition(".")
    real, calls = getattr(importlib.import_module(module), name), []

    def disturbed(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            number = getattr(signal, "SIGINT" if how == "twice" else how)
            assert signal.getsignal(number) not in (signal.SIG_DFL, signal.default_int_handler)
            for _ in range(1 + (how == "twice")):
                signal.raise_signal(number)
        return real(*args, **kwargs)

    monkeypatch.setattr(place, disturbed)


@pytest.mark.parametrize(
    ("stage", "how"), [(stage, how) for stage, hows in KEPT.items() for how in hows]
)
def test_a_signal_at_every_stage(stage, how, zopeft_command, words, tmp_path, monkeypatch):
    out = tmp_path / "out"
    before = {name: signal.getsignal(getattr(signal, name)) for name in ("SIGINT", "SIGTERM")}
    with monkeypatch.context() as patches:
        signalled(patches, STAGES[stage][0], how, STAGES[stage][1])
        line = zopeft_command.refused(*words, code=1)
    now = {name: signal.getsignal(getattr(signal, name)) for name in before}
    assert now == before
    begins = "zopeft: interrupted" + (" by SIGTERM" if how == "SIGTERM" else "")
    kept = KEPT[stage][how]
    if kept is None:
        assert line == f"{begins}; nothing was written"
        assert not out.exists()
        return
    assert line.startswith(f"{begins}; {kept} kept in {out}; go on with: zopeft tune --resume")
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    zopeft_command.json("tune", "--resume", "--out", out)
    if not _straight:
        zopeft_command.json(*words[:-1], tmp_path / "straight")
        _straight["weights"] = (tmp_path / "straight" / ADAPTER).read_bytes()
    assert (out / ADAPTER).read_bytes() == _straight["weights"]


def test_an_interrupt_waits_only_in_a_step():
    from zopeft.jobs.stopping import Stopping

    found = Stopping()
    assert not found.ask()
    found.begin()
    assert found.ask() and not found.ask()
    with pytest.raises(KeyboardInterrupt):
        found.end()
    found.begin()
    found.end()
    assert not found.ask()
