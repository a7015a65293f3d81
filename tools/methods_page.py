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
