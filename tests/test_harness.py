"""Rows and names that others compare by: the first N, draws, and lm-evaluation-harness."""

import json
from importlib.util import find_spec

import pytest
import yaml

from zopeft.tasks import TASKS, load_rows, load_task

needs_harness = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is missing")


class Loader(yaml.SafeLoader):
    """Reads lm-eval's own tag."""


Loader.add_constructor("!function", lambda loader, node: node.value)


def test_the_first_rows_or_a_draw():
    task = load_task("sst2")
    whole = load_rows(task, "validation", embedded=True)
    first = load_rows(task, "validation", embedded=True, limit=5, seed=None)
    assert first == whole[:5] and first.chosen == [0, 1, 2, 3, 4]
    drawn = [load_rows(task, "validation", embedded=True, limit=5, seed=s).chosen for s in (0, 1)]
    assert drawn[0] != drawn[1] and drawn[0] != first.chosen


def test_the_command_takes_the_first_rows_or_draws_them(zopeft_command, tiny_model, tiny_data):
    words = ("eval", tiny_model, "--task", "sst2", "--data", tiny_data)
    first = zopeft_command.json(*words, "--examples", 6)
    assert (first["drawn_by"], first["metrics"]["examples"]) == (None, 6)
    seeds = [zopeft_command.json(*words, "--examples", 6, "--seed", s) for s in (1, 1, 2)]
    assert seeds[0]["metrics"] == seeds[1]["metrics"] != seeds[2]["metrics"]
    assert seeds[0]["metrics"]["loss"] != first["metrics"]["loss"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--seed", 1), "--seed: there is nothing to draw without --examples, got '1'"),
        (("--examples", 3, "--seed", "x"), "--seed: must be a whole number of at least 0, got 'x'"),
        (("--harness", "boolq"), "--task: does not go with --harness"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(
    zopeft_command, tiny_model, tiny_data, words, told
):
    said = zopeft_command.refused("eval", tiny_model, "--task", "sst2", *words)
    assert told in said


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-eval is there")
def test_the_harness_is_asked_for_where_it_is_missing(zopeft_command):
    said = zopeft_command.refused("eval", "--harness", "boolq")
    assert "lm-evaluation-harness is not installed; pip install 'zopeft[harness]'" in said


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_exported(zopeft_command, name, tmp_path):
    out = tmp_path / name
    summary = zopeft_command.json("data", "export", "--task", name, "--examples", 4, "--out", out)
    assert (summary["rows"], summary["name"]) == (4, f"zopeft_{name}")
    config = yaml.load((out / f"zopeft_{name}.yaml").read_text(), Loader)
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    task = load_task(name)
    examples = [task.example(row) for row in load_rows(task, "validation", embedded=True)[:4]]
    for row, example in zip(rows, examples, strict=True):
        if task.kind == "answer":
            assert (row["prompt"], tuple(row["answers"])) == (example.prompt, example.answers)
            continue
        whole = [row["prompt"] + config["target_delimiter"] + one for one in row["choices"]]
        assert whole == [example.prompt + choice for choice in example.choices]
        assert row["label"] == example.label
    assert config["task"] == summary["name"]


def test_conversations_are_not_exported(zopeft_command, tmp_path):
    file = tmp_path / "chat.jsonl"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    file.write_text((json.dumps({"messages": turns}) + "\n") * 20)
    said = zopeft_command.refused("data", "export", "--data", file, "--out", tmp_path / "out")
    assert "rows of conversations or running text are not exported" in said
    assert not (tmp_path / "out").exists()


@needs_harness
@pytest.mark.slow
def test_the_harness_agrees_to_the_row(zopeft_command, tmp_path):
    ours, files = {}, []
    for name in TASKS:
        out = tmp_path / name
        zopeft_command.json("data", "export", "--task", name, "--examples", 20, "--out", out)
        found = zopeft_command.json("eval", "--task", name, "--examples", 20)["metrics"]
        files.append(str(out / f"zopeft_{name}.yaml"))
        ours[f"zopeft_{name}"] = found
    theirs = zopeft_command.json("eval", "--harness", ",".join(files))["metrics"]
    assert len(theirs) == 7
    for name, scores in theirs.items():
        shared = set(scores) & set(ours[name])
        assert shared == (
            {"f1", "exact_match"} & set(ours[name]) or {"acc", "acc_norm", "acc_bytes"}
        )
        for one in shared:
            assert scores[one] == pytest.approx(ours[name][one], abs=1e-9)
