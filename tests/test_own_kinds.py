"""Kinds of own data: what columns tell, what is taught of a row, and one line for the rest."""

import json

import pytest
from chat_templates import chat_tokenizer

from zopeft.errors import InputError
from zopeft.tasks import TaskDataset, load_rows
from zopeft.tasks.kinds import KINDS, Wishes, recognise
from zopeft.tasks.own import open_data
from zopeft.tasks.own_task import own_task

USER, BOT = {"role": "user", "content": "a film"}, {"role": "assistant", "content": "good"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def made(path, rows, kind=None, columns=None, **wishes):
    return own_task(open_data(write(path, rows)), kind, columns, Wishes(**wishes))


def fails(path, rows, match, **options):
    with pytest.raises(InputError, match=match) as caught:
        load_rows(made(path, rows, **options), "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        (["messages"], "messages"),
        (["conversations", "source"], "messages"),
        (["prompt", "prompt_id", "messages"], "messages"),
        (["prompt", "completion"], "completion"),
        (["prompt", "response", "score"], "completion"),
        (["instruction", "input", "output", "text"], "instruction"),
        (["instruction", "context", "response", "category"], "instruction"),
        (["id", "title", "context", "question", "answers"], "question"),
        (["question", "answer"], "question"),
        (["text", "label", "label_text"], "label"),
        (["idx", "sentence", "label"], "label"),
        (["text", "url"], "text"),
    ],
)
def test_columns_tell_the_kind(columns, name):
    assert recognise(columns, "my.jsonl").name == name
    assert recognise(columns, "my.jsonl", name) is KINDS[name]


def test_columns_that_tell_nothing_or_two_things():
    with pytest.raises(InputError) as caught:
        recognise(["chosen", "rejected"], "my.jsonl")
    line = str(caught.value)
    assert line.startswith("my.jsonl: columns that tell of no known kind of data, got 'chosen, re")
    for kind in KINDS.values():
        assert kind.shape in line
    assert "data.columns=" in line and "--task FILE.yaml" in line
    with pytest.raises(
        InputError, match=r"may be messages or question.*say which with data.kind=m"
    ):
        recognise(["messages", "question", "answers"], "my.jsonl")
    with pytest.raises(InputError, match="unknown kind of data, got 'message'; did you mean 'mes"):
        recognise(["messages"], "my.jsonl", "message")
    with pytest.raises(InputError, match="label needs a column label, got 'text'"):
        recognise(["text"], "my.jsonl", "label")


def test_labels_are_the_options(tmp_path):
    rows = [{"text": f"film {i}\n", "label": ["meh", "good", "bad"][i % 3]} for i in range(12)]
    task = made(tmp_path / "films.v1.csv.jsonl", rows)
    assert (task.name, task.kind, task.metric, task.loss) == (
        "films",
        "choice",
        "accuracy",
        "answer",
    )
    example = task.example(rows[0])
    assert example.prompt == "film 0\nLabel:"
    assert (example.choices, example.label) == ((" bad", " good", " meh"), 2)
    assert task.own.told == "" and task.own.labels == ("bad", "good", "meh")


def test_labels_by_number_take_the_names_that_there_are(tmp_path):
    path = tmp_path / "films.jsonl"
    rows = [{"text": f"film {i}", "label": i % 11} for i in range(33)]
    bare = made(path, rows)
    assert bare.example(rows[10]).choices[:3] == (" 0", " 1", " 2")
    assert bare.own.labels[-1] == "10"
    assert "data.labels" in bare.own.told
    two = [{"text": "a", "label": i % 2} for i in range(8)]
    for value in (1, 1.0, "1", True, "pos"):
        example = made(path, two, labels=("neg", "pos")).example({"text": "a", "label": value})
        assert (example.choices, example.label) == ((" neg", " pos"), 1)
    beside = [{**row, "label_text": ["neg", "pos"][row["label"]]} for row in two]
    assert made(path, beside).example(beside[1]).choices == (" neg", " pos")
    fails(
        path,
        [*two, {"text": "a", "label": 2}],
        "must be 0 to 1 or one of neg, pos",
        labels=("neg", "pos"),
    )


