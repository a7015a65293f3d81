"""Writes docs/reference: commands, recipe keys and Python names, each from what declares it.

python tools/reference_pages.py          # writes the pages
python tools/reference_pages.py --check  # exits with 1 where one is out of date
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from typer.main import get_command

import zopeft
from zopeft.cli.main import app
from zopeft.optim.zeroth_order import ZerothOrder
from zopeft.recipe.keys import Key, recipe_keys
from zopeft.recipe.schema import SECTIONS

DOCS = Path(__file__).resolve().parents[1] / "docs" / "reference"
EXAMPLES = {
    "meta-train": "zopeft meta-train llama-3.2-1b --task copa --out finetuner",
    "tune": "zopeft tune qwen3-0.6b --data chat.jsonl --steps 500 --out chat-lora",
    "eval": "zopeft eval qwen3-0.6b --adapter chat-lora --data chat.jsonl",
    "chat": 'zopeft chat chat-lora "What is a door?"',
    "merge": "zopeft merge chat-lora --out chat-model",
    "push": "zopeft push chat-lora my-name/chat-lora",
    "bench": 'zopeft bench --task sst2 --space full --method "lozo r=2" --workers 2',
    "blocks": "zopeft blocks --lora --finetuner finetuner --png scales.png",
    "estimate": "zopeft estimate llama-3.1-8b --lora --batch-size 8 --memory 24",
    "finetuner show": "zopeft finetuner show finetuner",
    "finetuner score": "zopeft finetuner score finetuner bench",
    "import-finetuner": "zopeft import-finetuner released.pth --model opt-1.3b --out finetuner",
    "list": "zopeft list methods",
    "data show": "zopeft data show qwen3-0.6b --data chat.jsonl",
    "data export": "zopeft data export --task sst2 --out sst2-harness",
    "data schema": "zopeft data schema > task.schema.json",
    "recipe show": "zopeft recipe show embedded/tune",
    "recipe copy": "zopeft recipe copy llama-3.1-8b/tune own.yaml",
    "recipe check": "zopeft recipe check embedded/tune",
    "recipe keys": "zopeft recipe keys training",
    "recipe schema": "zopeft recipe schema > recipe.schema.json",
    "demo": "zopeft demo --out demo",
    "doctor": "zopeft doctor",
}
COMMANDS = """# Commands

Made from the command line by `tools/reference_pages.py`; `zopeft COMMAND --help` says the same.

Where a command takes `KEY.SUB=VALUE`, any [recipe key](recipe-keys.md) can stand; that is stronger
than a recipe, and a flag stronger than both. `zopeft --version` prints the version,
`zopeft --install-completion` sets up the shell's completion, and `python -m zopeft` is the same
command.

The exit code is 0 when done, 2 when the input was wrong, 1 when the run broke or was interrupted.
"""
KEYS = """# Recipe keys

Made from the declared settings by `tools/reference_pages.py`; `zopeft recipe keys` prints the same.

A recipe is a YAML file of these sections. Every key can also be given to a command:

```bash
zopeft tune --task boolq --full method.directions=8 training.eval_steps=100
zopeft recipe keys method
zopeft recipe schema > recipe.schema.json
```

`null` and None are the same: nothing said.
"""
PYTHON = """# In Python

