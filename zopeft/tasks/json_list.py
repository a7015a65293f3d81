"""JSON list: the objects of a file with one JSON list, one after the other."""

from __future__ import annotations

import codecs
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zopeft.errors import input_error
from zopeft.reading import parse_json, whole
from zopeft.tasks.row_files import json_lines, opened

CHUNK = 1 << 16
"""Bytes that are read at a time; an object that is longer asks for twice as many, and so on."""
ONE_A_LINE = "write one object a line (jsonl), or leave data.streaming out"
SPACE = " \t\r\n"


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields the rows of a JSON file, each with where it stands.

    The file holds a list of objects, or one object a line as a jsonl file does.

    Raises:
        InputError: It is no JSON, or one object, which would have to be read whole.
    """
    first = _first(path)
    if first != "[":
        yield from _of_lines(path, first)
        return
    for number, value in enumerate(_values(path), 1):
        where = f"{path}, row {number}"
        yield where, value


def _first(path: Path) -> str:
    """The first character that is no space; "" for none."""
    for text in _texts(path):
        if rest := text.lstrip(SPACE):
            return rest[0]
    return ""


def _of_lines(path: Path, first: str) -> Iterator[tuple[str, Any]]:
    """One object a line, under the name of the other kind."""
    if first == "{":
        line = next(text for text in _lines(path) if text.strip())
        try:
            # What is nested too deeply, the reader of lines refuses.
            with contextlib.suppress(RecursionError):
                json.loads(line)
        except ValueError:
            what = "one object over several lines is no list of rows that can be streamed"
            raise input_error(str(path), what, do=ONE_A_LINE) from None
    for number, value in json_lines(path):
        if isinstance(value, dict) and value and all(isinstance(v, list) for v in value.values()):
            what = "one object that holds all rows cannot be streamed"
            raise input_error(f"{path}, line {number}", what, ", ".join(value), ONE_A_LINE)
        yield f"{path}, line {number}", value


def _lines(path: Path) -> Iterator[str]:
    with opened(path) as file:
        for raw in file:
            yield raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")


def _texts(path: Path) -> Iterator[str]:
    """The file's text in portions."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    with opened(path) as file:
        while True:
            raw = file.read(CHUNK)
            try:
                yield decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                what = "unreadable text (not UTF-8)"
                raise input_error(str(path), what, do="save the file as UTF-8") from error
            if not raw:
                return


def _values(path: Path) -> Iterator[Any]:
    """The values of the list; only the one in hand, and what follows it in its portion, is held."""
    decode, texts = json.JSONDecoder().raw_decode, _texts(path)
    held, count = "", 0

    def more() -> bool:
        """Reads on, at least as much again as is held, so that long values cost no square."""
        nonlocal held
        parts, size, due = [held], len(held), 2 * len(held) + CHUNK
        while size < due and (text := next(texts, None)) is not None:
            parts.append(text)
            size += len(text)
        grown, held = size > len(held), "".join(parts)
        return grown

    def skipped() -> str:
        """The next character that is no space; "" at the end."""
        nonlocal held
        while not (rest := held.lstrip(SPACE)):
            held = ""
            if not more():
                return ""
        held = rest
        return held[0]

    skipped()
    held = held[1:]
    while (one := skipped()) != "]":
        where = f"{path}, row {count + 1}"
        if count:
            if one != ",":
                what = "unreadable JSON (a comma or ] is missing after the row before)"
                raise input_error(where, what, do="correct it")
            held = held[1:]
            skipped()
        while True:
            try:
                value, end = decode(held)
                break
            except (ValueError, RecursionError):
                if not more():
                    parse_json(held, where)
                    raise input_error(where, "unreadable JSON", do="correct it") from None
        count += 1
        text, held = held[:end], held[end:]
        yield whole(value, where) if "\\u" in text else value
    rest = held[1:] + "".join(texts)
    if rest.strip(SPACE):
        raise input_error(str(path), "unreadable JSON (text after the list)", rest.strip()[:40])
