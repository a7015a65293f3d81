"""Holes, numbers and labels in rows: one rule, whatever file they come from."""

from __future__ import annotations

import json
import math

import pytest

from zopeft.errors import InputError
from zopeft.tasks import load_rows, load_task
from zopeft.tasks.task import RowError
from zopeft.tasks.values import choice, index, words

FORMATS = ("jsonl", "json", "columns", "csv", "parquet")
YES_NO = 'name: t\nprompt: "Q: {q}\\nA:"\nchoices: ["No", "Yes"]\nlabel: y\ndata: data\n'
FREE = 'name: t\nprompt: "Q: {q}\\nA:"\nanswer: a\ndata: data\n'
RATING = 'name: t\nprompt: "{q}"\nchoices: ["1", "2", "3"]\nlabel: y\ndata: data\n'


def write(folder, rows, kind):
    """Writes rows as a user's tools would, holes and all."""
    folder.mkdir(exist_ok=True)
    names = list(rows[0])
    if kind == "jsonl":
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "json":
        (folder / "train.json").write_text(json.dumps(rows))
    elif kind == "columns":
        columns = {name: [row[name] for row in rows] for name in names}
        (folder / "train.json").write_text(json.dumps(columns))
    elif kind == "csv":
        cells = [["" if row[n] is None else str(row[n]) for n in names] for row in rows]
        lines = [",".join(names), *(",".join(f'"{c}"' for c in row) for row in cells)]
        (folder / "train.csv").write_text("\n".join(lines) + "\n")
    else:
        arrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(arrow.Table.from_pylist(rows), folder / "train.parquet")


def task_of(tmp_path, text):
    (tmp_path / "t.yaml").write_text(text)
    return load_task(tmp_path / "t.yaml")


@pytest.mark.parametrize("kind", FORMATS)
def test_whole_numbers_are_written_without_a_point(kind, tmp_path):
    task = task_of(tmp_path, FREE)
    write(tmp_path / "data", [{"q": 7.0, "a": 3.0}, {"q": 8.0, "a": 4.0}], kind)
    rows = load_rows(task, "train")
    found = [task.example(row) for row in rows]
    if kind == "csv":  # what is written there is what the user wrote
        assert found[0].answers == (" 3.0\n",)
        return
    assert [e.prompt for e in found] == ["Q: 7\nA:", "Q: 8\nA:"]
    assert [e.answers for e in found] == [(" 3\n",), (" 4\n",)]


@pytest.mark.parametrize("hole", [None, math.nan])
@pytest.mark.parametrize("column", ["q", "a"])
@pytest.mark.parametrize("kind", [k for k in FORMATS if k != "csv"])
def test_a_hole_is_refused_by_file_row_and_column(kind, column, hole, tmp_path):
    task = task_of(tmp_path, FREE)
    rows = [{"q": 1.5, "a": 2.5}, {"q": 2.5, "a": 3.5}, {"q": 3.5, "a": 4.5}]
    rows[1][column] = hole
    write(tmp_path / "data", rows, kind)
    with pytest.raises(InputError) as caught:
        load_rows(task, "train")
    line = str(caught.value)
    place = "line 2" if kind == "jsonl" else "row 2"
    assert f"{place}: column '{column}' is empty" in line
    assert "\n" not in line
    assert "data/train." in line


def test_holes_of_other_kinds():
    class NAType:  # as pandas calls it
        pass

    for value in (None, math.nan, NAType()):
        with pytest.raises(RowError, match="'c' is empty"):
            words(value, "c")
    for value in (math.inf, b"x", [1], {"a": 1}):
        with pytest.raises(RowError, match="'c' must be text"):
            words(value, "c")
    numpy = pytest.importorskip("numpy")
    pairs = ((3.0, "3"), (-2.0, "-2"), (0.5, "0.5"), ("3.0", "3.0"), ("", ""), (1e300, "1e+300"))
    for value, text in (*pairs, (numpy.float64(3), "3"), (numpy.int64(4), "4"), (7, "7")):
        assert words(value, "c") == text


