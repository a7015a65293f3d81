"""What a run of the command line does not import, and when it leaves packages alone."""

import importlib.util
import json
import sys

import pytest

from zopeft.cli.spared import Process, spare
from zopeft.recipe.load import load_recipe

BOTH = {"bitsandbytes", "datasets"}


@pytest.fixture
def fresh(monkeypatch):
    """A process of zopeft's own that has imported neither."""
    monkeypatch.setattr(Process, "own", True)
    for name in BOTH:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in BOTH:
        if sys.modules.get(name, 0) is None:
            del sys.modules[name]


def spared(*words, **flags):
    spare(load_recipe("tune", None, words, flags))
    found = {name for name in BOTH if sys.modules.get(name, 0) is None}
    assert all(importlib.util.find_spec(name) is None for name in found)
    return found


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), BOTH),
        (("model.load_in_8bit=true",), {"datasets"}),
        (("model.load_in_4bit=true",), {"datasets"}),
        (("task.data=organisation/rows",), {"bitsandbytes"}),
        (("model.name=organisation/model",), set()),
        # A function of the user's may import what it likes.
        (("objective.name=reward", "objective.rewards=[mine.py:score]"), set()),
        (("objective.name=metric", "objective.metric=evaluate:./mine"), set()),
    ],
)
def test_what_a_run_has_no_use_for_is_as_if_it_were_not_there(fresh, words, expected):
    assert spared("task.name=sst2", *words) == expected


def test_a_folder_of_quantised_weights_or_of_datasets_is_left_to_them(fresh, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {}}))
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "dataset_dict.json").write_text("{}")
    words = ("task.name=sst2", f"model.name={tmp_path}", f"task.data={tmp_path / 'rows'}")
    assert spared(*words) == set()
    (tmp_path / "config.json").write_text("{}")
    assert spared(*words) == {"bitsandbytes"}


def test_in_a_program_of_somebody_elses_nothing_is_left_out(fresh, monkeypatch):
    monkeypatch.setattr(Process, "own", False)
    assert spared("task.name=sst2") == set()
