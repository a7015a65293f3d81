"""Writes docs/methods.md from the registry: each method's docstring and options.

python tools/methods_page.py          # writes it
python tools/methods_page.py --check  # exits with 1 where it is out of date
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

from zopeft.methods import METHODS
from zopeft.optim.declared import settings_of

PAGE = Path(__file__).resolve().parents[1] / "docs" / "methods.md"
HEAD = """# Methods

Made from the registry by `tools/methods_page.py`; every method is one file in `zopeft/methods`.

```bash
zopeft list methods
zopeft tune --method NAME --lr NUMBER method.OPTION=VALUE ...
```

All share `--lr`, `--eps`, `method.noise`, `method.clip`, `method.weight_decay` and the seed, exact
probes, the journal, resume, adapters and offloading. *auto*: whether `--lr auto` is known for it.
Methods of diffusion chains (RLR) are left out: they need a backward pass.
"""


def page() -> str:
    """Returns the page."""
    rows = ["| name | what it is | auto | options |", "|---|---|---|---|"]
    parts = []
    for name in METHODS:
        kind: Any = METHODS[name]
        options = settings_of(kind.Options) if kind.order == 0 else []
        auto = "yes" if kind.order or kind.gradient_units else "no"
        words = ", ".join(f"`{each.name}`" for each in options) or "-"
        rows.append(f"| [`{name}`](#{name}) | {METHODS.about(name)} | {auto} | {words} |")
        parts.append(_part(name, kind, options))
    return "\n".join([HEAD, *rows, "", *parts])


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
        lines += ["| option | default | range | |", "|---|---|---|---|"]
        lines += [f"| `{o.name}` | {o.default} | {o.range} | {o.about} |" for o in options]
        lines.append("")
    return "\n".join(lines)


def _items(text: str) -> str:
    """Returns a docstring's references as a list: each ends with a full stop."""
    found, begins = [], True
    for line in text.strip().splitlines():
        found.append(("- " if begins else "  ") + line.strip())
        begins = line.endswith(".")
    return "\n".join(found)


def main() -> None:
    """Writes or checks the page."""
    text = page()
    if "--check" in sys.argv:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        sys.exit(0 if same else f"{PAGE} is out of date: run python tools/methods_page.py")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
