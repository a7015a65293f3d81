"""Evaluations, best weights, early stopping, warm-up, trackers: from the command line."""

import json
import os
import signal
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_training_resume import killed

from zopeft.errors import InputError
from zopeft.jobs.evaluate import measure
from zopeft.journal import Journal

QUICK = ("--batch-size", 2, "training.log_steps=2", "training.eval_before=false")
ADAPTER = "adapter_model.safetensors"


@pytest.fixture
def base(tiny_model, tiny_data):
    return ("tune", tiny_model, "--task", "sst2", "--data", tiny_data, *QUICK)


@pytest.fixture
def losses(monkeypatch):
    """Has evaluations during a run come to these losses in turn, by their step."""
    found = {}

    def scored(*args):
        scores = measure(*args)
        step = args[6].rpartition(" ")[2]
        if step in found:
            scores["loss"] = found[step]
        return scores

    monkeypatch.setattr("zopeft.jobs.validating.measure", scored)
    return found


def lines_of(out):
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


def without_seconds(out):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines_of(out)]


@pytest.mark.parametrize(("space", "file"), [("--lora", ADAPTER), ("--full", "model.safetensors")])
def test_the_best_weights_are_the_result(zopeft_command, base, tmp_path, losses, space, file):
    losses.update({"2": 3.0, "4": 1.0, "6": 2.0, "7": float("nan")})
    words = (*base, "--lr", "1e-3", space)
    best = zopeft_command.json(
        *words, "--steps", 7, "--eval-every", 2, "--keep-best", "--out", tmp_path / "best"
    )
    assert (best["steps"], best["best"], best["stopped"]) == (7, 4, None)
    assert best["metrics"]["after"]["loss"] == 1.0
    plain = zopeft_command.json(*words, "--steps", 4, "--out", tmp_path / "plain")
    assert plain["best"] is None
    assert (tmp_path / "best" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()
    evaluated = [e["step"] for e in lines_of(tmp_path / "best") if "eval_loss" in e]
    assert evaluated == [2, 4, 6, 7]
    assert lines_of(tmp_path / "best")[-1]["eval_loss"] is None


def test_a_run_stops_in_time_and_goes_on_to_the_same_end(
    zopeft_command, base, tmp_path, losses, monkeypatch
):
    losses.update({"2": 3.0, "4": 1.0, "6": 2.0, "8": 1.5, "10": 0.5})
    words = (*base, "--lr", "1e-3", "--steps", 20, "--eval-every", 2)
    words = (*words, "--keep-best", "--patience", 2)
    straight, out = tmp_path / "straight", tmp_path / "out"
    code, shown, err = zopeft_command(*words, "--out", straight)
    assert code == 0, err
    assert "8 of 20, stopped; the best weights, of step 4, are the result" in shown
    assert "stopped at step 8: the lowest validation loss was that of step 4" in err
    append = Journal.append

    def killed_after_a_while(journal, record):
        append(journal, record)
        if record.step == 6:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", killed_after_a_while)
        killed(lambda: zopeft_command(*words, "--out", out))
    assert (out / "best-4.safetensors").is_file() and not (out / ADAPTER).exists()
    summary = zopeft_command.json("tune", "--resume", "--out", out)
    assert (summary["steps"], summary["best"], summary["stopped"]) == (8, 4, 8)
    assert (out / ADAPTER).read_bytes() == (straight / ADAPTER).read_bytes()
    assert without_seconds(out) == without_seconds(straight)
    # With more patience, it goes on from there; what may not change is the warm-up.
    longer = zopeft_command.json("tune", "--resume", "--out", out, "--patience", 3, "--steps", 10)
    assert (longer["steps"], longer["best"], longer["stopped"]) == (10, 10, None)
    line = zopeft_command.refused("tune", "--resume", "--out", out, "--warmup", 2)
    assert "training.warmup 0 -> 2" in line


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [("constant", [0, 0.5, 1, 1, 1, 1]), ("linear", [0, 0.5, 1, 0.75, 0.5, 0.25])],
)
def test_the_rate_warms_up_and_follows_its_schedule(
    zopeft_command, base, tmp_path, schedule, shares
):
    words = ("--lr", "1e-3", "--steps", 6, "--warmup", 2, "--schedule", schedule)
    summary = zopeft_command.json(*base, *words, "--accumulate", 2, "--out", tmp_path / "out")
    records = Journal.open(tmp_path / "out" / "journal.bin").records()
    assert [r.lr[0] for r in records] == pytest.approx([1e-3 * share for share in shares])
    assert summary["forward_passes"] == 6 * 2 * 2


def test_a_rate_that_runs_warms_up(zopeft_command, base, tmp_path):
    words = ("--steps", 4, "--warmup", 2, "--out", tmp_path / "out")
    summary = zopeft_command.json(*base, *words)
    rates = [r.lr[0] for r in Journal.open(tmp_path / "out" / "journal.bin").records()]
    assert rates[0] == 0 and summary["lr"] > 0
    assert rates[2] > 1.5 * rates[1] > 0


