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
    stop: "###"                           # what ends an answer; null: the end token alone
    data: capitals                        # a folder or file, seen from the YAML file

Either ``choices`` and ``label`` (a classification), or ``answer`` (free text, taught with
what ends it: a newline, where there is no ``stop``). A choice or answer is joined to the
prompt by one space, unless the prompt ends in a newline. ``metric`` is accuracy for choices
and f1 for answers if left out; ``loss`` is answer (teach the right text) unless it says
choice (teach to prefer it). ``splits`` renames splits: ``{validation: dev}``. A brace in the
text is written twice: ``{{``.

Labels, numbers and holes mean the same in every file format: see `zopeft.tasks.values`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from zopeft.errors import InputError, close_matches, input_error
from zopeft.reading import read_yaml
from zopeft.tasks.filling import fields, fill, fill_prompt, joined
from zopeft.tasks.task import Example, HubSource, Row, RowError, Task
from zopeft.tasks.task_schema import PROPERTIES
from zopeft.tasks.values import choice, words

KEYS: tuple[str, ...] = tuple(PROPERTIES)
"""The keys of a task file."""
KEYS_LINE = "its keys are " + ", ".join(KEYS)


def read_task(path: Path) -> Task:
    """Reads a task from a YAML file.

    Args:
        path: The file.

    Raises:
        InputError: The file is missing or faulty; all its problems are in the one line.
    """
    if not path.is_file():
        raise input_error("--task", "no such file", str(path), "check the path")
    settings = read_yaml(path)
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
        problems += [f"prompt: {problem}" for problem in fields(settings["prompt"])[1]]
        if not problems and not fields(settings["prompt"])[0]:
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
                    problems += [f"choices: {problem}" for problem in fields(choice)[1]]
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
    stop = settings.get("stop", "\n")
    if not (stop is None or (isinstance(stop, str) and stop)):
        problems.append(f"stop: text or null is needed, got {stop!r}")
    if "stop" in settings and "choices" in settings:
        problems.append("stop: goes with answer")
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


def _choice_builder(settings: dict[str, Any]) -> Callable[[Row], Example]:
    templates, column, by = settings["choices"], settings["label"], settings.get("label_by")

    def build(row: Row) -> Example:
        prompt = fill_prompt(settings["prompt"], row)
        choices = [fill(template, row).rstrip(" ") for template in templates]
        for number, text in enumerate(choices):
            if not text.strip():
                raise RowError(f"choice {number}, {templates[number]!r}, is empty")
        right = choice(row[column], choices, column, by)
        return Example(prompt, tuple(joined(prompt, text) for text in choices), right)

    return build


def _answer_builder(settings: dict[str, Any]) -> Callable[[Row], Example]:
    column, stop = settings["answer"], settings.get("stop", "\n")

    def build(row: Row) -> Example:
        prompt = fill_prompt(settings["prompt"], row)
        value = row[column]
        values = value if isinstance(value, list | tuple) else [value]
        texts = [one for one in (words(one, column).strip() for one in values) if one]
        if not texts:
            raise RowError(f"column {column!r} holds no answer")
        answers = tuple(joined(prompt, one) + (stop or "") for one in texts)
        return Example(prompt, answers=answers, ends=stop is None)

    return build


def _task(path: Path, settings: dict[str, Any]) -> Task:
    choice = "choices" in settings
    templates = [settings["prompt"], *(settings["choices"] if choice else ())]
    used = [column for template in templates for column in fields(template)[0]]
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
        stop=settings.get("stop", "\n"),
        about=settings.get("about", ""),
    )
