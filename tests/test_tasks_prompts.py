"""The seven tasks' prompts, letter by letter, and what they refuse."""

import pytest

from zopeft.errors import InputError
from zopeft.tasks import TASKS, load_task
from zopeft.tasks.task import RowError

ROWS = {
    "sst2": {"sentence": "a gorgeous film ", "label": 1},
    "cb": {"premise": "It rains.", "hypothesis": "it is wet", "label": 2, "idx": 0},
    "copa": {
        "premise": "My body cast a shadow over the grass.",
        "choice1": "The sun was rising.",
        "choice2": "I cut the grass.",
        "question": "cause",
        "label": 0,
    },
    "boolq": {"passage": "Snow is white.", "question": "is snow white", "label": 1},
    "wsc": {
        "text": "Mark told Pete many lies about himself.",
        "span1_text": "Mark",
        "span2_text": "Himself",
        "label": 0,
    },
    "squad": {
        "title": "Paris",
        "context": "Paris is in France.",
        "question": " Where is Paris? ",
        "answers": {"text": ["France", "in France"], "answer_start": [12, 9]},
    },
    "drop": {
        "passage": "Tom has 3 cats.",
        "question": "How many cats?",
        "answers_spans": {"spans": ["3"], "types": ["number"]},
    },
}

# What the authors of MeZO show the model: prompt, then the options or the answer.
TEXTS = {
    "sst2": ("a gorgeous film It was", (" terrible", " great")),
    "cb": (
        'Suppose It rains. Can we infer that "it is wet"? Yes, No, or Maybe?\n',
        ("Yes", "No", "Maybe"),
    ),
    "copa": (
        "My body cast a shadow over the grass because",
        (" the sun was rising.", " I cut the grass."),
    ),
    "boolq": ("Snow is white. Is snow white?\n", ("No", "Yes")),
    "wsc": (
        "Mark told Pete many lies about himself.\nIn the previous sentence, does the pronoun "
        '"himself" refer to Mark? Yes or No?\n',
        ("No", "Yes"),
    ),
    "squad": (
        "Title: Paris\nContext: Paris is in France.\nQuestion: Where is Paris?\nAnswer:",
        (" France\n", " in France\n"),
    ),
    "drop": ("Passage: Tom has 3 cats.\nQuestion: How many cats?\nAnswer:", (" 3\n",)),
}


def test_all_seven_are_here():
    assert len(TASKS) == 7
    assert set(TASKS) == set(ROWS) == set(TEXTS)


@pytest.mark.parametrize("name", list(TASKS))
def test_prompt(name):
    task = load_task(name)
    example = task.example(ROWS[name])
    prompt, options = TEXTS[name]
    assert example.prompt == prompt
    if task.kind == "choice":
        assert example.choices == options
        assert example.answers == ()
        assert example.label == ROWS[name]["label"]
    else:
        assert example.answers == options
        assert example.choices is None


@pytest.mark.parametrize("name", list(TASKS))
def test_entry(name):
    task = load_task(name)
    assert task.name == name
    assert TASKS.about(name)
    assert task.hub is not None
    assert task.missing(ROWS[name]) == []
    for column in task.columns:
        row = {key: value for key, value in ROWS[name].items() if key != column}
        if column in ROWS[name]:
            with pytest.raises(RowError, match=column):
                task.example(row)


def test_tasks_teach_the_tokens_of_the_answer_unless_told_otherwise():
    assert {load_task(name).loss for name in TASKS} == {"answer"}


def test_boolq_takes_the_original_answers():
    task = load_task("boolq")
    row = {"passage": "P.", "question": "Q?", "answer": False}
    assert task.example(row).label == 0
    assert task.example(row | {"answer": True}).label == 1
    assert task.example(row | {"answer": "true"}).label == 1
    with pytest.raises(RowError, match="true or false"):
        task.example(row | {"answer": "maybe"})


def test_copa_effect_and_question_mark():
    row = ROWS["copa"] | {"question": "effect", "premise": "Why? "}
    assert load_task("copa").example(row).prompt == "Why? so"
    with pytest.raises(RowError, match="'cause' or 'effect'"):
        load_task("copa").example(row | {"question": "reason"})


@pytest.mark.parametrize("label", [-1, 2, "x", None, 0.5])
def test_label_out_of_range(label):
    with pytest.raises(RowError, match="0 to 1"):
        load_task("sst2").example(ROWS["sst2"] | {"label": label})


def test_labels_of_csv_and_parquet():
    for label in ("1", 1.0, True):
        assert load_task("sst2").example(ROWS["sst2"] | {"label": label}).label == 1


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("sst2", "sentence", 3),
        ("sst2", "sentence", "  "),
        ("squad", "answers", "France"),
        ("squad", "answers", {"text": []}),
        ("squad", "answers", {"text": [" "]}),
        ("drop", "answers_spans", {"spans": 3}),
    ],
)
def test_faulty_values(name, column, value):
    with pytest.raises(RowError, match=column):
        load_task(name).example(ROWS[name] | {column: value})


def test_unknown_task():
    with pytest.raises(InputError, match="did you mean 'sst2'") as caught:
        load_task("sst-2")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
