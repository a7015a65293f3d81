"""Reading: JSON and YAML that anyone may have written, refused in one line where it is bad.

Beside what is no JSON or YAML there is much that the parsers themselves trip over: numbers of
thousands of digits, lists without an end, dates that are none, names that stand for one another
a billion times. Every reader of such files goes through here.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from zopeft.errors import input_error

HOLDING = (str, dict, list, tuple, set, frozenset)
"""Kinds of values that can hold text."""
LARGEST = 1 << 17
"""Bytes of the largest YAML file; recipes and tasks have some hundreds."""


def is_there(path: Path) -> bool:
    """Whether there is a file or folder; of a name that no file system takes there is none."""
    try:
        return path.exists()
    except OSError:
        return False


def parse_json(text: str | bytes, where: str, do: str = "") -> Any:
    """Returns the value of a JSON text.

    Args:
        text: The text; bytes are UTF-8.
        where: File, and place in it, for the message.
        do: What the user can do about it.

    Raises:
        InputError: It is no JSON, more than the parser takes, or has half a character.
    """
    try:
        content = text if isinstance(text, str) else text.decode("utf-8-sig")
        value = json.loads(content)
    except UnicodeDecodeError:
        raise input_error(where, "unreadable JSON (its text is not UTF-8)", do=do) from None
    except RecursionError:
        raise input_error(where, "unreadable JSON (nested too deeply)", do=do) from None
    except ValueError as error:
        raise input_error(where, f"unreadable JSON ({error})", do=do) from None
    # What is UTF-8 has no half of a character but by an escape.
    return whole(value, where) if "\\ud" in content or "\\uD" in content else value


def whole(value: Any, where: str) -> Any:
    r"""Returns what was read of a text, unless it has half a character (``\\ud83d`` alone).

    Args:
        value: What was read: lists, objects, texts and others.
        where: File, and place in it, for the message.

    Raises:
        InputError: A text in it could not be written again: no UTF-8 has it.
    """
    if has_half(value):
        what = "half of a character (a lone surrogate, such as \\ud83d)"
        raise input_error(where, what, do="write the character itself, in UTF-8")
    return value


def has_half(value: Any) -> bool:
    """Whether a text in a value, or a name, has half of a character that is written as two."""
    waiting, seen = [value], set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            if not one.isascii():
                try:
                    one.encode()
                except UnicodeEncodeError:
                    return True
        elif isinstance(one, dict | list | tuple | set | frozenset) and id(one) not in seen:
            seen.add(id(one))
            inside = [*one, *one.values()] if isinstance(one, dict) else one
            waiting += [each for each in inside if isinstance(each, HOLDING)]
    return False


def to_json(value: Any) -> str:
    """Returns a value as JSON text on one line; numbers that are not finite are null.

    Args:
        value: Objects, lists, texts, numbers; anything else becomes its text.
    """
    try:
        return json.dumps(value, default=str, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, do: str = "") -> Any:
    """Returns the value in a JSON file.

    Raises:
        InputError: It cannot be read or is no JSON; a file that is missing as well.
    """
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # A name with a NUL in it is no name.
        why = getattr(error, "strerror", None) or str(error)
        raise input_error(str(path), f"cannot be read ({why})", do=do) from None
    return parse_json(content, str(path), do)


def read_object(path: Path, do: str = "") -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        InputError: It cannot be read, or holds something else.
    """
    value = read_json(path, do)
    if not isinstance(value, dict):
        raise input_error(str(path), "a JSON object is needed", type(value).__name__, do)
    return value


