"""Rows: local files of every kind, draws by seed, one line for each mistake."""

import json
import random

import pytest

from zopeft.errors import InputError
from zopeft.tasks import load_rows, load_task

SST2 = load_task("sst2")
LINES = [{"sentence": f"film {i}", "label": i % 2} for i in range(20)]


def write(path, rows=LINES):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fails(match, task=SST2, split="train", **where):
    with pytest.raises(InputError, match=match) as caught:
        load_rows(task, split, **where)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_jsonl_in_file_order(tmp_path):
    write(tmp_path / "train.jsonl")
    assert load_rows(SST2, "train", data=tmp_path) == LINES
    assert load_rows(SST2, "train", data=str(tmp_path)) == LINES


def test_json_and_csv_and_parquet(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps({"data": LINES}))
    write(tmp_path / "validation.json")  # lines in a .json file
    csv = "sentence,label\n" + "".join(f'"film, {i}",{i % 2}\n' for i in range(4))
    (tmp_path / "test.csv").write_text(csv)
    assert load_rows(SST2, "train", data=tmp_path) == LINES
    assert load_rows(SST2, "validation", data=tmp_path) == LINES
    assert load_rows(SST2, "test", data=tmp_path)[3] == {"sentence": "film, 3", "label": "1"}
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder = tmp_path / "data"
    folder.mkdir()
    for part in (0, 1):
        table = arrow.Table.from_pylist(LINES[part * 10 : part * 10 + 10])
        parquet.write_table(table, folder / f"train-0000{part}-of-00002.parquet")
    for name in ("train.json", "validation.json", "test.csv"):
        (tmp_path / name).unlink()
    assert load_rows(SST2, "train", data=tmp_path) == LINES


def test_dev_is_validation(tmp_path):
    write(tmp_path / "dev.jsonl")
    assert load_rows(SST2, "validation", data=tmp_path) == LINES


def test_limit_draws_by_seed(tmp_path):
    import torch

    write(tmp_path / "train.jsonl")
    random.seed(1)
    before, torch_before = random.getstate(), torch.random.get_rng_state()
    five = load_rows(SST2, "train", data=tmp_path, limit=5, seed=3)
    assert random.getstate() == before
    assert torch.equal(torch.random.get_rng_state(), torch_before)
    assert five == load_rows(SST2, "train", data=tmp_path, limit=5, seed=3)
    assert five == load_rows(SST2, "train", data=tmp_path, limit=9, seed=3)[:5]
    assert five != load_rows(SST2, "train", data=tmp_path, limit=5, seed=4)
    every = load_rows(SST2, "train", data=tmp_path, limit=99, seed=3)
    assert sorted(row["sentence"] for row in every) == sorted(row["sentence"] for row in LINES)
    fails("at least 1 row", data=tmp_path, limit=0)


def test_missing_folder_is_no_hub_lookup(tmp_path):
    fails("no such folder.*data/nope", data="data/nope")
    fails("a format that is not read", data=write(tmp_path / "train.txt"))


def test_one_file_is_split_by_a_seeded_draw(tmp_path):
    path = write(tmp_path / "films.jsonl")
    train, held = (load_rows(SST2, split, data=path) for split in ("train", "validation"))
    assert (len(train), len(held), train.available, held.available) == (18, 2, 18, 2)
    assert sorted([*train, *held], key=LINES.index) == LINES
    assert list(train) == [row for row in LINES if row not in held]
    assert held == load_rows(SST2, "validation", data=path, seed=7)
    assert [held.place(k) for k in (0, 1)] == [
        f"{path}, line {LINES.index(row) + 1}" for row in held
    ]
    fails("unknown split, got 'test'", split="test", data=path)
    fails("too few rows", data=write(tmp_path / "one.jsonl", LINES[:1]))


def test_folder_without_files_and_folder_above(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    fails("no data files.*put train.jsonl", data=tmp_path)
    write(tmp_path / "sst2" / "train.jsonl")
    fails("give one of its folders: sst2", data=tmp_path)


def test_unknown_split(tmp_path):
    write(tmp_path / "train.jsonl")
    fails("no split 'valdation'.*got 'train'", split="valdation", data=tmp_path)


def test_empty_dataset(tmp_path):
    write(tmp_path / "train.jsonl", [])
    fails("train.jsonl: no rows", data=tmp_path)


def test_wrong_columns(tmp_path):
    write(tmp_path / "train.jsonl", [{"text": "x", "label": 1}])
    fails("'sentence' missing, got 'text, label'; sst2 needs sentence, label", data=tmp_path)
    fails("columns 'passage', 'question' missing", task=load_task("boolq"), data=tmp_path)
    write(tmp_path / "train.jsonl", [{"passage": "x", "question": "q"}])
    fails("column 'label' or 'answer' missing", task=load_task("boolq"), data=tmp_path)


def test_one_row_without_a_column(tmp_path):
    write(tmp_path / "train.jsonl", [*LINES[:2], {"sentence": "x"}])
    fails(r"train.jsonl, line 3: column 'label' is missing", data=tmp_path)


def test_unreadable_line_is_named(tmp_path):
    path = write(tmp_path / "train.jsonl")
    path.write_text(path.read_text() + '\n{"sentence": "x", "label"\n')
    fails(r"train.jsonl, line 22: unreadable JSON", data=tmp_path)
    path.write_text('{"sentence": "x", "label": 1}\n[1, 2]\n')
    fails(r"train.jsonl, line 2: a JSON object is needed", data=tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    fails("unreadable file", data=tmp_path)


def test_faulty_json_csv_parquet(tmp_path):
    path = tmp_path / "train.json"
    path.write_text('[{"sentence": "x",\n "label" 1}]')
    fails("train.json, line 2: unreadable JSON", data=tmp_path)
    path.write_text("3")
    fails("a list of JSON objects", data=tmp_path)
    path.unlink()
    path = tmp_path / "train.csv"
    path.write_text("sentence,label\nx,1,2\n")
    fails("train.csv, line 2: not the 2 fields", data=tmp_path)
    path.unlink()
    pytest.importorskip("pyarrow")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no")
    fails("unreadable parquet", data=tmp_path)


def test_label_out_of_range_names_the_line(tmp_path):
    write(tmp_path / "train.jsonl", [*LINES, {"sentence": "x", "label": 2}])
    fails(r"line 21: column 'label' must be 0 to 1, got 2", data=tmp_path)
    write(tmp_path / "test.jsonl", [{"sentence": "x", "label": -1}])
    fails("test splits have no labels", split="test", data=tmp_path)


def test_hub_without_a_network():
    pytest.importorskip("datasets")
    fails("hub can't be reached.*give --data DIR with train.jsonl")
    fails("unknown split", split="tran")


@pytest.mark.parametrize("name", ["sst2", "cb", "copa", "boolq", "wsc", "squad", "drop"])
def test_embedded_samples(name):
    task = load_task(name)
    for split in ("train", "validation"):
        assert len(load_rows(task, split, embedded=True, limit=8)) == 8
