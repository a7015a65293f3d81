"""The model card of what ``zopeft tune`` makes: from what, on what, how, how good, how to load."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zopeft.jobs.metrics import numbers
from zopeft.recipe.schema import BARE
from zopeft.staging import staged

if TYPE_CHECKING:
    from zopeft.models import ModelSource
    from zopeft.recipe.schema import Recipe
    from zopeft.tasks import Task

CARD = "README.md"
_ADAPTER = """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
"""
_MODEL = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
"""


def write_card(
    folder: Path, recipe: Recipe, task: Task, source: ModelSource, summary: Mapping[str, Any]
) -> None:
    """Writes the card of a run's result, in place of the empty one that PEFT leaves.

    Args:
        folder: The result's folder.
        recipe: The run's settings.
        task: Its task.
        source: Where its model came from.
        summary: What the run came to, as in ``run.json``.
    """
    from huggingface_hub import ModelCard

    data, text = _metadata(folder, recipe, task, source, summary), _text(folder, source, summary)
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")
    with staged(folder / CARD) as place:
        place.write_text(str(card), encoding="utf-8")


def _metadata(
    folder: Path, recipe: Recipe, task: Task, source: ModelSource, summary: Mapping[str, Any]
) -> Any:
    """Returns what the hub reads of the card."""
    from huggingface_hub import EvalResult, ModelCardData

    adapter = recipe.peft.name not in BARE
    own = bool(recipe.places) or summary["embedded"]
    published = task.hub.path if task.hub and not own else None
    forward = not str(summary["method"]).startswith("fo_")
    tags = ["zopeft", *(["zeroth-order"] if forward else []), str(summary["method"])]
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=published or task.name,
            dataset_name=task.name,
            dataset_split="validation",
            metric_type=name,
            metric_value=value,
        )
        for name, value in numbers(summary["metrics"]["after"]).items()
        if name != "examples" and math.isfinite(value)
    ]
    return ModelCardData(
        base_model=_hub_id(source),
        datasets=[published] if published else None,
        eval_results=results,
        library_name="peft" if adapter else "transformers",
        model_name=folder.resolve().name,
        pipeline_tag="text-generation",
        tags=[*tags, str(recipe.peft.name)] if adapter else tags,
    )


def _hub_id(source: ModelSource) -> str | None:
    """Returns the base model's name on the hub; None where it came from elsewhere."""
    return None if source.local or source.embedded else source.path


def _base(source: ModelSource) -> str:
    """Returns the base model as a reader of the card knows it: no folder of this machine."""
    if source.embedded:
        return "the embedded model of zopeft"
    found = _hub_id(source)
    return f"`{found or Path(source.label).name}`"


def _text(folder: Path, source: ModelSource, summary: Mapping[str, Any]) -> str:
    name, space = folder.resolve().name, summary["peft"]
    bare = space in BARE
    what = f"{BARE[space]} of" if bare else f"A {space} adapter for"
    forward = not str(summary["method"]).startswith("fo_")
    how = (
        "by zeroth-order optimization:\nforward passes alone, no gradients"
        if forward
        else ("with gradients")
    )
    first = f"{what[0].upper()}{what[1:]} {_base(source)}, tuned on {summary['task']} {how}.\n"
    parts = [f"# {name}\n", first]
    if summary["diverged"]:
        parts.append(f"**The run diverged: {summary['diverged']}.**\n")
    parts += ["## Scores\n", _scores(summary["metrics"])]
    use = (_MODEL if bare else _ADAPTER).format(name=name)
    parts += ["## Use\n", f"```python\n{use}```\n", f"Or `zopeft chat {name}`.\n"]
    return "\n".join([*parts, "## How it was made\n", _facts(source, summary)])


def _scores(metrics: Mapping[str, Any]) -> str:
    before, after = metrics.get("before") or {}, metrics["after"]
    rows = [
        f"| {'validation loss' if name == 'loss' else name} | {_number(before.get(name))} | "
        f"{_number(value)} |"
        for name, value in sorted(numbers(after).items(), key=lambda one: one[0] != "loss")
        if name != "examples"
    ]
    return "\n".join(
        ["| | before | after |", "|---|---|---|", *rows, "", f"On {after['examples']} rows.", ""]
    )


def _facts(source: ModelSource, summary: Mapping[str, Any]) -> str:
    settings = summary["recipe"]
    training, method = settings["training"], settings["method"]
    best = summary.get("best")
    options = {**settings["peft"]["options"], **method["options"]}
    facts = {
        "base model": _base(source),
        "data": f"{summary['task']}, {_examples(summary)}",
        "trained": f"{summary['trained_numbers']} parameters in {summary['blocks']} blocks",
        "method": summary["method"],
        "fine-tuner": Path(method["finetuner"]).name if method["finetuner"] else None,
        "options": json.dumps(options) if options else None,
        "steps": f"{summary['steps']}{f', weights of step {best}' if best else ''}",
        "batch size": training["batch_size"] * training["accumulation"],
        "learning rate": f"{_number(summary['lr'])} ({summary['lr_reason']})",
        "forward passes": summary["forward_passes"],
        "seed": summary["seed"],
        "versions": ", ".join(f"{name} {v}" for name, v in summary["versions"].items()),
    }
    rows = [f"| {name} | {_cell(value)} |" for name, value in facts.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *rows, ""])


def _examples(summary: Mapping[str, Any]) -> str:
    count = summary["train_examples"]
    return (
        "training examples read as they were needed"
        if count is None
        else (f"{count} training examples")
    )


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "/").split())


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
