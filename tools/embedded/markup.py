"""Marks in the pretraining text around the parts that can be known from the rest."""

from __future__ import annotations

import re

_OPEN, _CLOSE = "\x01", "\x02"
_MARK = re.compile(f"[{_OPEN}{_CLOSE}]")


def answer(text: str) -> str:
    """Mark a part of a document that follows from what stands before it.

    Pretraining weighs these parts more: the rest is mostly chance, and a small
    model on a small budget should not spend itself on it.
    """
    return f"{_OPEN}{text}{_CLOSE}"


def parse(document: str) -> tuple[str, list[tuple[int, int]]]:
    """Take the marks out of a document.

    Args:
        document: Text with marks.

    Returns:
        The plain text, and the marked spans in its characters.
    """
    spans: list[tuple[int, int]] = []
    start = 0
    for removed, mark in enumerate(_MARK.finditer(document)):
        place = mark.start() - removed
        if mark.group() == _OPEN:
            start = place
        else:
            spans.append((start, place))
    return _MARK.sub("", document), spans