def parse_yaml(text: str, where: str) -> Any:
    """Returns the value of a YAML text, of plain values only.

    Args:
        text: The text.
        where: The file or setting, for the message.

    Raises:
        InputError: It is no YAML, names a type of some program, has half a character, or is
            deeper, larger or more than the limits of `zopeft.plain_yaml`.
    """
    import yaml

    from zopeft.plain_yaml import TooMuch, load

    try:
        value = load(text)
    except TooMuch as error:
        line = f" on line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise input_error(where, f"{error.problem}{line}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" on line {mark.line + 1}" if mark else ""
        what = f"not valid YAML{line} ({getattr(error, 'problem', None) or 'unreadable'})"
        raise input_error(where, what, do="correct it") from None
    except RecursionError:
        raise input_error(where, "not valid YAML (nested too deeply)") from None
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        # A date that is none, an empty number: the constructors' own errors.
        what = f"not valid YAML (a value that YAML takes for another kind: {error})"
        raise input_error(where, what, do="put it in quotes") from None
    return whole(value, where)


def read_yaml(path: Path) -> Any:
    """Returns the value in a YAML file.

    Raises:
        InputError: It cannot be read, is larger than `LARGEST`, or is no YAML.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise input_error(str(path), f"larger than {LARGEST} bytes", f"{size} bytes")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise input_error(str(path), "its text is not UTF-8", do="save it as UTF-8") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise input_error(str(path), f"cannot be read ({why})") from None
    return parse_yaml(text, str(path))


def fits(value: Any, kind: str) -> bool:
    """Whether a value read from JSON is of a kind.

    Args:
        value: The value.
        kind: "text", "count" (a whole number from 0), "number" (finite), "real" (a number that
            need not be finite), "flag", "list",
            "counts" (a list of counts), "object", "numbers" (an object of finite numbers),
            "texts" (an object of texts).
    """
    if kind == "text":
        return isinstance(value, str)
    if kind == "flag":
        return isinstance(value, bool)
    if kind in ("count", "number", "real"):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if kind == "count":
            return isinstance(value, int) and value >= 0
        return kind == "real" or abs(value) <= 1e308
    if kind in ("list", "counts"):
        whole = isinstance(value, list)
        return whole and (kind == "list" or all(fits(one, "count") for one in value))
    if not isinstance(value, dict):
        return False
    inside = {"numbers": "number", "texts": "text"}.get(kind)
    return inside is None or all(fits(one, inside) for one in value.values())


def refuse_newer(values: Any, where: str, what: str, known: int) -> None:
    """Refuses a file of a format that is not known yet.

    Args:
        values: What the file says of itself: ``format_version`` and, if it does, ``versions`` of
            the packages that wrote it.
        where: The file.
        what: What it is, "journal".
        known: The newest format that is read.

    Raises:
        InputError: It is of a later one; the line names the version of zopeft that is needed.
    """
    found = values.get("format_version") if isinstance(values, dict) else None
    if found is None or not fits(found, "count") or found <= known:
        return
    versions = values.get("versions")
    wrote = versions.get("zopeft") if isinstance(versions, dict) else None
    good = isinstance(wrote, str) and 0 < len(wrote) < 40
    needed = f"zopeft {wrote} or later" if good else "the version of zopeft that wrote it, or later"
    said = f"is a {what} of format {found}, where this version knows those up to {known}"
    raise input_error(where, said, do=f"install {needed}")


def checked(values: Any, kinds: dict[str, str], where: str, what: str) -> dict[str, Any]:
    """Returns an object whose fields are all known and of their kinds.

    Args:
        values: What was read.
        kinds: Name of a field to a kind of `fits`; with "?" after it, it may be null.
        where: The file, for the message.
        what: What the file has none of where this is raised, "journal header".

    Raises:
        InputError: It is no object, or a field is foreign or of another kind.
    """
    if not isinstance(values, dict):
        raise input_error(where, f"has no readable {what}", type(values).__name__)
    for name, value in values.items():
        kind = kinds.get(name)
        if kind is None:
            do = "use the version of zopeft that wrote it"
            raise input_error(where, f"has an unknown field in its {what}", str(name)[:60], do)
        if not ((kind.endswith("?") and value is None) or fits(value, kind.rstrip("?"))):
            raise input_error(where, f"has no readable {what}: {name}", f"{value!r:.60}")
    return values
