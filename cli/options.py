"""The flags that commands share.

Numbers arrive as text and are checked with the recipe, so that all problems of a command
are told at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from zopeft.errors import input_error
from zopeft.recipe.schema import SECTIONS

MODEL, DATA, TRAINED = "Model", "Data", "What is trained"
METHOD, STEPS, ALONG, RUN = "Method", "Steps", "Along the way", "The run"
"""Groups of flags in a command's help."""


def default_of(key: str) -> str:
    """Returns the default of a recipe's key, as help shows it."""
    section, _, name = key.partition(".")
    return str(next(f.default for f in fields(SECTIONS[section]) if f.name == name))


Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL] [KEY.SUB=VALUE]...",
        help="Alias, hub id or folder (without one: the embedded model), and recipe overrides.",
        show_default=False,
    ),
]
Model = Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Alias, hub id or folder.")]
Task = Annotated[
    str | None,
    typer.Option(
        "--task", rich_help_panel=DATA, metavar="NAME", help="A task's name or YAML file."
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        rich_help_panel=DATA,
        metavar="NAME",
        help="A task's name; may be given several times.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        rich_help_panel=DATA,
        metavar="DIR",
        help="Local train/validation files, hub columns.",
    ),
]
OwnData = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        rich_help_panel=DATA,
        metavar="PATH|ID",
        help="Your own rows: a file, folder or hub id, whose columns tell what they are. "
        "With --task: rows in that task's columns. Several are mixed, PATH=WEIGHT each.",
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        "--split", rich_help_panel=DATA, metavar="NAME", help="The split of the data to take."
    ),
]
Validation = Annotated[
    str | None,
    typer.Option(
        "--validation",
        rich_help_panel=DATA,
        metavar="FILE|NAME",
        help="Own data's rows to score on; without: its validation split, or a tenth held out.",
    ),
]
Lora = Annotated[
    bool, typer.Option("--lora", rich_help_panel=TRAINED, help="Train a LoRA adapter.")
]
Prefix = Annotated[bool, typer.Option("--prefix", rich_help_panel=TRAINED, help="Train a prefix.")]
Full = Annotated[
    bool, typer.Option("--full", rich_help_panel=TRAINED, help="Train the model's own weights.")
]
Peft = Annotated[
    str | None,
    typer.Option(
        "--peft", rich_help_panel=TRAINED, metavar="NAME", help="Train any other PEFT adapter."
    ),
]
FineTunerOption = Annotated[
    str | None,
    typer.Option(
        "--finetuner",
        rich_help_panel=METHOD,
        metavar="PATH|ID",
        help="A learned fine-tuner's folder or hub id.",
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        "--method", rich_help_panel=METHOD, metavar="NAME", help="Optimizer (zopeft list methods)."
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe", rich_help_panel=RUN, metavar="NAME|FILE", help="Settings to start from."
    ),
]
In8bit = Annotated[
    bool, typer.Option("--load-in-8bit", rich_help_panel=MODEL, help="Quantise the model to 8 bit.")
]
In4bit = Annotated[
    bool, typer.Option("--load-in-4bit", rich_help_panel=MODEL, help="Quantise the model to 4 bit.")
]
Out = Annotated[
    str | None,
    typer.Option("--out", rich_help_panel=RUN, metavar="DIR", help="Folder of the result."),
]
Resume = Annotated[
    bool, typer.Option("--resume", rich_help_panel=RUN, help="Continue the run in --out.")
]
Steps = Annotated[
    str | None,
    typer.Option(
        "--steps",
        rich_help_panel=STEPS,
        show_default=default_of("training.steps"),
        metavar="N",
        help="Optimizer steps.",
    ),
]
BatchSize = Annotated[
    str | None,
    typer.Option(
        "--batch-size",
        rich_help_panel=STEPS,
        show_default=default_of("training.batch_size"),
        metavar="N",
        help="Examples a forward pass.",
    ),
]
Lr = Annotated[
    str | None,
    typer.Option(
        "--lr",
        rich_help_panel=METHOD,
        show_default=default_of("method.lr"),
        metavar="NUMBER|auto",
        help="Learning rate.",
    ),
]
Eps = Annotated[
    str | None,
    typer.Option("--eps", rich_help_panel=METHOD, metavar="NUMBER", help="Probe distance."),
]
Seed = Annotated[
    str | None,
    typer.Option(
        "--seed",
        rich_help_panel=STEPS,
        show_default=default_of("training.seed"),
        metavar="N",
        help="Seed of the run.",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        rich_help_panel=MODEL,
        show_default=default_of("model.dtype"),
        metavar="NAME",
        help="auto, float32, bfloat16 or float16.",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", rich_help_panel=RUN, help="Replace an earlier result in --out."),
]
Layout = Annotated[
    str | None,
    typer.Option(
        "--layout",
        rich_help_panel=STEPS,
        show_default=default_of("training.layout"),
        metavar="NAME",
        help="Batches: auto, packed or padded.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        rich_help_panel=RUN,
        help="Check everything and say what would be done; write nothing.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Png = Annotated[
    str | None, typer.Option("--png", metavar="FILE", help="Draw the scales as a heatmap.")
]
Loss = Annotated[
    float,
    typer.Option(
        "--loss",
        metavar="NUMBER",
        help="Losses of the step before that a fine-tuner reads; 0: a run's first step.",
    ),
]

Flags = dict[str, tuple[str, Any]]
"""Dotted recipe key to (the flag's name, its value)."""


def split_words(words: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """Splits the positional words into the model and the overrides.

    Raises:
        InputError: There is more than one model.
    """
    overrides = [word for word in words or () if is_override(word)]
    models = [word for word in words or () if not is_override(word)]
    if len(models) > 1:
        raise input_error(
            "MODEL", "one model at a time", ", ".join(models), "overrides are key.sub=value"
        )
    return (models[0] if models else None), overrides


def is_override(word: str) -> bool:
    """Tells an override from a model: it has an = and is no file."""
    return "=" in word and not Path(word).exists()


def space(lora: bool, prefix: bool, full: bool, peft: str | None) -> Flags:
    """Returns the chosen space as the flag of ``peft.name``.

    Raises:
        InputError: More than one space was chosen.
    """
    chosen = [
        (flag, name)
        for flag, name, given in (
            ("--lora", "lora", lora),
            ("--prefix", "prefix", prefix),
            ("--full", "full", full),
            ("--peft", peft, peft is not None),
        )
        if given
    ]
    if len(chosen) > 1:
        raise input_error(
            " ".join(flag for flag, _ in chosen), "one space at a time", do="choose one of them"
        )
    return {"peft.name": chosen[0]} if chosen else {}


def model_flags(model: str | None, dtype: str | None, in_8bit: bool, in_4bit: bool) -> Flags:
    """Returns the flags of the model section."""
    return {
        "model.name": ("MODEL", model),
        "model.dtype": ("--dtype", dtype),
        "model.load_in_8bit": ("--load-in-8bit", in_8bit or None),
        "model.load_in_4bit": ("--load-in-4bit", in_4bit or None),
    }


def data_flags(data: Sequence[str] | None, overrides: list[str]) -> Flags:
    """Returns the flags of the data; of several they are a mixture.

    Args:
        data: What ``--data`` was given.
        overrides: What else there is; what a recipe says of the other is taken back there.

    Raises:
        InputError: One is given twice.
    """
    if not data:
        return {}
    if len(data) == 1:
        return {"task.data": ("--data", data[0]), "data.mixture": ("--data", {})}
    mixture: dict[str, Any] = {}
    for one in data:
        name, weight = _weighed(one)
        if name in mixture:
            raise input_error("--data", "the same twice", name, "give it once, with its weight")
        mixture[name] = weight
    overrides.append("task.data=null")
    return {"data.mixture": ("--data", mixture)}


def _weighed(word: str) -> tuple[str, float | None]:
    """Splits ``PATH=WEIGHT``; what has no number behind it is a path alone."""
    name, _, weight = word.rpartition("=")
    try:
        return (name, float(weight)) if name else (word, None)
    except ValueError:
        return word, None


def training_flags(steps: str | None, batch_size: str | None, seed: str | None) -> Flags:
    """Returns the flags of the training section."""
    return {
        "training.steps": ("--steps", steps),
        "training.batch_size": ("--batch-size", batch_size),
        "training.seed": ("--seed", seed),
    }
