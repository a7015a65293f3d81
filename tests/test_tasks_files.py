"""Data files as users have them: compressed, tab-separated, with marks, in parts."""

from __future__ import annotations

import gzip
import json

import pytest

from zopeft.errors import InputError
from zopeft.tasks import load_rows, load_task

SST2 = load_task("sst2")
ROWS = [{"sentence": f"film {i}, é", "label": i % 2} for i in range(4)]
TEXT = [{"sentence": row["sentence"], "label": str(row["label"])} for row in ROWS]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def separated(by):
    return f"sentence{by}label\n" + "".join(f'"{r["sentence"]}"{by}{r["label"]}\n' for r in ROWS)


def fails(match, folder, split="train"):
    with pytest.raises(InputError, match=match) as caught:
        load_rows(SST2, split, data=folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("train.jsonl", JSONL, ROWS),
        ("TRAIN.JSONL", JSONL, ROWS),
        ("train.json", json.dumps(ROWS), ROWS),
        ("train.json", json.dumps({"data": ROWS, "version": 1}), ROWS),
        ("train.json", json.dumps({k: [r[k] for r in ROWS] for k in ROWS[0]}), ROWS),
        ("train.json", JSONL, ROWS),
        ("train.csv", separated(","), TEXT),
        ("Train.CSV", separated(","), TEXT),
        ("train.tsv", separated("\t"), TEXT),
    ],
)
def test_every_kind_of_text_file(tmp_path, name, content, rows, compressed, mark):
    raw = (mark + content).encode()
    path = tmp_path / (name + ".gz" if compressed else name)
    path.write_bytes(gzip.compress(raw) if compressed else raw)
    assert load_rows(SST2, "train", data=tmp_path) == rows


def test_columns_named_data_and_one_object(tmp_path):
    task = tmp_path / "t.yaml"
    task.write_text('name: t\nprompt: "{data}"\nanswer: a\n')
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "train.json").write_text('{"data": ["x", "y"], "a": ["1", "2"]}')
    assert load_rows(load_task(task), "train", data=folder)[1] == {"data": "y", "a": "2"}
    (folder / "train.json").write_text('{"data": "x", "a": "1"}')
    assert load_rows(load_task(task), "train", data=folder) == [{"data": "x", "a": "1"}]


HALF = gzip.compress(JSONL.encode(), mtime=0)[:40]
"""A compressed file that breaks off."""


@pytest.mark.parametrize(
    ("name", "raw", "match"),
    [
        ("train.jsonl", JSONL.encode("utf-16"), "train.jsonl: unreadable file: its text is UTF-16"),
        ("train.csv", separated(",").encode("utf-16-le"), "train.csv: .*UTF-16; save it as UTF-8"),
        ("train.jsonl", JSONL.encode("latin-1"), "line 1: unreadable text .byte 0xe9 is not UTF-8"),
        ("train.csv", separated(",").encode("latin-1"), "line 2: unreadable text"),
        ("train.jsonl.gz", JSONL.encode(), "train.jsonl.gz: unreadable file"),
        ("train.jsonl.gz", HALF, "train.jsonl.gz: unreadable file"),
        ("train.json", b'{"sentence": ["a", "b"], "label": [1]}', "lengths, got 'sentence 2, lab"),
        ("train.json", b'{"sentence": {"0": "a"}, "label": {"0": 1}}', "orient='records'"),
        ("train.json", b"[" * 100000, "unreadable JSON"),
        ("train.csv", b'sentence,label\nx,1\n"y,0\nz,1\n', "line 3: unreadable file.*quotes"),
        ("train.csv", b"label,sentence,label\n0,x,1\n", "two columns of one name, got 'label'"),
        ("train.xlsx", b"PK", "format in .* that is not read, got 'train.xlsx'; convert it to one"),
        ("train.jsonl.zst", b"x", "is not read, got 'train.jsonl.zst'"),
        ("train-00000-of-00002.jsonl", JSONL.encode(), "1 of 2 parts are there"),
        ("state.json", b"{}", "one split saved by datasets"),
    ],
)
def test_faulty_files_in_one_line(tmp_path, name, raw, match):
    (tmp_path / name).write_bytes(raw)
    fails(match, tmp_path)


def test_a_text_longer_than_the_csv_module_likes(tmp_path):
    (tmp_path / "train.csv").write_text("sentence,label\n" + "x" * 200_000 + ",1\n")
    assert len(load_rows(SST2, "train", data=tmp_path)[0]["sentence"]) == 200_000


def test_types_that_change_within_a_column(tmp_path):
    rows = [{"sentence": "x", "label": 0}] * 3000 + [{"sentence": "y", "label": "1"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_rows(SST2, "train", data=tmp_path)[-1]["label"] == "1"


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "train.csv"),
        ("train.jsonl", "train.jsonl.gz"),
        ("train.jsonl", "train-1.jsonl"),
        ("train-1.jsonl", "train-2.json"),
    ],
)
def test_files_that_may_hold_the_same_rows(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text(JSONL)
    assert ", ".join(sorted(names)) in fails("2 files that may hold the same rows", tmp_path)


def test_two_names_of_one_split(tmp_path):
    for name in ("dev.jsonl", "validation.jsonl"):
        (tmp_path / name).write_text(JSONL)
    fails("dev.jsonl, validation.jsonl", tmp_path, "validation")


def test_parts_are_put_together_and_told(tmp_path, caplog):
    for part in (1, 2):
        (tmp_path / f"train-{part}.jsonl").write_text(JSONL)
    assert load_rows(SST2, "train", data=tmp_path) == ROWS + ROWS
    assert "8 rows of 2 files together: train-1.jsonl, train-2.jsonl" in caplog.text
    (tmp_path / "train-2.jsonl").write_text(JSONL + '{"sentence": "x", "label": 5}\n')
    fails("train-2.jsonl, line 5: column 'label'", tmp_path)


def test_parts_of_two_sets(tmp_path):
    for name in ("train-00000-of-00002.jsonl", "train-00000-of-00003.jsonl"):
        (tmp_path / name).write_text(JSONL)
    fails("parts of two sets", tmp_path)


def test_a_folder_of_datasets_that_cannot_be_loaded(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    fails("datasets can't load", tmp_path)
