"""Encoded examples that are kept from one run to the next."""

from __future__ import annotations

import os

import pytest
from transformers import AutoTokenizer

from zopeft.embedded import MODEL_DIR
from zopeft.tasks import TaskDataset, encoding_cache, load_task
from zopeft.tasks import dataset as module
from zopeft.tasks.encoding import Encoded

SST2 = load_task("sst2")
ROWS = [{"sentence": f"film number {i}", "label": i % 2} for i in range(6)]
ODD = [
    Encoded(((1, 2), (1, 2)), ((3,), (4, 5)), label=1),
    Encoded(((),), ((7, 8, 9),), None, (True, False, True), 4),
    Encoded(((6,),), ((7,),), None, ()),
    Encoded(((6,),), ((7,),)),
]


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL_DIR)


@pytest.fixture
def made(monkeypatch, tmp_path):
    """Keeps whatever is encoded, and lists how many rows were."""
    counts = []
    real = module.encode_all

    def counted(tokenizer, examples, *rest):
        counts.append(len(examples))
        return real(tokenizer, examples, *rest)

    monkeypatch.setattr(module, "encode_all", counted)
    monkeypatch.setattr(encoding_cache, "LARGE", 1)
    monkeypatch.setenv(encoding_cache.VARIABLE, str(tmp_path / "a" / "kept"))
    return counts


def files(tmp_path):
    return sorted((tmp_path / "a" / "kept").glob("*"))


@pytest.mark.parametrize("loss", ["choice", "answer"])
def test_the_same_rows_are_encoded_once(made, tokenizer, tmp_path, loss):
    first = TaskDataset(SST2, ROWS, tokenizer, 64, loss)
    again = TaskDataset(SST2, ROWS, AutoTokenizer.from_pretrained(MODEL_DIR), 64, loss)
    assert made == [6]
    assert again.encoded == first.encoded
    assert again.owners == first.owners == list(range(6))
    assert [file.suffix for file in files(tmp_path)] == [".npz"]


def test_whatever_changes_the_tokens_is_encoded_anew(made, tokenizer):
    TaskDataset(SST2, ROWS, tokenizer, 64)
    TaskDataset(SST2, ROWS, tokenizer, 63)
    TaskDataset(SST2, ROWS, tokenizer, 64, "choice" if SST2.loss == "answer" else "answer")
    TaskDataset(SST2, [*ROWS[1:], ROWS[0]], tokenizer, 64)
    tokenizer.add_tokens(["number"])
    TaskDataset(SST2, ROWS, tokenizer, 64)
    assert made == [6] * 5


def test_every_field_of_an_example_comes_back(made, tokenizer):
    place = encoding_cache.EncodingCache(tokenizer, [SST2.example(ROWS[0])])
    assert place.read() is None
    place.write(ODD, [0, 0, 1, 2])
    encoded, owners = place.read()
    assert (encoded, owners) == (ODD, [0, 0, 1, 2])
    assert [one.cut for one in encoded] == [0, 4, 0, 0]
    assert {type(token) for one in encoded for ids in one.options for token in ids} == {int}


@pytest.mark.parametrize("harm", ["cut", "empty", "other"])
def test_a_damaged_file_costs_its_time_and_is_written_again(made, tokenizer, tmp_path, harm):
    first = TaskDataset(SST2, ROWS, tokenizer, 64)
    (file,) = files(tmp_path)
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[:-40], "empty": b"", "other": b"PK" + whole[2:60]}[harm])
    assert TaskDataset(SST2, ROWS, tokenizer, 64).encoded == first.encoded
    assert made == [6, 6]
    assert TaskDataset(SST2, ROWS, tokenizer, 64).encoded == first.encoded
    assert made == [6, 6]


def test_arrays_that_do_not_fit_each_other_are_no_examples():
    arrays = encoding_cache._packed(ODD, [0, 0, 1, 2])
    assert encoding_cache._unpacked(**arrays)[0] == ODD
    for name in arrays:
        with pytest.raises(ValueError, match="not what was kept"):
            encoding_cache._unpacked(**{**arrays, name: arrays[name][:-1]})


def test_where_nothing_can_be_kept_rows_are_encoded_each_time(
    made, tokenizer, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    for place in ("", str(tmp_path / "file" / "kept")):
        monkeypatch.setenv(encoding_cache.VARIABLE, place)
        for _ in range(2):
            TaskDataset(SST2, ROWS, tokenizer, 64)
    assert made == [6] * 4
    monkeypatch.setenv(encoding_cache.VARIABLE, str(tmp_path / "few"))
    monkeypatch.setattr(encoding_cache, "LARGE", 7)
    TaskDataset(SST2, ROWS, tokenizer, 64)
    assert not (tmp_path / "few").exists()


def test_the_folder_is_the_users_cache_where_nothing_is_said(monkeypatch, tmp_path):
    monkeypatch.delenv(encoding_cache.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert encoding_cache.folder() == tmp_path / "zopeft" / "encoded"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert encoding_cache.folder() == tmp_path / ".cache" / "zopeft" / "encoded"


def test_files_that_were_used_longest_ago_make_room(made, tokenizer, tmp_path, monkeypatch):
    for age, length in enumerate((61, 62, 63)):
        TaskDataset(SST2, ROWS, tokenizer, length)
        newest = max(files(tmp_path), key=os.path.getmtime)
        os.utime(newest, (1000 + age, 1000 + age))
    # The oldest is read, so that the one after it is the first to go.
    TaskDataset(SST2, ROWS, tokenizer, 61)
    assert made == [6, 6, 6]
    monkeypatch.setattr(encoding_cache, "ROOM", 3 * newest.stat().st_size + 100)
    TaskDataset(SST2, ROWS, tokenizer, 64)
    assert len(files(tmp_path)) == 3
    for length in (61, 63, 64):
        TaskDataset(SST2, ROWS, tokenizer, length)
    assert made == [6] * 4
    TaskDataset(SST2, ROWS, tokenizer, 62)
    assert made == [6] * 5
