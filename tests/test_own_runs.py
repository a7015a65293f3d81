"""Runs on own data: from a file to an adapter and back, and what the user is told."""

import json

import pytest
from test_own_data import jsonl

from zopeft.recipe.load import load_recipe
from zopeft.recipe.schema import Recipe
from zopeft.tasks.chat import PLAIN

CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"Say {word}."},
            {"role": "assistant", "content": f"{word}\nand {word}"},
        ]
    }
    for word in ("cat", "dog", "film", "good", "sun")
] * 4
LABELS = [{"text": f"film {i}", "label": ("bad", "good")[i % 2]} for i in range(40)]
SHORT = ("--steps", 2, "--batch-size", 2, "--lr", "1e-3")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_chat_file_is_tuned_resumed_and_scored(folder, tiny_model, zopeft_command):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    jsonl(folder / "chat.jsonl", CHATS)
    words = ("tune", tiny_model, "--data", "chat.jsonl", *SHORT, "data.template=plain")
    words = (*words, "data.held_out=0.2")
    code, _, err = zopeft_command(*words, "--out", "out")
    assert code == 0, err
    for line in (
        "data: chat.jsonl: conversations, of which the assistant's turns are taught "
        "(data.kind=messages), in the chat template; scored by perplexity",
        "rows: 16 to train and 4 to score on, held out by a draw (--validation FILE: others)",
    ):
        assert line in err.splitlines()
    run = json.loads((folder / "out" / "run.json").read_text())
    assert set(run["metrics"]["after"]) == {"loss", "perplexity", "examples"}
    assert (run["task"], run["data"]["kind"]) == ("chat", "messages")
    counts = run["data"]["train"]
    assert (counts["rows"], counts["available"], counts["cut"]) == (16, 16, 0)
    assert f"tokens: {counts['taught']:,} of {counts['tokens']:,} taught" in err
    assert run["recipe"]["data"]["template"] == "plain"
    assert run["recipe"]["task"]["train_examples"] is None

    again = zopeft_command.json(*words, "--steps", 4, "--out", "out", "--resume")
    assert again["steps"] == 4
    line = zopeft_command.refused(*words, "--steps", 5, "--out", "out", "--resume", "data.system=x")
    assert "data.system None -> 'x'" in line

    # Plain transformers and PEFT find the template beside the adapter.
    tokenizer = AutoTokenizer.from_pretrained("out")
    asked = tokenizer.apply_chat_template(
        CHATS[0]["messages"][:1], add_generation_prompt=True, return_tensors="pt"
    )
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), "out")
    assert model.generate(**asked, max_new_tokens=2).shape[1] > asked["input_ids"].shape[1]

    held = ("eval", tiny_model, "--adapter", "out", "--data", "chat.jsonl")
    # Of the rows that the tuning has held out, not of the usual share.
    scores = zopeft_command.json(*held, "--split", "validation")
    assert scores["metrics"]["examples"] == 4
    assert zopeft_command.json(*held, "--split", "train")["metrics"]["examples"] == 16
    assert scores["metrics"]["loss"] == pytest.approx(again["metrics"]["after"]["loss"], rel=1e-5)
    assert zopeft_command.json(*held)["metrics"]["examples"] == 20
    from zopeft.jobs.served import load_served

    recipe = load_recipe("eval", overrides=[f"model.name={tiny_model}"])
    assert load_served(recipe, "out", lambda _: None)[1].chat_template == PLAIN
    f1 = zopeft_command.json(*held, "data.metric=f1", "data.max_new_tokens=3", "--examples", 2)
    assert set(f1["metrics"]) == {"f1", "exact_match", "loss", "examples"}


def test_a_template_that_is_missing_is_told_and_the_embedded_model_has_a_plain_one(
    folder, tiny_model, zopeft_command
):
    jsonl(folder / "chat.jsonl", CHATS)
    line = zopeft_command.refused("tune", tiny_model, "--data", "chat.jsonl", "--out", "out")
    assert "this tokenizer has no chat template; give data.template=plain" in line
    assert not (folder / "out").exists()
    code, _, err = zopeft_command("eval", "--data", "chat.jsonl", "--examples", 2)
    assert code == 0
    assert "the embedded model has no chat template" in err
    assert "rows: 2 of 20 to score on" in err and "task.eval_examples=2, null takes all" in err


