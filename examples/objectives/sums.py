r"""Sums in words, checked by a program: nothing is taught, completions are rewarded.

Run it:  python examples/objectives/sums.py [SEED]        (about a minute)

The embedded model answers "The text says that it was 7". What counts is the right number and
nothing else, which it hardly ever says; on the way there, brevity counts, too. The same from the
command line, with the prompts that ``python examples/objectives/sums.py --write`` leaves::

    zopeft tune --data sums.jsonl --reward sums.py:right --reward sums.py:brief --eps 0.05 \
        method.directions=4 objective.max_new_tokens=10 --steps 120
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import zopeft
from zopeft.embedded import MODEL_DIR

NAMES = ("Tom", "Kate", "Sam", "Nina", "Paul", "Eva", "Fred", "Ann")
STEPS, DIRECTIONS, BATCH, EPS = 120, 4, 16, 5e-2
THINGS = ("coins", "balls", "books", "apples", "shells", "frogs")


def sums(count: int, seed: int) -> list[dict[str, Any]]:
    """Returns rows with a prompt, and the number that is right."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        (first, second), thing = draw.sample(NAMES, 2), draw.choice(THINGS)
        # The sums that the embedded model was taught most of.
        a, b = draw.sample((draw.choice((2, 4)), draw.choice((3, 5))), 2)
        text = f"{first} has {a} {thing}. {second} has {b} {thing}."
        asked = f"Question: How many {thing} do {first} and {second} have together?\nAnswer:"
        rows.append({"prompt": f"{text}\n{asked}", "total": a + b})
    return rows


def right(completions: list[str], total: list[int], **columns: Any) -> list[float]:
    """Returns 1 where the answer is the number that is right, and nothing else."""
    pairs = zip(completions, total, strict=True)
    return [float(text.strip() == str(wanted)) for text, wanted in pairs]


def brief(completions: list[str], total: list[int], **columns: Any) -> list[float]:
    """Returns one over the number of words where the last of them is right, else 0."""
    found = []
    for text, wanted in zip(completions, total, strict=True):
        words = text.split() or [""]
        found.append(float(words[-1] == str(wanted)) / len(words))
    return found


def tune(seed: int, steps: int = STEPS) -> dict[str, Any]:
    """Tunes a LoRA by both rewards; returns the share of right answers before and after."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    base = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    lora = LoraConfig(task_type="CAUSAL_LM", lora_alpha=16, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(base, lora).eval()
    given: dict[str, Any] = {"max_new_tokens": 10, "stop": "\n"}
    objective = zopeft.Objective(tokenizer, [right, brief], **given)
    checked = zopeft.Objective(tokenizer, right, **given)
    rows, held_out = sums(400, 2 * seed), sums(200, 2 * seed + 1)
    optimizer = zopeft.MeZO(
        zopeft.discover(model), eps=EPS, directions=DIRECTIONS, probes="stacked", seed=seed
    )
    optimizer.probing.steps_planned = steps
    before, draw, curve = checked.evaluate(model, held_out), random.Random(seed), []
    for _ in range(steps):
        optimizer.step(objective.closure(model, draw.sample(rows, BATCH)))
        curve.append(-optimizer.last_record.seen)
    after = checked.evaluate(model, held_out)
    probes = 2 * DIRECTIONS * steps
    return {"seed": seed, "before": before, "after": after, "probes": probes, "curve": curve}


def main(words: list[str]) -> None:
    """Tunes and tells; or writes the prompts."""
    if words == ["--write"]:
        lines = (json.dumps(row) + "\n" for row in sums(400, 0))
        Path("sums.jsonl").write_text("".join(lines), encoding="utf-8")
        return
    told = tune(int(words[0]) if words else 0)
    print(f"right answers {told['before']:.3f} -> {told['after']:.3f}, {told['probes']} probes")


if __name__ == "__main__":
    main(sys.argv[1:])
