"""What is shown of data, and the same data in Python."""

import json

import pytest
from test_own_data import jsonl
from test_own_runs import CHATS, LABELS, folder  # noqa: F401

import zopeft
from zopeft.errors import InputError
from zopeft.jobs.show import pieces
from zopeft.tasks import TaskDataset, evaluate, load_rows, load_task


def test_what_is_taught_is_marked(folder, zopeft_command):  # noqa: F811
    jsonl(folder / "chat.jsonl", CHATS)
    code, out, err = zopeft_command("data", "show", "--data", "chat.jsonl", "--examples", 2)
    assert code == 0, err
    assert "User: Say dog.\nAssistant:[[ dog\nand dog</s>]]" in out
    assert out.count("--- chat.jsonl, line ") == 2
    assert "rows: 18 to train and 2 to score on" in err
    assert "\x1b" not in out


def test_counts_and_examples_as_json(folder, tiny_model, zopeft_command):  # noqa: F811
    jsonl(folder / "chat.jsonl", CHATS)
    (folder / "own.jinja").write_text("{% for m in messages %}{{ m.content }}|{% endfor %}")
    words = ("data", "show", tiny_model, "--data", "chat.jsonl", "data.template=own.jinja")
    shown = zopeft_command.json(*words)
    assert len(shown["examples"]) == 3
    counts = shown["data"]["train"]
    assert (counts["rows"], shown["data"]["validation"]["rows"], counts["cut"]) == (18, 2, 0)
    assert counts["share_taught"] == round(counts["taught"] / counts["tokens"], 4)
    example = shown["examples"][0]
    assert (example["tokens"], example["tokens_taught"]) == (
        len(example["ids"]),
        sum(example["taught"]),
    )
    assert [one["taught"] for one in example["pieces"]] == [False, True]
    assert example["pieces"][1]["text"].endswith("|</s>")
    cut = zopeft_command.json(*words, "task.max_length=8")
    assert cut["data"]["train"]["longest"] == 8 and cut["data"]["train"]["cut"] > 0
    assert cut["examples"][0]["tokens_cut"] == example["tokens"] - 8
    assert "are longer than task.max_length=8" in " ".join(cut["lines"])
    data = zopeft.load_data("chat.jsonl", _tokenizer(tiny_model), template="own.jinja")
    (one, *_), ids = data.train, example["ids"]
    assert list(one.prompts[0] + one.options[0]) == ids


def test_a_task_by_name_and_options(folder, tiny_data, zopeft_command):  # noqa: F811
    words = ("data", "show", "--task", "sst2", "--data", tiny_data, "--examples", 1)
    code, out, _ = zopeft_command(*words)
    assert code == 0 and "It was[[ great]]" in out.replace("[[ terrible]]", "[[ great]]")
    code, out, _ = zopeft_command(*words, "task.loss=choice")
    assert "options:  terrible |  great" in out
    jsonl(folder / "films.jsonl", LABELS)
    code, out, _ = zopeft_command("data", "show", "--data", "films.jsonl", "task.loss=choice")
    assert "options:  bad |  good" in out
    assert "no task given" in zopeft_command.refused("data", "show")
    assert "must be at least 0" in zopeft_command.refused(*words[:-1], -1)


def test_taught_tokens_are_in_colour_on_a_terminal(monkeypatch, capsys):
    from rich.console import Console

    from zopeft.cli.output import Output

    screen = Output()
    text = [("a [x]", False), ("b", True)]
    screen.marked(text)
    assert capsys.readouterr().out == "a [x][[b]]\n"
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen._tables = Console(force_terminal=True, color_system="standard")
    screen.marked(text)
    assert capsys.readouterr().out == "a [x]\x1b[1;32mb\x1b[0m\n"


def test_answers_that_can_never_be_generated_are_told(folder, zopeft_command):  # noqa: F811
    (folder / "task.yaml").write_text('name: a\nprompt: "{q}"\nanswer: a\ndata: rows.jsonl\n')
    jsonl(folder / "rows.jsonl", [{"q": "x", "a": "one\ntwo"}, {"q": "y", "a": "one"}] * 10)
    words = ("data", "show", "--task", "task.yaml", "--examples", 1)
    lines = zopeft_command.json(*words)["lines"]
    told = [line for line in lines if "answers hold" in line]
    assert len(told) == 1 and "of 18 answers hold '\\n'" in told[0] and "`stop: TEXT`" in told[0]
    (folder / "task.yaml").write_text((folder / "task.yaml").read_text() + "stop: null\n")
    assert not [line for line in zopeft_command.json(*words)["lines"] if "hold" in line]


def test_a_model_without_a_configuration(folder, tiny_model, zopeft_command):  # noqa: F811
    jsonl(folder / "films.jsonl", LABELS)
    for path in tiny_model.iterdir():
        if path.name.startswith("tokenizer"):
            (folder / "m" / path.name).parent.mkdir(exist_ok=True)
            (folder / "m" / path.name).write_bytes(path.read_bytes())
    line = zopeft_command.refused("data", "show", folder / "m", "--data", "films.jsonl")
    assert "m: no usable " in line


def test_kinds_are_listed_with_their_columns(zopeft_command):
    listed = {one["name"]: one["about"] for one in zopeft_command.json("list", "kinds")}
    assert len(listed) == 7
    assert listed["label"] == "text, label: texts and their classes"


def test_pieces_are_the_whole_text():
    from chat_templates import chat_tokenizer

    tokenizer = chat_tokenizer()
    text = "the café said “hi” 🎬 twice"
    ids = tokenizer(text).input_ids
    for shift in range(len(ids)):
        marks = [(k + shift) % 3 == 0 for k in range(len(ids))]
        found = pieces(tokenizer, ids, marks)
        assert "".join(one["text"] for one in found) == tokenizer.decode(ids)


def _tokenizer(path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def test_a_trainer_takes_what_is_loaded(folder, tiny_model):  # noqa: F811
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    jsonl(folder / "films.jsonl", LABELS)
    tokenizer = _tokenizer(tiny_model)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(target_modules=["q_proj"])
    )
    data = zopeft.load_data("films.jsonl", tokenizer, model=model, labels=("bad", "good"))
    assert (len(data.train), len(data.validation), data.task.metric) == (36, 4, "accuracy")
    args = zopeft.ZOTrainingArguments(
        output_dir="out", method="mezo", max_steps=2, learning_rate=1e-3, journal=False
    )
    trainer = zopeft.ZOTrainer(model, args, data.collator, data.train, data.validation)
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    scores = evaluate(model, tokenizer, data.task, data.rows["validation"], max_length=512)
    assert loss == pytest.approx(scores["loss"], rel=1e-4)
    with pytest.raises(InputError, match="no such file or folder"):
        zopeft.load_data("nope.jsonl", tokenizer)
    with pytest.raises(InputError, match=r"data.system: goes with other data"):
        zopeft.load_data("films.jsonl", tokenizer, system="x")


def test_a_task_loads_as_by_hand(tiny_model, tiny_data):
    tokenizer = _tokenizer(tiny_model)
    data = zopeft.load_data(tiny_data, tokenizer, task="sst2")
    task = load_task("sst2")
    same = TaskDataset(task, load_rows(task, "train", tiny_data), tokenizer, 512)
    assert data.train.encoded == same.encoded and json.dumps(data.rows["train"])
