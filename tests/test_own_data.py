"""Own data: files, folders, splits, and what is held out."""

import gzip
import json

import pytest

from zopeft.errors import InputError
from zopeft.tasks import load_rows, load_task
from zopeft.tasks.own import open_data, open_scored
from zopeft.tasks.own_task import name_of, own_task

ROWS = [{"prompt": f"question {i}:", "completion": f" answer {i}"} for i in range(40)]


def jsonl(path, rows=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fails(match, *where, **options):
    with pytest.raises(InputError, match=match) as caught:
        open_data(*where, **options)
    assert "\n" not in str(caught.value)


def numbers(source):
    return [int(row["completion"].split()[1]) for row in source.rows]


def test_every_format_gives_the_same_rows(tmp_path):
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    jsonl(tmp_path / "a.jsonl")
    (tmp_path / "b.json").write_text(json.dumps(ROWS))
    (tmp_path / "c.JSONL.gz").write_bytes(gzip.compress(text.encode()))
    for name, comma in (("d.csv", ","), ("e.tsv", "\t")):
        lines = [comma.join(ROWS[0]), *(comma.join(row.values()) for row in ROWS)]
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "f.parquet")
    first = open_data(tmp_path / "a.jsonl")
    assert len(first.train.rows) == 36 and all(row in ROWS for row in first.train.rows)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) == 6
    for name in files:
        found = open_data(str(tmp_path / name))
        assert found.train.rows == first.train.rows
        assert found.validation.rows == first.validation.rows


def test_a_part_is_held_out_by_a_draw_of_its_own(tmp_path):
    path = jsonl(tmp_path / "a.jsonl")
    data = open_data(path)
    held = numbers(data.validation)
    assert (len(held), sorted(held)) == (4, held) and held != [36, 37, 38, 39]
    assert sorted(numbers(data.train) + held) == list(range(40))
    assert numbers(data.train) == sorted(numbers(data.train))
    assert data.validation.place(0) == f"{path}, line {held[0] + 1}"
    assert "held out" in data.told
    assert len(open_data(path, held_out=0.5).validation.rows) == 20
    many = jsonl(tmp_path / "many.jsonl", ROWS * 200)
    assert len(open_data(many).validation.rows) == 500
    two = open_data(jsonl(tmp_path / "two.jsonl", ROWS[:2]))
    assert (len(two.train.rows), len(two.validation.rows)) == (1, 1)
    fails(
        "too few rows to hold any out for validation, got 1", jsonl(tmp_path / "b.jsonl", ROWS[:1])
    )


def test_splits_of_a_folder(tmp_path):
    jsonl(tmp_path / "train.jsonl", ROWS[:30])
    jsonl(tmp_path / "dev.jsonl", ROWS[30:35])
    jsonl(tmp_path / "extra.jsonl", ROWS[35:])
    data = open_data(tmp_path)
    assert (numbers(data.train)[-1], numbers(data.validation)) == (29, [30, 31, 32, 33, 34])
    data = open_data(tmp_path, split="extra", validation="train")
    assert (numbers(data.train)[0], len(data.validation.rows)) == (35, 30)
    data = open_data(tmp_path, split="validation")
    assert (len(data.train.rows), len(data.validation.rows)) == (4, 1)
    other = jsonl(tmp_path / "other" / "x.jsonl", ROWS[:3])
    assert numbers(open_data(tmp_path, validation=str(other)).validation) == [0, 1, 2]
    assert numbers(open_data(tmp_path, validation=str(other.parent)).validation) == [0, 1, 2]
    assert numbers(open_data(other, validation=str(tmp_path / "dev.jsonl")).train) == [0, 1, 2]
    alone = open_data(jsonl(tmp_path / "alone" / "anything.jsonl").parent)
    assert len(alone.train.rows) == 36
    fails("--split: no split 'tests'.*one of its splits: dev|train", tmp_path, split="tests")
    fails("--validation: no such file or split, got 'nope'.*train", tmp_path, validation="nope")
    (tmp_path / "empty").mkdir()
    fails("no data files in this folder", tmp_path / "empty")
    fails(r"a.jsonl is one file, got 'test'", jsonl(tmp_path / "f" / "a.jsonl"), split="test")


