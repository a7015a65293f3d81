"""The libraries of a job: imported while the collector is held back, the models read once."""

import gc
import sys
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers.utils import import_utils

from zopeft.jobs import libraries
from zopeft.jobs.libraries import Collector, hold_collector, load_libraries, read_models_once


@pytest.fixture
def reader(monkeypatch):
    """Keeps transformers as it is; the collector is back whatever happens."""
    name = "create_import_structure_from_path"
    monkeypatch.setattr(import_utils, name, getattr(import_utils, name))
    yield import_utils
    Collector.held = False
    gc.enable()


def test_a_collector_that_is_held_back_goes_on_past_what_is_there_by_then(reader, monkeypatch):
    monkeypatch.setattr(libraries, "LIBRARIES", ())
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    hold_collector()
    assert not gc.isenabled()
    circle = []
    circle.append(circle)
    frozen = gc.get_freeze_count()
    load_libraries("colorsys")
    assert gc.isenabled() and "colorsys" in sys.modules and not Collector.held
    assert gc.get_freeze_count() > frozen
    assert not any(one is circle for one in gc.get_objects())


def test_it_goes_on_where_a_library_cannot_be_imported(reader, monkeypatch):
    monkeypatch.setattr(libraries, "LIBRARIES", ("zopeft.no_such_library",))
    hold_collector()
    with pytest.raises(ModuleNotFoundError):
        load_libraries()
    assert gc.isenabled() and not Collector.held


def test_where_it_is_not_held_back_nothing_is_imported(monkeypatch):
    before = import_utils.create_import_structure_from_path
    load_libraries("zopeft.no_such_library")
    assert import_utils.create_import_structure_from_path is before
    monkeypatch.setattr(gc, "isenabled", lambda: False)
    # Somebody else has it off, and wants it off.
    hold_collector()
    assert not Collector.held


def test_the_folder_of_models_is_read_once(tmp_path):
    (tmp_path / "__init__.py").touch()
    read = []

    @lru_cache
    def create(place):
        read.append(place)
        return {}

    module = SimpleNamespace(create_import_structure_from_path=create)
    whole = module.create_import_structure_from_path(tmp_path)
    for _ in range(2):
        read_models_once(module)
        again = module.create_import_structure_from_path(str(tmp_path / "__init__.py"))
        assert again is whole
    assert read == [tmp_path]
    # A transformers that reads in another way is left alone.
    read_models_once(SimpleNamespace())


def test_what_is_found_in_a_model_is_the_same(reader):
    file = str(Path(import_utils.__file__).parents[1] / "models" / "llama" / "__init__.py")
    expected = reader.create_import_structure_from_path(file)
    assert hasattr(reader.create_import_structure_from_path, "cache_info")
    read_models_once(reader)
    assert not hasattr(reader.create_import_structure_from_path, "cache_info")
    assert reader.create_import_structure_from_path(file) == expected != {}
