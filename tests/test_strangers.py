"""Files from strangers: taken, or refused in one line, whatever has been done to them."""

import importlib
import json
import random
import sys
import time
from pathlib import Path

import pytest
import yaml

from zopeft.errors import LONGEST, InputError, input_error
from zopeft.finetuner import FineTuner
from zopeft.jobs.data import Tuned
from zopeft.jobs.served import base_of
from zopeft.journal import codec, frames
from zopeft.journal.header import JournalHeader
from zopeft.optim.record import StepRecord
from zopeft.plain_yaml import DEEPEST, MOST
from zopeft.reading import LARGEST, fits, parse_json, parse_yaml, read_json, read_yaml
from zopeft.tasks.conversation import turns
from zopeft.tasks.row_files import class_names
from zopeft.tasks.task import RowError
from zopeft.training.checkpoints import newest_checkpoint, read_seal, seal

TOOLS = str(Path(__file__).parent.parent / "tools")
NAMES = (
    "journal", "replay", "start", "run", "bench", "claim", "mark", "checkpoint",
    "finetuner", "networks", "recipe", "task", "data", "streams", "chats", "template", "encoded",
    "adapter", "prefix", "outline", "pickled", "model", "shards", "tokenizer", "gguf",
    "question", "answer", "server",
)  # fmt: skip
CASES = 30
FEWER = {
    "checkpoint": 4,
    "adapter": 15,
    "prefix": 15,
    "pickled": 10,
    "model": 10,
    "mark": 15,
    "gguf": 10,
}


@pytest.fixture(scope="module")
def fuzz():
    sys.path.insert(0, TOOLS)
    try:
        yield importlib.import_module("fuzz")
    finally:
        sys.path.remove(TOOLS)


def test_every_reader_is_tried(fuzz):
    assert tuple(fuzz.READERS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_read_or_refused_in_a_line(name, fuzz):
    row = fuzz.campaign(fuzz.READERS[name], 0, FEWER.get(name, CASES))
    assert row["faults"] == {}
    # Something was damaged so that it could not be read.
    assert row["refused"] > 0


def test_a_number_makes_the_same_file_again(fuzz, tmp_path):
    reader = fuzz.READERS["chats"]
    made = []
    for turn in ("first", "second"):
        place = tmp_path / turn
        for number in range(300):
            (place / str(number)).mkdir(parents=True)
            file = reader.make(place / str(number), random.Random(f"chats {number}"))
            made.append(file.read_bytes())
    assert made[:300] == made[300:]


def test_the_campaign_sees_faults(fuzz, tmp_path):
    readers = importlib.import_module("fuzz_reader")

    def read(path):
        what = json.loads(path.read_bytes())["what"]
        if what == "raise":
            raise KeyError("x")
        if what == "unnamed":
            raise InputError("something is wrong")
        if what == "grow":
            return bytearray(2 * fuzz.MEMORY)
        return None

    found = {}
    for what in ("good", "raise", "unnamed", "grow"):
        content = json.dumps({"what": what}).encode()
        damage = {"a.json": lambda _, __, now=content: now}
        reader = readers.Reader("own", lambda: {"a.json": b'{"what": "good"}'}, damage, read)
        row = fuzz.campaign(reader, 0, 2)
        found[what] = next(iter(row["faults"]), "read" if row.get("read") == 2 else "")
    assert found["good"] == "read"
    assert found["raise"].startswith("KeyError at")
    assert found["unnamed"].startswith("the file is not named")
    assert "emory" in found["grow"]


def test_rows_go_on_or_are_replaced(fuzz, tmp_path):
    file = tmp_path / "rows.jsonl"

    def row(first, cases, **more):
        return {"reader": "own", "first": first, "cases": cases, "faults": {}, "grown_mb": first,
                "seconds": 1.5, **more}  # fmt: skip

    fuzz.keep(file, row(0, 10, read=4, refused=6))
    fuzz.keep(file, row(0, 3, read=3) | {"reader": "other"})
    fuzz.keep(file, row(10, 5, refused=4, fault=1) | {"faults": {"KeyError": 12}})
    whole = {"faults": {"KeyError": 12}, "grown_mb": 10, "seconds": 3.0}
    found = fuzz.kept(file)
    assert found["own"] == row(0, 15, read=4, refused=10, fault=1) | whole
    assert found["other"]["cases"] == 3
    fuzz.keep(file, row(0, 2, read=2))
    assert fuzz.kept(file)["own"] == row(0, 2, read=2)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "unreadable JSON"),
        (b'"\xff"', "unreadable JSON"),
        ("{", "unreadable JSON"),
    ],
)
def test_json_that_no_parser_takes(text, told):
    with pytest.raises(InputError, match=told) as caught:
        parse_json(text, "a.json", "write it again")
    assert str(caught.value).startswith("a.json: ")
    assert str(caught.value).endswith("; write it again")