def test_a_list_of_answers_with_a_hole(tmp_path):
    task = task_of(tmp_path, FREE)
    assert task.example({"q": "x", "a": ["one", " ", 2.0]}).answers == (" one\n", " 2\n")
    with pytest.raises(RowError, match="'a' is empty"):
        task.example({"q": "x", "a": ["one", None]})


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("task", ["sst2", YES_NO])
@pytest.mark.parametrize("right", [1, 1.0, True])
def test_a_label_is_the_same_in_every_format(kind, task, right, tmp_path):
    names = ("sentence", "label") if task == "sst2" else ("q", "y")
    given = load_task("sst2") if task == "sst2" else task_of(tmp_path, task)
    write(tmp_path / "data", [dict(zip(names, ("x", right), strict=True))], kind)
    rows = load_rows(given, "train", data=tmp_path / "data")
    assert given.example(rows[0]).label == 1


@pytest.mark.parametrize("kind", FORMATS)
def test_numbers_as_choices_are_asked_about_in_every_format(kind, tmp_path):
    write(tmp_path / "data", [{"q": "x", "y": 1}], kind)
    with pytest.raises(InputError, match=r"the text of choice 0 and the index of choice 1; say"):
        load_rows(task_of(tmp_path, RATING), "train")
    for by, right in (("text", 0), ("index", 1)):
        task = task_of(tmp_path, RATING + f"label_by: {by}\n")
        assert task.example(load_rows(task, "train")[0]).label == right


@pytest.mark.parametrize(
    "value", ["²", "--1", "1_0", "٣", "+1", "1.5", 1.5, -1, "-1", 2, "2.0", None, math.nan, "", []]
)
def test_what_is_no_label_is_refused_by_name(value, tmp_path):
    for task, row in (
        (load_task("sst2"), {"sentence": "x", "label": value}),
        (task_of(tmp_path, YES_NO), {"q": "x", "y": value}),
    ):
        with pytest.raises(RowError, match=r"must be 0 to 1.*, got "):
            task.example(row)
    assert index(value, 2) is None


def test_a_label_too_long_for_an_integer():
    assert index("1" * 5000, 3) is None


def test_true_is_the_choice_that_says_so():
    for value in (True, "true", "True"):
        assert choice(value, ["Yes", "No"], "y") == 0
        assert choice(value, ["False", "True"], "y") == 1
        assert choice(value, ["bad", "good"], "y") == 1
        assert choice(value, ["Yes", "No"], "y", by="index") == 1
        with pytest.raises(RowError, match="0 to 2 or one of a, b, c"):
            choice(value, ["a", "b", "c"], "y")


def test_a_choice_by_its_text_alone():
    assert choice(5, ["1", "5"], "y", by="text") == 1
    with pytest.raises(RowError, match="must be 1, 5, got 0"):
        choice(0, ["1", "5"], "y", by="text")
    with pytest.raises(RowError, match="must be 0 to 1, got '5'"):
        choice("5", ["1", "5"], "y", by="index")
    with pytest.raises(RowError, match="choices 0 and 1 have the same text"):
        choice("a", ["a", "a "], "y")


def test_a_choice_without_text(tmp_path):
    text = 'name: t\nprompt: "{q}"\nchoices: ["{one}", "{two}"]\nlabel: y\n'
    task = task_of(tmp_path, text)
    with pytest.raises(RowError, match=r"choice 1, '\{two\}', is empty"):
        task.example({"q": "x", "one": "a", "two": " ", "y": 0})
    with pytest.raises(RowError, match="column 'two' is empty"):
        task.example({"q": "x", "one": "a", "two": math.nan, "y": 0})


def test_a_title_that_is_missing():
    row = {"title": math.nan, "context": "c", "question": "q", "answers": {"text": ["a"]}}
    with pytest.raises(RowError, match="'title' is empty"):
        load_task("squad").example(row)


def test_errors_of_a_task_file_say_which_keys_there_are(tmp_path):
    for text in ("- a\n", "a: 1\n", YES_NO + "label_by: number\n", FREE + "label_by: text\n"):
        with pytest.raises(InputError, match="its keys are name, prompt, choices, label"):
            task_of(tmp_path, text)
    with pytest.raises(InputError, match="label_by: goes with choices"):
        task_of(tmp_path, FREE + "label_by: text\n")
    with pytest.raises(InputError, match=r"a YAML file .NAME.yaml. with the keys"):
        load_task("wether")
