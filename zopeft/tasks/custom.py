r"""Custom tasks: a YAML file instead of code.

.. code-block:: yaml

    name: weather
    prompt: "{report}\nWill it rain?"     # {column} stands for a column's text
    choices: ["No", "Yes"]                # or "{ending1}": a column's text as a choice
    label: rain                           # 0, 1, ... or the text of a choice
    label_by: text                        # or index: where choices are numbers themselves
    hub: organisation/weather             # or {path: ..., config: ..., revision: ...}

    name: capitals
    prompt: "Country: {country}\nCapital:"
    answer: capital                       # a column with a text or a list of texts
    metric: f1                            # or accuracy: exact match
    max_new_tokens: 10
    data: capitals                        # a folder, seen from the YAML file

Either ``choices`` and ``label`` (a classification), or ``answer`` (free text, taught with
a newline at its end). A choice or answer is joined to the prompt by one space, unless the
prompt ends in a newline. ``metric`` is accuracy for choices and f1 for answers if left
out; ``loss`` is answer (teach the right text) unless it says choice (teach to prefer it).
``splits`` renames splits: ``{validation: dev}``. A brace in the text is written twice: ``{{``.

Labels, numbers and holes mean the same in every file format: see `zopeft.tasks.values`.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zopeft.errors import InputError, close_matches, input_error
from zopeft.tasks.task import Example, HubSource, Row, RowError, Task
from zopeft.tasks.values import choice, words

KEYS: tuple[str, ...] = (
    "name",
    "prompt",
    "choices",
    "label",
    "label_by",
    "answer",
    "metric",
    "loss",
    "max_new_tokens",
    "hub",
    "data",
    "splits",
    "about",
)
"""The keys of a task file."""
KEYS_LINE = "its keys are " + ", ".join(KEYS)


def read_task(path: Path) -> Task:
    """Reads a task from a YAML file.

    Args:
        path: The file.

    Raises:
        InputError: The file is missing or faulty; all its problems are in the one line.
    """
    import yaml

    if not path.is_file():
        raise input_error("--task", "no such file", str(path), "check the path")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise input_error(str(path), f"unreadable YAML ({error})") from error
    if not isinstance(settings, dict):
        raise input_error(str(path), "keys are needed", type(settings).__name__, KEYS_LINE)
    problems = check_settings(settings)
    if problems:
        raise InputError(f"{path}: " + " | ".join(problems) + f"; {KEYS_LINE}")
    return _task(path, settings)


def check_settings(settings: dict[str, Any]) -> list[str]:
    """Returns what is wrong with a task's settings, one line a problem."""
    problems = [
        f"unknown key {key!r}, {close_matches(str(key), KEYS)}"
        for key in settings
        if key not in KEYS
    ]
    for key in ("name", "prompt"):
        if key not in settings:
            problems.append(f"{key}: missing")
    texts = ("name", "prompt", "label", "answer", "data", "about")
    for key in texts:
        if key in settings and not (isinstance(settings[key], str) and settings[key].strip()):
            problems.append(f"{key}: text is needed, got {settings[key]!r}")
    if isinstance(settings.get("prompt"), str):
        problems += [f"prompt: {problem}" for problem in _fields(settings["prompt"])[1]]
        if not problems and not _fields(settings["prompt"])[0]:
            problems.append("prompt: no {column} in it")
    problems += _check_kind(settings) + _check_values(settings)
    return problems


def _check_kind(settings: dict[str, Any]) -> list[str]:
    problems = []
    choices = settings.get("choices")
    if ("choices" in settings) == ("answer" in settings):
        problems.append("either choices and label, or answer is needed")
    if "choices" in settings:
        if not (isinstance(choices, list) and len(choices) > 1):
            problems.append(f"choices: a list of two or more is needed, got {choices!r}")
        else:
            for choice in choices:
                if not isinstance(choice, str) or not choice.strip():
                    # Unquoted Yes and No are true and false in YAML.
                    problems.append(f"choices: text is needed, got {choice!r}; put it in quotes")
                else:
                    problems += [f"choices: {problem}" for problem in _fields(choice)[1]]
        if "label" not in settings:
            problems.append("label: missing, choices need the column with the right one")
    else:
        problems += [
            f"{key}: goes with choices" for key in ("label", "label_by") if key in settings
        ]
    if settings.get("label_by", "text") not in ("text", "index"):
        problems.append(f"label_by: must be text or index, got {settings['label_by']!r}")
    return problems