def test_resume_auto_begins_a_run_or_goes_on_with_it(zopeft_command, base, tmp_path):
    out = tmp_path / "out"
    words = (*base, "--lr", "1e-3", "--out", out)
    first = zopeft_command.json(*words, "--steps", 2, "--resume", "auto")
    assert (first["steps"], first["forward_passes"]) == (2, 4)
    more = zopeft_command.json(*words, "--steps", 3, "--resume=auto")
    assert (more["steps"], more["forward_passes"]) == (3, 2)
    line = zopeft_command.refused(*words[:-2], "--resume", "auto")
    assert line == "zopeft: --resume auto: needs the run's folder; give it with --out DIR"


def test_a_tracker_that_is_not_installed_is_refused_in_one_line(
    zopeft_command, base, tmp_path, monkeypatch
):
    monkeypatch.setattr("zopeft.jobs.trackers.PACKAGES", {"trackio": ("not_to_be_found_track",)})
    out = tmp_path / "out"
    line = zopeft_command.refused(*base, "--report-to", "trackio", "--out", out)
    assert "--report-to: needs a package that is not installed, got 'trackio'" in line
    assert "pip install not_to_be_found_track" in line and not out.exists()
    line = zopeft_command.refused(*base, "--report-to", "mlflow")
    assert "--report-to: must be one of none, tensorboard, wandb, trackio" in line


def test_a_tracker_gets_losses_rates_and_scores(zopeft_command, base, tmp_path, monkeypatch):
    from transformers.integrations import integration_utils

    told = []

    class Tracker(integration_utils.TensorBoardCallback):
        def __init__(self):
            pass

        def on_train_begin(self, args, state, control, **kwargs):
            pass

        def on_train_end(self, args, state, control, **kwargs):
            pass

        def on_log(self, args, state, control, logs=None, **kwargs):
            told.append((state.global_step, dict(logs)))

    monkeypatch.setitem(sys.modules, "tensorboardX", types.ModuleType("tensorboardX"))
    monkeypatch.setattr("zopeft.jobs.trackers.PACKAGES", {"tensorboard": ("json",)})
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    words = ("--lr", "1e-3", "--steps", 4, "--eval-every", 2, "--report-to", "tensorboard")
    zopeft_command.json(*base, *words, "--out", tmp_path / "out")
    steps = [(step, logs) for step, logs in told if "loss" in logs]
    assert [step for step, _ in steps] == [2, 4]
    assert all({"learning_rate", "grad_norm"} <= set(logs) for _, logs in steps)
    assert [step for step, logs in told if "eval_accuracy" in logs] == [2, 4]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--keep-best",), "add --eval-every N"),
        (("--patience", "2"), "add --eval-every N"),
        (("--warmup", "5", "--steps", "5"), "--warmup: takes all of the steps, got 5"),
        (("--patience", "-1"), "--patience: must be at least 0"),
        (("--schedule", "cosin"), "--schedule: must be one of constant, linear, cosine"),
    ],
)
def test_settings_that_make_no_sense_are_refused(zopeft_command, base, words, told):
    assert told in zopeft_command.refused(*base, *words)


def test_a_trainer_is_not_gone_on_with_by_another_warm_up(tmp_path):
    from training_run import tiny_model, trainer, with_lora

    options = {"lr_scheduler_type": "constant_with_warmup", "max_steps": 4}
    trainer(with_lora(tiny_model()), tmp_path, warmup_steps=2, **options).train()
    # The number of steps may change: nothing depends on it.
    longer = trainer(
        with_lora(tiny_model()),
        tmp_path,
        warmup_steps=2,
        **options,
    )
    longer.args.max_steps = 6
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 6
    other = trainer(with_lora(tiny_model()), tmp_path, warmup_steps=3, **options)
    with pytest.raises(InputError, match="warmup 3 instead of 2"):
        other.train(resume_from_checkpoint=True)


@pytest.mark.parametrize(("by", "best"), [("loss", (4, 1)), ("metric", (2, 2))])
def test_the_best_go_by_the_loss_or_the_metric(by, best):
    from zopeft.jobs.validating import Validation

    told = {2: (0.5, 0.9), 4: (0.3, 0.6)}
    lines = [{"step": n, "eval_loss": a, "eval_accuracy": b} for n, (a, b) in told.items()]
    recipe = SimpleNamespace(training=SimpleNamespace(best_by=by))
    task, goal = SimpleNamespace(metric="accuracy"), SimpleNamespace(score="")
    follower = SimpleNamespace(metrics=SimpleNamespace(evaluations=lines))
    one = Validation(recipe, SimpleNamespace(task=task, goal=goal), None, follower, print)
    assert one._best(6, {"loss": 0.4, "accuracy": 0.8}) == best


def test_what_goes_by_nothing_is_refused(zopeft_command, base):
    said = zopeft_command.refused(*base, "--best-by", "metric")
    assert "--best-by: goes with --keep-best or --patience" in said
