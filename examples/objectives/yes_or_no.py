r"""A form that answers must have, checked by a program: "Yes" or "No", and nothing else.

Run it:  python examples/objectives/yes_or_no.py MODEL [SEED]

MODEL is an instruct model with a chat template, as a hub id or folder
(HuggingFaceTB/SmolLM2-135M-Instruct). It answers a question such as "Can a horse swim?" with a
sentence or several, and is hardly ever in the form by itself; the reward counts parts of it, too:
how the answer begins, and how short it is. The same from the command line, with the prompts that
``python examples/objectives/yes_or_no.py --write`` leaves::

    zopeft tune MODEL --data questions.jsonl --objective reward --reward yes_or_no.py:graded \
        --eps 0.03 method.directions=4 objective.max_new_tokens=6 --batch-size 16 --steps 30
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

ANIMALS = (
    "horse",
    "fish",
    "dog",
    "bird",
    "snake",
    "cow",
    "bee",
    "whale",
    "cat",
    "frog",
    "duck",
    "ant",
)
DEEDS = ("swim", "fly", "read", "run", "sing", "climb a tree", "drive a car", "sleep", "eat grass")
STEPS, DIRECTIONS, BATCH, EPS, LONGEST = 30, 4, 16, 3e-2, 6
"""Steps (of two probes a direction), directions, prompts a probe, how far probes look, tokens."""
ENOUGH = 0.98
"""Mean score of a step's probes at which the run ends: they are nearly all in the form."""


def questions(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns prompts to tune on, and others, as many as half of those."""
    asked = [f"Can a {animal} {deed}?" for animal in ANIMALS for deed in DEEDS]
    random.Random(seed).shuffle(asked)
    rows = [
        {"prompt": [{"role": "user", "content": f"{text} Answer yes or no."}]} for text in asked
    ]
    cut = 2 * len(rows) // 3
    return rows[:cut], rows[cut:]


def said(completion: Any) -> str:
    """Returns the text of a completion, which is a list of turns where the prompt was one."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def in_form(completions: list[Any], **columns: Any) -> list[float]:
    """Returns 1 for "Yes" or "No", with a full stop or without, and nothing else."""
    return [float(said(one).strip() in ("Yes", "No", "Yes.", "No.")) for one in completions]


def graded(completions: list[Any], **columns: Any) -> list[float]:
    """Returns half for how an answer begins and half for how short it is; 1 in the form."""
    found = []
    for one in completions:
        words = said(one).replace(",", " ").replace(".", " ").split()
        begins = bool(words) and words[0] in ("Yes", "No")
        found.append(0.5 * begins + (0.5 / len(words) if words else 0.0))
    return found


class Asked:
    """A LoRA on a model, and the questions.

    Args:
        name: The model's hub id or folder.
        seed: Seed of adapter, questions, batches and directions.
    """

    def __init__(self, name: str, seed: int = 0) -> None:
        self.name, self.seed = name, seed
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        base = AutoModelForCausalLM.from_pretrained(name)
        lora = LoraConfig(task_type="CAUSAL_LM", lora_alpha=16, target_modules=["q_proj", "v_proj"])
        self.model = get_peft_model(base, lora).eval()
        self.rows, self.held_out = questions(seed)

    def objective(self, reward: Any) -> zopeft.Objective:
        """Returns what scores the model's answers by a reward."""
        return zopeft.Objective(self.tokenizer, reward, max_new_tokens=LONGEST)

    def share(self) -> float:
        """Returns the share of the other questions that is answered in the form."""
        return float(self.objective(in_form).evaluate(self.model, self.held_out))

    def tune(self, steps: int) -> list[float]:
        """Makes steps by the graded reward; returns what the probes of each have scored."""
        objective, blocks = self.objective(graded), zopeft.discover(self.model)
        optimizer = zopeft.MeZO(
            blocks, eps=EPS, directions=DIRECTIONS, probes="stacked", seed=self.seed
        )
        optimizer.probing.steps_planned = steps
        draw, curve = random.Random(self.seed), []
        for _ in range(steps):
            optimizer.step(objective.closure(self.model, draw.sample(self.rows, BATCH)))
            curve.append(-optimizer.last_record.seen)
            print(f"step {len(curve)}: {curve[-1]:.3f}", file=sys.stderr, flush=True)
            if curve[-1] >= ENOUGH:
                break
        return curve


def tune(name: str, seed: int = 0, steps: int = STEPS) -> dict[str, Any]:
    """Tunes; returns the share of answers in the form before and after."""
    asked = Asked(name, seed)
    before = asked.share()
    curve = asked.tune(steps)
    after, probes = asked.share(), 2 * DIRECTIONS * len(curve)
    return {"seed": seed, "before": before, "after": after, "probes": probes, "curve": curve}


def main(words: list[str]) -> None:
    """Tunes and tells; or writes the prompts."""
    if words == ["--write"]:
        lines = (json.dumps(row) + "\n" for row in questions(0)[0])
        Path("questions.jsonl").write_text("".join(lines), encoding="utf-8")
        return
    if not words:
        sys.exit("give a model: its hub id or folder")
    told = tune(words[0], int(words[1]) if len(words) > 1 else 0)
    print(f"in the form {told['before']:.3f} -> {told['after']:.3f}, {told['probes']} probes")


if __name__ == "__main__":
    main(sys.argv[1:])