Made from the docstrings by `tools/reference_pages.py`: every public name of `zopeft`, and
`ZerothOrder`, whose arguments all methods take.
[In Python](../guides/python.md) shows them at work.
"""


def commands() -> Iterator[tuple[str, Any]]:
    """Yields the words and the object of every command, those of groups too."""
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        for under, inner in getattr(command, "commands", {"": command}).items():
            yield f"{name} {under}".strip(), inner


def commands_page() -> str:
    """Returns the page of commands."""
    parts = ["| command | |", "|---|---|"]
    for words, command in commands():
        about = command.help.partition("\n\n")[0].replace("\n", " ")
        parts.append(f"| [`zopeft {words}`](#zopeft-{words.replace(' ', '-')}) | {_cell(about)} |")
    for words, command in commands():
        parts += ["", *_command(words, command)]
    return "\n".join([COMMANDS, *parts, ""])


def _command(words: str, command: Any) -> Iterator[str]:
    shown = [each for each in command.params if not getattr(each, "hidden", False)]
    given = [each for each in shown if each.param_type_name == "argument"]
    usage = " ".join([f"zopeft {words} [FLAGS]", *(each.metavar for each in given)])
    yield from (f"## zopeft {words}", "", inspect.cleandoc(command.help), "")
    yield from ("```bash", EXAMPLES[words], "```", "", f"Usage: `{usage}`", "")
    yield from (f"- `{each.metavar}`: {each.help}" for each in given if each.help)
    groups: dict[str, list[Any]] = {}
    for each in shown:
        if each.param_type_name == "option":
            groups.setdefault(each.rich_help_panel or "Options", []).append(each)
    yield from ("", "| flag | default | |", "|---|---|---|")
    for name, options in sorted(groups.items(), key=lambda each: each[0] == "Options"):
        yield f"| **{name}** | | |"
        for each in options:
            flag = " ".join([*each.opts[:1], *([] if each.is_flag else [each.metavar])])
            yield f"| {_code(flag)} | {_usual(each)} | {_cell(each.help)} |"


def _code(text: str) -> str:
    """Returns code for a cell: of what may not stand between backticks there, as HTML."""
    return f"<code>{text.replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"


def _usual(option: Any) -> str:
    """Returns a flag's default as its help shows it."""
    if isinstance(option.show_default, str):
        return _cell(option.show_default)
    if option.is_flag:
        return "off"
    return "" if option.default is None or not option.show_default else _cell(str(option.default))


def keys_page() -> str:
    """Returns the page of recipe keys."""
    parts = []
    for name, section in SECTIONS.items():
        about = _prose((section.__doc__ or "").partition("\n")[0])
        keys, own = recipe_keys(name), len(fields(section))
        parts += [f"## {name}", "", about, "", "| key | type | default | range | |"]
        parts += ["|---|---|---|---|---|", *map(_key, keys[:own]), ""]
        parts += _of_methods(keys[own:]) if keys[own:] else []
    return "\n".join([KEYS, *parts])


def _of_methods(keys: Sequence[Key]) -> list[str]:
    """Returns the table of methods' own options, those that all have first."""
    found: dict[Key, list[str]] = {}
    for key in keys:
        method, _, about = key.about.partition(": ")
        one = Key(key.key, key.type, key.default, key.range, about)
        found.setdefault(one, []).append(method)
    most = max(map(len, found.values()))
    rows = ["### Methods' own options", "", "In the section itself, or in `method.options`.", ""]
    rows += ["| key | of | type | default | range | |", "|---|---|---|---|---|---|"]
    for key, names in sorted(found.items(), key=lambda item: len(item[1]) < most):
        of = ", ".join(f"[`{name}`](../methods.md#{name})" for name in names)
        cells = _key(key).split(" | ", 1)
        rows.append(f"{cells[0]} | {'all' if len(names) == most else of} | {cells[1]}")
    return [*rows, ""]


def _key(key: Key) -> str:
    words = (key.type, key.shown_default, key.range, key.about)
    return f"| `{key.key}` | " + " | ".join(_cell(word) for word in words) + " |"


def python_page() -> str:
    """Returns the page of Python names."""
    named: dict[str, Any] = {f"zopeft.{name}": getattr(zopeft, name) for name in zopeft.__all__}
    named[f"{ZerothOrder.__module__}.ZerothOrder"] = ZerothOrder
    parts = [part for name, value in named.items() for part in _named(name, value)]
    return "\n".join([PYTHON, *parts])


