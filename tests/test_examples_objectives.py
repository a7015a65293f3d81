"""The examples of objectives: they run, and come to what they say."""

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "objectives"


@pytest.fixture
def example(monkeypatch):
    def loaded(name):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return loaded


def test_sums_are_checked_by_a_program(example):
    sums = example("sums")
    rows = sums.sums(30, 0)
    assert {row["total"] for row in rows} <= {5, 7, 9} and rows == sums.sums(30, 0)
    answers = [f" {row['total']}" for row in rows]
    totals = [row["total"] for row in rows]
    assert sums.right(answers, totals) == [1.0] * 30 == sums.brief(answers, totals)
    assert sums.right([" it was 7"], [7]) == [0.0] and sums.brief([" it was 7"], [7]) == [1 / 3]
    told = sums.tune(0, steps=1)
    assert told["before"] < 0.2 and told["probes"] == 8 and len(told["curve"]) == 1


def test_the_judge_prefers_kind_words(example):
    preference = example("preference")
    assert preference.kind(["great , rich", "weak", "a film"]) == [2 / 3, -0.5, 0.0]
    judged = preference.Judged(anchor=0.1)
    before = judged.scores()
    # A LoRA begins where it changes nothing.
    assert before["divergence"] == pytest.approx(0.0, abs=1e-5)
    assert len(judged.tune(1)) == 1 and len(judged.samples(2)) == 2


def test_squad_is_tuned_by_its_own_metric(example):
    told = example("squad_f1").compare(0, beginning=2, steps=1)
    assert told["loss_steps"] >= 1 and len(told["curve"]) == 1
    assert 0 < told["start"]["f1"] < 1 and set(told["by f1"]) == set(told["start"])


@pytest.mark.slow
def test_right_sums_become_common(example):
    told = example("sums").tune(0)
    assert told["before"] < 0.2 and told["after"] > 0.8


@pytest.mark.slow
def test_f1_rises_where_f1_is_optimised(example):
    told = example("squad_f1").compare(1)
    assert told["by f1"]["f1"] > told["start"]["f1"] + 0.10


@pytest.mark.slow
def test_the_anchor_keeps_the_model_near_its_start(example):
    free, held = (example("preference").compare(anchor) for anchor in (0.0, 0.05))
    for told in (free, held):
        assert told["after"]["score"] > told["before"]["score"] + 0.05
    assert held["after"]["divergence"] < free["after"]["divergence"]


def test_the_form_of_answers_is_graded_on_the_way_there(example):
    form = example("yes_or_no")
    texts = ("Yes.", " No", "No, a cow cannot", "It can. Yes", "")
    turns = [[{"role": "assistant", "content": text}] for text in texts]
    for answers in (texts, turns):
        assert form.in_form(answers) == [1.0, 1.0, 0.0, 0.0, 0.0]
        assert form.graded(answers) == pytest.approx([1.0, 1.0, 0.625, 1 / 6, 0.0])
    tuned, others = form.questions(3)
    assert (len(tuned), len(others)) == (72, 36)
    assert not any(row in tuned for row in others)
