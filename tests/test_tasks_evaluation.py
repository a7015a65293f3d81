"""Evaluation: scores do not depend on the batch; generation is greedy and silent."""

import logging
from dataclasses import replace

import pytest
import torch

from zopeft.errors import InputError
from zopeft.jobs.metrics import numbers
from zopeft.models import attach, load_model
from zopeft.tasks import evaluate, feed, load_rows, load_task
from zopeft.tasks.answers import exact_match, f1, normalize
from zopeft.tasks.encoding import encode_prompts
from zopeft.tasks.evaluation import check_rows, fit_length, mean_loss
from zopeft.tasks.generation import generate

PROMPTS = ["Anna", "The old man went to the", "Tom and his friend", "It is"]


@pytest.fixture(params=[None, "lora", "prefix", "prompt", "p-tuning"])
def model_and_tokenizer(request):
    model, tokenizer = load_model()
    return (attach(model, request.param) if request.param else model), tokenizer


def by_hand(model, tokenizer, prompt, steps):
    """Greedy decoding without a cache, a batch or padding."""
    ids = list(prompt)
    for _ in range(steps):
        with torch.no_grad():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
        if "\n" in tokenizer.decode([token]):
            break
    return tokenizer.decode(ids[len(prompt) :]).split("\n")[0].strip()


def test_generation_is_greedy(model_and_tokenizer, caplog, recwarn, capsys):
    model, tokenizer = model_and_tokenizer
    prompts = encode_prompts(tokenizer, PROMPTS, 64)
    with caplog.at_level(logging.WARNING):
        answers = generate(model, tokenizer, prompts, 12)
    assert answers == [by_hand(model, tokenizer, prompt, 12) for prompt in prompts]
    assert all(answers)
    assert not caplog.records
    assert not [w for w in recwarn if "generation" in str(w.message).lower()]
    assert capsys.readouterr() == ("", "")


def test_generation_ignores_a_chat_models_sampling(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    prompts = encode_prompts(tokenizer, PROMPTS, 64)
    expected = generate(model, tokenizer, prompts, 6)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.generation_config.do_sample = True
    base.generation_config.temperature = 5.0
    base.generation_config.repetition_penalty = 3.0
    settings = base.generation_config
    assert generate(model, tokenizer, prompts, 6) == expected
    assert base.generation_config is settings


def test_newline_inside_a_token_stops():
    from zopeft.tasks.endings import Endings

    class Pieces:
        def decode(self, ids):
            return {1: "a", 2: ".\n", 3: "\n"}[ids[0]]

    ended = Endings(Pieces(), [7], "\n")
    assert [ended(ids) for ids in ([1, 1], [1, 2], [2, 3], [1, 7])] == [False, True, True, True]


@pytest.mark.parametrize("name", ["sst2", "copa", "squad"])
def test_scores_do_not_depend_on_the_batch(name):
    model, tokenizer = load_model()
    task = replace(load_task(name), max_new_tokens=6)
    rows = load_rows(task, "validation", embedded=True, limit=12)
    seen = []
    one = evaluate(
        model,
        tokenizer,
        task,
        rows,
        1,
        256,
        progress=lambda done, total: seen.append((done, total)),
    )
    many = evaluate(model, tokenizer, task, rows, 5, 256)
    assert numbers(one) == pytest.approx(numbers(many), abs=1e-5)
    assert one["examples"] == 12
    assert seen[-1] == (12, 12)
    first = {"squad": "f1"}.get(name, "accuracy")
    assert 0 <= one[first] <= 1
    told = {"squad": {"f1", "exact_match"}}.get(name, {"accuracy", "acc", "acc_norm", "acc_bytes"})
    told |= {"calibrated_accuracy", "predicted", "labels"} if name == "sst2" else set()
    assert set(one) == told | {"loss", "examples"}
    half = evaluate(model, tokenizer, task, rows, 5, 256, max_examples=6)
    first = evaluate(model, tokenizer, task, rows[:6], 4, 256)
    assert numbers(half) == pytest.approx(numbers(first), abs=1e-5)


def test_mode_is_put_back_and_no_rows_refused():
    model, tokenizer = load_model()
    task = load_task("sst2")
    model.train()
    evaluate(model, tokenizer, task, [{"sentence": "fine", "label": 1}], 1, 64)
    assert model.training
    with pytest.raises(InputError, match="no rows"):
        evaluate(model, tokenizer, task, [], 1, 64)


def test_length_fits_the_model(model_and_tokenizer):
    model, _ = model_and_tokenizer
    assert fit_length(model, 100) == 100
    kind = getattr(model, "active_peft_config", None)
    assert fit_length(model, 9999) == 512 - (getattr(kind, "num_virtual_tokens", None) or 0)


def test_normalisation_is_squads():
    assert normalize(" The  U.S. Army, a (big) one!") == "us army big one"
    assert exact_match("the Cat.", ["dog", "cat"]) == 1.0
    assert exact_match("cats", ["dog", "cat"]) == 0.0
    assert f1("big black cat", ["a cat", "black dog"]) == pytest.approx(0.5)
    assert f1("", ["cat"]) == 0.0
    assert f1("cat", ["cat cat"]) == pytest.approx(2 / 3)
    assert f1(" France\n", [" in France\n", " France\n"]) == 1.0
    assert f1("The", ["the"]) == 1.0


@pytest.mark.parametrize("name", ["sst2", "copa", "squad"])
def test_the_loss_alone_is_that_of_the_evaluation(tiny_model, name):
    model, tokenizer = load_model(str(tiny_model))
    task = replace(load_task(name), max_new_tokens=1)
    rows = load_rows(task, "validation", embedded=True, limit=7)
    tasks = [task, replace(task, loss="choice")] if task.kind == "choice" else [task]
    for one in tasks:
        whole = evaluate(model, tokenizer, one, rows, 3, 128)["loss"]
        assert mean_loss(model, tokenizer, one, rows, 4, 128) == pytest.approx(whole, rel=1e-5)
    with pytest.raises(InputError, match="no rows"):
        mean_loss(model, tokenizer, task, [])


@pytest.mark.parametrize("name", ["sst2", "squad"])
def test_rows_that_are_encoded_are_not_encoded_again(name, monkeypatch):
    model, tokenizer = load_model()
    task = load_task(name)
    rows = load_rows(task, "validation", embedded=True, limit=6)
    expected = evaluate(model, tokenizer, task, rows, max_length=512)
    few = evaluate(model, tokenizer, task, rows, max_length=512, max_examples=3)
    encoded = check_rows(model, tokenizer, task, rows, 512)
    made = []
    whole = feed.TaskDataset
    monkeypatch.setattr(feed, "TaskDataset", lambda *given: made.append(1) or whole(*given))
    given = {"max_length": 512, "encoded": encoded}
    assert evaluate(model, tokenizer, task, rows, max_examples=6, **given) == expected
    assert made == []
    # Of fewer rows it is another thing.
    assert evaluate(model, tokenizer, task, rows, max_examples=3, **given) == few
    assert made == [1]