def test_labels_named_in_parquet(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["terrible", "great"])
    table = datasets.Dataset.from_dict({"text": ["a", "b"] * 4, "label": [0, 1] * 4})
    table = table.cast_column("label", names)
    table.to_parquet(tmp_path / "films.parquet")
    datasets.DatasetDict(train=table).save_to_disk(tmp_path / "saved")
    for place in ("films.parquet", "saved"):
        task = own_task(open_data(tmp_path / place))
        assert task.example({"text": "a", "label": 1}).choices == (" terrible", " great")


def test_labels_that_are_no_classes(tmp_path):
    path = tmp_path / "films.jsonl"
    fails(path, [{"text": "a", "label": "x"}] * 4, "one label; a classification needs two, got 'x'")
    fails(path, [{"text": "a", "label": i / 7} for i in range(100)], "labels in 100 rows are no cl")
    rows = [{"text": "a", "label": i % 2} for i in range(4)]
    fails(path, [*rows, {"text": "a", "label": None}], r"line 5: column 'label' is empty")
    fails(path, [*rows, {"text": " ", "label": 1}], r"films.jsonl, line 5: column 'text' is empty")


def test_completions_stand_as_they_are(tmp_path):
    rows = [{"prompt": "2+2=", "completion": "4"}, {"prompt": "Say: ", "completion": "a\nb"}]
    task = made(tmp_path / "a.jsonl", rows * 4)
    assert (task.kind, task.metric, task.stop) == ("text", "perplexity", None)
    tokenizer = chat_tokenizer()
    data = TaskDataset(task, rows, tokenizer, 64)
    for row, one in zip(rows, data.encoded, strict=True):
        whole = row["prompt"] + row["completion"] + "</s>"
        assert one.prompts[0] + one.options[0] == tuple(
            tokenizer("<s>" + whole, add_special_tokens=False).input_ids
        )
        assert tokenizer.decode(one.options[0]).strip() == row["completion"] + "</s>"
    assert task.own.told == ""
    glued = [{"prompt": "Translate cat", "completion": "chat"}] * 4
    assert "taught as one word" in made(tmp_path / "a.jsonl", glued).own.told
    stopped = made(tmp_path / "a.jsonl", rows * 4, stop="###", metric="f1")
    assert (stopped.kind, stopped.stop, stopped.max_new_tokens) == ("answer", "###", 128)
    assert stopped.example(rows[0]).answers == ("4###",)
    assert tokenizer.eos_token_id not in TaskDataset(stopped, rows, tokenizer, 64)[0].options[0]


def test_completions_as_turns(tmp_path):
    rows = [{"prompt": [USER], "completion": [BOT]}]
    task = made(tmp_path / "a.jsonl", rows * 4)
    chat = made(tmp_path / "b.jsonl", [{"messages": [USER, BOT]}] * 4)
    tokenizer = chat_tokenizer("chatml")
    same = TaskDataset(chat, [{"messages": [USER, BOT]}], tokenizer, 64)
    assert TaskDataset(task, rows, tokenizer, 64).encoded == same.encoded
    fails(tmp_path / "a.jsonl", [*rows * 3, {"prompt": "a", "completion": [BOT]}], "must both be")


def test_instructions_take_the_template_where_there_is_one(tmp_path):
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3\n"},
        {"instruction": "Hi", "output": "yes"},
    ]
    task = made(tmp_path / "a.jsonl", rows * 4, system="Be kind.")
    plain, chat = chat_tokenizer(), chat_tokenizer("chatml")
    one, two = TaskDataset(task, rows, plain, 128).encoded
    assert plain.decode(one.prompts[0] + one.options[0]) == (
        "<s>Be kind.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n3</s>"
    )
    assert "Input" not in plain.decode(two.prompts[0])
    one = TaskDataset(task, rows, chat, 128)[0]
    assert chat.decode(one.prompts[0] + one.options[0]) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nAdd.\n\n1 2<|im_end|>\n"
        "<|im_start|>assistant\n3<|im_end|>"
    )
    fails(tmp_path / "a.jsonl", [*rows, {"instruction": "a", "output": None}], "'output' is empty")


