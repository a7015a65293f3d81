"""``zopeft blocks``: the blocks of a model, as the optimizers see them."""

from __future__ import annotations

from . import options as o


def blocks(
    words: o.Words = None,
    lora: o.Lora = False,
    prefix: o.Prefix = False,
    full: o.Full = False,
    peft: o.Peft = None,
    load_in_8bit: o.In8bit = False,
    load_in_4bit: o.In4bit = False,
    dtype: o.Dtype = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """List a model's blocks: name, role, layer, kind, shape, owners."""
    from .output import output

    model, overrides = o.split_words(words)
    flags: o.Flags = {
        "peft.name": ("--full", "full"),
        **o.model_flags(model, dtype, load_in_8bit, load_in_4bit),
        **o.space(lora, prefix, full, peft),
    }
    with output(json, debug) as screen:
        from zopeft.recipe.load import load_recipe

        checked = load_recipe("eval", None, overrides, flags)
        from zopeft.recipe.build import load_base, wrap

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
