"""Scores of packed batches: those of padded ones, from fewer tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from zopeft.errors import InputError
from zopeft.jobs.metrics import numbers
from zopeft.models import attach, load_model
from zopeft.tasks import evaluate, load_rows, load_task
from zopeft.tasks.evaluation import mean_loss

LAYOUTS = ("padded", "auto", "packed")


def scored(model, tokenizer, task, function, layout):
    """What a function gives, and how many tokens the model was given for it."""
    rows = load_rows(task, "validation", None, True, 9, 0)
    tokens = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        return function(model, tokenizer, task, rows, 4, layout=layout), sum(tokens)
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("name", "loss"), [("copa", "choice"), ("copa", "answer"), ("sst2", "answer")]
)
@pytest.mark.parametrize("peft", ["", "lora", "prefix"])
def test_scores_are_the_padded_ones(name, loss, peft):
    model, tokenizer = load_model()
    model = attach(model, peft) if peft else model
    task = replace(load_task(name), loss=loss)
    found = [scored(model, tokenizer, task, evaluate, layout) for layout in LAYOUTS]
    means = [scored(model, tokenizer, task, mean_loss, layout)[0] for layout in LAYOUTS]
    padded = found[0][0]
    for metrics, _ in found[1:]:
        assert numbers(metrics) == pytest.approx(numbers(padded), rel=1e-5)
    assert means == pytest.approx([means[0]] * 3, rel=1e-5)
    # The model is known from the second time on, and not tried out any more.
    assert found[2][1] < (0.72 if name == "copa" else 1) * found[0][1]


def test_generated_answers_are_the_same():
    model, tokenizer = load_model()
    task = load_task("squad")
    (padded, _), (packed, _) = (
        scored(model, tokenizer, task, evaluate, layout) for layout in ("padded", "auto")
    )
    assert packed == pytest.approx(padded, rel=1e-5)


def test_the_command_says_how_batches_are_laid_out(zopeft_command, tiny_model, tiny_data, tmp_path):
    base = (tiny_model, "--task", "sst2", "--data", tiny_data)
    losses = [
        zopeft_command.json("eval", *base, "--layout", layout)["metrics"]["loss"]
        for layout in ("padded", "packed")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    tuned = [
        zopeft_command.json("tune", *base, "--steps", 2, "--out", tmp_path / layout, *words)
        for layout, words in (("a", ()), ("b", ("--layout", "padded")))
    ]
    assert [summary["layout"] for summary in tuned] == ["joined", "padded"]
    assert tuned[0]["loss_first"] == pytest.approx(tuned[1]["loss_first"], rel=1e-5)


def test_a_layout_that_is_not_there_is_refused(zopeft_command, tiny_model, tiny_data):
    model, tokenizer = load_model()
    task = load_task("sst2")
    with pytest.raises(InputError, match="layout: unknown way"):
        scored(model, tokenizer, task, evaluate, "tight")
    base = (tiny_model, "--task", "sst2", "--data", tiny_data)
    line = zopeft_command.refused("eval", *base, "--layout", "tight")
    assert "--layout" in line and "tight" in line
