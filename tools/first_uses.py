"""Writes docs/first-uses: five first uses from an empty folder, run for real on the embedded model.

python tools/first_uses.py [NAME ...]    # some minutes; gguf and trl have to be installed
"""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "first-uses"
HEAD = "Made by `tools/first_uses.py`, which ran this in an empty folder; times are left out.\n"
SHOWN = 3
NOISE = (
    (r"'(\w+_per_second|train_runtime)': '[\d.]+'", r"'\1': '...'"),
    (r"\d+(\.\d+)? s/step", "... s/step"),
    (r"ETA \d+:\d\d:\d\d", "ETA ..."),
    (r"about \d[\d.,]* (s|min|minutes|seconds)\b", "about ..."),
    (r"(│ (seconds|peak memory) +│ )([^│]+)│", lambda m: f"{m[1]}{'...':<{len(m[3])}}│"),
    (r"(?m)^.*(Loading weights:|examples/s\]|it/s\]|s/it\]).*\n", ""),
    (r"(?m)^.*(\[transformers\]|Failed to load CPU gemm).*\n", ""),
    (r"(?m)^.*(FutureWarning|UserWarning|warnings\.warn).*\n", ""),
)
PLAIN = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
{more}
base = AutoModelForCausalLM.from_pretrained({base})
model = PeftModel.from_pretrained(base, "{adapter}").eval()
tokenizer = AutoTokenizer.from_pretrained("{adapter}")
{ask}
answer = model.generate(**inputs, max_new_tokens={count}, do_sample=False{settings})
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
MODEL = "from zopeft.embedded import MODEL_DIR  # any model's folder or hub id"


def plain(adapter: str, ask: str, count: int, base: str = "MODEL_DIR", settings: str = "") -> str:
    """Returns a script that loads an adapter with PEFT alone and has it answer."""
    more = f"{MODEL}\n" if base == "MODEL_DIR" else ""
    return PLAIN.format(
        more=more, base=base, adapter=adapter, ask=ask, count=count, settings=settings
    )


def asked(prompt: str) -> str:
    """Returns the line that encodes a prompt."""
    return f'inputs = tokenizer({json.dumps(prompt)}, return_tensors="pt")'


@dataclass(frozen=True)
class Use:
    """A first use.

    Attributes:
        title: Of its page.
        about: What the user has, in a sentence or two.
        files: Names of files to what writes them.
        steps: Commands, and Python scripts by name with their text.
    """

    title: str
    about: str
    files: dict[str, Callable[[Path], None]]
    steps: tuple[str | tuple[str, str], ...]


def write_moods(path: Path) -> None:
    """Two hundred sentences on films and what they say of them."""
    pick = random.Random(0).choice
    good, bad = ("superb", "fresh", "sweet", "charming"), ("awful", "boring", "stale", "silly")
    things = ("hero", "film", "music", "ending", "acting", "script")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(200):
            label, words = (("bad", bad), ("good", good))[number % 2]
            writer.writerow(
                [f"a {pick(words)} {pick(things)} and a {pick(words)} {pick(things)} .", label]
            )


def write_chat(path: Path) -> None:
    """The conversations of the chat example."""
    shutil.copy(ROOT / "examples" / "chat" / "chat.jsonl", path)


def write_lists(path: Path) -> None:
    """Instructions whose answers have a line for each of two people."""
    draw = random.Random(1)
    names = ("Anna", "Tom", "Kate", "Dan", "Lucy", "Rose")
    pets = ("cat", "dog", "rabbit", "mouse", "frog")
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(240):
            (one, other), (first, second) = draw.sample(names, 2), draw.sample(pets, 2)
            row = {
                "instruction": f"What did {one} see? What did {other} see?",
                "input": f"{one} saw a {first}. {other} saw a {second}.",
                "output": f"a {first}\na {second}",
            }
            file.write(json.dumps(row) + "\n")


def write_gguf_model(path: Path) -> None:
    """The embedded model as a GGUF file of 8-bit matrices."""
    sys.path.insert(0, str(ROOT / "tests"))
    from gguf_files import write_gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from zopeft.embedded import MODEL_DIR

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    write_gguf(path, AutoModelForCausalLM.from_pretrained(MODEL_DIR), tokenizer, quantised=True)