def test_what_is_not_there_and_what_is_not_read(tmp_path):
    fails("no such file or folder, got 'nope.jsonl'", "nope.jsonl")
    fails("no such file or folder, got 'data/nope.csv'", "data/nope.csv")
    fails("no such file or folder", "/nope/at/all")
    (tmp_path / "a.txt").write_text("x")
    fails("a format that is not read.*; .jsonl, .json, .csv", tmp_path / "a.txt")
    pytest.importorskip("datasets")
    fails("hub can't be reached and no/such was not downloaded", "no/such:config")


def test_a_data_set_on_the_hub(monkeypatch):
    datasets = pytest.importorskip("datasets")
    tables = datasets.DatasetDict(
        train_sft=datasets.Dataset.from_list(ROWS[:30]),
        test_sft=datasets.Dataset.from_list(ROWS[30:]),
    )
    asked = []

    def load(path, config, split, revision):
        asked.append((path, config, split, revision))
        return tables

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = open_data("some/chats:small", split="train_sft", validation="test_sft")
    assert (len(data.train.rows), numbers(data.validation)[0]) == (30, 30)
    assert asked == [("some/chats", "small", None, None)]
    assert len(open_data("some/chats", split="test_sft").train.rows) == 9
    fails(
        "no split 'train' in some/chats; name one of its splits: train_sft, test_sft", "some/chats"
    )
    assert name_of("some/chats:small") == "chats-small"


def test_rows_to_score_on(tmp_path):
    path = jsonl(tmp_path / "a.jsonl")
    assert numbers(open_scored(path).validation) == list(range(40))
    held = open_data(path).validation
    assert open_scored(path, "validation").validation.rows == held.rows
    assert len(open_scored(path, "train").validation.rows) == 36
    folder = jsonl(tmp_path / "f" / "train.jsonl").parent
    assert open_scored(folder).validation.rows == held.rows
    jsonl(folder / "test.jsonl", ROWS[:2])
    assert len(open_scored(folder, "test").validation.rows) == 2
    with pytest.raises(InputError, match="no split 'dev'"):
        open_scored(folder, "dev")


def test_all_rows_are_loaded_and_know_where_they_stand(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [*ROWS[:3], {"prompt": "x", "completion": 3}] * 2)
    task = own_task(open_data(path))
    assert task.name == "a"
    rows = load_rows(task, "train")
    assert len(rows) == rows.available == 7
    few = load_rows(task, "train", limit=2, seed=1)
    assert (len(few), few.available) == (2, 7)
    line = int(few.place(1).rpartition(" ")[2])
    assert few[1] == [*ROWS[:3], {"prompt": "x", "completion": 3}][(line - 1) % 4]
    faulty = jsonl(tmp_path / "b.jsonl", [*ROWS[:9], {"prompt": "", "completion": "a"}])
    with pytest.raises(InputError, match=r"b.jsonl, line 10: column 'prompt' is empty"):
        load_rows(own_task(open_data(faulty, held_out=0.01)), "train")
    mixed = jsonl(tmp_path / "v.jsonl", [{"prompt": "a", "response": "b"}])
    with pytest.raises(InputError, match=r"v.jsonl: column 'completion' missing"):
        load_rows(own_task(open_data(path, validation=str(mixed))), "validation")


def test_a_file_of_rows_for_a_task_by_name(tmp_path):
    rows = [{"sentence": f"film {i}", "label": i % 2} for i in range(20)]
    path = jsonl(tmp_path / "films.jsonl", rows)
    assert len(load_rows(load_task("sst2"), "train", data=path)) == 18