def _check_values(settings: dict[str, Any]) -> list[str]:
    problems = []
    metrics: tuple[str, ...] = ("accuracy",) if "choices" in settings else ("accuracy", "f1")
    losses: tuple[str, ...] = ("choice", "answer") if "choices" in settings else ("answer",)
    for key, known in (("metric", metrics), ("loss", losses)):
        if key in settings and settings[key] not in known:
            problems.append(f"{key}: must be {' or '.join(known)}, got {settings[key]!r}")
    tokens = settings.get("max_new_tokens", 50)
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        problems.append(f"max_new_tokens: a whole number from 1 is needed, got {tokens!r}")
    hub = settings.get("hub", "")
    if isinstance(hub, dict):
        parts = ("path", "config", "revision")
        problems += [
            f"hub: unknown key {key!r}, {close_matches(str(key), parts)}"
            for key in hub
            if key not in parts
        ]
        if "path" not in hub:
            problems.append("hub: path missing")
    elif not isinstance(hub, str):
        problems.append(f"hub: an id or path, config, revision is needed, got {hub!r}")
    splits = settings.get("splits", {})
    if not isinstance(splits, dict) or not all(isinstance(v, str) for v in splits.values()):
        problems.append(f"splits: names to names are needed, got {splits!r}")
    return problems


def _fields(template: str) -> tuple[list[str], list[str]]:
    """The columns that a template names, and what is wrong with it."""
    columns: list[str] = []
    try:
        for _, field, spec, conversion in string.Formatter().parse(template):
            if field is None:
                continue
            if not field or field.isdigit() or spec or conversion or set(field) & set(".["):
                return [], [f"{{column}} is needed, got {{{field}}} in {template!r}"]
            columns.append(field)
    except ValueError as error:
        return [], [f"{error} in {template!r}; a brace in the text is written twice"]
    return columns, []


def _fill(template: str, row: Row) -> str:
    """The template with its columns' text; braces inside the text stay as they are."""
    parts = []
    for before, field, _, _ in string.Formatter().parse(template):
        parts.append(before)
        if field is not None:
            parts.append(words(row[field], field))
    return "".join(parts)


def _joined(prompt: str, option: str) -> str:
    return option if prompt.endswith("\n") or option[:1].isspace() else " " + option


def _prompt(template: str, row: Row) -> str:
    prompt = _fill(template, row).rstrip(" ")
    if not prompt.strip():
        raise RowError("the prompt is empty")
    return prompt


def _choice_builder(settings: dict[str, Any]) -> Callable[[Row], Example]:
    templates, column, by = settings["choices"], settings["label"], settings.get("label_by")

    def build(row: Row) -> Example:
        prompt = _prompt(settings["prompt"], row)
        choices = [_fill(template, row).rstrip(" ") for template in templates]
        for number, text in enumerate(choices):
            if not text.strip():
                raise RowError(f"choice {number}, {templates[number]!r}, is empty")
        right = choice(row[column], choices, column, by)
        return Example(prompt, tuple(_joined(prompt, text) for text in choices), right)

    return build


def _answer_builder(settings: dict[str, Any]) -> Callable[[Row], Example]:
    column = settings["answer"]

    def build(row: Row) -> Example:
        prompt = _prompt(settings["prompt"], row)
        value = row[column]
        values = value if isinstance(value, list | tuple) else [value]
        texts = [one for one in (words(one, column).strip() for one in values) if one]
        if not texts:
            raise RowError(f"column {column!r} holds no answer")
        return Example(prompt, answers=tuple(_joined(prompt, one) + "\n" for one in texts))

    return build


def _task(path: Path, settings: dict[str, Any]) -> Task:
    choice = "choices" in settings
    templates = [settings["prompt"], *(settings["choices"] if choice else ())]
    used = [column for template in templates for column in _fields(template)[0]]
    used.append(settings["label"] if choice else settings["answer"])
    hub = settings.get("hub")
    source = None
    if hub:
        hub = {"path": hub} if isinstance(hub, str) else hub
        splits = {name: name for name in ("train", "validation", "test")}
        source = HubSource(**hub, splits=splits | settings.get("splits", {}))
    return Task(
        name=settings["name"],
        columns=tuple(dict.fromkeys(used)),
        kind="choice" if choice else "answer",
        metric=settings.get("metric", "accuracy" if choice else "f1"),
        loss=settings.get("loss", "answer"),
        build=_choice_builder(settings) if choice else _answer_builder(settings),
        hub=source,
        data=path.parent / settings["data"] if "data" in settings else None,
        max_new_tokens=settings.get("max_new_tokens", 50),
        about=settings.get("about", ""),
    )
