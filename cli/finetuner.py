"""``zopeft finetuner``: what a learned fine-tuner holds, and how good it is."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o

if TYPE_CHECKING:
    from rich.table import Table

    from zopeft.finetuner import FineTuner
    from zopeft.report.heatmap import Cell
    from zopeft.report.movement import Movement

    from .output import Output

finetuner_app = typer.Typer(
    help="Show a learned fine-tuner, and put scores into its card.", no_args_is_help=True
)
_LONG = 100


@finetuner_app.command("show")
def show(
    finetuner: Annotated[str, typer.Argument(metavar="PATH|ID", help="A folder or hub id.")],
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Show its scales on this model.")
    ] = None,
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="DIR", help="Show how scales moved along this tuning run."),
    ] = None,
    png: o.Png = None,
    loss: o.Loss = 1.0,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Show a fine-tuner: configuration, training, statistics, scales over layers and roles."""
    from .output import facts_table, output, rows_table

    with output(json, debug) as screen:
        from zopeft.finetuner import FineTuner
        from zopeft.finetuner.digest import digest_of
        from zopeft.finetuner.scores import KEY, comparisons
        from zopeft.report.heatmap import check_png, plot_scales
        from zopeft.report.movement import along_the_loss

        if png is not None:
            check_png(png)
        found = FineTuner.from_pretrained(finetuner)
        if run is not None:
            _along_a_run(screen, run, png, json)
            return
        cells, note = _cells(found, model, loss, screen.listen)
        if png is not None:
            plot_scales(cells, png, f"{found!r}", note, raw=model is None)
        statistics = found.config.training.get("statistics")
        moves = along_the_loss(found)
        if json:
            scales = [{"layer": c.layer, "role": c.column, "scale": c.scale} for c in cells]
            along = None if moves is None else moves.rows()
            shown = {"scales": scales, "along_the_loss": along, "note": note, "png": png}
            told = found.config.to_dict()
            if KEY in told["training"]:
                told["training"][KEY] = comparisons(found.config.training, digest_of(found))
            screen.result({**told, **shown})
            return
        screen.table(facts_table("fine-tuner", _facts(found)))
        screen.table(facts_table("training", _training(found)))
        _show_comparisons(screen, comparisons(found.config.training, digest_of(found)))
        if isinstance(statistics, dict) and statistics:
            columns = ("role", "blocks", "signal S", "energy E", "curvature h", "scale")
            title = "statistics (medians over the blocks of a role)"
            screen.table(rows_table(title, columns, _statistics(found, statistics)))
        for table in _scale_tables(cells, note):
            screen.table(table)
        if moves is not None:
            screen.table(_movement(moves, "raw scales at shares of a run's first loss"))
        if png is not None:
            screen.note(f"heatmap: {png}")


