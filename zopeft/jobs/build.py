"""The objects that a recipe names: model, adapter, blocks, rows, fine-tuner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zopeft.errors import InputError, input_error
from zopeft.jobs.libraries import load_libraries
from zopeft.jobs.progress import Listener, Progress
from zopeft.reading import read_json
from zopeft.recipe.names import registry
from zopeft.recipe.schema import BITFIT, FULL, SCALES, Recipe

if TYPE_CHECKING:
    from zopeft.blocks import Blocks
    from zopeft.finetuner import FineTuner
    from zopeft.models import ModelSource
    from zopeft.tasks.rows import Rows

BIASES = r"(^|\.)bias$"
START_ROWS = 16
"""Training rows whose activations an adapter is started from."""
EMBEDDED_NOTE = "using the embedded model (small, made for trying things out); MODEL names another"


def load_base(
    recipe: Recipe, listener: Listener, note: str = EMBEDDED_NOTE
) -> tuple[Any, Any, ModelSource]:
    """Returns the recipe's model, its tokenizer and where they came from.

    Args:
        recipe: Names the model.
        listener: Called with reports.
        note: What is told where that is the embedded one.

    Raises:
        InputError: The model cannot be found or read.
    """
    from zopeft.models import load_model, resolve

    section = recipe.model
    source = resolve(section.name)
    told = note if source.embedded else f"loading {source.label}"
    listener(Progress("load", note=told))
    load_libraries(*(("zopeft.jobs.loop",) if recipe.job == "tune" else ()))
    model, tokenizer = load_model(
        source,
        section.dtype,
        section.load_in_8bit,
        section.load_in_4bit,
        section.device,
        section.quant_type,
        section.double_quant,
        section.offload_folder,
        section.max_memory,
        section.sharded,
    )
    return model, tokenizer, source


def wrap(recipe: Recipe, model: Any) -> Blocks:
    """Returns the blocks to train, after putting the recipe's adapter on the model.

    The model with its adapter is the ``model`` of the result.

    Raises:
        InputError: The adapter does not fit, or no block is left.
    """
    from zopeft.blocks import discover, keep_trainable

    section = recipe.peft
    if section.name == FULL:
        return discover(model, "full", section.select)
    if section.name == SCALES:
        if registry("method")[method_name(recipe)].order:
            raise input_error("--method", "scales have no gradient", recipe.method.name, "use mezo")
        return discover(model, "scales", section.select)
    if section.name == BITFIT:
        if not any(name.endswith("bias") for name, _ in model.named_parameters()):
            raise input_error("--peft bitfit", "the model has no biases", do="use --lora")
        keep_trainable(model, section.select or BIASES)
        return discover(model, "full", section.select or BIASES)
    from zopeft.models import attach

    tuned = attach(model, str(section.name), section.options, recipe.training.seed)
    return discover(tuned, "adapter", section.select)


def start_adapter(
    recipe: Recipe, blocks: Blocks, train: Any, collate: Any, finetuner: FineTuner | None = None
) -> None:
    """Starts a LoRA as the recipe says.

    From the activations of the first training rows, or from what a fine-tuner has learned.

    Args:
        recipe: The recipe.
        blocks: Those of the model with its new adapter.
        train: The encoded training examples.
        collate: Makes batches of them.
        finetuner: The run's fine-tuner; None where it has none, or starts the adapter itself.

    Raises:
        InputError: The fine-tuner has nothing for these layers.
    """
    start, model = recipe.peft.options.get("start"), blocks.model
    if start == "finetuner" and finetuner is not None:
        from zopeft.models.learned_start import start_from_finetuner

        start_from_finetuner(blocks, finetuner, recipe.training.seed)
    if start != "activations":
        return
    from zopeft.blocks.offloaded import device_of
    from zopeft.models.activations import start_from_activations

    count, device = min(START_ROWS, len(train)), device_of(model)
    parts = [range(first, min(first + 4, count)) for first in range(0, count, 4)]
    batches = (collate([train[row] for row in part]) for part in parts)
    moved = ({n: v.to(device) for n, v in batch.items()} for batch in batches)
    start_from_activations(model, moved, recipe.training.seed)


def load_task(name: str | None, loss: Literal["answer", "choice"] | None = None) -> Any:
    """Returns the task of a name or YAML file.

    Args:
        name: The name or file.
        loss: "answer" or "choice" in place of the task's own loss.

    Raises:
        InputError: There is no name, no such task, or "choice" for a task without choices.
    """
    if name is None:
        do = "give one of: " + ", ".join(registry("task"))
        raise input_error("--task", "no task given", do=do)
    from zopeft.tasks import load_task as load

    task = load(name)
    if loss == "choice" and task.kind != "choice":
        raise input_error("task.loss", f"{task.name} has no choices", loss, "use answer")
    return task if loss is None else replace(task, loss=loss)


def load_rows(recipe: Recipe, task: Any, split: str, embedded: bool, draw: int | None = 0) -> Rows:
    """Returns the rows of a split, at most as many as the recipe wants.

    Args:
        recipe: The recipe.
        task: The task.
        split: "train" or "validation".
        embedded: Whether the embedded samples stand in for the hub's data.
        draw: Seed of the draw of validation rows, where there are more; None takes the first.

    Raises:
        InputError: The data cannot be had, is empty or has other columns.
    """
    from zopeft.tasks import load_rows as load

    section, training = recipe.task, split == "train"
    data = Path(section.data) if section.data else None
    limit = section.train_examples if training else section.eval_examples
    # Runs with different seeds are compared on the same validation rows.
    seed = recipe.training.seed if training else draw
    if task.own is None and recipe.data.split and training == (recipe.job != "eval"):
        split = recipe.data.split
    return load(task, split, data, embedded and data is None, limit, seed)


def model_label(source: ModelSource) -> str:
    """Returns what a summary calls a model."""
    return "embedded" if source.embedded else source.alias or source.label


def on_embedded(source: ModelSource) -> bool:
    """Tells whether a model is the embedded one, or a full tuning of it."""
    if source.embedded or not source.local:
        return source.embedded
    try:
        return bool(read_json(Path(source.path) / "run.json")["embedded"])
    except (InputError, KeyError, TypeError):
        return False


def method_name(recipe: Recipe) -> str:
    """Returns the recipe's method: the one named, or what the fine-tuner asks for.

    Raises:
        InputError: The method and the fine-tuner do not go together.
    """
    section = recipe.method
    name = section.name or ("zo_finetuner" if section.finetuner else "mezo")
    needs = bool(registry("method")[name].needs_finetuner)
    if needs and not section.finetuner:
        raise input_error(
            "--method", f"{name} needs a fine-tuner", do="give --finetuner PATH-or-ID"
        )
    if section.finetuner and not needs:
        raise input_error(
            "--finetuner", f"the method {name} uses none", do="leave it out, or --method"
        )
    return name


def load_finetuner(recipe: Recipe) -> FineTuner | None:
    """Returns the recipe's fine-tuner, or None where it names none.

    Raises:
        InputError: It cannot be read.
    """
    if recipe.method.finetuner is None:
        return None
    from zopeft.finetuner import FineTuner

    finetuner: FineTuner = FineTuner.from_pretrained(recipe.method.finetuner)
    return finetuner


def task_slug(name: str) -> str:
    """Returns a task's name as it stands in a folder's name."""
    return Path(name).stem if name.endswith((".yaml", ".yml")) else name
