"""What a run of the command line does not import, and when it leaves packages alone."""

import gc
import importlib.util
import json
import sys

import pytest

from zopeft.cli.spared import Process, spare
from zopeft.jobs.libraries import Collector
from zopeft.recipe.load import load_recipe

BOTH = {"bitsandbytes", "datasets"}


@pytest.fixture
def fresh(monkeypatch):
    """A process of zopeft's own that has imported neither."""
    monkeypatch.setattr(Process, "own", True)
    for name in BOTH:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    Collector.held = False
    gc.enable()
    for name in BOTH:
        if sys.modules.get(name, 0) is None:
            del sys.modules[name]


@pytest.fixture(autouse=True)
def staying(monkeypatch):
    """This process ends as others do."""
    monkeypatch.setattr("zopeft.cli.spared.leave_at_once", lambda: None)


def spared(*words, adapter=None, **flags):
    spare(load_recipe("tune", None, words, flags), adapter)
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


def test_the_base_of_an_adapter_may_be_any_model(fresh):
    assert spared("task.name=sst2", adapter="folder") == set()
    assert Collector.held


def test_the_collector_is_held_back_for_the_imports_whatever_they_are(fresh):
    spared("task.name=sst2", "objective.name=reward", "objective.rewards=[mine.py:score]")
    assert Collector.held and not gc.isenabled()


def test_in_a_program_of_somebody_elses_nothing_is_left_out(fresh, monkeypatch):
    monkeypatch.setattr(Process, "own", False)
    assert spared("task.name=sst2") == set()
    assert gc.isenabled() and not Collector.held