TRL = '''from dataclasses import dataclass

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import zopeft
from zopeft.embedded import MODEL_DIR  # any model's folder or hub id


@dataclass
class Config(zopeft.ZOTrainingArguments, SFTConfig):
    """TRL's settings and zopeft's."""


class Trainer(zopeft.ZOTrainerMixin, SFTTrainer):
    """TRL's trainer, with forward passes only."""


tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
tokenizer.chat_template = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
trainer = Trainer(
    model=AutoModelForCausalLM.from_pretrained(MODEL_DIR),
    args=Config(
        output_dir="trl-lora",
        max_steps=300,
        per_device_train_batch_size=16,
        max_length=128,
        logging_steps=100,
        seed=0,
    ),
    train_dataset=load_dataset("json", data_files="chat.jsonl", split="train"),
    processing_class=tokenizer,
    peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]),
)
trainer.train()
trainer.save_model()
'''
CHAT = "Dan saw a frog. Kate went to the lake.\\nWhere did Kate go?"
LISTS = (
    "### Instruction:\nWhat did Kate see? What did Tom see?\n\n"
    "### Input:\nKate saw a dog. Tom saw a frog.\n\n### Response:\n"
)
TURN = (
    f'turns = [{{"role": "user", "content": "{CHAT}"}}]\n'
    "inputs = tokenizer.apply_chat_template(\n"
    '    turns, add_generation_prompt=True, return_tensors="pt", return_dict=True\n)'
)
USES = {
    "classes": Use(
        "A classification of your own",
        "You have a file of texts and their labels.",
        {"moods.csv": write_moods},
        (
            "zopeft data show --data moods.csv --examples 2",
            "zopeft tune --data moods.csv --steps 200 --out moods-lora",
            "zopeft eval --adapter moods-lora --data moods.csv --split validation",
            ("load.py", plain("moods-lora", asked("a superb music and a fresh hero .\nLabel:"), 1)),
        ),
    ),
    "chat": Use(
        "A chat file",
        "You have conversations, one a line, as chat models are trained on them.",
        {"chat.jsonl": write_chat},
        (
            "zopeft data show --data chat.jsonl --examples 1",
            "zopeft tune --data chat.jsonl --steps 300 --out chat-lora",
            ("load.py", plain("chat-lora", TURN, 8)),
        ),
    ),
    "instructions": Use(
        "Instructions with answers of several lines",
        "You have instructions, what they are about, and answers that go over more than one line.",
        {"lists.jsonl": write_lists},
        (
            "zopeft data show --data lists.jsonl --examples 1",
            "zopeft tune --data lists.jsonl --steps 400 --out lists-lora",
            ("load.py", plain("lists-lora", asked(LISTS), 24)),
        ),
    ),
    "gguf": Use(
        "A GGUF file",
        "You have a model as one GGUF file, as llama.cpp and its kin take it.",
        {"tiny-q8_0.gguf": write_gguf_model, "moods.csv": write_moods},
        (
            "zopeft tune tiny-q8_0.gguf --data moods.csv --steps 200 --out gguf-lora",
            "zopeft merge gguf-lora --out merged",
            (
                "load.py",
                plain(
                    "gguf-lora",
                    asked("a superb music and a fresh hero .\nLabel:"),
                    1,
                    '".", gguf_file="tiny-q8_0.gguf"',
                ),
            ),
        ),
    ),
    "trl": Use(
        "TRL's trainer",
        "You have a script with TRL's `SFTTrainer`, and not the memory for its gradients.",
        {"chat.jsonl": write_chat},
        (("train.py", TRL), ("load.py", plain("trl-lora", TURN, 8))),
    ),
}


def neutral(text: str, folder: Path) -> str:
    """Returns what a command said without times, paths and other libraries' remarks."""
    text = text.replace(str(folder), ".").replace(str(ROOT), "...")
    for pattern, other in NOISE:
        text = re.sub(pattern, other, text)
    kept: list[str] = []
    for line in text.splitlines():
        line = line.rstrip()
        if re.match(r"(tune|evaluate[\w ]*|measuring[\w ]*) \d+/\d+", line):
            # Of the lines of a stage, the first and the last.
            stage = line.partition("/")[0].rstrip("0123456789")
            if len(kept) > 1 and kept[-1].startswith(stage) and kept[-2].startswith(stage):
                kept[-1] = line
                continue
        kept.append(line)
    return re.sub(r"\n{3,}", "\n", "\n".join(kept)).strip("\n")


def run(words: list[str], folder: Path) -> str:
    """Runs a command in a folder; returns what it said."""
    env = os.environ | {"COLUMNS": "88", "HF_HUB_OFFLINE": "1", "TERM": "dumb"}
    done = subprocess.run(
        words, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}")
    return neutral(done.stdout, folder)


def page(use: Use) -> str:
    """Runs a first use and returns its page."""
    parts = [f"# {use.title}\n", HEAD, f"{use.about}\n"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for file, write in use.files.items():
            write(folder / file)
            if not file.endswith(".gguf"):
                lines = (folder / file).read_text(encoding="utf-8").splitlines()
                head = "\n".join(line[:160] for line in lines[:SHOWN])
                parts.append(f"`{file}` has {len(lines)} lines:\n\n```text\n{head}\n```\n")
        for step in use.steps:
            if isinstance(step, str):
                said = run([sys.executable, "-m", *split(step)], folder)
                parts.append(f"```console\n$ {step}\n{said}\n```\n")
                continue
            file, text = step
            (folder / file).write_text(text, encoding="utf-8")
            said = run([sys.executable, file], folder)
            parts.append(f"`{file}`:\n\n```py\n{text.rstrip()}\n```\n")
            parts.append(f"```console\n$ python {file}\n{said}\n```\n")
    return "\n".join(parts)


def split(command: str) -> list[str]:
    """Returns a command's words."""
    import shlex

    return shlex.split(command)


def main() -> None:
    """Writes the pages that are named, or all of them."""
    PAGES.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or USES:
        (PAGES / f"{name}.md").write_text(page(USES[name]), encoding="utf-8")


if __name__ == "__main__":
    main()
