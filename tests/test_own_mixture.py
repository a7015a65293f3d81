"""Mixtures: several files by weights, what they are told to be, and runs on them."""

import json
from collections import Counter

import pytest
from test_own_data import jsonl

from zopeft.errors import InputError
from zopeft.tasks import load_rows
from zopeft.tasks.kinds import Wishes
from zopeft.tasks.mixture import mixed_scored, mixed_task
from zopeft.tasks.shares import epoch, shares_of
from zopeft.tasks.task import Conversation, Passage

TURNS = [
    {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"a{n}"}]}
    for n in range(60)
]
ORDERS = [{"instruction": f"say {n}", "output": f"b{n}"} for n in range(20)]
TEXTS = [{"text": f"c{n}"} for n in range(20)]
LABELS = [{"text": f"d{n}", "label": ("no", "yes")[n % 2]} for n in range(20)]
OTHERS = [{"text": f"e{n}", "label": ("no", "maybe")[n % 2]} for n in range(20)]
QUESTIONS = [{"question": f"f{n}", "answer": "one\ntwo" if n == 3 else "one"} for n in range(20)]
LINES = [{"question": f"f{n}", "answer": "one"} for n in range(20)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = {"turns": TURNS, "orders": ORDERS, "texts": TEXTS, "labels": LABELS}
    for name, rows in {**named, "others": OTHERS, "several": QUESTIONS, "lines": LINES}.items():
        jsonl(tmp_path / f"{name}.jsonl", rows)
    return tmp_path


@pytest.mark.parametrize(
    ("weights", "sizes", "wanted"),
    [
        ((0.7, 0.3), (10, 10), (0.7, 0.3)),
        ((2, 6), (10, 10), (0.25, 0.75)),
        ((None, None), (30, 10), (0.75, 0.25)),
        ((None, 0.4, None), (30, 5, 10), (0.45, 0.4, 0.15)),
    ],
)
def test_weights_are_shares(weights, sizes, wanted):
    mixture = dict(zip("abc", weights, strict=False))
    assert shares_of(mixture, sizes) == pytest.approx(wanted)


@pytest.mark.parametrize("sizes", [(50, 50), (90, 10), (10, 90)])
def test_an_epoch_has_every_row_and_the_shares_at_every_place(sizes):
    chosen = epoch(sizes, (0.7, 0.3), 0)
    counts = Counter(chosen)
    assert set(counts) == set(range(100))
    for first, end in ((0, sizes[0]), (sizes[0], 100)):
        times = [counts[row] for row in range(first, end)]
        assert max(times) - min(times) <= 1
    for part in (chosen, chosen[: len(chosen) // 2]):
        share = sum(row < sizes[0] for row in part) / len(part)
        assert share == pytest.approx(0.7, abs=0.03)
    assert epoch(sizes, (0.7, 0.3), 0) == chosen
    assert epoch((17, 90), (0.7, 0.3), 0) != epoch((17, 90), (0.7, 0.3), 1)
    assert len(epoch(sizes, (1e-6, 1 - 1e-6), 0)) == 401


def test_rows_become_what_their_own_part_is_and_know_their_place(folder):
    task = mixed_task(
        {"turns.jsonl": 0.5, "orders.jsonl": None, "texts.jsonl": 0.2}, wishes=Wishes(system="Hi.")
    )
    rows = load_rows(task, "train")
    kinds = Counter()
    for index, row in enumerate(rows):
        name, _, line = rows.place(index).partition(".jsonl, line ")
        example = task.example(row)
        assert isinstance(example, Passage if name == "texts" else Conversation)
        known = {"turns": TURNS, "orders": ORDERS, "texts": TEXTS}[name]
        assert row == known[int(line) - 1]
        kinds[name] += 1
    assert kinds == {"turns": 54, "orders": 32, "texts": 22}
    held = load_rows(task, "validation")
    assert Counter(held.place(n).partition(".")[0] for n in range(10)) == {
        "turns": 6,
        "orders": 2,
        "texts": 2,
    }
    trained = [dict(row) for row in rows]
    assert not any(dict(row) in trained for row in held)
    capped = load_rows(task, "train", limit=10)
    assert [dict(row) for row in capped] == [
        dict(row) for row in load_rows(task, "train", None, False, 10)
    ]


def test_rows_of_another_file_are_scored_as_what_they_are(folder):
    task = mixed_task({"turns.jsonl": 1, "orders.jsonl": 1}, validation="texts.jsonl")
    held = load_rows(task, "validation")
    assert [task.example(row) for row in held] == [Passage(row["text"]) for row in TEXTS]
    assert task.own.data.told == "those of texts.jsonl"


@pytest.mark.parametrize(
    ("mixture", "options", "match"),
    [
        (
            {"turns": 1, "labels": 1},
            {},
            r"turns.jsonl \(messages\) and labels.jsonl \(label\) are not",
        ),
        ({"labels": 1, "others": 1}, {}, "different classes, got 'no, yes and maybe, no'; name"),
        ({"lines": 1, "several": 1}, {}, "end differently"),
        ({"turns": 0.6, "orders": 0}, {}, "orders.jsonl: a weight is a positive number, got 0"),
        ({"turns": "x", "orders": 1}, {}, "a weight is a positive number"),
        ({"turns": 1, "orders": None}, {}, "leave nothing for orders.jsonl"),
        ({"turns": 1, "texts": 1}, {"columns": {"text": "body"}}, "no column 'body' in any part"),
        ({"texts": 1, "orders": 1}, {"wishes": Wishes(labels=("a", "b"))}, "data.labels"),
        ({"turns": 1, "gone": 1}, {}, "no such file or folder, got 'gone.jsonl'"),
    ],
)
def test_what_can_not_be_mixed_is_told_in_one_line(folder, mixture, options, match):
    with pytest.raises(InputError, match=match) as caught:
        mixed_task({f"{name}.jsonl": weight for name, weight in mixture.items()}, **options)
    assert "\n" not in str(caught.value)


def test_classes_named_for_both_and_columns_of_one(folder):
    jsonl(folder / "stars.jsonl", [{"body": row["text"], "label": row["label"]} for row in OTHERS])
    wishes, names = Wishes(labels=("no", "yes", "maybe")), {"text": "body"}
    task = mixed_task({"labels.jsonl": 1, "stars.jsonl": 1}, columns=names, wishes=wishes)
    options = {task.example(row).choices for row in load_rows(task, "train")}
    assert options == {(" no", " yes", " maybe")}


def test_a_mixture_is_tuned_resumed_and_scored(folder, tiny_model, zopeft_command):
    parts = ("--data", "turns.jsonl=0.5", "--data", "orders.jsonl=0.5")
    short = ("--steps", 4, "--batch-size", 2, "--lr", "1e-3", "training.eval_before=false")
    words = ("tune", tiny_model, *parts, *short, "data.template=plain")
    code, _, err = zopeft_command(*words, "--out", "whole")
    assert code == 0, err
    said = err.splitlines()
    assert (
        "mixture: turns.jsonl 0.5 (messages, 54 rows); "
        "orders.jsonl 0.5 (instruction, 18 rows, each 3 times)"
    ) in said
    assert any("108 to train and 8 to score on, of each part: held out" in one for one in said)
    zopeft_command.json(*words, "--steps", 2, "--out", "part")
    again = zopeft_command.json(*words, "--out", "part", "--resume")
    assert [one["taken"] for one in again["data"]["mixture"]] == [54, 54]
    weights = [
        (folder / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "part")
    ]
    assert weights[0] == weights[1]
    line = zopeft_command.refused(
        "tune",
        tiny_model,
        "--data",
        "turns.jsonl=0.9",
        "--data",
        "orders.jsonl=0.1",
        *short,
        "data.template=plain",
        "--steps",
        5,
        "--out",
        "part",
        "--resume",
    )
    assert "data.mixture" in line
    held = zopeft_command.json(
        "eval",
        tiny_model,
        "--adapter",
        "whole",
        "--data",
        "turns.jsonl",
        "--data",
        "orders.jsonl",
        "--split",
        "validation",
    )
    run = json.loads((folder / "whole" / "run.json").read_text())
    assert held["metrics"]["loss"] == pytest.approx(run["metrics"]["after"]["loss"], rel=1e-5)


def test_rows_to_score_on_are_read_as_those_of_the_tuning(folder):
    jsonl(folder / "stars.jsonl", [{"body": row["text"], "label": row["label"]} for row in OTHERS])
    before = Wishes(labels=("no", "yes", "maybe"), system="not heeded")
    names = ["labels.jsonl", "stars.jsonl"]
    task = mixed_scored(names, columns_before={"text": "body"}, wishes_before=before)
    assert task.own.labels == ("no", "yes", "maybe")
    assert [task.example(row).label for row in load_rows(task, "validation")][20:22] == [0, 2]


def test_one_file_on_the_command_line_goes_before_a_recipe_s_mixture(folder):
    from zopeft.cli.options import data_flags
    from zopeft.recipe.load import load_recipe

    (folder / "r.yaml").write_text("data: {mixture: {a.jsonl: 1, b.jsonl: 2}}\n")
    assert load_recipe("tune", "r.yaml").places == ["a.jsonl", "b.jsonl"]
    assert load_recipe("tune", "r.yaml", [], data_flags(["c.jsonl"], [])).places == ["c.jsonl"]
    (folder / "s.yaml").write_text("task: {data: c.jsonl}\n")
    more: list[str] = []
    flags = data_flags(["a.jsonl=2", "b=1.jsonl"], more)
    made = load_recipe("tune", "s.yaml", more, flags)
    assert made.data.mixture == {"a.jsonl": 2.0, "b=1.jsonl": None}
    with pytest.raises(InputError, match="leave one out"):
        load_recipe("tune", "s.yaml", ["data.mixture={a.jsonl: 1}"])
    with pytest.raises(InputError, match="the same twice, got 'a'"):
        data_flags(["a=1", "a=2"], [])