def test_all_rows_count_and_labels_stay_those_of_the_tuning(folder, tiny_model, zopeft_command):
    jsonl(folder / "films.jsonl", LABELS * 30)
    words = ("tune", tiny_model, "--data", "films.jsonl", *SHORT, "training.eval_batch_size=64")
    code, _, err = zopeft_command(*words, "--out", "out", "training.eval_before=false")
    assert code == 0, err
    assert "rows: 1,080 to train and 120 to score on" in err
    assert "(data.kind=label) bad, good; scored by accuracy" in err
    jsonl(folder / "one.jsonl", LABELS[1:2])
    held = ("eval", tiny_model, "--adapter", "out", "--data", "one.jsonl")
    assert zopeft_command.json(*held)["data"]["labels"] == ["bad", "good"]
    assert "one label" in zopeft_command.refused("eval", tiny_model, "--data", "one.jsonl")


def test_caps_are_said_and_benchmarks_keep_theirs(folder, zopeft_command):
    plain, named = Recipe().task, load_recipe("tune", overrides=["task.name=sst2"])
    assert (named.task.train_examples, named.task.eval_examples) == (1000, 200)
    assert (plain.train_examples, "data" in named.to_dict()) == (1000, False)
    own = load_recipe("tune", overrides=["task.data=a.jsonl", "task.eval_examples=7"]).task
    assert (own.train_examples, own.eval_examples) == (None, 7)
    jsonl(folder / "task.yaml", [])
    file = load_recipe("eval", overrides=["task.name=task.yaml"]).task
    assert file.train_examples is None
    bench = load_recipe("bench", overrides=["task.name=task.yaml"]).task
    assert bench.train_examples == 1000
    code, _, err = zopeft_command("eval", "--task", "sst2", "--examples", 8)
    assert code == 0
    assert "rows: 8 of 200 to score on; task.eval_examples=8, null takes all" in err
    code, _, err = zopeft_command("eval", "--task", "sst2", "--split", "train", "--examples", 8)
    assert code == 0 and "rows: 8 of 500 to score on" in err


MESSAGES = json.dumps(CHATS[0])
BAD = {
    "columns": ('{"a": 1}', (), "columns that tell of no known kind of data, got 'a'; understood:"),
    "two kinds": (
        MESSAGES[:-1] + ', "question": "a", "answers": "b"}',
        (),
        "may be messages or question, got",
    ),
    "no assistant": (
        '{"messages": [{"role": "user", "content": "a"}]}',
        (),
        "bad.jsonl, line 1: column 'messages': no turn of the assistant",
    ),
    "order": (
        '{"messages": [{"role": "assistant", "content": "a"}]}',
        (),
        "bad.jsonl, line 1: column 'messages', turn 1: the assistant's turn must follow a user's",
    ),
    "wish": (MESSAGES, ("data.labels=[a,b]",), "data.labels: goes with other data than messages"),
    "loss": (MESSAGES, ("task.loss=choice",), "bad has no choices"),
    "split": (MESSAGES, ("--split", "test"), "--split: bad.jsonl is one file, got 'test'"),
    "validation": (MESSAGES, ("--validation", "x"), "--validation: no such file or split, got 'x'"),
    "kind": (MESSAGES, ("data.kind=chat",), "data.kind: unknown kind of data, got 'chat'"),
    "template": (MESSAGES, ("data.template=x",), "data.template: no such template or file, got 'x"),
    "share": (MESSAGES, ("data.held_out=1",), "data.held_out: must be at most 0.9, got 1"),
    "names": (MESSAGES, ("data.columns.text=x",), "no column 'x' in bad.jsonl, got 'messages'"),
    "named task": (
        MESSAGES,
        ("--task", "sst2", "data.system=x"),
        "data.system: goes with own data",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_one_line_and_nothing_written(case, folder, tiny_model, zopeft_command):
    text, words, line = BAD[case]
    (folder / "bad.jsonl").write_text(f"{text}\n" * 4)
    words = ("tune", tiny_model, "--data", "bad.jsonl", "--out", "out", *SHORT, *words)
    assert line in zopeft_command.refused(*words)
    assert not (folder / "out").exists()


def test_without_task_and_data(zopeft_command):
    line = zopeft_command.refused("tune")
    assert "--task: no task given; give --data PATH for rows of your own, or one of: sst2" in line
    assert "no task given; give one of: sst2" in zopeft_command.refused("bench", "--data", "x")
