"""Rows that are streamed: their order, what is held of them, and where a faulty one stands."""

import gc
import gzip
import itertools
import json
import weakref
from collections import Counter

import pytest
from test_own_data import jsonl

import zopeft
from zopeft.errors import InputError, RunError
from zopeft.tasks import load_rows
from zopeft.tasks import row_files as reading
from zopeft.tasks.files import read_file
from zopeft.tasks.frequency import count_tokens
from zopeft.tasks.own import open_data, open_scored
from zopeft.tasks.own_task import own_task
from zopeft.tasks.stream import StreamedRowError, TaskStream, as_needed, drawn
from zopeft.tasks.streamed import Streaming, file_head

ROWS = [{"prompt": f"question {n}:", "completion": f" answer {n}"} for n in range(40)]


class Words:
    """Encodes a row as the number in it, and counts how often it is asked to."""

    def __init__(self):
        self.rows = 0

    def __call__(self, rows):
        self.rows += 1
        number = int(rows[0]["completion"].split()[1])
        return type("Encoded", (), {"encoded": [number]})()


def stream(path, buffer=8, seed=0, encode=None, **options):
    data = open_data(path, how=Streaming(buffer, seed), **options)
    rows = load_rows(own_task(data), "train")
    head = type("Head", (), {"encoded": [0]})()
    return as_needed(head, rows, encode or Words())


def first(found, count):
    return list(itertools.islice(found, count))


@pytest.fixture
def path(tmp_path):
    return jsonl(tmp_path / "a.jsonl", ROWS)


def test_every_row_once_a_pass_in_an_order_of_the_seed(path):
    found = first(stream(path), 117)
    # One of the first eight is held out, to score on.
    held = set(range(40)) - set(found)
    assert len(held) == 1
    assert held < set(range(8))
    passes = [found[:39], found[39:78], found[78:]]
    assert all(sorted(one) == sorted(passes[0]) for one in passes)
    assert len({tuple(one) for one in (*passes, sorted(passes[0]))}) == 4
    assert first(stream(path), 117) == found
    assert first(stream(path, seed=1), 39) != found[:39]
    # No row is later than the buffer allows.
    assert all(number - place < 9 for place, number in enumerate(passes[0]))


def test_one_held_row_leaves_the_order_as_it_is():
    rows = [reading.Placed({"n": n}, "") for n in range(5)]
    assert list(drawn(rows, 1, "any")) == rows


@pytest.mark.parametrize("at", [1, 7, 38, 39, 40, 77, 78, 1000])
def test_rows_that_are_passed_over_are_not_encoded(path, at):
    whole = first(stream(path), 1200)
    encode = Words()
    view = stream(path, encode=encode).view(2000)
    assert [view[at], view[at + 1]] == whole[at : at + 2]
    assert encode.rows == 2
    assert view[0] == whole[0]
    # Whole passes are not even read, once it is known how long one is.
    assert len(view) == 2000


def test_what_a_journal_holds_is_not_read(path):
    view = stream(path).view(100)
    view.unread, view.stream.head = 30, ["stands in"]
    assert {view[n] for n in range(30)} == {"stands in"}
    assert view[30] == first(stream(path), 31)[30]


def test_running_text_is_counted_by_its_pieces(tmp_path):
    rows = [{"text": f"{n} " + "x" * (n % 4)} for n in range(12)]
    path = jsonl(tmp_path / "t.jsonl", rows)
    data = open_data(path, how=Streaming(4, 0))
    rows = load_rows(own_task(data), "train")

    def encode(one):
        number, rest = one[0]["text"].split(" ")
        return type("Encoded", (), {"encoded": [(number, n) for n in range(1 + len(rest))]})()

    made = as_needed(None, rows, encode)
    whole = first(made, 80)
    for at in (1, 5, 29, 30, 61, 79):
        assert made.view(80)[at] == whole[at]


def test_a_mixture_takes_its_parts_by_their_weights(tmp_path):
    from zopeft.tasks.mixture import mixed_task

    names = {}
    for name, share in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
        rows = [{"prompt": name, "completion": f" {name} {n}"} for n in range(30)]
        names[str(jsonl(tmp_path / f"{name}.jsonl", rows))] = share
    task = mixed_task(names, how=Streaming(9, 0))
    rows = load_rows(task, "train")
    made = as_needed(None, rows, lambda one: type("E", (), {"encoded": [one[0]["completion"]]})())
    whole = first(made, 200)
    for count in (10, 50, 200):
        shares = Counter(text.split()[0] for text in whole[:count])
        assert shares == {"a": 0.6 * count, "b": 0.3 * count, "c": 0.1 * count}
    for at in (3, 77, 199):
        assert made.view(200)[at] == whole[at]
    assert str(task.own.shares[0]).endswith("a.jsonl 0.6 (completion, streamed)")
    # So many are looked at before a run, by the same shares.
    assert len(rows) == 9
    # Rows to score on are of each part, and are never trained on.
    held = {row["completion"] for row in load_rows(task, "validation")}
    assert len(held) == 3
    assert not held & set(whole)
    with pytest.raises(InputError, match=r"need a weight each.*got '.*b\.jsonl'"):
        mixed_task({name: None if "b." in name else 1 for name in names}, how=Streaming())