def test_questions_end_with_a_line_or_a_token(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        {
            "question": "Who?",
            "context": "Ann came.",
            "answers": {"text": ["Ann", "ann"], "answer_start": [0]},
        },
        {"question": "Who?", "context": "", "answers": ["Bob"]},
        {"question": "Who?", "context": None, "answers": "Bob"},
    ]
    task = made(path, rows)
    assert (task.kind, task.metric, task.stop, task.own.told) == ("answer", "f1", "\n", "")
    assert task.example(rows[0]).prompt == "Context: Ann came.\nQuestion: Who?\nAnswer:"
    assert task.example(rows[0]).answers == (" Ann\n", " ann\n")
    assert task.example(rows[2]).prompt == "Question: Who?\nAnswer:"
    lines = [*rows, {"question": "Which?", "context": "", "answers": "a\nb"}]
    task = made(path, lines)
    assert task.stop is None and "several lines" in task.own.told
    assert task.example(lines[3]).answers == (" a\nb",) and task.example(lines[3]).ends
    fails(
        path, [*rows, {"question": "a", "context": "", "answers": {"text": []}}], "holds no answer"
    )
    fails(
        path, [*rows, {"question": "a", "context": "", "answers": {"x": 1}}], "'answers' is empty"
    )


def test_running_text_is_taught_to_its_end_in_pieces(tmp_path):
    rows = [{"text": "the cat sat on the mat " * 20}, {"text": "a"}]
    task = made(tmp_path / "a.jsonl", rows * 2)
    tokenizer = chat_tokenizer()
    ids = tokenizer(rows[0]["text"], add_special_tokens=False).input_ids
    data = TaskDataset(task, rows[:1], tokenizer, 32)
    assert [t for one in data.encoded for t in one.options[0]] == [*ids, tokenizer.eos_token_id]
    assert {one.prompts[0] for one in data.encoded} == {(tokenizer.bos_token_id,)}
    assert max(map(len, data.encoded)) == 32 and sum(one.cut for one in data.encoded) == 0
    fails(tmp_path / "a.jsonl", [*rows, {"text": ""}], "line 3: column 'text' is empty")


def test_columns_of_other_names(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"review": "a", "stars": i % 2, "text": "unused", "label": None} for i in range(8)]
    task = made(path, rows, columns={"text": "review", "label": "stars"})
    assert load_rows(task, "train")[0] == {"text": "a", "label": 0}
    fails(
        path,
        rows,
        "no column 'reviews'.*got 'review, stars, text, label'",
        columns={"text": "reviews"},
    )
    bad = [*rows, {"review": "", "stars": 1, "text": "b"}]
    fails(
        path,
        bad,
        "a.jsonl, line 9: column 'text' is empty",
        columns={"text": "review", "label": "stars"},
    )


def test_wishes_for_other_kinds(tmp_path):
    path, rows = tmp_path / "a.jsonl", [{"text": "a", "label": i % 2} for i in range(4)]
    fails(
        path, rows, "data.system: goes with other data than label, got 'x'.*data.labels", system="x"
    )
    chats = [{"messages": [USER, BOT]}] * 4
    fails(path, chats, "data.labels: goes with other data than messages", labels=("a", "b"))
    fails(
        path, chats, "data.metric: must be perplexity or f1 or accuracy for messages", metric="bleu"
    )
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = "{{ date }}{% for m in messages %}{{ m.content }}{% endfor %}"
    task = made(path, chats, template_options={"date": "Monday: "})
    one = TaskDataset(task, chats[:1], tokenizer, 64)[0]
    assert tokenizer.decode(one.prompts[0] + one.options[0]).strip() == "Monday: a filmgood</s>"
