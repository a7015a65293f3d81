"""Entries: who competes, written as one line, and the controls that always come along.

An entry is a method, or a fine-tuner, with options: ``mezo``, ``mezo clip=1``,
``noise=binomial`` (a method's name left out is mezo), ``fo_adam``, ``finetuner FOLDER``,
``finetuner FOLDER shuffled`` (or ``untrained``; or ``random``: its subspaces in random
directions; or ``scales``: without its subspaces). ``KEY=VALUE`` is an argument of the method;
``label=TEXT`` names the entry in tables and ``shuffle=N`` chooses another shuffle.
``rows=frequency`` is the recipe's ``method.rows``.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zopeft.errors import close_matches, input_error
from zopeft.methods import METHODS
from zopeft.optim.options import options_of as defaults_of
from zopeft.reading import parse_yaml

BASELINE = "mezo"
"""The method that all others are compared with: scale 1."""
LEARNED = "zo_finetuner"
AUTOMATIC = ("shuffled", "untrained")
"""Controls that always come along."""
OF_SUBSPACES = ("random", "scales")
"""Controls of a fine-tuner that holds subspaces."""
CONTROLS = (*AUTOMATIC, *OF_SUBSPACES)
_RESERVED = ("self", "blocks", "lr", "seed", "finetuner", "carrier")


@dataclass(frozen=True)
class Entry:
    """One competitor.

    Attributes:
        method: A name in `METHODS`.
        finetuner: Folder or hub id; ``{model}`` in it stands for the model's name.
        control: "shuffled" (all that was learned serves other blocks), "untrained", "random"
            (subspaces of the same ranks in random directions), or "".
        options: Arguments of the method.
        shuffle: Seed of a control's shuffle or start.
        label: Its name in tables; "" takes its line.
    """

    method: str = BASELINE
    finetuner: str | None = None
    control: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    shuffle: int = 0
    label: str = ""

    @property
    def line(self) -> str:
        """The entry as it would be written, in one fixed order: its identity."""
        words = [] if self.finetuner and self.method == LEARNED else [self.method]
        words += ["finetuner", shlex.quote(self.finetuner)] if self.finetuner else []
        words += [self.control] if self.control else []
        words += [f"{key}={self.options[key]}" for key in sorted(self.options)]
        return " ".join(words + ([f"shuffle={self.shuffle}"] if self.shuffle else []))

    @property
    def name(self) -> str:
        """The entry's name in tables."""
        return self.label or self.line

    @property
    def order(self) -> int:
        """0 for forward passes alone, 1 for gradients."""
        return int(METHODS[self.method].order)

    def on(self, model: str) -> Entry:
        """Returns the entry with the fine-tuner of one model."""
        if not self.finetuner or "{model}" not in self.finetuner:
            return self
        slug = model if "/" not in model else Path(model).name
        return replace(self, finetuner=self.finetuner.replace("{model}", slug.lower()))


def parse_entry(text: str) -> Entry:
    """Returns the entry of a line.

    Args:
        text: As described at the head of this module.

    Raises:
        InputError: A word is unknown, or words do not go together.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise input_error("--method", f"unreadable ({error})", text) from None
    given: dict[str, Any] = {"options": {}}
    method = ""
    while words:
        word = words.pop(0)
        key, equals, value = word.partition("=")
        if word == "finetuner" or (key == "finetuner" and equals):
            if not (value or words):
                raise input_error("--method", "finetuner needs a folder or hub id", text)
            given["finetuner"] = value or words.pop(0)
        elif equals:
            _take_option(given, key, value, text)
        elif word in CONTROLS:
            given["control"] = word
        elif method:
            raise input_error("--method", f"unknown word {word!r} in an entry", text, _HINT)
        else:
            method = word
    return checked(Entry(method or (LEARNED if given.get("finetuner") else BASELINE), **given))


_HINT = f"write METHOD key=value, or finetuner FOLDER [{'|'.join(CONTROLS)}] key=value"


def _take_option(given: dict[str, Any], key: str, value: str, text: str) -> None:
    """Puts one ``key=value`` where it belongs."""
    if key == "label":
        given[key] = value
        return
    read = parse_yaml(value, f"--method {key}")
    # YAML reads 1e-3 as text.
    read = float(read) if isinstance(read, str) and _is_number(read) else read
    if key != "shuffle":
        given["options"][key] = read
    elif isinstance(read, int) and read >= 0:
        given[key] = read
    else:
        raise input_error("--method", "shuffle must be a whole number >= 0", text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def checked(entry: Entry) -> Entry:
    """Returns the entry, if its words go together.

    Raises:
        InputError: Unknown method or option, a control without a fine-tuner, or a learned
            method without one.
    """
    if entry.method not in METHODS:
        known = close_matches(entry.method, METHODS)
        raise input_error("--method", "unknown method", entry.method, known)
    needs = bool(METHODS[entry.method].needs_finetuner)
    if needs and not entry.finetuner:
        raise input_error(
            "--method", f"{entry.method} needs a fine-tuner", do="write: finetuner FOLDER"
        )
    if entry.finetuner and not needs:
        raise input_error(
            "--method", f"{entry.method} uses no fine-tuner", entry.line, "leave one of them out"
        )
    if entry.control and not entry.finetuner:
        raise input_error(
            "--method", f"{entry.control} is a control of a fine-tuner", do="write: finetuner F"
        )
    known_options = options_of(entry.method)
    for key in entry.options:
        if key in _RESERVED or key not in known_options:
            names = [name for name in known_options if name not in _RESERVED]
            raise input_error(
                "--method", f"{entry.method} has no option {key!r}", do=close_matches(key, names)
            )
    return entry


def options_of(method: str) -> list[str]:
    """Returns the names of a method's arguments, with those of the classes it passes them to."""
    names = list(defaults_of(METHODS[method]))
    return names if METHODS[method].order else [*names, "rows"]


def with_controls(entries: Sequence[Entry]) -> list[Entry]:
    """Returns the entries and, for each, what it has to be compared with.

    MeZO comes first and always. A fine-tuner brings its untrained and its shuffled twin
    and scale 1, all with its own options.
    """
    found = [Entry()]
    mezo = options_of(BASELINE)
    for entry in entries:
        if entry.finetuner and not entry.control:
            same = {key: value for key, value in entry.options.items() if key in mezo}
            found += [Entry(options=same), entry]
            found += [replace(entry, control=control, label="") for control in AUTOMATIC]
        else:
            found.append(entry)
    lines: dict[str, Entry] = {}
    for entry in found:
        if entry.line not in lines or entry.label:
            lines[entry.line] = entry
    return list(lines.values())
