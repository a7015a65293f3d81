"""Tokens outside the model's table: padding is masked and needs none, others are refused."""

import json
import re

import pytest
import torch
from peft import LoraConfig, TrainableTokensConfig, get_peft_model

from zopeft.errors import InputError
from zopeft.jobs.metrics import numbers
from zopeft.meta import meta_train
from zopeft.models import load_model
from zopeft.tasks import Collator, TaskDataset, evaluate, load_task, task_loss
from zopeft.tasks.encoding import encode_prompts
from zopeft.tasks.generation import generate
from zopeft.tasks.table import check_ids, padding_id, table_rows

ROWS = [
    {"sentence": "a fine film with a long and winding plot", "label": 1},
    {"sentence": "so bad", "label": 0},
]


@pytest.fixture
def extended(tiny_model):
    """The tiny model, and its tokenizer with a padding token that the model does not have."""
    model, tokenizer = load_model(str(tiny_model))
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == table_rows(model)
    return model, tokenizer


def saved(extended, folder):
    model, tokenizer = extended
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_rows_of_the_table_under_adapters(tiny_model):
    model, tokenizer = load_model(str(tiny_model))
    assert table_rows(model) == len(tokenizer)
    targets = ["embed_tokens", "q_proj"]
    assert table_rows(get_peft_model(model, LoraConfig(target_modules=targets))) == len(tokenizer)
    model, _ = load_model(str(tiny_model))
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    assert table_rows(get_peft_model(model, config)) == len(tokenizer)
    model, _ = load_model(str(tiny_model))
    config = TrainableTokensConfig(token_indices=[1], target_modules=["embed_tokens"])
    assert table_rows(get_peft_model(model, config)) == len(tokenizer)
    model, _ = load_model(str(tiny_model))
    model.resize_token_embeddings(len(tokenizer) + 3)
    assert table_rows(model) == len(tokenizer) + 3
    assert table_rows(torch.nn.Linear(2, 2)) is None


def test_padding_takes_an_id_of_the_table(extended):
    model, tokenizer = extended
    rows = table_rows(model)
    assert padding_id(tokenizer) == rows
    assert padding_id(tokenizer, rows) == tokenizer.eos_token_id
    assert padding_id(tokenizer, tokenizer.eos_token_id) == 0
    assert tokenizer.pad_token == "[PAD]"
    data = TaskDataset(load_task("sst2"), ROWS, tokenizer, 64, table_rows=rows)
    batch = Collator(tokenizer, rows)(list(data))
    assert not batch["attention_mask"].all()
    assert batch["input_ids"].max() < rows
    with torch.no_grad():
        alone = [task_loss(model, Collator(tokenizer, rows)([one])) for one in data]
        tokens = [len(one.options[0]) for one in data]
        mean = sum(n * loss for n, loss in zip(tokens, alone, strict=True)) / sum(tokens)
        torch.testing.assert_close(task_loss(model, batch), mean, atol=1e-5, rtol=0)


def test_evaluation_and_generation_with_a_padding_token_outside(extended, tiny_model):
    model, tokenizer = extended
    own = load_model(str(tiny_model))[1]
    for name, rows in (
        ("sst2", ROWS),
        (
            "squad",
            [
                {"title": "T", "context": text, "question": "Who?", "answers": {"text": ["Amy"]}}
                for text in ("Amy ran far away from here.", "Amy.")
            ],
        ),
    ):
        task = load_task(name)
        found = evaluate(model, tokenizer, task, rows, 2, 64)
        others = evaluate(model, own, task, rows, 2, 64)
        assert found.get("predicted") == others.get("predicted")
        assert numbers(found) == pytest.approx(numbers(others), abs=1e-6)
    texts = ["Anna", "The old man went to the market"]
    prompts = encode_prompts(tokenizer, texts, 32)
    assert generate(model, tokenizer, prompts, 8) == generate(model, own, prompts, 8)
    assert tokenizer.pad_token == "[PAD]"


