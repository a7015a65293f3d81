"""Custom tasks: a YAML file that works, and one line for everything wrong with one."""

import json

import pytest

from zopeft.errors import InputError
from zopeft.tasks import load_rows, load_task
from zopeft.tasks.task import RowError

WEATHER = r"""
name: weather
prompt: "{report}\nWill it rain?"
choices: ["No", "Yes"]
label: rain
hub: {path: organisation/weather, revision: abc}
splits: {validation: dev}
"""

CAPITALS = """
name: capitals
prompt: "Country: {country} {{really}} \\nCapital: "
answer: capital
max_new_tokens: 10
data: capitals
"""


def read(tmp_path, text):
    path = tmp_path / "task.yaml"
    path.write_text(text)
    return load_task(path)


def problems(tmp_path, text):
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_choices(tmp_path):
    task = read(tmp_path, WEATHER)
    assert (task.name, task.kind, task.metric, task.loss) == (
        "weather",
        "choice",
        "accuracy",
        "answer",
    )
    assert task.columns == ("report", "rain")
    assert task.hub.splits["validation"] == "dev"
    assert task.hub.revision == "abc"
    example = task.example({"report": "Clouds {x}.", "rain": "Yes"})
    assert example.prompt == "Clouds {x}.\nWill it rain?"
    assert (example.choices, example.label) == ((" No", " Yes"), 1)
    for value in (0, False, "0", "No"):
        assert task.example({"report": "Sun.", "rain": value}).label == 0
    for value in (2, "maybe", None, -1):
        with pytest.raises(RowError, match="0 to 1 or one of No, Yes"):
            task.example({"report": "Sun.", "rain": value})


def test_choices_from_columns(tmp_path):
    text = 'name: a\nprompt: "{q}\\n"\nchoices: ["{one}", "{two}"]\nlabel: right\nloss: answer'
    task = read(tmp_path, text)
    assert task.columns == ("q", "one", "two", "right")
    example = task.example({"q": "Q", "one": "x", "two": "y", "right": "y"})
    assert (example.choices, example.label) == (("x", "y"), 1)


def test_answers_and_data_beside_the_file(tmp_path):
    task = read(tmp_path, CAPITALS)
    assert (task.kind, task.metric, task.max_new_tokens) == ("answer", "f1", 10)
    (tmp_path / "capitals").mkdir()
    row = {"country": "France", "capital": ["Paris", "Paname"]}
    (tmp_path / "capitals" / "train.jsonl").write_text(json.dumps(row))
    rows = load_rows(task, "train")
    example = task.example(rows[0])
    assert example.prompt == "Country: France {really} \nCapital:"
    assert example.answers == (" Paris\n", " Paname\n")
    with pytest.raises(RowError, match="no answer"):
        task.example({"country": "France", "capital": []})
    with pytest.raises(RowError, match="'country' is empty"):
        task.example({"country": None, "capital": "x"})


def test_unknown_key_has_a_suggestion(tmp_path):
    assert "did you mean 'choices'" in problems(tmp_path, WEATHER.replace("choices", "choises"))


def test_all_problems_in_one_line(tmp_path):
    text = 'prompt: "{0}"\nchoices: [yes, "No"]\nmetric: f1\nlos: x\nmax_new_tokens: 0'
    line = problems(tmp_path, text)
    for part in ("name: missing", "unknown key 'los'", "{column}", "quotes", "label: missing"):
        assert part in line
    assert "metric: must be accuracy" in line
    assert "max_new_tokens" in line
    assert line.count(" | ") >= 6


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("{report}", "{report", "expected '}'"),
        ("{report}", "{report.x}", "column"),
        ("{report}", "report", "no {column}"),
        ('["No", "Yes"]', '["No"]', "two or more"),
        ("label: rain", "answer: rain", "either choices"),
        ("path: org", "pth: org", "did you mean 'path'"),
        ("{validation: dev}", "[dev]", "splits"),
        ("name: weather", "name: [", "not valid YAML"),
        ("name: weather", "name: 3", "text is needed"),
    ],
)
def test_faults(tmp_path, old, new, match):
    assert old in WEATHER
    assert match in problems(tmp_path, WEATHER.replace(old, new))


def test_no_file_and_no_keys(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_task(tmp_path / "none.yaml")
    assert "keys are needed" in problems(tmp_path, "- a\n- b")


def test_a_task_without_data(tmp_path):
    task = read(tmp_path, 'name: a\nprompt: "{q}"\nanswer: a')
    with pytest.raises(InputError, match="names no data"):
        load_rows(task, "train")
    with pytest.raises(InputError, match="no embedded samples for a"):
        load_rows(task, "train", embedded=True)
