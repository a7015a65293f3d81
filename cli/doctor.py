"""``zopeft doctor``: what of the machine and the libraries zopeft can use."""

from __future__ import annotations

import typer

from . import options as o


def doctor(json: o.Json = False, debug: o.Debug = False) -> None:
    """Look at versions, devices, kernels, caches and the hub, and take one step."""
    from .output import output, rows_table

    with output(json, debug) as screen:
        from zopeft.jobs.doctor import doctor as run

        found = run()
        rows = [
            (check["name"], check["state"], check["found"], check["do"])
            for check in found["checks"]
        ]
        screen.result(found, rows_table("doctor", ("what", "state", "found", "do"), rows))
    if found["state"] == "broken":
        raise typer.Exit(1)
