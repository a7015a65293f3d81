"""A preference by a score, with a price on moving away from the base model.

Run it:  python examples/objectives/preference.py [ANCHOR]        (about a minute)

The embedded model goes on with the beginning of a film review, and a judge prefers the kind ones:
the share of kind words among those that judge. With an anchor the model pays for every token that
the base model would hardly have said, and stays nearer to it. From the command line, the reward
in a file: ``--reward preference.py:kind objective.anchor=0.05``.
"""

from __future__ import annotations

import random
import sys
from typing import Any

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import zopeft
from zopeft.embedded import MODEL_DIR

KIND = frozenset({"great", "strong", "rich", "loved", "clapped", "moving", "warm", "lovely"})
UNKIND = frozenset({"terrible", "weak", "empty", "slow", "hated", "nobody", "dull", "cold"})
BEGINNINGS = (
    "the film was",
    "the story is",
    "it is",
    "the acting was",
    "this movie is",
    "a film that",
)
STEPS, DIRECTIONS, BATCH, EPS = 120, 4, 16, 5e-2


def kind(completions: list[str], **columns: Any) -> list[float]:
    """Returns kind words less unkind ones, over one more than both."""
    found = []
    for text in completions:
        words = text.lower().split()
        good, bad = (sum(word in known for word in words) for known in (KIND, UNKIND))
        found.append((good - bad) / (good + bad + 1))
    return found


class Judged:
    """A LoRA on the embedded model, scored by the judge.

    Args:
        anchor: What the divergence from the base model costs.
        seed: Seed of adapter, prompts, directions and samples.
    """

    def __init__(self, anchor: float, seed: int = 0) -> None:
        self.seed = seed
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
        base = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
        lora = LoraConfig(task_type="CAUSAL_LM", lora_alpha=16, target_modules=["q_proj", "v_proj"])
        self.model = get_peft_model(base, lora).eval()
        given: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0, "seed": seed}
        self.objective = zopeft.Objective(self.tokenizer, kind, anchor=anchor, **given)
        # What is told of the result is measured with a price of 1, for its own sake.
        self.judge = zopeft.Objective(self.tokenizer, kind, anchor=1.0, samples=8, **given)
        self.prompts = [{"prompt": text} for text in BEGINNINGS]

    def scores(self) -> dict[str, float]:
        """Returns the mean score of samples, and their divergence from the base model a token."""
        rows = self.judge.data(self.prompts)
        ((*found,),), (term,) = self.judge.scores(self.model, rows)
        return {"score": sum(found) / len(found), "divergence": term}

    def samples(self, count: int = 3) -> list[str]:
        """Returns what the model makes of some of the beginnings."""
        seen: list[str] = []

        def look(completions: list[str], **columns: Any) -> list[float]:
            seen.extend(completions)
            return [0.0] * len(completions)

        given: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0}
        zopeft.Objective(self.tokenizer, look, **given).evaluate(self.model, self.prompts[:count])
        return [row["prompt"] + text for row, text in zip(self.prompts, seen, strict=False)]

    def tune(self, steps: int) -> list[float]:
        """Makes steps; returns what the probes of each have come to, less the price."""
        optimizer = zopeft.MeZO(
            zopeft.discover(self.model), eps=EPS, directions=DIRECTIONS, seed=self.seed
        )
        optimizer.probing.steps_planned = steps
        draw, curve = random.Random(self.seed), []
        for _ in range(steps):
            rows = draw.choices(self.prompts, k=BATCH)
            optimizer.step(self.objective.closure(self.model, rows))
            curve.append(-optimizer.last_record.seen)
        return curve


def compare(anchor: float, seed: int = 0, steps: int = STEPS) -> dict[str, Any]:
    """Returns scores before and after, what steps have seen, and samples."""
    judged = Judged(anchor, seed)
    start = judged.scores()
    curve = judged.tune(steps)
    told = {"before": start, "after": judged.scores(), "samples": judged.samples()}
    return {"anchor": anchor, "seed": seed, "curve": curve, **told}


if __name__ == "__main__":
    for price in [float(sys.argv[1])] if len(sys.argv) > 1 else (0.0, 0.05):
        told = compare(price)
        print(f"anchor {price:g}: {told['before']} -> {told['after']}")
        print("\n".join(told["samples"]))
