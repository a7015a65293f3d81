"""What a tuning run tells: its beginning, its steps, its metrics, and that it diverged."""

import json
import os
import re
import signal

import pytest
from test_training_resume import killed

from zopeft.cli.output import Output
from zopeft.jobs.ending import diverged
from zopeft.jobs.metrics import Metrics
from zopeft.jobs.progress import Progress
from zopeft.journal import Journal

QUICK = ("--batch-size", 2, "--lr", "1e-3", "training.log_steps=4")


@pytest.fixture
def base(tiny_model, tiny_data):
    return ("tune", tiny_model, "--task", "sst2", "--data", tiny_data)


def lines_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_beginning_is_told(zopeft_command, base, tmp_path):
    words = ("--batch-size", 2, "--steps", 3, "--out", tmp_path / "out", "training.accumulation=2")
    code, _, err = zopeft_command(*base, *words)
    assert code == 0, err
    told = {line.partition(":")[0]: line for line in err.splitlines()}
    assert "LlamaForCausalLM, float32, cpu" in told["model"]
    assert "lora, 8 blocks, " in told["trained"] and "parameters, " in told["trained"]
    assert "mezo, 2 forward passes a step, lr auto, eps 0.01" in told["method"]
    assert "16 to train and 16 to score on" in told["rows"]
    counted = re.search(r"of (\d+) taught; ([\d.]+) a text, the longest text has", told["tokens"])
    assert float(counted[2]) == pytest.approx(int(counted[1]) / 16, rel=0.01)
    passes = "about 14 planned: 3 steps of 4, 2 to measure the learning rate on the way"
    assert passes in told["passes"]
    assert "2 times 2 examples a step, pa" in told["batches"]
    assert err.index("trained:") < err.index("evaluate before") < err.index("batches:")
    step = next(line for line in err.splitlines() if line.startswith("tune 3/3"))
    assert all(word in step for word in (" loss ", " lr ", " s/step", "ETA 0:00:00"))


def test_the_loss_that_is_shown_is_a_mean_over_steps(zopeft_command, base, tmp_path):
    out = tmp_path / "out"
    _, shown, err = zopeft_command(*base, *QUICK, "--steps", 3, "--out", out)
    losses = [r.loss for r in Journal.open(out / "journal.bin").records()]
    assert f"tune 3/3 loss {sum(losses) / 3:.4f}" in err
    assert shown.index("validation loss") < shown.index("accuracy") < shown.index("training loss")


def test_metrics_are_lines_of_steps_and_of_evaluations(zopeft_command, base, tmp_path):
    out = tmp_path / "out"
    summary = zopeft_command.json(*base, *QUICK, "--steps", 10, "--out", out)
    lines = lines_of(out)
    assert [line["step"] for line in lines] == [0, 4, 8, 10, 10]
    records = list(Journal.open(out / "journal.bin").records())
    for line, part in zip(lines[1:4], (records[:4], records[4:8], records[8:]), strict=True):
        assert line["loss"] == pytest.approx(sum(r.loss for r in part) / len(part))
        squares = sum(r.projected_grads[0] ** 2 for r in part) / len(part)
        assert line["grad"] == pytest.approx(squares**0.5)
        assert line["lr"] == 1e-3
    for line, name in ((lines[0], "before"), (lines[-1], "after")):
        scores = summary["metrics"][name]
        assert line["eval_loss"] == scores["loss"] and line["eval_accuracy"] == scores["accuracy"]


@pytest.mark.parametrize("checkpoints", [0, 5])
def test_metrics_go_on_where_a_killed_run_broke_off(
    zopeft_command, base, tmp_path, monkeypatch, checkpoints
):
    words = (*base, *QUICK, "--steps", 12, f"training.save_steps={checkpoints}")
    straight, out = tmp_path / "straight", tmp_path / "out"
    zopeft_command.json(*words, "--out", straight)
    append = Journal.append

    def killed_after_a_while(journal, record):
        append(journal, record)
        if record.step == 9:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", killed_after_a_while)
        killed(lambda: zopeft_command(*words, "--out", out))
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 12, "eval_loss": 1.0, "seconds": 3.0}\n{"step": 12, "lo')
    zopeft_command.json("tune", "--resume", "--out", out, "training.log_steps=4")
    found, wanted = lines_of(out), lines_of(straight)
    seconds = [line.pop("seconds") for line in found]
    assert seconds == sorted(seconds)
    assert found == [{k: v for k, v in line.items() if k != "seconds"} for line in wanted]


def test_a_line_is_kept_once_and_numbers_that_are_not_finite_are_null(tmp_path):
    metrics = Metrics(tmp_path)
    metrics.add(4, {"loss": float("nan")}, 1.0)
    metrics.add(4, {"loss": 2.0}, 2.0)
    metrics.evaluated(4, {"loss": 3.0}, 2.0)
    metrics.add(8, {"loss": 1.0}, 5.0)
    assert [line.get("loss", "scores") for line in lines_of(tmp_path)] == [None, "scores", 1.0]
    again = Metrics(tmp_path, resume=True)
    assert again.seconds == 5.0
    again.keep(4)
    assert again.scores(4)["loss"] == 3.0
    assert [line["step"] for line in lines_of(tmp_path)] == [4, 4]
    Metrics(tmp_path)
    assert lines_of(tmp_path) == []


def test_a_run_that_diverged_is_not_called_tuned(zopeft_command, base, tmp_path):
    out = tmp_path / "out"
    words = (*base, "--batch-size", 2, "--lr", "1e9", "--steps", 2, "--full", "--out", out)
    code, shown, err = zopeft_command(*words)
    assert code == 1
    assert shown.startswith("diverged") and "tuned" not in shown
    last = err.splitlines()[-1]
    assert last.startswith("zopeft: tune: the run diverged: the validation loss ")
    assert "lower --lr (1e+09)" in last
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "diverged" and record["diverged"]
    assert (out / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("before", "after", "losses", "told"),
    [
        (2.0, 2.9, [9.0], ""),
        (2.0, 3.1, [9.0], "the validation loss rose from 2 to 3.1"),
        (2.0, float("nan"), [1.0], "the validation loss is not finite"),
        (None, 9.0, [2.0] * 30 + [1.0] * 10, ""),
        (None, 9.0, [2.0, 3.5], ""),
        (None, 9.0, [2.0] * 30 + [3.5] * 10, "the training loss rose from 2 to 3.5"),
    ],
)
def test_what_counts_as_diverged(before, after, losses, told):
    scores = {"before": None if before is None else {"loss": before}, "after": {"loss": after}}
    assert diverged(scores, losses) == told


def test_a_line_without_a_terminal_says_when_the_end_is_due(capsys):
    screen = Output()
    screen.listen(Progress("tune", 10, 100, loss=1.25, lr=2e-3, seconds=4.0))
    assert capsys.readouterr().err == "tune 10/100 loss 1.2500  lr 0.002  4 s/step  ETA 0:06:00\n"
