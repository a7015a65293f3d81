"""``zopeft import-finetuner``: a fine-tuner that the paper's authors released, as an artifact."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as o

File = Annotated[str, typer.Argument(metavar="FILE.pth", help="The authors' pickled networks.")]
LearnedOn = Annotated[
    str,
    typer.Option("--model", metavar="ALIAS|DIR", help="The model that they were learned on."),
]
Batch = Annotated[
    int,
    typer.Option(
        "--batch-size",
        metavar="N",
        min=1,
        help="Examples a step when tuning; the authors' weight of an embedding depends on it.",
    ),
]


def import_finetuner(
    file: File,
    model: LearnedOn,
    out: o.Out = None,
    batch_size: Batch = 16,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Convert a released fine-tuner (.pth); nothing in the file is run."""
    from .output import facts_table, output

    with output(json, debug) as screen:
        from zopeft.jobs.import_finetuner import import_finetuner as run

        summary = run(file, model, out, batch_size, overwrite, screen.listen)
        facts = {key: summary[key] for key in ("model", "architecture", "layers", "groups")}
        checked = "names, against the model's configuration" if summary["checked"] else "no"
        unserved = len(summary["unserved"])
        facts |= {
            "checked": checked,
            "blocks without a network": unserved or None,
            "an embedding counts": f"{summary['embed_rows']} rows",
            "out": summary["out"],
        }
        screen.result(summary, facts_table("imported", facts))