@finetuner_app.command("score")
def score(
    finetuner: Annotated[str, typer.Argument(metavar="FINETUNER", help="Its folder.")],
    benches: Annotated[
        list[str], typer.Argument(metavar="BENCH...", help="Folders of benches that it was in.")
    ],
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Put what a bench measured of a fine-tuner, beside its controls, into its card."""
    from .output import output

    with output(json, debug) as screen:
        from zopeft.jobs.score import score as run

        summary = run(finetuner, benches)
        if not json:
            _show_comparisons(screen, summary["comparisons"])
            screen.text(f"card: {finetuner}/README.md")
        screen.result(summary)


def _show_comparisons(screen: Output, found: list[dict[str, Any]]) -> None:
    from zopeft.finetuner.scores import cells, columns, title

    from .output import rows_table

    for one in found:
        screen.table(rows_table(title(one), columns(one), cells(one)))


def _along_a_run(screen: Output, run: str, png: str | None, json: bool) -> None:
    """Shows the scales that a run has used, from its journal."""
    from zopeft.report.movement import along_a_run, plot_run

    found = along_a_run(run)
    moves = found.movement()
    if png is not None:
        plot_run(found, png, f"scales along {run}")
    if json:
        screen.result({"run": run, "steps": len(found.steps), "roles": moves.rows(), "png": png})
        return
    screen.table(_movement(moves, f"scales along {run} (geometric means over a role)"))
    if png is not None:
        screen.note(f"lines: {png}")


def _movement(moves: Movement, title: str) -> Table:
    from .output import rows_table

    rows = [
        (role, *(f"{scale:.3g}" for scale in scales))
        for role, scales in zip(moves.roles, moves.scales.tolist(), strict=True)
    ]
    return rows_table(title, ("role", *moves.moments), rows)


def _cells(
    finetuner: FineTuner, model: str | None, loss: float, listener: Any
) -> tuple[list[Cell], str]:
    """Returns the scales to show, and what they are."""
    from zopeft.jobs.serving import bare_cells, serve

    if model is None:
        return bare_cells(finetuner, loss), f"raw scales at loss {loss:g}"
    from zopeft.jobs.build import load_base, wrap
    from zopeft.recipe.load import load_recipe

    flags: o.Flags = {"model.name": ("--model", model), "peft.name": ("--full", "full")}
    recipe = load_recipe("eval", None, (), flags)
    serving = serve(wrap(recipe, load_base(recipe, listener)[0]), finetuner, loss)
    return serving.cells(), f"scales at loss {loss:g}: {serving.match.report}"


def _facts(finetuner: FineTuner) -> dict[str, Any]:
    from zopeft.finetuner.size import basis_numbers, file_bytes, memory_bytes, network_numbers

    config = finetuner.config
    subspace = config.capacity == "subspace"
    counted = f", an embedding counts {config.embed_rows} rows"
    normalised = "yes" + (counted if config.normalisation == "authors" else "")
    return {
        "base model": config.base_model or None,
        "architecture": f"{config.architecture}, {config.num_layers} layers",
        "space": config.space,
        "groups": f"{len(config.groups)}, one a {config.sharing}",
        "network": f"{', '.join(config.features)} -> {config.hidden} tanh -> 1"
        + (f", moves a fixed scale by exp({config.bound:.3g})" if _moves(finetuner) else ""),
        "capacity": config.capacity,
        "subspaces": f"{len(finetuner.bases)} of rank {config.rank} at most, "
        + ("" if config.sides == "both" else "of the inputs alone, ")
        + f"mixed with {config.mix:.0%} of isotropic noise"
        if subspace
        else None,
        "embedding rows": "by token frequency" if config.rows == "frequency" else None,
        "numbers": network_numbers(config) + basis_numbers(config),
        "on disk": f"{file_bytes(config) / 1e6:.2f} MB",
        "in memory": f"{memory_bytes(config) / 1e6:.2f} MB",
        "normalised": normalised if config.normalise else "no",
        "versions": ", ".join(f"{name} {version}" for name, version in config.versions.items()),
    }


def _moves(finetuner: FineTuner) -> bool:
    return finetuner.config.output == "bounded"


def _training(finetuner: FineTuner) -> dict[str, Any]:
    from zopeft.finetuner.scores import KEY

    training = finetuner.config.to_dict()["training"]
    training.pop(KEY, None)
    if not training:
        return {"": "none: the networks stand at their random start"}
    facts: dict[str, Any] = {}
    for name, value in training.items():
        if isinstance(value, dict) and name not in ("statistics", "windows"):
            value = ", ".join(f"{key} {one}" for key, one in value.items())
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            value = ", ".join(value)
        long = isinstance(value, dict | list) and len(str(value)) > _LONG
        facts[name.replace("_", " ")] = f"{len(value)} entries" if long else value
    return facts


def _statistics(finetuner: FineTuner, statistics: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Returns one row a role: medians of signal, energy, curvature and scale."""
    from zopeft.reading import fits

    roles = {group.key: group.role for group in finetuner.config.groups}
    by_role: dict[str, list[dict[str, Any]]] = {}
    for name, entry in statistics.items():
        if not isinstance(entry, dict):
            continue
        by_role.setdefault(str(entry.get("role", roles.get(name, "other"))), []).append(entry)

    def middle(entries: list[dict[str, Any]], key: str) -> float | None:
        values = [entry[key] for entry in entries if fits(entry.get(key), "real")]
        return float(median(values)) if values else None

    keys = ("signal", "energy", "curvature", "scale")
    return [
        (role, len(entries), *(middle(entries, key) for key in keys))
        for role, entries in by_role.items()
    ]


def _scale_tables(cells: list[Cell], note: str) -> list[Table]:
    import math

    from zopeft.report.heatmap import grids

    from .output import rows_table

    tables = []
    for grid in grids(cells):
        inside = grid.rows != [""]
        rows = [
            (*((label,) if inside else ()), *("" if math.isnan(x) else f"{x:.2g}" for x in scales))
            for label, scales in zip(grid.rows, grid.scales.tolist(), strict=True)
        ]
        # One word a line, so that the columns are as narrow as their numbers.
        heads = [column.replace("_", "\n").replace(" ", "\n") for column in grid.columns]
        columns = (*(("layer",) if inside else ()), *heads)
        tables.append(rows_table(note if inside else "outside the layers", columns, rows))
    return tables
