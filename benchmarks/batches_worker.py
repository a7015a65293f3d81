"""One build of zopeft that times its own steps and scores; `batches.py` starts it and asks.

Reads one JSON object a line, ``{"task", "loss", "case", ...}``, and answers with one: the seconds
of the processor that the case took, and the tokens of its forward passes.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SPACES = ("lora", "full")
NOISES = ("gaussian", "rademacher", "low_rank")
BARE, PLAIN, SCORE = "two forwards", "plain MeZO", "score"


class Tree:
    """Finds zopeft in a folder, whatever is installed.

    Args:
        path: A checkout.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Returns where zopeft is; all below it follows."""
        if name != "zopeft":
            return None
        return importlib.machinery.PathFinder.find_spec(name, [self.path])


class Worker:
    """The models, batches and steps of one build.

    Args:
        args: The command line, see `arguments`.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        import zopeft
        from zopeft.tasks import Collator

        self.args, self.zopeft = args, zopeft
        self.tokenizer, make = _model_and_tokenizer(args)
        self.collate = Collator(self.tokenizer)
        self.models = {space: make(space) for space in args.spaces}
        self.options = {"layout": "auto"} if hasattr(zopeft, "packed") else {}
        self._methods: dict[tuple[str, str], Any] = {}
        self._batches: dict[tuple[str, str], Any] = {}
        self.tokens = 0
        for model in self.models.values():
            # Prompt and LoRA alike hand the base model its ids.
            model.register_forward_pre_hook(self._count, with_kwargs=True)
        self._warm()

    def _warm(self) -> None:
        """Makes a step of each kind on four short texts: compiled kernels, a trial of layouts."""
        for space in self.models:
            for noise in self.args.noise:
                for loss in ("answer", "choice"):
                    wish = {"task": "sst2", "loss": loss, "space": space, "batch": 0}
                    self._case(wish | {"case": noise, "size": 4})()

    def _count(self, _: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.tokens += kwargs["input_ids"].numel()

    def asked(self, wish: dict[str, Any]) -> dict[str, Any]:
        """Runs a case and says what it took."""
        run = self._case(wish)
        self.tokens, begun, wall = 0, time.process_time(), time.perf_counter()
        found = run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken = time.perf_counter() - wall if self.args.clock == "wall" else None
        taken = time.process_time() - begun if taken is None else taken
        return {"seconds": taken, "tokens": self.tokens, "found": found}

    def _case(self, wish: dict[str, Any]) -> Callable[[], Any]:
        from zopeft.tasks import task_loss

        task, space = wish["task"], wish["space"]
        model = self.models[space]
        if wish["case"] == SCORE:
            return lambda: self._score(model, task, wish["rows"])
        examples = self._examples(wish)
        batch = self._moved(self.collate(examples))
        if wish["case"] == BARE:
            keys = ("input_ids", "attention_mask", "labels")
            inputs = {name: batch[name] for name in keys}
            return torch.no_grad()(
                lambda: float(model(**inputs).loss) + float(model(**inputs).loss)
            )
        if wish["case"] == PLAIN:
            from plain_mezo import PlainMeZO

            keys = ("input_ids", "attention_mask", "labels")
            inputs = {name: batch[name] for name in keys}
            plain = PlainMeZO(model, 0.0, 1e-3)
            return lambda: float(plain.step(lambda: model(**inputs).loss))

        def step() -> float:
            made = self._moved(self.collate(examples))
            closure = self.zopeft.BatchLoss(model, made, task_loss, **self.options)
            return float(self._method(space, wish["case"]).step(closure))

        return step

    def _method(self, space: str, noise: str) -> Any:
        """A method whose rate moves nothing, made once."""
        if (space, noise) not in self._methods:
            blocks = self.zopeft.discover(self.models[space])
            self._methods[space, noise] = self.zopeft.MeZO(blocks, lr=1e-12, eps=1e-3, noise=noise)
        return self._methods[space, noise]

    def _examples(self, wish: dict[str, Any]) -> list[Any]:
        """The examples of a batch, drawn as a run would draw them."""
        from zopeft.tasks import TaskDataset, load_rows, load_task

        name, loss, batch = wish["task"], wish["loss"], wish["batch"]
        if (name, loss) not in self._batches:
            rows = load_rows(load_task(name), "train", f"{self.args.data}/{name}", False, 1000, 0)
            order = list(range(len(rows)))
            random.Random(0).shuffle(order)
            self._batches[name, loss] = (rows, order)
        rows, order = self._batches[name, loss]
        size = wish.get("size", self.args.batch_size)
        chosen = [rows[i] for i in order[batch * size : (batch + 1) * size]]
        task, length = load_task(name), self.args.max_length
        return list(TaskDataset(task, chosen, self.tokenizer, length, loss))

    def _score(self, model: Any, name: str, count: int) -> float:
        from zopeft.tasks import evaluate, load_rows, load_task

        folder = f"{self.args.data}/{Path(name).stem.partition('_')[0]}"
        rows = load_rows(load_task(name), "validation", folder, False, count, 0)
        found = evaluate(model, self.tokenizer, load_task(name), rows, self.args.batch_size)
        return float(found["loss"])

    def _moved(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {name: tensor.to(self.args.device) for name, tensor in batch.items()}


def _model_and_tokenizer(args: argparse.Namespace) -> tuple[Any, Callable[[str], Any]]:
    """Returns a tokenizer, and what makes a model of a space."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    dtype = getattr(torch, args.dtype)

    def make(space: str) -> Any:
        if args.random:
            torch.manual_seed(0)
            config = AutoConfig.from_pretrained(args.model)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype).to(args.device)
        else:
            model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(args.device)
        if space == "lora":
            lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
            model = get_peft_model(model, lora)
        return model.eval()

    return AutoTokenizer.from_pretrained(args.model), make


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that all builds share."""
    parser.add_argument("--data", required=True, help="folder with sst2/, copa/, ... in it")
    parser.add_argument("--random", action="store_true", help="weights drawn, not read")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--noise", nargs="*", default=list(NOISES), choices=NOISES)
    parser.add_argument("--spaces", nargs="+", default=list(SPACES), choices=SPACES)


def main() -> None:
    """Answers what is asked, until there is nothing more."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tree", required=True)
    parser.add_argument("--model", required=True)
    arguments(parser)
    args = parser.parse_args()
    sys.meta_path.insert(0, Tree(args.tree))
    answers, sys.stdout = sys.stdout, sys.stderr
    worker = Worker(args)
    for line in sys.stdin:
        print(json.dumps(worker.asked(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