NESTED = "\n".join("  " * n + "a:" for n in range(DEEPEST + 2))
REPEATED = "\n".join(
    ["a: &a [x, x, x, x, x, x, x, x, x]"]
    + [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdef", "bcdefg", strict=True)]
)
MERGED = "\n".join(
    [
        f"a: &a {{{', '.join(f'x{n}: 1' for n in range(500))}}}",
        f"b: {{<<: [{', '.join(['*a'] * 900)}]}}",
    ]
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 2023-13-45", "takes for another kind"),
        ("a: !!python/name:os.system", "not valid YAML on line 1"),
        ("a: [", "not valid YAML on line"),
        ("&a [*a]", f"more than {DEEPEST} lists"),
        (NESTED, f"more than {DEEPEST} lists"),
        (REPEATED, f"more than {MOST} values"),
        ("[" * 2000, f"more than {DEEPEST} lists.* on line 1"),
        (MERGED, f"more than {MOST} values, those of '<<'"),
        ("a: &a {<<: *a}", "not valid YAML"),
        ("a: 0x" + "f" * 300, "more than 308 digits on line 1"),
    ],
)
def test_yaml_that_is_more_than_it_seems(text, told):
    before = time.process_time()
    with pytest.raises(InputError, match=told):
        parse_yaml(text, "a.yaml")
    assert time.process_time() - before < 2


def test_yaml_files(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("a: [1, {b: 2.5}]")
    assert read_yaml(file) == yaml.safe_load(file.read_text()) == {"a": [1, {"b": 2.5}]}
    file.write_bytes(b"a: \xff")
    with pytest.raises(InputError, match=r"a.yaml: its text is not UTF-8"):
        read_yaml(file)
    file.write_text("#" * LARGEST + "\n")
    with pytest.raises(InputError, match=r"a.yaml: larger than"):
        read_yaml(file)
    with pytest.raises(InputError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("value", "kinds"),
    [
        ("x", {"text"}),
        (3, {"count", "number"}),
        (-3, {"number"}),
        (True, {"flag"}),
        (float("nan"), set()),
        (10**400, {"count"}),
        ([1, 2], {"list", "counts"}),
        ([1, -2], {"list"}),
        ({}, {"object", "numbers", "texts"}),
        ({"a": 1}, {"object", "numbers"}),
        (None, set()),
    ],
)
def test_kinds(value, kinds):
    every = ("text", "count", "number", "flag", "list", "counts", "object", "numbers", "texts")
    assert {kind for kind in every if fits(value, kind)} == kinds


def test_errors_are_one_line_that_a_terminal_prints():
    error = input_error("a\x1b[31m.json", "is\nwrong", "\udc80" + "x" * 5000, "mend\u2028it")
    line = str(error)
    assert line.isprintable() and len(line) <= LONGEST
    assert line.startswith("a\\x1b[31m.json: is wrong, got ")
    assert line.endswith("(5001 characters)'; mend it")
    line.encode()


HEADER = {"method": "MeZO", "noise": "gaussian", "seed": 3, "blocks": [["a", [2]]],
          "format_version": 1}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": "3"}, "header: seed, got"),
        ({"blocks": [["a", [-2]]]}, "not a name and a shape"),
        ({"start": "../weights.safetensors"}, "start is no file's name"),
        ({"format_version": 9}, "is a journal of format 9"),
        ({"extra": 1}, "unknown field in its journal header, got 'extra'"),
        ({"method": None}, "header: method"),
    ],
)
def test_headers_are_checked_field_by_field(change, told):
    assert JournalHeader.from_bytes(json.dumps(HEADER).encode(), "j").blocks == (("a", (2,)),)
    with pytest.raises(InputError, match=told):
        JournalHeader.from_bytes(json.dumps(HEADER | change).encode(), "j")


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_json, '{"a": ["\\ud83d"]}'),
        (parse_json, b'{"\\uDC80": 1}'),
        (parse_yaml, 'a: ["\\udc80"]'),
        (parse_yaml, '"\\U0000DC80": 1'),
        (parse_yaml, 'a: "\\ud83d\\ude00"'),
    ],
)
def test_half_a_character_is_refused_where_it_is_read(parse, text):
    # It could be read and not be written again: reports, cards and terminals are UTF-8.
    with pytest.raises(InputError, match=r"^a file: half of a character \(a lone surrogate"):
        parse(text, "a file")
    whole = '"\\ud83d\\ude00"' if parse is parse_json else '"\\U0001F600"'
    assert parse(whole, "a file") == "\U0001f600"
    for content in (b'"\xed\xa0\xbd"', '"a"'.encode("utf-16"), '"a"'.encode("utf-32")):
        with pytest.raises(InputError, match=r"a file: unreadable JSON \(its text is not UTF-8\)"):
            parse_json(content, "a file")
    assert parse('{"a": "C:\\\\ud83d"}', "a file") == {"a": "C:\\ud83d"}


