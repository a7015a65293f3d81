"""``zopeft recipe``: show, copy and check recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zopeft.errors import input_error

from . import options as o

recipe_app = typer.Typer(help="Show, copy and check recipes.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME|FILE", help="A recipe's name or file.")]


@recipe_app.command("show")
def show(name: Name, json: o.Json = False, debug: o.Debug = False) -> None:
    """Print a recipe's file, or with --json all of its settings."""
    from zopeft.recipe.load import check_recipe, recipe_path

    from .output import output

    with output(json, debug) as screen:
        if json:
            screen.result(check_recipe(name)[0].to_dict())
        else:
            screen.text(recipe_path(name).read_text(encoding="utf-8").rstrip())


@recipe_app.command("copy")
def copy(
    name: Name,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where the copy goes.")],
    overwrite: o.Overwrite = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Copy a recipe to a file of your own, to be changed and given to --recipe."""
    from zopeft.recipe.load import recipe_path
    from zopeft.staging import staged

    from .output import output

    with output(json, debug) as screen:
        source, target = recipe_path(name), Path(file)
        if not target.parent.is_dir():
            raise input_error(str(target.parent), "no such folder", do="make it first")
        try:
            with staged(target, new=not overwrite) as place:
                place.write_bytes(source.read_bytes())
        except FileExistsError:
            do = "give another name or --overwrite"
            raise input_error(str(target), "exists", do=do) from None
        except OSError as error:
            raise input_error(str(target), f"cannot be written ({error.strerror})") from None
        screen.note(f"copied {name} to {target}")
        screen.result({"recipe": name, "file": str(target)})


@recipe_app.command("check")
def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME|FILE]...", help="Without one: every shipped recipe."),
    ] = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Check recipes: keys, types, ranges and names."""
    from zopeft.recipe.load import check_recipe, shipped_recipes

    from .output import output, rows_table

    with output(json, debug) as screen:
        chosen = names or list(shipped_recipes())
        made = {name: check_recipe(name) for name in chosen}
        rows = [(name, found[0].job, len(found) - 1, "ok") for name, found in made.items()]
        screen.result(
            [{"recipe": n, "job": j, "task_settings": t, "ok": True} for n, j, t, _ in rows],
            rows_table("recipes", ("recipe", "job", "task settings", "check"), rows),
        )


@recipe_app.command("keys")
def keys(
    section: Annotated[
        str | None,
        typer.Argument(metavar="[SECTION]", help="One section, such as training; without: all."),
    ] = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """List every key of a recipe: type, default, range and meaning."""
    from zopeft.errors import close_matches
    from zopeft.recipe.keys import recipe_keys
    from zopeft.recipe.schema import SECTIONS

    from .output import output, rows_table

    with output(json, debug) as screen:
        if section is not None and section not in SECTIONS:
            do = close_matches(section, SECTIONS)
            raise input_error("SECTION", "no such section", section, do)
        found = recipe_keys(section)
        rows = [(one.key, one.type, one.shown_default, one.range, one.about) for one in found]
        screen.result(
            [one.to_dict() for one in found],
            rows_table("keys", ("key", "type", "default", "range", "meaning"), rows),
        )


@recipe_app.command("schema")
def schema(debug: o.Debug = False) -> None:
    """Print the JSON schema of a recipe's YAML file, for editors."""
    from zopeft.recipe.json_schema import recipe_schema

    from .output import output

    with output(True, debug) as screen:
        screen.result(recipe_schema())
