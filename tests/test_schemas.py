"""The JSON schemas that editors read say what the readers take."""

import json
from pathlib import Path

import pytest
import yaml

from zopeft.recipe.json_schema import recipe_schema
from zopeft.recipe.keys import recipe_keys
from zopeft.recipe.load import shipped_recipes
from zopeft.tasks.custom import KEYS, check_settings
from zopeft.tasks.task_schema import SCHEMA_LINE, task_schema

ROOT = Path(__file__).parents[1]
GOOD = [
    {"name": "a", "prompt": "{x}", "choices": ["No", "Yes"], "label": "y"},
    {"name": "a", "prompt": "{x}", "choices": ["1", "2"], "label": "y", "label_by": "index"},
    {"name": "a", "prompt": "{x}", "answer": "y", "metric": "f1", "stop": None},
    {"name": "a", "prompt": "{x}", "answer": "y", "hub": {"path": "a/b"}, "splits": {"test": "t"}},
]
BAD = [
    {"prompt": "{x}", "answer": "y"},
    {"name": "a", "prompt": "{x}"},
    {"name": "a", "prompt": "{x}", "answer": "y", "choices": ["No", "Yes"], "label": "y"},
    {"name": "a", "prompt": "{x}", "choices": ["No"], "label": "y"},
    {"name": "a", "prompt": "{x}", "choices": [False, True], "label": "y"},
    {"name": "a", "prompt": "{x}", "choices": ["No", "Yes"]},
    {"name": "a", "prompt": "{x}", "choices": ["No", "Yes"], "label": "y", "metric": "f1"},
    {"name": "a", "prompt": "{x}", "choices": ["No", "Yes"], "label": "y", "stop": "#"},
    {"name": "a", "prompt": "{x}", "answer": "y", "loss": "choice"},
    {"name": "a", "prompt": "{x}", "answer": "y", "label": "z"},
    {"name": "a", "prompt": "{x}", "answer": "y", "max_new_tokens": 0},
    {"name": "a", "prompt": "{x}", "answer": "y", "stop": ""},
    {"name": "a", "prompt": "{x}", "answer": "y", "hub": {"config": "c"}},
    {"name": "a", "prompt": "{x}", "answer": "y", "promt": "z"},
    {"name": " ", "prompt": "{x}", "answer": "y"},
]


def validator(schema):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize(
    ("settings", "good"), [(s, True) for s in GOOD] + [(s, False) for s in BAD]
)
def test_the_schema_of_tasks_takes_what_the_reader_takes(settings, good):
    assert (check_settings(settings) == []) == good
    assert validator(task_schema()).is_valid(settings) == good


def test_every_key_is_described():
    schema = task_schema()
    assert tuple(schema["properties"]) == KEYS
    assert all(one.get("description") for one in schema["properties"].values())


def test_task_files_of_the_docs_and_examples_are_valid():
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "zopeft" / "tasks" / "custom.py"]
    found = [yaml.safe_load(p.read_text()) for p in (ROOT / "examples").rglob("*.yaml")]
    for page in pages:
        for part in page.read_text().split("```yaml\n")[1:]:
            found.append(yaml.safe_load(part.partition("```")[0]))
    tasks = [one for one in found if isinstance(one, dict) and "prompt" in one]
    assert tasks
    for one in tasks:
        assert list(validator(task_schema()).iter_errors(one)) == []


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_valid(name):
    settings = yaml.safe_load(shipped_recipes()[name].read_text())
    assert list(validator(recipe_schema()).iter_errors(settings)) == []


def test_a_misspelt_recipe_is_not():
    check = validator(recipe_schema())
    assert not check.is_valid({"trainin": {}})
    assert not check.is_valid({"training": {"step": 3}})
    assert not check.is_valid({"training": {"steps": "many"}})
    assert check.is_valid({"method": {"lr": "auto"}, "training": {"steps": 3}})


def test_every_recipe_key_is_in_the_schema():
    sections = recipe_schema()["$defs"]
    for key in recipe_keys():
        section, _, name = key.key.partition(".")
        assert name in sections[section]["properties"]


def test_commands_print_them(zopeft_command):
    for words, made in ((("data", "schema"), task_schema), (("recipe", "schema"), recipe_schema)):
        code, out, _ = zopeft_command(*words)
        assert code == 0 and json.loads(out) == json.loads(json.dumps(made()))
    assert SCHEMA_LINE in (ROOT / "docs" / "guides" / "data.md").read_text()
