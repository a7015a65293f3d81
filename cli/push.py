"""``zopeft push``: a result's folder onto the hub."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as o

Folder = Annotated[str, typer.Argument(metavar="FOLDER", help="An adapter, fine-tuner or model.")]
Repository = Annotated[str, typer.Argument(metavar="REPOSITORY", help="organisation/name")]
Public = Annotated[bool, typer.Option("--public", help="A repository that is made is public.")]
Message = Annotated[
    str, typer.Option("--message", metavar="TEXT", help="Of the commit.", show_default=False)
]


def push(
    folder: Folder,
    repository: Repository,
    public: Public = False,
    message: Message = "",
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Upload an adapter, a fine-tuner or a model to the hub; private unless --public."""
    from .output import facts_table, output

    with output(json, debug) as screen:
        from zopeft.jobs.push import push as run

        summary = run(folder, repository, not public, message)
        screen.result(summary, facts_table("pushed", summary))
