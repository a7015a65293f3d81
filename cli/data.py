"""``zopeft data``: what a model is given of your rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o

if TYPE_CHECKING:
    from .output import Output

data_app = typer.Typer(help="Look at data as a model is given it.", no_args_is_help=True)
Count = Annotated[int, typer.Option("--examples", metavar="N", help="How many rows to show.")]


@data_app.command("show")
def show(
    words: o.Words = None,
    data: o.OwnData = None,
    task: o.Task = None,
    split: o.Split = None,
    validation: o.Validation = None,
    examples: Count = 3,
    recipe: o.RecipeOption = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Print encoded rows with what is taught marked, and the tokens of each split."""
    from .output import output, rows_table

    model, overrides = o.split_words(words)
    flags: o.Flags = {
        **o.model_flags(model, None, False, False),
        "task.name": ("--task", task),
        **o.data_flags(data, overrides),
        "data.split": ("--split", split),
        "data.validation": ("--validation", validation),
    }
    with output(json, debug) as screen:
        from zopeft.jobs.show import show as run
        from zopeft.recipe.load import load_recipe

        shown = run(load_recipe("tune", recipe, overrides, flags), examples, screen.listen)
        if json:
            screen.result(shown)
            return
        for line in shown["lines"]:
            screen.note(line)
        for example in shown["examples"]:
            _print(screen, example)
        screen.table(rows_table("tokens", _COLUMNS, _rows(shown["data"])))


@data_app.command("export")
def export(
    task: o.Task = None,
    data: o.OwnData = None,
    split: o.Split = None,
    examples: Annotated[
        str | None, typer.Option("--examples", metavar="N", help="The first so many rows.")
    ] = None,
    out: o.Out = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Write a task's rows and a YAML file that lm-evaluation-harness scores alike."""
    from .output import facts_table, output

    overrides = [] if examples is not None else ["task.eval_examples=null"]
    flags: o.Flags = {
        "task.name": ("--task", task),
        **o.data_flags(data, overrides),
        "data.split": ("--split", split),
        "task.eval_examples": ("--examples", examples),
    }
    with output(json, debug) as screen:
        from zopeft.jobs.export import export as run
        from zopeft.recipe.load import load_recipe

        checked = load_recipe("eval", None, overrides, flags)
        summary = run(checked, out, overwrite, screen.listen)
        names = ("task", "name", "rows", "out")
        screen.result(summary, facts_table("exported", {name: summary[name] for name in names}))


@data_app.command("schema")
def schema(debug: o.Debug = False) -> None:
    """Print the JSON schema of a task's YAML file, for editors."""
    from zopeft.tasks.task_schema import task_schema

    from .output import output

    with output(True, debug) as screen:
        screen.result(task_schema())


_COLUMNS = ("split", "rows", "tokens", "taught", "share taught", "longest", "texts cut")


def _rows(data: Mapping[str, Any]) -> list[list[Any]]:
    keys = ("rows", "tokens", "taught", "share_taught", "longest", "cut")
    splits = {name: one for name, one in data.items() if isinstance(one, Mapping)}
    return [[name, *(one[key] for key in keys)] for name, one in splits.items()]


def _print(screen: Output, example: Mapping[str, Any]) -> None:
    """Prints an example: what is taught in colour, or in brackets where there is none."""
    counts = f"{example['tokens_taught']} of {example['tokens']} tokens taught"
    cut = f", {example['tokens_cut']} cut" if example["tokens_cut"] else ""
    screen.text(f"--- {example['place']}: {counts}{cut}")
    screen.marked([(one["text"], one["taught"]) for one in example["pieces"]])
    if example["options"]:
        screen.text("options: " + " | ".join(example["options"]))
    screen.text("")
