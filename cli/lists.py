"""``zopeft list``: the names that the registries know."""

from __future__ import annotations

from typing import Annotated

import typer

from zopeft.errors import close_matches, input_error

from . import options as o

KINDS = {
    "methods": "method",
    "tasks": "task",
    "kinds": "kind",
    "models": "model",
    "peft": "peft",
    "noises": "noise",
    "objectives": "objective",
    "metrics": "metric",
}


def list_names(
    kind: Annotated[str, typer.Argument(metavar="|".join([*KINDS, "recipes"]))],
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """List the known methods, tasks, objectives, models, PEFT types, recipes, ..."""
    from .output import output, rows_table

    with output(json, debug) as screen:
        rows = _rows(kind)
        title = f"{kind} ({len(rows)})"
        screen.result(
            [{"name": name, "about": about} for name, about in rows],
            rows_table(title, ("name", "about"), rows),
        )


def _rows(kind: str) -> list[tuple[str, str]]:
    """Returns names and their lines."""
    if kind == "recipes":
        from zopeft.recipe.load import read_yaml, shipped_recipes

        return [
            (name, str(read_yaml(path).get("about", "")))
            for name, path in shipped_recipes().items()
        ]
    if kind not in KINDS:
        known = [*KINDS, "recipes"]
        raise input_error("list", "unknown list", kind, close_matches(kind, known))
    from zopeft.recipe.names import registry
    from zopeft.registry import Registry

    known_names = registry(KINDS[kind])
    assert isinstance(known_names, Registry)
    rows = [(name, known_names.about(name)) for name in known_names]
    if kind == "kinds":
        return [(name, f"{known_names[name].shape}: {about}") for name, about in rows]
    if kind == "peft":
        from zopeft.recipe.schema import BARE

        return [*BARE.items(), *rows]
    return rows