def test_rows_are_those_of_the_whole_file(tmp_path):
    import pandas

    rows = [{"text": f'«{n}»\n, "q"', "label": n % 3} for n in range(200)]
    table = pandas.DataFrame(rows)
    jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    (tmp_path / "c.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table.to_csv(tmp_path / "d.csv", index=False)
    table.to_csv(tmp_path / "e.tsv", index=False, sep="\t")
    table.to_parquet(tmp_path / "f.parquet")
    for path in list(tmp_path.iterdir()):
        packed = path.with_name(path.name + ".gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
    assert len(list(tmp_path.iterdir())) == 12
    for path in tmp_path.iterdir():
        found, whole = file_head(str(path), [path], Streaming(500)), read_file(path)
        assert (found.rows, found.columns) == (whole.rows, whole.columns), path
        assert [found.place(n) for n in (0, 7)] == [whole.place(n) for n in (0, 7)]


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
def test_a_json_list_is_read_in_any_portions(tmp_path, monkeypatch, size):
    from zopeft.tasks import json_list

    monkeypatch.setattr(json_list, "CHUNK", size)
    rows = [{"é": "x" * 40, "n": n, "in": [1, {"]": "},{"}]} for n in range(9)]
    path = tmp_path / "a.json"
    path.write_text(" [" + " ,\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + " ]\n ")
    assert [row for _, row in json_list.json_rows(path)] == rows
    for text, told in (
        ('[{"a": 1} {"a": 2}]', r"row 2: unreadable JSON \(a comma"),
        ('[{"a": 1}, {"a": ]', r"row 2: unreadable JSON"),
        ('[{"a": 1}', r"row 2: unreadable JSON \(a comma"),
        ('[{"a": 1}] x', r"text after the list\), got 'x'"),
        ('{"data": [{"a": 1}]}', r"one object that holds all rows cannot be streamed"),
        ('{\n"a": 1}', r"over several lines is no list of rows that can be streamed"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=told) as caught:
            list(json_list.json_rows(path))
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "line", "told"),
    [
        ("a.jsonl", '{"prompt": 1', "a.jsonl, line 31: unreadable JSON"),
        ("a.jsonl", "[1]", "a.jsonl, line 31: a JSON object is needed"),
        ("a.csv", "x", "a.csv, line 31: not the 2 fields of the header"),
    ],
)
def test_a_faulty_row_is_named_when_its_turn_comes(tmp_path, name, line, told):
    path = jsonl(tmp_path / "a.jsonl")
    lines = path.read_text().splitlines()
    if name == "a.csv":
        path = tmp_path / name
        lines = ["prompt,completion", *(f"q, answer {n}" for n in range(40))]
    lines[30] = line
    path.write_text("\n".join(lines))
    found = iter(stream(path))
    assert len(first(found, 20)) == 20
    with pytest.raises(StreamedRowError, match=told):
        first(found, 20)


def test_a_broken_file_is_told_in_one_line(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(jsonl(tmp_path / "a.jsonl", ROWS * 50).read_bytes())[:300])
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: unreadable file"):
        list(stream(path))
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"a\.parquet: unreadable"):
        stream(path)


def test_so_many_rows_are_held_and_no_more(tmp_path, monkeypatch):
    """Of a file of many rows, as many live as the buffer has."""
    alive, most = weakref.WeakSet(), 0

    class Row(dict):
        __hash__ = object.__hash__

    def parse(text, where, do=""):
        nonlocal most
        row = Row(json.loads(text))
        alive.add(row)
        most = max(most, len(alive))
        return row

    path = jsonl(tmp_path / "a.jsonl", ROWS * 100)
    monkeypatch.setattr(reading, "parse_json", parse)
    made = stream(path, buffer=50)
    gc.collect()
    counts, most = [], 0
    for index, _ in enumerate(made):
        if index % 1000 == 999:
            gc.collect()
            counts.append(len(alive))
        if index == 7998:
            break
    # What a stream makes of its rows are copies: the file's own are let go at once.
    assert max(counts) <= 50
    assert most <= 52
    held = 0

    class Copy(dict):
        pass

    made.streams = made.streams.each(lambda one: one.changed(Copy))
    for index, _ in enumerate(made):
        if index in (100, 2000, 4500):
            held = max(held, sum(type(one) is Copy for one in gc.get_objects()))
        if index == 4500:
            break
    assert 40 <= held <= 52