def test_a_name_with_a_nul_is_a_file_that_cannot_be_read(tmp_path):
    for read in (read_json, read_yaml):
        with pytest.raises(InputError, match=r"cannot be read \(embedded null byte\)"):
            read(tmp_path / "a\0b")
    assert Tuned.of(str(tmp_path / "a\0b")) is None
    assert base_of(str(tmp_path / "a\0b")) is None


def test_half_a_character_is_refused_in_what_is_read_of_a_text(tmp_path):
    turn = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b \ud83d"}
    with pytest.raises(RowError, match=r"column 'turns' has half of a character"):
        turns(json.dumps(turn), "turns")
    assert turns(json.dumps(turn[:1]), "turns") == [turn[0]]
    note = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}}}
    assert class_names(json.dumps(note).encode()) == {"label": ("a", "b")}
    note["info"]["features"]["label"]["names"] = ["a", "\ud83d"]
    assert class_names(json.dumps(note).encode()) == {}


def test_a_checkpoint_with_a_changed_byte_is_not_whole(tmp_path):
    for step in (5, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}")
        (folder / "optimizer.pt").write_bytes(b"state")
        seal(folder, step, "run")
    assert newest_checkpoint(tmp_path).name == "checkpoint-10"
    (tmp_path / "checkpoint-10" / "optimizer.pt").write_bytes(b"stbte")
    assert read_seal(tmp_path / "checkpoint-10")["step"] == 10
    assert read_seal(tmp_path / "checkpoint-10", summed=True) is None
    assert newest_checkpoint(tmp_path).name == "checkpoint-5"
    # One that was sealed before there were sums is known by its sizes.
    mark = tmp_path / "checkpoint-10" / "complete.json"
    kept = json.loads(mark.read_text())
    del kept["sums"]
    mark.write_text(json.dumps(kept))
    assert newest_checkpoint(tmp_path).name == "checkpoint-10"


def test_a_layer_without_end_is_no_layer(fuzz, tmp_path):
    folder = fuzz.READERS["finetuner"].good(tmp_path)
    config = folder / "finetuner_config.json"
    values = json.loads(config.read_text())
    values["groups"][0]["layer"] = float("inf")
    config.write_text(json.dumps(values))
    with pytest.raises(InputError, match="malformed"):
        FineTuner.from_pretrained(folder)


def test_a_rate_that_is_no_list_is_no_record():
    step = codec.encode(StepRecord(3, 7, (1.0, 2.0), (0.5,), (1e-3,), 1e-3, 0.0), None)
    # The rate's shape stands behind the losses and the projected gradient.
    at = codec.FIXED.size + 3 * 8
    assert step[at : at + 5] == b"\x01\x01\x00\x00\x00"
    with pytest.raises(ValueError, match="no list"):
        codec.decode(step[:at] + b"\x00" + step[at + 5 :], None)


def test_a_torn_end_full_of_lengths_is_no_work(tmp_path):
    file = tmp_path / "journal.bin"
    # Every place in it could begin a frame as long as the rest.
    rest = (b"\x01\x00\x10\x00" * 4 + b"\xff" * 16) * (1 << 15)
    file.write_bytes(frames.MAGIC + frames.pack(b"{}") + b"\xff" * 8 + rest)
    before = time.process_time()
    frame, torn = frames.scan(file)
    assert (frame.payload, torn.size) == (b"{}", 8 + len(rest))
    assert time.process_time() - before < 30
    # A step's record after the damage is found all the same.
    step = codec.encode(StepRecord(3, 7, (1.0, 2.0), (0.5,), (1e-3,), 1e-3, 0.0), None)
    file.write_bytes(file.read_bytes() + frames.pack(step))
    with pytest.raises(InputError, match="with intact records after it"):
        list(frames.scan(file))
