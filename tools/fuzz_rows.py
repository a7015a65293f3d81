"""What a run is told and learns from: recipes, tasks, rows, chats, templates."""

from __future__ import annotations

import gzip
import io
import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

from fuzz_damage import (
    arrays_damaged,
    bytes_damaged,
    json_damaged,
    lines_damaged,
    packed_damaged,
    yaml_damaged,
)
from fuzz_reader import Reader

import zopeft
from zopeft.embedded import MODEL_DIR
from zopeft.errors import InputError

ROWS = [
    {"text": f"The film was good, number {n}.", "label": "yes" if n % 2 else "no"} for n in range(9)
]
TASK = b"""name: weather
prompt: "{report} Will it rain?"
choices: ["No", "Yes"]
label: rain
label_by: text
max_new_tokens: 4
splits: {validation: dev}
hub: {path: organisation/weather, config: main}
about: Tomorrow's weather
"""
RECIPE = b"""job: tune
about: A run of one's own
model: {name: embedded, dtype: float32}
task: {name: sst2, train_examples: 100, max_length: 64}
method: {name: mezo, eps: 1.0e-3, lr: auto, directions: 4}
training: {steps: 200, batch_size: 8, seed: 1}
peft: {name: lora}
spaces: {full: {training: {steps: 100}}}
tasks: {squad: {training: {batch_size: 2}}}
small: {training: {steps: 10}}
"""


def read_recipe(path: Path) -> None:
    """Reads a recipe and all that it can make."""
    from zopeft.recipe.load import check_recipe

    check_recipe(str(path), "tune")


def read_task(path: Path) -> None:
    """Reads a task."""
    from zopeft.tasks.custom import read_task as read

    read(path)


@cache
def tables() -> dict[str, bytes]:
    """Rows in every format."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    csv = "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in ROWS)
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(ROWS), file)
    return {
        "rows.jsonl": lines.encode(),
        "rows.json": json.dumps(ROWS).encode(),
        "rows.csv": csv.encode(),
        "rows.tsv": csv.replace(",", "\t").encode(),
        "rows.jsonl.gz": gzip.compress(lines.encode(), mtime=0),
        "rows.parquet": file.getvalue(),
    }


@cache
def _words() -> Any:
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(MODEL_DIR)
    found.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return found


def read_rows(path: Path) -> None:
    """Reads rows, and makes examples of them."""
    zopeft.load_data(path, _words(), max_length=32)


def stream_rows(path: Path) -> None:
    """Reads rows as they are needed, some of which are looked at before, beyond a pass of them."""
    data = zopeft.load_data(path, _words(), max_length=32, streaming=True, shuffle_buffer=5)
    list(itertools.islice(data.train, 60))


CHATS = "".join(
    json.dumps(
        {
            "messages": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": f"What is {n}?"},
                {"role": "assistant", "content": "A number."},
            ]
        }
    )
    + "\n"
    for n in range(4)
).encode()

TEMPLATE = (
    b"{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}\n{% endfor %}"
    b"{% if add_generation_prompt %}assistant:{% endif %}"
)


def read_template(path: Path) -> None:
    """Reads a chat template, and a conversation in it."""
    from copy import copy

    from zopeft.tasks.chat import Chat
    from zopeft.tasks.chat import read_template as read
    from zopeft.tasks.task import Conversation, RowError

    words = copy(_words())
    words.chat_template = read(str(path))
    turns = json.loads(CHATS.splitlines()[0])["messages"]
    try:
        Chat(words).marked(Conversation(tuple(turns)))
    except RowError as error:
        # Where rows are read, their file and place are put before it.
        raise InputError(f"{path}: {error}") from error


@cache
def encoded() -> dict[str, bytes]:
    """Encoded examples, as they are kept from run to run."""
    from tempfile import TemporaryDirectory

    from zopeft.tasks.encoding import Encoded

    some = [
        Encoded(((1, 2, 3), (4, 5)), ((6,), (7, 8)), 1),
        Encoded(((1, 2),), ((3, 4),), None, (True, False), 2),
    ]
    with TemporaryDirectory() as place:
        file = Path(place) / "kept.npz"
        _cache(file).write(some, [0, 1])
        return {"kept.npz": file.read_bytes()}


def _cache(file: Path) -> Any:
    from zopeft.tasks.encoding_cache import EncodingCache

    found = EncodingCache(None, [])
    found.file = file
    return found


def read_encoded(path: Path) -> None:
    """Reads encoded examples; those that cannot be read are encoded anew."""
    if _cache(path).read() is None:
        raise InputError(f"{path}: nothing is kept")


TABLES: dict[str, Any] = {
    "rows.jsonl": lines_damaged,
    "rows.json": json_damaged,
    "rows.jsonl.gz": packed_damaged,
    **dict.fromkeys(["rows.csv", "rows.tsv", "rows.parquet"], bytes_damaged),
}
READERS = (
    Reader("recipe", lambda: {"own.yaml": RECIPE}, {"own.yaml": yaml_damaged}, read_recipe),
    Reader("task", lambda: {"own.yaml": TASK}, {"own.yaml": yaml_damaged}, read_task),
    Reader("data", tables, TABLES, read_rows),
    Reader("streams", tables, TABLES, stream_rows),
    Reader("chats", lambda: {"c.jsonl": CHATS}, {"c.jsonl": lines_damaged}, read_rows),
    Reader(
        "template",
        lambda: {"own.jinja": TEMPLATE},
        {"own.jinja": bytes_damaged},
        read_template,
        told=("data.template",),
    ),
    Reader("encoded", encoded, {"kept.npz": arrays_damaged}, read_encoded),
)