def test_workers_share_the_rows(path):
    from torch.utils.data import DataLoader

    made = stream(path)
    loader = DataLoader(made, batch_size=4, num_workers=2, collate_fn=list)
    found = first(loader, 10)
    whole = first(made, 100)
    assert found[0] == whole[0:8:2]
    assert found[1] == whole[1:8:2]
    assert sorted(itertools.chain(*found)) == sorted(whole[:40])


def test_names_of_columns_and_a_split_to_score_on(tmp_path):
    rows = [{"q": f"{n}:", "r": f" answer {n}", "prompt": "no"} for n in range(30)]
    jsonl(tmp_path / "d" / "train.jsonl", rows)
    jsonl(tmp_path / "d" / "dev.jsonl", rows[::-1])
    data = open_data(tmp_path / "d", how=Streaming(5, 0, scored=7))
    columns = {"prompt": "q", "completion": "r"}
    rows = load_rows(own_task(data, columns=columns), "train")
    made = as_needed(None, rows, Words())
    assert sorted(first(made, 30)) == list(range(30))
    assert data.told == "the first 7 of split validation"
    assert [row["q"] for row in data.validation.rows] == [f"{n}:" for n in range(29, 22, -1)]


def test_what_is_held_out_is_found_again(path):
    how = Streaming(20, 0)
    data = open_data(path, how=how)
    again = open_scored(path, "validation", how=how)
    assert again.validation.rows == data.validation.rows
    assert data.told == "held out by a draw from the first 20 (--validation FILE: others)"
    some = open_scored(path, how=Streaming(20, 0, scored=3))
    assert some.validation.rows == ROWS[:3]


def test_a_data_set_on_the_hub_is_streamed(monkeypatch):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["bad", "good"])
    )
    rows = [{"text": f"t{n}", "label": n % 2} for n in range(30)]
    table = datasets.Dataset.from_list(rows, features=features).to_iterable_dataset()
    asked = []

    def load(path, config, split, revision, streaming=False):
        asked.append((path, config, streaming))
        return datasets.IterableDatasetDict(train_sft=table)

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = open_data("some/films:small", split="train_sft", how=Streaming(4, 0))
    task = own_task(data)
    assert (task.own.kind.name, task.own.labels) == ("label", ("bad", "good"))
    made = as_needed(None, load_rows(task, "train"), lambda one: type("E", (), {"encoded": one})())
    held = {row["text"] for row in data.validation.rows}
    assert {row["text"] for row in first(made, 29)} | held == {f"t{n}" for n in range(30)}
    assert asked == [("some/films", "small", True)]

    def broken():
        yield from rows[:6]
        raise OSError("no route")

    table = datasets.IterableDataset.from_generator(broken)
    made = as_needed(
        None,
        load_rows(own_task(open_data("some/films", "train_sft", how=Streaming(4, 0))), "train"),
        lambda one: type("E", (), {"encoded": one})(),
    )
    with pytest.raises(RunError, match=r"row 7: the data set cannot be read on.*--resume"):
        first(made, 20)


def test_in_python(path, tiny_tuned, tmp_path):
    model, tokenizer = tiny_tuned
    data = zopeft.load_data(str(path), tokenizer, streaming=True, shuffle_buffer=10)
    assert isinstance(data.train, TaskStream)
    assert (len(data.rows["train"]), len(data.rows["validation"])) == (9, 1)
    with pytest.raises(InputError, match="shuffle_buffer: must be at least 1, got 0"):
        zopeft.load_data(str(path), tokenizer, streaming=True, shuffle_buffer=0)
    # What looks at all training data looks at the rows that are held.
    assert (
        count_tokens([data.train.view(1000)]).tolist() == count_tokens([data.train.head]).tolist()
    )
    args = zopeft.ZOTrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True)
    with pytest.raises(InputError, match=r"max_steps: .* has no length.*give the number of steps"):
        zopeft.ZOTrainer(model, args, data.collator, data.train)
    args.max_steps, args.learning_rate = 3, 1e-3
    trainer = zopeft.ZOTrainer(model, args, data.collator, data.train)
    trainer.train()
    assert (trainer.state.global_step, trainer.state.epoch) == (3, 1.0)
