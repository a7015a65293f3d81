"""The errors that zopeft raises, the warnings it gives, and the words they use.

Every message reads ``<where>: <what is wrong>, got <value>; <what to do>``.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable

LONGEST, LONGEST_VALUE = 1000, 200
"""Characters of an error's line, and of a value in it, at most."""


def one_line(text: str) -> str:
    """Returns a text as one line that any terminal prints."""
    line = " ".join(text.split())
    if not line.isprintable():
        line = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)
    return cut(line, LONGEST)


def cut(text: str, most: int) -> str:
    """Returns a text, or its beginning and how much more there is."""
    return text if len(text) <= most else f"{text[: most - 30]}... ({len(text)} characters)"


class ZopeftError(Exception):
    """Base of all errors that zopeft raises on purpose; its text is one line.

    ``exit_code`` is what the command line ends with: 2 when the user's input is
    wrong, 1 when a run broke while running. What a terminal would not print stands in it as
    in a program's text (an escape as its code), and what is longer than `LONGEST` is cut.
    """

    exit_code = 1

    def __init__(self, text: str = "") -> None:
        super().__init__(one_line(text))


def panicked(error: BaseException) -> bool:
    """Whether code in Rust (tokenizers, safetensors) gave up: what it raises is no `Exception`."""
    return type(error).__name__ == "PanicException"


class InputError(ZopeftError, ValueError):
    """Something the user gave is wrong; nothing has been changed on disk."""

    exit_code = 2


class RunError(ZopeftError, RuntimeError):
    """A run broke while running; its last good state has been kept."""


class ZopeftWarning(UserWarning):
    """Something that matters to the result and stops nothing; its text is one line.

    The command line shows these among its notes.
    """


def explain(where: str, what: str, got: object = None, do: str = "") -> str:
    """Builds the one line of an error.

    Args:
        where: The setting, file or argument at fault, for example ``--task``.
        what: What is wrong with it.
        got: The value found; left out when None.
        do: What the user can do about it.

    Returns:
        ``where: what, got VALUE; do`` on one line.
    """
    line = f"{where}: {what}"
    if got is not None:
        value = cut(str(got), LONGEST_VALUE)
        line += f", got {value!r}" if isinstance(got, str) else f", got {value}"
    if do:
        line += f"; {do}"
    return " ".join(line.split())


def input_error(where: str, what: str, got: object = None, do: str = "") -> InputError:
    """Returns an `InputError` with the line of `explain`."""
    return InputError(explain(where, what, got, do))


def run_error(where: str, what: str, got: object = None, do: str = "") -> RunError:
    """Returns a `RunError` with the line of `explain`."""
    return RunError(explain(where, what, got, do))


def warn(where: str, what: str, got: object = None, do: str = "") -> None:
    """Gives a `ZopeftWarning` with the line of `explain`."""
    warnings.warn(ZopeftWarning(explain(where, what, got, do)), stacklevel=3)


def close_matches(word: str, known: Iterable[str]) -> str:
    """Returns ``did you mean 'x'?`` with the nearest known words, or lists them all.

    Args:
        word: What the user typed.
        known: The words that would have been right.
    """
    names = sorted(known)
    near = difflib.get_close_matches(word.lower(), names, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "known: " + ", ".join(names)
