"""``zopeft demo``: the main job, small, on the embedded model."""

from __future__ import annotations

from . import options as o


def demo(
    out: o.Out = "demo",
    overwrite: o.Overwrite = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Meta-train, tune with the result and with MeZO, score both; offline, minutes."""
    from .output import output, rows_table
    from .summary import change

    with output(json, debug) as screen:
        from zopeft.jobs.demo import demo as run

        summary = run(out or "demo", overwrite=overwrite, listener=screen.listen)
        rows = [
            (
                row["method"],
                row["steps"],
                row["lr"],
                change(row["loss_first"], row["loss_last"]),
                change(row["before"], row["after"]),
                row["seconds"],
            )
            for row in summary["runs"]
        ]
        columns = ("method", "steps", "lr", "loss", str(summary["metric"]), "seconds")
        screen.result(summary, rows_table(f"LoRA on {summary['task']}", columns, rows))
        if not json:
            screen.note(f"loss curves: {summary['plot']}")
