"""SQuAD's own metric: a LoRA that a short run by the loss has begun, tuned on by F1 itself.

Run it:  python examples/objectives/squad_f1.py [SEED]        (about a minute)

Nothing here has a gradient: answers are generated for both probes of a step, and their F1 is what
differs. The same from the command line, after a run by the loss and ``zopeft merge``::

    zopeft tune MERGED --task squad --objective metric --steps 200
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from typing import Any

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import zopeft
from zopeft.embedded import MODEL_DIR
from zopeft.tasks import Collator, TaskDataset, evaluate, load_rows, load_task, task_loss

ENOUGH, STEPS, BATCH, EPS = 0.5, 200, 16, 4e-2
"""F1 to begin with, steps by F1 (of two probes each), prompts a probe, and how far probes look."""


class Squad:
    """A LoRA on the embedded model, and SQuAD's samples.

    Args:
        seed: Seed of adapter, batches and directions.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
        base = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
        lora = LoraConfig(task_type="CAUSAL_LM", lora_alpha=16, target_modules=["q_proj", "v_proj"])
        self.model = get_peft_model(base, lora).eval()
        self.task = load_task("squad")
        self.rows = load_rows(self.task, "train", embedded=True)
        self.held_out = load_rows(self.task, "validation", embedded=True)
        self.data = TaskDataset(self.task, self.rows, self.tokenizer, 512)
        self.collate = Collator(self.tokenizer)
        self.draw = random.Random(seed)

    def optimizer(self, steps: int, eps: float | None = None) -> Any:
        """Returns MeZO over the adapter, for so many steps."""
        blocks, seed = zopeft.discover(self.model), self.draw.randrange(2**31)
        found = zopeft.MeZO(blocks, eps=eps, seed=seed)
        found.probing.steps_planned = steps
        return found

    def by_loss(self, steps: int, enough: Callable[[int], bool] = lambda step: False) -> int:
        """Makes steps by the loss, until it is enough; returns how many."""
        optimizer = self.optimizer(steps)
        for step in range(steps):
            rows = self.draw.sample(range(len(self.data)), BATCH)
            batch = self.collate([self.data[row] for row in rows])
            optimizer.step(zopeft.BatchLoss(self.model, batch, task_loss, layout="auto"))
            if enough(step):
                return step + 1
        return steps

    def by_f1(self, steps: int) -> list[float]:
        """Makes steps by F1; returns what each step's probes have scored."""
        objective = zopeft.Objective(
            self.tokenizer, metric="f1", max_new_tokens=16, stop="\n", seed=self.seed
        )
        prompted = [
            {"prompt": self.task.example(row).prompt, "answers": row["answers"]["text"]}
            for row in self.rows
        ]
        data, optimizer, scores = objective.data(prompted), self.optimizer(steps, EPS), []
        for _ in range(steps):
            rows = self.draw.sample(data, BATCH)
            optimizer.step(objective.closure(self.model, rows))
            scores.append(-optimizer.last_record.seen)
        return scores

    def scores(self) -> dict[str, float]:
        """Returns F1, exact match and loss on the validation rows."""
        return evaluate(self.model, self.tokenizer, self.task, self.held_out)

    def weights(self) -> dict[str, Any]:
        """Returns a copy of the adapter's weights."""
        named = self.model.named_parameters()
        return {name: p.detach().clone() for name, p in named if p.requires_grad}

    def put(self, weights: dict[str, Any]) -> None:
        """Puts weights into the adapter."""
        for name, parameter in self.model.named_parameters():
            if name in weights:
                parameter.data.copy_(weights[name])


def compare(seed: int, beginning: int = 200, steps: int = STEPS) -> dict[str, Any]:
    """Tunes on by F1, and from the same start by the loss for as much of the processor's time.

    Args:
        seed: The seed.
        beginning: Most steps by the loss to begin with.
        steps: Steps by F1.
    """
    squad = Squad(seed)
    squad.by_loss(beginning, lambda step: step % 5 == 4 and squad.scores()["f1"] >= ENOUGH)
    start, found = squad.weights(), {"start": squad.scores()}
    began = time.process_time()
    curve = squad.by_f1(steps)
    spent = time.process_time() - began
    found["by f1"] = squad.scores()
    squad.put(start)
    began = time.process_time()
    count = squad.by_loss(10 * steps, lambda step: time.process_time() - began > spent)
    found["by the loss"] = squad.scores()
    return {"seed": seed, "seconds": spent, "loss_steps": count, "curve": curve, **found}


if __name__ == "__main__":
    told = compare(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    for name in ("start", "by f1", "by the loss"):
        print(f"{name}: {', '.join(f'{k} {v:.3f}' for k, v in told[name].items())}")
    print(f"{2 * STEPS} probes of F1 took as long as {told['loss_steps']} steps of the loss")
