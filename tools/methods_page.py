"""Writes docs/methods.md from the registry, and docs/meta-training.md from its settings.

python tools/methods_page.py          # writes them
python tools/methods_page.py --check  # exits with 1 where one is out of date
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

from zopeft.methods import METHODS
from zopeft.optim.declared import Options, settings_of
from zopeft.recipe.meta_schema import MetaSection

DOCS = Path(__file__).resolve().parents[1] / "docs"
HEAD = """# Methods

Made from the registry by `tools/methods_page.py`; every method is one file in `zopeft/methods`.

```bash
zopeft list methods
zopeft tune --method NAME --lr NUMBER method.OPTION=VALUE ...
```

All share `--lr`, `--eps`, `method.noise`, `method.clip`, `method.weight_decay` and the seed, exact
probes, the journal, resume, adapters and offloading. *auto*: whether `--lr auto` is known for it.
Methods of diffusion chains (RLR) are left out: they need a backward pass.

Every zeroth-order method has these options, too. What `layers` leaves out costs a step nothing: no
noise, no state, no update; layers below the lowest one run once a step.
"""
META = """# Meta-training

Made from `zopeft.meta.options` by `tools/methods_page.py`.

```bash
zopeft meta-train MODEL --task copa meta.OPTION=VALUE ... --out FOLDER
```

In Python they are keywords of `zopeft.meta_train(model, tasks=[...], ...)`; there `meta.rows` is
`token_rows`, and `noise`, `noise_rank` and `seed` stand beside them.

## Without a backward pass

```bash
zopeft meta-train MODEL --task cb --task wsc --task drop --forward-only --out FOLDER
```

`--forward-only` (`meta.gradients: forward`) is for who cannot run a backward pass: there is no
memory for it, or the weights are offloaded and have no gradient. No parameter asks for a
gradient meanwhile, and the model comes back bit for bit. Learned are:

- **directions of inputs** (`meta.input_rank` a layer, or `--rank`): the gradient of a linear
  layer is a sum of products of output gradients and inputs, so the first quarter of the
  meta-steps runs one forward pass each and sums up what goes into every linear layer, padding
  left out. The side of the outputs has nothing like it in a forward pass and keeps all its
  directions. The artifact then holds bases of one side (format 4; bases of both are still
  written as format 3).
- **scales a role**, all vectors being one: in each of the other meta-steps every group is
  probed on both sides along a direction of its own. Mean squared projected gradients are its
  energy, mean second differences its curvature, and products of two batches' projected
  gradients along one direction its signal. A direction serves four batches, of whatever task;
  then the model moves a zeroth-order step against it. Blocks of a group have their share of all
  three by their size. Scales begin where each layer's part in a step is what it is with
  isotropic noise: a direction in a subspace sees `(1 - mix) c I / r + mix` times the energy,
  where the r directions hold a share c of the power of the layer's I inputs, and its scale
  begins at one over the root of that.
- **rows by token frequency**, as ever.

Few probes measure little: a squared projected gradient scatters by 1.4 times its mean. So the
signal's share and the curvature over the energy of each group are drawn towards those of all
groups together, by `t^2 / (t^2 + e^2)` with e the standard error (jackknife over directions, of
which there must be 8) and t^2 what the groups differ by beyond such errors; and **where they do
not differ by more than noise would have them, by two standard errors, the scales stay where
they began**. The record says how much was kept (`training.kept_of_groups`) and what was
measured (`training.groups_measured`).

A probing meta-step costs `1 + 2 R` forward passes of R groups, 19 for a Llama: 100 meta-steps
plan 1,450 passes (`--dry-run` tells), and the summary says how many were made
(`forward_passes`). Weights that are offloaded and quantisation scales are probed where they
are, and never moved. The objective paper, the policy state, masks, momentum and several
processes need gradients, and are refused; `meta.lr_model` and `meta.clip` have no say.

How much of the gradient one's gain is that? `benchmarks/forward_only.py`, stories260K, both
learned on the package's cb, wsc and drop with default settings, full weights, `--lr auto`, 500
forward passes, validation loss, mean of seeds 1 and 2, in brackets the part of the gradient one's
gain over MeZO:

