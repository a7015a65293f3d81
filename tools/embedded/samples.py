"""Samples of the seven tasks in the exact columns of the hub's datasets."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

from embedded.chains import distractor, make_chain
from embedded.counts import make_count
from embedded.days import make_day
from embedded.pronouns import make_thing_riddle
from embedded.reviews import make_review
from embedded.scenes import make_scene
from zopeft.embedded import TASKS

Row = dict[str, object]

SIZES: dict[str, int] = {"train": 500, "validation": 200}
"""Rows of each split of each task."""

SEED = 0


def _sst2(rng: Random, index: int, validation: bool) -> Row:
    review = make_review(rng, index % 2, for_validation=validation)
    return {"sentence": f"{review.text} ", "label": review.label, "idx": index}


def _cb(rng: Random, index: int, validation: bool) -> Row:
    scene = make_scene(rng, 2, for_validation=validation)
    label = index % 3
    return {
        "premise": scene.joined,
        "hypothesis": rng.choice(scene.facts).claim(label),
        "idx": index,
        "label": label,
    }


def _copa(rng: Random, index: int, validation: bool) -> Row:
    chain = make_chain(rng, for_validation=validation)
    while chain.person.name not in chain.event(1, named=True):
        chain = make_chain(rng, for_validation=validation)
    label = index % 2
    question = ("cause", "effect")[index // 2 % 2]
    right = chain.sentence(0 if question == "cause" else 2, named=False)
    wrong = distractor(chain, question, rng)
    return {
        "premise": chain.sentence(1, named=True),
        "choice1": wrong if label else right,
        "choice2": right if label else wrong,
        "question": question,
        "idx": index,
        "label": label,
    }


def _boolq(rng: Random, index: int, validation: bool) -> Row:
    day = make_day(rng, index % 2, for_validation=validation)
    return {"question": day.question(rng), "passage": day.text, "idx": index, "label": day.label}


def _wsc(rng: Random, index: int, validation: bool) -> Row:
    riddle = make_thing_riddle(rng, for_validation=validation)
    label = index % 2
    candidate = riddle.referent if label else riddle.other
    return {
        "text": riddle.text,
        "span1_index": riddle.word_index(candidate),
        "span2_index": riddle.word_index(riddle.pronoun),
        "span1_text": candidate,
        "span2_text": riddle.pronoun,
        "idx": index,
        "label": label,
    }


def _squad(rng: Random, index: int, validation: bool) -> Row:
    scene = make_scene(rng, 3, for_validation=validation)
    question, answer = scene.question(rng.choice(scene.facts), rng)
    return {
        "id": f"{zlib.crc32((scene.text + question).encode()):08x}{index:08x}",
        "title": scene.title,
        "context": scene.text,
        "question": question,
        "answers": {"text": [answer], "answer_start": [scene.text.index(answer)]},
    }


def _drop(rng: Random, index: int, validation: bool) -> Row:
    count = make_count(rng, for_validation=validation)
    question, answer, kind = rng.choice(count.questions())
    return {
        "section_id": f"counts_{index}",
        "query_id": f"{zlib.crc32((count.text + question).encode()):08x}{index:08x}",
        "passage": count.text,
        "question": question,
        "answers_spans": {"spans": [answer], "types": [kind]},
    }


_MAKERS: dict[str, Callable[[Random, int, bool], Row]] = {
    "sst2": _sst2,
    "cb": _cb,
    "copa": _copa,
    "boolq": _boolq,
    "wsc": _wsc,
    "squad": _squad,
    "drop": _drop,
}


def _content(row: Row) -> str:
    """The row without its running numbers, to tell doubles."""
    running = ("idx", "id", "section_id", "query_id")
    return json.dumps({key: value for key, value in row.items() if key not in running})


def make_rows(task: str, split: str) -> list[Row]:
    """Make one split of one task, no row twice.

    Args:
        task: One of ``zopeft.embedded.TASKS``.
        split: "train" or "validation".

    Returns:
        The rows in random order, their labels in equal parts.

    Raises:
        KeyError: The task or the split is unknown.
    """
    rng = Random(f"{SEED}/{task}/{split}")
    make, size, validation = _MAKERS[task], SIZES[split], split == "validation"
    rows: list[Row] = []
    seen: set[str] = set()
    while len(rows) < size:
        row = make(rng, len(rows), validation)
        content = _content(row)
        if content not in seen:
            seen.add(content)
            rows.append(row)
    rng.shuffle(rows)
    for index, row in enumerate(rows):
        if "idx" in row:
            row["idx"] = index
    return rows


def write_samples(folder: Path) -> list[Path]:
    """Write all splits of all tasks as JSON lines.

    Args:
        folder: Where ``<task>/<split>.jsonl`` go.

    Returns:
        The files written.
    """
    written: list[Path] = []
    for task in TASKS:
        for split in SIZES:
            path = folder / task / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = "".join(
                json.dumps(row, ensure_ascii=False) + "\n" for row in make_rows(task, split)
            )
            path.write_bytes(lines.encode("utf-8"))
            written.append(path)
    return written
