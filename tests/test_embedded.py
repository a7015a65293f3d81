"""The embedded model, its tokenizer and its samples: whole, small, reproducible."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from embedded.chains import EVENTS
from embedded.corpus import MIXTURE, documents
from embedded.markup import answer, parse
from embedded.samples import SIZES, make_rows, write_samples
from zopeft.embedded import DATA_DIR, MODEL_DIR, TASKS

COLUMNS = {
    "sst2": ["sentence", "label", "idx"],
    "cb": ["premise", "hypothesis", "idx", "label"],
    "copa": ["premise", "choice1", "choice2", "question", "idx", "label"],
    "boolq": ["question", "passage", "idx", "label"],
    "wsc": ["text", "span1_index", "span2_index", "span1_text", "span2_text", "idx", "label"],
    "squad": ["id", "title", "context", "question", "answers"],
    "drop": ["section_id", "query_id", "passage", "question", "answers_spans"],
}
CLASSES = {"sst2": 2, "cb": 3, "copa": 2, "boolq": 2, "wsc": 2}


def _rows(task: str, split: str) -> list[dict[str, object]]:
    text = (DATA_DIR / task / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_package_is_at_most_six_megabytes() -> None:
    files = _files(MODEL_DIR) + _files(DATA_DIR)
    assert len(_files(DATA_DIR)) == 14
    assert sum(path.stat().st_size for path in files) <= 6_000_000


def test_import_is_light() -> None:
    code = (
        "import sys, zopeft.embedded; print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]


def test_tasks_are_all_here() -> None:
    assert tuple(COLUMNS) == TASKS
    assert sorted(path.name for path in DATA_DIR.iterdir()) == sorted(TASKS)


@pytest.mark.parametrize("split", sorted(SIZES))
@pytest.mark.parametrize("task", TASKS)
def test_columns_are_the_hubs(task: str, split: str) -> None:
    rows = _rows(task, split)
    assert len(rows) == SIZES[split]
    for row in rows:
        assert list(row) == COLUMNS[task]
    if "idx" in COLUMNS[task]:
        assert [row["idx"] for row in rows] == list(range(len(rows)))


@pytest.mark.parametrize("split", sorted(SIZES))
@pytest.mark.parametrize("task", sorted(CLASSES))
def test_labels_are_balanced(task: str, split: str) -> None:
    rows = _rows(task, split)
    counts = Counter(row["label"] for row in rows)
    assert sorted(counts) == list(range(CLASSES[task]))
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("task", TASKS)
def test_train_and_validation_are_disjoint(task: str) -> None:
    ground = {
        "sst2": "sentence",
        "cb": "premise",
        "copa": "premise",
        "boolq": "passage",
        "wsc": "text",
        "squad": "context",
        "drop": "passage",
    }[task]
    train, validation = (
        {str(row[ground]) for row in _rows(task, split)} for split in ("train", "validation")
    )
    assert len(validation) >= 20
    assert not train & validation


def test_pretraining_text_has_no_validation_passage() -> None:
    passages = {str(row["context"]) for row in _rows("squad", "validation")}
    passages |= {
        str(row["passage"]) for task in ("boolq", "drop") for row in _rows(task, "validation")
    }
    passages |= {str(row["text"]) for row in _rows("wsc", "validation")}
    passages |= {str(row["sentence"]).strip() for row in _rows("sst2", "validation")}
    stream = documents(0)
    text = "\n".join(parse(next(stream))[0] for _ in range(5000))
    assert len(passages) > 600
    assert [passage for passage in passages if passage in text] == []


def test_samples_are_made_again_byte_for_byte(tmp_path: Path) -> None:
    written = write_samples(tmp_path)
    assert len(written) == 14
    for path in written:
        assert path.read_bytes() == (DATA_DIR / path.relative_to(tmp_path)).read_bytes()


def test_samples_know_their_task() -> None:
    with pytest.raises(KeyError):
        make_rows("nothing", "train")


@pytest.mark.parametrize("split", sorted(SIZES))
def test_squad_answers_stand_where_they_say(split: str) -> None:
    for row in _rows("squad", split):
        answers = row["answers"]
        assert isinstance(answers, dict)
        assert list(answers) == ["text", "answer_start"]
        assert len(answers["text"]) == len(answers["answer_start"]) == 1
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            assert str(row["context"])[start : start + len(text)] == text
    assert len({row["id"] for row in _rows("squad", split)}) == SIZES[split]


@pytest.mark.parametrize("split", sorted(SIZES))
def test_wsc_spans_stand_where_they_say(split: str) -> None:
    for row in _rows("wsc", split):
        words = str(row["text"]).lower().split()
        for number in (1, 2):
            span = str(row[f"span{number}_text"]).lower().split()
            start = row[f"span{number}_index"]
            assert isinstance(start, int)
            assert words[start : start + len(span)] == span


@pytest.mark.parametrize("split", sorted(SIZES))
def test_drop_answers_are_right(split: str) -> None:
    for row in _rows("drop", split):
        answers = row["answers_spans"]
        assert isinstance(answers, dict)
        assert list(answers) == ["spans", "types"]
        [span], [kind] = answers["spans"], answers["types"]
        assert kind == ("number" if span.isdigit() else "span")
        assert kind == "number" or span in str(row["passage"])


def test_copa_choices_are_events() -> None:
    rows = _rows("copa", "validation")
    assert {row["question"] for row in rows} == {"cause", "effect"}
    assert all(row["choice1"] != row["choice2"] for row in rows)
    assert all(len(chain) == 3 for chain in EVENTS)


def test_marks_are_taken_out() -> None:
    document = f"one{answer(' two')} three{answer(' four')}"
    text, spans = parse(document)
    assert text == "one two three four"
    assert [text[start:end] for start, end in spans] == [" two", " four"]
    for maker, _ in MIXTURE:
        assert maker.__doc__


def test_model_and_tokenizer_load_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, local_files_only=True)
    assert model.config.model_type == "llama"
    assert model.config.vocab_size == len(tokenizer)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    special = {
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        tokenizer.unk_token_id,
    }
    assert len(special) == 4
    assert None not in special
    assert model.config.eos_token_id == tokenizer.eos_token_id
    inputs = tokenizer(
        ["Mia ate soup. Tom saw a dog.\nQ: What did Mia eat?\nA:"], return_tensors="pt"
    )
    assert inputs["input_ids"][0, 0] == tokenizer.bos_token_id
    with torch.no_grad():
        output = model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=2
        )
    assert tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]).startswith(" soup")


@pytest.mark.parametrize(
    "text",
    [
        'What? "Yes," he said.\n\tNo!',
        "ÀÉ naïve 日本 🙂",
        "  two  spaces ",
        "ALL CAPS 1234567890",
        "{}[]<>|~`^",
        "a\r\nb",
    ],
)
def test_tokenizer_round_trip(text: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_prompts_stay_short() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True)
    for task in TASKS:
        texts = [
            " ".join(value for value in row.values() if isinstance(value, str))
            for row in _rows(task, "train")
        ]
        assert max(len(ids) for ids in tokenizer(texts)["input_ids"]) <= 96
