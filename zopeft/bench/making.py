"""From an entry to its optimizer: its fine-tuner, or one of the controls of it."""

from __future__ import annotations

from typing import Any

from zopeft.bench.body import Body
from zopeft.bench.entry import Entry
from zopeft.engine.frequency import frequency_shapes
from zopeft.errors import input_error
from zopeft.methods import METHODS
from zopeft.recipe.schema import Recipe
from zopeft.tasks.frequency import count_tokens


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
    options: dict[str, Any] = {"lr": lr}
    section = recipe.method
    if not entry.order:
        names = ("eps", "noise", "clip", "max_bad_steps", "directions", "sides", "normalise")
        options |= {name: getattr(section, name) for name in names} | {"seed": seed}
    options |= {"weight_decay": section.weight_decay, **entry.options}
    by_frequency = options.pop("rows", section.rows) == "frequency"
    if entry.finetuner:
        options["finetuner"] = finetuner = finetuner_of(entry, body)
        if finetuner.config.rows == "frequency":
            options["token_counts"] = count_tokens([body.train])
    if by_frequency:
        options["shapes"] = frequency_shapes(body.blocks, count_tokens([body.train]))
    return METHODS[entry.method](body.blocks, **options)


def trained_of(entry: Entry) -> Any:
    """Returns an entry's fine-tuner as it was trained.

    Raises:
        InputError: It cannot be loaded, or holds nothing that the entry's control could change.
    """
    from zopeft.finetuner import FineTuner

    trained = FineTuner.from_pretrained(str(entry.finetuner))
    if entry.control == "random" and not trained.bases:
        do = "leave random out"
        raise input_error("--method", "the fine-tuner holds no subspace", entry.line, do)
    return trained


def finetuner_of(entry: Entry, body: Body) -> Any:
    """Returns an entry's fine-tuner: as trained, or one of its controls."""
    from zopeft.finetuner import FineTuner

    trained = trained_of(entry)
    if entry.control == "shuffled":
        return trained.shuffled(entry.shuffle)
    if entry.control == "random":
        return trained.with_random_bases(entry.shuffle)
    if entry.control == "untrained":
        config = trained.config
        return FineTuner.initial(
            body.blocks,
            hidden=config.hidden,
            features=config.features,
            sharing=config.sharing,
            normalise=config.normalise,
            seed=entry.shuffle,
            rows=config.rows,
            power=config.power,
        )
    return trained