| | sst2 | copa | squad |
|---|---|---|---|
| MeZO | 0.514 | 2.934 | 4.512 |
| rows by frequency alone | 0.280 (97 %) | 2.942 (none) | 4.423 (22 %) |
| learned by gradients | 0.273 | 2.861 | 4.108 |
| **learned by forward passes alone** | **0.260 (106 %)** | **2.837 (134 %)** | **4.217 (73 %)** |
| the same, shuffled over blocks | 0.451 (26 %) | 2.839 (130 %) | 4.250 (65 %) |

On sst2 rows by frequency do it all, and need no meta-training. On copa the shuffled control is
level, on squad it is behind by little: it pays to have directions of inputs at all, hardly which
layer has which, so that what was learned of single layers is not shown to help. On squad the two
fine-tuners differ: the one of seed 2 found its groups not to differ surely, kept the scales where
they began and came to 4.102; the one of seed 1 kept half of what it had measured and came to
4.332. So the measured scales are not shown to help either. Learning took 65 s of the processor
and 1,450 forward passes, by gradients 30 s. Two seeds, one model of 260k weights, one rank (1,
chosen on seed 100 of the same tasks, as were the scales to begin with).

## Settings
"""


def meta_page() -> str:
    """Returns the page of the settings of meta-training."""
    lines = ["| option | default | range | |", "|---|---|---|---|"]
    for o in settings_of(MetaSection):
        words = ", ".join(map(str, o.default)) if isinstance(o.default, tuple) else o.default
        lines.append(f"| `meta.{o.name}` | {words} | {o.range} | {o.about.replace('`', '')} |")
    return "\n".join([META, *lines, ""])


def page() -> str:
    """Returns the page."""
    shared = settings_of(Options)
    rows = ["| name | what it is | auto | options |", "|---|---|---|---|"]
    parts = []
    for name in METHODS:
        kind: Any = METHODS[name]
        options = (
            [o for o in settings_of(kind.Options) if o not in shared] if not kind.order else []
        )
        auto = "yes" if kind.order or kind.gradient_units else "no"
        words = ", ".join(f"`{each.name}`" for each in options) or "-"
        rows.append(f"| [`{name}`](#{name}) | {METHODS.about(name)} | {auto} | {words} |")
        parts.append(_part(name, kind, options))
    return "\n".join([HEAD, *_table(shared), "", *rows, "", *parts])


def _part(name: str, kind: Any, options: list[Any]) -> str:
    """Returns the part of one method."""
    text = inspect.cleandoc(kind.__doc__ or "")
    # The arguments that all methods share are told once, in the reference.
    text = re.sub(r"\nArgs:\n(    .*\n|\n)*", "\n", text + "\n")
    text = re.sub(r"\nRaises:\n(    .*\n|\n)*", "\n", text)
    head, _, tail = text.replace("``", "`").partition("References:\n")
    text = head.strip() + ("\n\nReferences:\n\n" + _items(tail) if tail else "")
    lines = [f"## {name}", "", text.strip(), ""]
    if options:
        lines += [*_table(options), ""]
    return "\n".join(lines)


def _table(options: list[Any]) -> list[str]:
    """Returns options as the rows of a table."""
    head = ["| option | default | range | |", "|---|---|---|---|"]
    return head + [f"| `{o.name}` | {o.default} | {o.range} | {o.about} |" for o in options]


def _items(text: str) -> str:
    """Returns a docstring's references as a list: each ends with a full stop."""
    found, begins = [], True
    for line in text.strip().splitlines():
        found.append(("- " if begins else "  ") + line.strip())
        begins = line.endswith(".")
    return "\n".join(found)


def main() -> None:
    """Writes or checks the pages."""
    pages = {"methods.md": page(), "meta-training.md": meta_page()}
    DOCS.mkdir(exist_ok=True)
    for name, text in pages.items():
        file = DOCS / name
        if "--check" not in sys.argv:
            file.write_text(text, encoding="utf-8")
        elif not file.is_file() or file.read_text(encoding="utf-8") != text:
            sys.exit(f"{file} is out of date: run python tools/methods_page.py")


if __name__ == "__main__":
    main()
