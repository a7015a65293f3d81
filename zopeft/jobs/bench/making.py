"""From an entry to its optimizer: its fine-tuner, or one of the controls of it."""

from __future__ import annotations

from typing import Any

from zopeft.errors import input_error
from zopeft.jobs.bench.body import Body
from zopeft.jobs.bench.entry import OF_SUBSPACES, Entry
from zopeft.methods import METHODS
from zopeft.optim.options import options_from
from zopeft.recipe.schema import Recipe
from zopeft.tasks.frequency import frequency_options


def make_method(entry: Entry, body: Body, lr: float | str, recipe: Recipe, seed: int) -> Any:
    """Returns the optimizer of an entry over a body.

    Args:
        entry: The entry; its options go over those of the recipe's method section.
        body: What is trained.
        lr: A number, or "auto".
        recipe: The cell's recipe.
        seed: The run's seed.

    Raises:
        InputError: The fine-tuner cannot be used here, or an option is out of range.
    """
    kind = METHODS[entry.method]
    options = {"lr": lr, **options_from(kind, recipe.method), **entry.options}
    rows = options.pop("rows", recipe.method.rows)
    if entry.finetuner:
        finetuner = options["finetuner"] = finetuner_of(entry)
        if recipe.peft.options.get("start") == "finetuner" and finetuner.bases:
            from zopeft.models.learned_start import start_from_finetuner

            # Of a control, what the control has learned; entries without any start at random.
            start_from_finetuner(body.blocks, finetuner, seed)
    if not entry.order:
        options["seed"] = seed
        options |= frequency_options(rows, options.get("finetuner"), body.blocks, [body.train])
    return kind(body.blocks, **options)


def trained_of(entry: Entry) -> Any:
    """Returns an entry's fine-tuner as it was trained.

    Raises:
        InputError: It cannot be loaded, or holds nothing that the entry's control could change.
    """
    from zopeft.finetuner import FineTuner

    trained = FineTuner.from_pretrained(str(entry.finetuner))
    if entry.control in OF_SUBSPACES and not trained.bases:
        do = f"leave {entry.control} out"
        raise input_error("--method", "the fine-tuner holds no subspace", entry.line, do)
    return trained


def finetuner_of(entry: Entry) -> Any:
    """Returns an entry's fine-tuner: as trained, or one of its controls."""
    trained = trained_of(entry)
    if entry.control == "shuffled":
        return trained.shuffled(entry.shuffle)
    if entry.control == "random":
        return trained.with_random_bases(entry.shuffle)
    if entry.control == "scales":
        return trained.without_bases()
    if entry.control == "untrained":
        return trained.untrained(entry.shuffle)
    return trained