def test_filling_behind_an_end_is_no_answer(extended):
    """Where the padding token is an ordinary one, what follows an end must not be read."""
    model, tokenizer = extended
    end = tokenizer.convert_tokens_to_ids("a")
    prompts = [(5, 6, 7), (8, 9, 10)]
    free = [tokenizer(text, add_special_tokens=False).input_ids for text in ("b", "c")]
    script = {tuple(prompts[0]): [free[0][0], end], tuple(prompts[1]): free[1] * 4}
    tokenizer.pad_token = tokenizer.eos_token = None
    model.generation_config.eos_token_id = end
    assert padding_id(tokenizer, table_rows(model)) == 0
    rows = list(script.values())

    def speak(module, inputs, output):
        step = speak.step
        speak.step += 1
        logits = torch.full_like(output[:, -1:], -1.0)
        # The first row leaves the batch when it has ended.
        for row, tokens in enumerate(rows[len(rows) - len(logits) :]):
            logits[row, -1, tokens[min(step, len(tokens) - 1)]] = 1.0
        return logits

    # The first answers of a model are made in two ways, which are compared.
    generate(model, tokenizer, prompts, 1)
    speak.step = 0
    hook = model.lm_head.register_forward_hook(speak)
    found = generate(model, tokenizer, prompts, 4)
    hook.remove()
    assert speak.step == 4
    assert found[0] == tokenizer.decode(free[0]).strip()
    assert found[1] == tokenizer.decode(free[1] * 4).strip()


def test_tune_with_a_padding_token_outside(extended, tiny_data, tmp_path, zopeft_command):
    folder, out = saved(extended, tmp_path / "model"), tmp_path / "out"
    words = ["--task", "sst2", "--data", tiny_data, "--steps", 2, "--batch-size", 4, "--lr", 1e-3]
    found = zopeft_command.json("tune", folder, *words, "--out", out)
    assert found["steps"] == 2
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["pad_token"] == "[PAD]"
    assert load_model(str(folder))[1].pad_token == "[PAD]"


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_token_that_the_model_lacks_is_refused_before_a_folder_is_made(
    split, extended, tiny_data, tmp_path, zopeft_command
):
    model, tokenizer = extended
    tokenizer.add_tokens(["<|new|>"])
    folder, out = saved((model, tokenizer), tmp_path / "model"), tmp_path / "out"
    data = tmp_path / "sst2"
    data.mkdir()
    for name in ("train", "validation"):
        lines = (tiny_data / f"{name}.jsonl").read_text().splitlines()
        if name == split:
            lines[2] = lines[2].replace("film", "<|new|> film")
        (data / f"{name}.jsonl").write_text("\n".join(lines))
    line = zopeft_command.refused(
        "tune", folder, "--task", "sst2", "--data", data, "--steps", 2, "--out", out
    )
    rows, number = table_rows(model), tokenizer.convert_tokens_to_ids("<|new|>")
    told = rf"{split}\.jsonl, line 3: tokens that the model.s embedding of {rows} rows"
    assert re.search(told, line)
    assert f"<|new|> (id {number})" in line
    assert "resize_token_embeddings" in line
    assert not out.exists()


def test_a_token_that_the_model_lacks_is_refused_everywhere(extended):
    model, tokenizer = extended
    tokenizer.add_tokens(["<|new|>"])
    rows = [ROWS[0], {"sentence": "a <|new|> film", "label": 1}]
    with pytest.raises(InputError, match=r"sst2, row 2: .*<\|new\|> \(id"):
        evaluate(model, tokenizer, load_task("sst2"), rows, 2, 64)
    with pytest.raises(InputError, match=r"sst2, row 2: .*<\|new\|> \(id"):
        meta_train(model, ["sst2"], tokenizer, {"sst2": rows})
    question = {"title": "T", "context": "x", "question": "<|new|>?", "answers": {"text": ["y"]}}
    with pytest.raises(InputError, match=r"squad, row 1: .*<\|new\|> \(id"):
        evaluate(model, tokenizer, load_task("squad"), [question], 2, 64)
    model.resize_token_embeddings(len(tokenizer))
    assert evaluate(model, tokenizer, load_task("sst2"), rows, 2, 64)["examples"] == 2
    check_ids(tokenizer, [[10**6]], None, str)
