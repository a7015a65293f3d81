"""``zopeft blocks``: the blocks of a model, as the optimizers see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zopeft.errors import input_error

from . import options as o

if TYPE_CHECKING:
    from zopeft.blocks import Blocks

    from .output import Output


def blocks(
    words: o.Words = None,
    lora: o.Lora = False,
    prefix: o.Prefix = False,
    full: o.Full = False,
    peft: o.Peft = None,
    load_in_8bit: o.In8bit = False,
    load_in_4bit: o.In4bit = False,
    dtype: o.Dtype = None,
    finetuner: o.FineTunerOption = None,
    png: o.Png = None,
    loss: o.Loss = 1.0,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """List a model's blocks; with --finetuner, the group and the scale of each one."""
    from .output import output

    if png is not None and finetuner is None:
        raise input_error("--png", "draws a fine-tuner's scales", do="give --finetuner PATH-or-ID")

    model, overrides = o.split_words(words)
    flags: o.Flags = {
        "peft.name": ("--full", "full"),
        **o.model_flags(model, dtype, load_in_8bit, load_in_4bit),
        **o.space(lora, prefix, full, peft),
    }
    with output(json, debug) as screen:
        from zopeft.recipe.load import load_recipe

        checked = load_recipe("eval", None, overrides, flags)
        from zopeft.jobs.build import load_base, wrap

        if finetuner is not None:
            # Read first: a large model is not loaded for a fine-tuner that is not there.
            learned = _learned(finetuner, png)
            found = wrap(checked, load_base(checked, screen.listen)[0])
            _served(screen, found, learned, png, loss)
            return
        found = wrap(checked, load_base(checked, screen.listen)[0])
        rows = [
            {
                "name": block.name,
                "role": block.role,
                "layer": block.layer,
                "kind": block.kind,
                "shape": list(block.shape),
                "numel": block.numel,
                "owners": len(block.owners),
            }
            for block in found
        ]
        if json:
            screen.result({"space": found.space, "numel": sum(found.numels), "blocks": rows})
        else:
            screen.text(str(found))


def _learned(finetuner: str, png: str | None) -> Any:
    from zopeft.finetuner import FineTuner

    if png is not None:
        from zopeft.report.heatmap import check_png

        check_png(png)
    return FineTuner.from_pretrained(finetuner)


def _served(screen: Output, found: Blocks, finetuner: Any, png: str | None, loss: float) -> None:
    """Shows which group serves which block, and its scale."""
    from zopeft.jobs.serving import serve
    from zopeft.report.heatmap import plot_scales

    from .output import rows_table

    serving = serve(found, finetuner, loss)
    rows, report = serving.rows(), serving.match.report
    if png is not None:
        plot_scales(serving.cells(), png, f"{finetuner!r}", f"at loss {loss:g}: {report}")
    columns = ("block", "role", "layer", "numel", "how", "group", "raw", "scale")
    shown = rows_table(
        f"scales at loss {loss:g}: {report}",
        columns,
        [tuple(row[column] for column in columns) for row in rows],
    )
    screen.result({"report": report, "loss": loss, "png": png, "blocks": rows}, shown)
    if not screen.json and png is not None:
        screen.note(f"heatmap: {png}")
