"""Writes ``docs/errors.md``: what zopeft says of bad input, as it says it.

Each case is a command that is run in a folder with `FILES`; a test holds the page to it.

    python tools/errors_page.py
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "errors.md"
ROWS = [{"text": f"The film was {mark}.", "label": mark} for mark in ("good", "bad")] * 4
LONGEST = 420
"""Characters of a line that the page shows."""


def _lines(rows: Sequence[object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


FILES: dict[str, str | bytes] = {
    "good.jsonl": _lines(ROWS),
    "empty.jsonl": "",
    "one.jsonl": _lines(ROWS[:1]),
    "torn.jsonl": _lines(ROWS)[:-9],
    "columns.jsonl": _lines([{"sentence": "It rained.", "score": 1}] * 4),
    "hole.jsonl": _lines([*ROWS[:3], {"text": None, "label": "bad"}]),
    "half.jsonl": _lines([*ROWS[:3], {"text": "\ud83d", "label": "bad"}]),
    "latin.csv": "text,label\ncaf\xe9,good\n".encode("latin-1"),
    "wide.csv": "text,label\na,good\n".encode("utf-16"),
    "quote.csv": 'text,label\n"never closed,good\n',
    "twice.csv": "text,text\na,b\n",
    "fields.csv": "text,label\na,good,more\n",
    "objects.json": json.dumps({"1": {"text": "a"}, "2": {"text": "b"}}),
    "lengths.json": json.dumps({"text": ["a", "b"], "label": ["good"]}),
    "cut.jsonl.gz": gzip.compress(_lines(ROWS).encode(), mtime=0)[:-20],
    "rows.xlsx": b"PK",
    "roles.jsonl": _lines([{"messages": [{"role": "robot", "content": "a"}]}] * 4),
    "silent.jsonl": _lines([{"messages": [{"role": "user", "content": "a"}]}] * 4),
    "chat.jsonl": _lines(
        [{"messages": [{"role": r, "content": "a"} for r in ("user", "assistant")]}] * 4
    ),
    "date.yaml": "name: a\nprompt: 2023-13-45\n",
    "list.yaml": "- a\n",
    "task.yaml": 'name: a\nprompt: "{text}"\nchoices: [No, Yes]\nlabel: label\n',
    "keys.yaml": "job: tune\ntraning: {steps: 3}\n",
    "bench.yaml": "job: bench\n",
    "model/config.json": json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]}),
    "torn/config.json": '{"model_type": "llama", ',
    "deep/config.json": json.dumps(
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 10**9}
    ),
    "pointer/config.json": json.dumps(
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    ),
    "pointer/model.safetensors": "version https://git-lfs.github.com/spec/v1\n",
    "adapter/adapter_config.json": json.dumps({"peft_type": "LORA"}),
    "bad.gguf": b"GGML....",
    "result/keep.txt": "mine",
    "tuner/finetuner_config.json": "{}",
    "bad.pth": b"no archive",
}


@dataclass(frozen=True)
class Case:
    """A command that is refused.

    Args:
        what: What is wrong with it.
        words: The command.
    """

    what: str
    words: tuple[str, ...]


def _tune(what: str, *words: str) -> Case:
    return Case(what, ("tune", *words))


SERVED = ("--task", "sst2", "training.eval_before=false", "executor.name=vllm")

CASES: dict[str, tuple[Case, ...]] = {
    "Names": (
        _tune("a task that there is not", "--task", "squat"),
        _tune("a model that there is not", "lama-3.2-1b", "--task", "sst2"),
        _tune("a folder that is not there", "./nowhere/model", "--task", "sst2"),
        _tune("a method that there is not", "--task", "sst2", "--method", "mezzo"),
        _tune("an option of another method", "--task", "sst2", "method.smooth=1"),
        _tune("an adapter that there is not", "--task", "sst2", "--peft", "lorra"),
        _tune("an option that an adapter lacks", "--task", "sst2", "peft.options.rang=3"),
        _tune("a key that there is not", "--task", "sst2", "training.stepz=3"),
        _tune("a recipe that there is not", "--recipe", "embeded"),
        Case("a recipe for another command", ("eval", "--recipe", "bench.yaml", "--task", "sst2")),
        _tune("a misspelt section", "--recipe", "keys.yaml", "--task", "sst2"),
        _tune("no task and no data"),
        _tune("a scheduler that there is not", "--task", "sst2", "--schedule", "cosin"),
    ),
    "Numbers": (
        _tune("no steps", "--task", "sst2", "--steps", "0"),
        _tune("a rate that is none", "--task", "sst2", "--lr", "fast"),
        _tune("a negative rate", "--task", "sst2", "--lr", "-1"),
        _tune("an eps of zero", "--task", "sst2", "method.eps=0"),
        _tune("not a number", "--task", "sst2", "method.eps=nan"),
        _tune("too many directions", "--task", "sst2", "method.directions=65"),
        _tune("a side that there is not", "--task", "sst2", "method.sides=both"),
        _tune("a batch of no rows", "--task", "sst2", "--batch-size", "0"),
        _tune("auto where no rule is known", "--task", "sst2", "--method", "mezo_adam"),
        _tune("a decay for a method without", "--task", "sst2", "method.decay_to=start"),
        _tune("several at once", "--task", "sst", "--steps", "0", "training.stepz=3"),
        Case("examples of none", ("eval", "--task", "sst2", "--examples", "0")),
    ),
    "Data": (
        _tune("a file that is not there", "--data", "mine.jsonl"),
        _tune("a format that is not read", "--data", "rows.xlsx"),
        _tune("an empty file", "--data", "empty.jsonl"),
        _tune("a single row", "--data", "one.jsonl"),
        _tune("a line cut off", "--data", "torn.jsonl"),
        _tune("columns that say nothing", "--data", "columns.jsonl"),
        _tune("a hole", "--data", "hole.jsonl"),
        _tune("half of a character", "--data", "half.jsonl"),
        _tune("text that is not UTF-8", "--data", "latin.csv"),
        _tune("text in UTF-16", "--data", "wide.csv"),
        _tune("a quote that is never closed", "--data", "quote.csv"),
        _tune("two columns of one name", "--data", "twice.csv"),
        _tune("a row with more fields", "--data", "fields.csv"),
        _tune("an object of objects", "--data", "objects.json"),
        _tune("columns of different lengths", "--data", "lengths.json"),
        _tune("an archive cut off", "--data", "cut.jsonl.gz"),
        _tune("a role that there is not", "--data", "roles.jsonl"),
        _tune("a conversation without an answer", "--data", "silent.jsonl", "data.template=plain"),
        _tune("a template that is not there", "--data", "chat.jsonl", "data.template=own.jinja"),
        _tune("a split that there is not", "--data", "good.jsonl", "--split", "dev"),
        _tune("a column that there is not", "--data", "good.jsonl", "data.columns.text=review"),
        Case("nothing to show", ("data", "show", "--data", "none.csv")),
    ),
    "Tasks and recipes of one's own": (
        _tune("a task file that is not there", "--task", "own.yaml"),
        _tune("a date that is none", "--task", "date.yaml", "--data", "good.jsonl"),
        _tune("a list where keys are due", "--task", "list.yaml", "--data", "good.jsonl"),
        _tune("yes and no without quotes", "--task", "task.yaml", "--data", "good.jsonl"),
        Case("a recipe to copy over a file", ("recipe", "copy", "embedded/tune", "list.yaml")),
    ),
    "Models and adapters": (
        _tune("a hub that cannot be reached", "organisation/model", "--task", "sst2"),
        _tune("a model that is no decoder", "model", "--task", "sst2"),
        _tune("a configuration cut off", "torn", "--task", "sst2"),
        _tune("layers that no model has", "deep", "--task", "sst2"),
        _tune("a pointer instead of weights", "pointer", "--task", "sst2"),
        _tune("a file that is no GGUF", "bad.gguf", "--task", "sst2"),
        _tune("an adapter in place of a model", "adapter", "--task", "sst2"),
        Case("an adapter without weights", ("eval", "--adapter", "adapter", "--task", "sst2")),
        Case("a folder without an adapter", ("merge", "result", "--out", "merged")),
        _tune("a fine-tuner that is none", "--task", "sst2", "--finetuner", "result"),
        _tune("a damaged fine-tuner", "--task", "sst2", "--finetuner", "tuner"),
        _tune("a method that needs a fine-tuner", "--task", "sst2", "--method", "zo_finetuner"),
        Case(
            "a file of networks that is none",
            ("import-finetuner", "bad.pth", "--model", "model", "--out", "f"),
        ),
    ),
    "Who computes": (
        _tune("one process to share a model", "--task", "sst2", "model.sharded=tensor"),
        _tune("a server's name that is none", *SERVED, "executor.url=localhost:8000"),
        _tune("a server that is away", *SERVED, "executor.url=http://127.0.0.1:9"),
        _tune("full weights for a server of adapters", *SERVED, "--full"),
        _tune(
            "an objective that generates",
            *("--task", "squad", "training.eval_before=false", "executor.name=vllm"),
            *("--objective", "metric", "--lr", "1e-3"),
        ),
    ),
    "Folders": (
        _tune("a folder that holds files", "--data", "good.jsonl", "--out", "result"),
        _tune("to replace no result", "--data", "good.jsonl", "--out", "result", "--overwrite"),
        _tune("a file as a folder", "--data", "good.jsonl", "--out", "good.jsonl"),
        _tune("to go on with nothing", "--data", "good.jsonl", "--out", "new", "--resume"),
        _tune("to go on without a folder", "--data", "good.jsonl", "--resume"),
        Case("a report without rows", ("bench", "--report", "result")),
    ),
}


def prepare(folder: Path) -> None:
    """Writes the files that the commands are given."""
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def said(case: Case, folder: Path) -> tuple[int, str]:
    """Runs a command; returns its exit code and its line, without the folder's own name."""
    from zopeft.cli.main import main

    before, line = os.getcwd(), io.StringIO()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(line):
            code = main(case.words)
    finally:
        os.chdir(before)
    lines = [text for text in line.getvalue().splitlines() if text.startswith("zopeft: ")]
    text = lines[-1].removeprefix("zopeft: ") if lines else ""
    text = text.replace(f"{folder}/", "").replace(str(folder), ".")
    return code, text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def page() -> str:
    """Returns the page's text."""
    parts = [
        "# What is said of bad input",
        "Every refusal is one line on standard error: where, what is wrong, what was given, and "
        "what to do. The exit code is 2 where the input is wrong (nothing has been changed on "
        "disk), 1 where a run broke off (what is kept is told). These are the lines of this "
        "version, made by `tools/errors_page.py`; lists of known names are cut.",
    ]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        prepare(folder)
        for title, cases in CASES.items():
            parts += [f"## {title}", "| what | line |\n|---|---|"]
            for case in cases:
                _, line = said(case, folder)
                parts[-1] += f"\n| {case.what} | {_cell(line)} |"
    return "\n\n".join(parts) + "\n"


def _cell(line: str) -> str:
    """Returns a line as code in a table's cell."""
    ticks = "``" if "`" in line else "`"
    pad = " " if "`" in line else ""
    return f"{ticks}{pad}{line}{pad}{ticks}".replace("|", "\\|")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    PAGE.write_text(page(), encoding="utf-8")
    sys.exit(0)
