"""``zopeft merge``: an adapter put into its base model's own weights."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as o

Folder = Annotated[
    str, typer.Argument(metavar="ADAPTER", help="A PEFT adapter's folder or hub id.")
]
Base = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="Its base; by default the one that it names."),
]


def merge(
    adapter: Folder,
    model: Base = None,
    out: o.Out = None,
    dtype: o.Dtype = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Put an adapter into its base model: a plain model folder, compared with the two before."""
    from .output import facts_table, output

    flags: o.Flags = o.model_flags(model, dtype, False, False)
    with output(json, debug) as screen:
        from zopeft.recipe.load import load_recipe

        checked = load_recipe("eval", None, [], flags)
        from zopeft.jobs.merge import merge as run

        summary = run(checked, adapter, out, overwrite=overwrite, listener=screen.listen)
        names = ("model", "adapter", "difference", "seconds", "out")
        screen.result(summary, facts_table("merged", {name: summary[name] for name in names}))