def _named(name: str, value: Any) -> Iterator[str]:
    short = name.rpartition(".")[2]
    yield from (f"## {short}", "")
    if not callable(value):
        yield from (f"`{name}`: the version, a text.", "")
        return
    text = inspect.cleandoc(value.__doc__ or "")
    yield from ("```text", *_signature(name, list(_parameters(value))), "```", "")
    yield from (_prose(text.partition("\n\n")[0]), "")
    for section in ("Args", "Attributes", "Returns", "Raises"):
        found = _section(text, section)
        if found:
            yield from (f"{section}:", "", *found, "")
    if inspect.isclass(value):
        if issubclass(value, ZerothOrder) and not _section(text, "Args"):
            yield from ("Args: those of [ZerothOrder](#zerothorder).", "")
        told = list(_methods(value))
        if told:
            yield from ("Methods and properties:", "", *told, "")


def _signature(name: str, parameters: Sequence[str]) -> list[str]:
    line = f"{name}({', '.join(parameters)})"
    return [line] if len(line) <= 80 else [f"{name}(", *(f"    {one}," for one in parameters), ")"]


def _parameters(value: Any) -> Iterator[str]:
    """Yields the parameters as they are declared; of a dataclass that extends another, its own."""
    own = value.__init__ if inspect.isclass(value) else value
    base = value.__mro__[1] if is_dataclass(value) else object
    inherited = {} if base is object else inspect.signature(base).parameters
    bare = False
    told = dict(inspect.signature(own).parameters)
    if inherited:
        told = {name: told[name] for name in value.__annotations__}
    for name, each in told.items():
        if name == "self":
            continue
        if each.kind is each.KEYWORD_ONLY and not bare:
            bare = True
            yield "*"
        word = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "") + name
        if each.annotation is not each.empty:
            word += f": {each.annotation}"
        if each.default is not each.empty:
            plain = each.default is None or isinstance(each.default, str | int | float | tuple)
            word += f" = {each.default!r}" if plain else " = ..."
        yield word
    if inherited:
        yield f"... (and those of {base.__module__.partition('.')[0]}.{base.__name__})"


def _section(text: str, title: str) -> list[str]:
    """Returns a section of a docstring as the items of a list."""
    body = re.search(rf"^{title}:\n((?:    .*\n?|\n)+)", text + "\n", re.M)
    if not body:
        return []
    lines = inspect.cleandoc(body[1])
    if title == "Returns":
        return [f"- {_prose(lines)}"]
    items = re.split(r"\n(?=[\w*]+: )", lines)
    return ["- `{}`: {}".format(*(_prose(part) for part in one.split(": ", 1))) for one in items]


def _methods(kind: type) -> Iterator[str]:
    for name, value in vars(kind).items():
        value = getattr(value, "__func__", value)
        told = isinstance(value, property) or inspect.isfunction(value)
        # torch puts a wrapped `step` into the class of every optimizer that has been made.
        if inspect.isfunction(value) and value.__qualname__ != f"{kind.__name__}.{name}":
            continue
        if told and not name.startswith("_"):
            line = inspect.cleandoc(value.__doc__ or "").partition("\n\n")[0]
            word = name if isinstance(value, property) else f"{name}(...)"
            yield f"- `{word}`: {_prose(line)}"


def _prose(text: str) -> str:
    return " ".join(text.replace("``", "`").removesuffix("::").split())


def _cell(text: str) -> str:
    return _prose(text).replace("|", "\\|").replace("*", "\\*")


def pages() -> Mapping[str, str]:
    """Returns the pages by their file's name."""
    return {"cli.md": commands_page(), "recipe-keys.md": keys_page(), "api.md": python_page()}


def main() -> None:
    """Writes or checks the pages."""
    DOCS.mkdir(exist_ok=True)
    for name, text in pages().items():
        file = DOCS / name
        if "--check" not in sys.argv:
            file.write_text(text, encoding="utf-8")
        elif not file.is_file() or file.read_text(encoding="utf-8") != text:
            sys.exit(f"{file} is out of date: run python tools/reference_pages.py")


if __name__ == "__main__":
    main()
