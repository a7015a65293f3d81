"""YAML of plain values, no deeper and no more of it than anybody writes by hand."""

from __future__ import annotations

from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

DEEPEST = 100
"""Lists and mappings within one another, at most, in YAML."""
MOST = 100_000
"""Values in a YAML file, at most, each counted as often as a name stands for it."""
DIGITS = 308
"""Digits of a whole number, at most: one with more is beyond every other kind of number."""
TOO_DEEP = f"more than {DEEPEST} lists and mappings in one another"
MERGE = "tag:yaml.org,2002:merge"


class TooMuch(yaml.MarkedYAMLError):
    """More than the limits of this file."""


class PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which stops where something is deeper, larger or more than the limits.

    The loader of libyaml's would be faster, and does not survive every text.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._merged = 0

    def fetch_flow_collection_start(self, token: Any) -> None:
        """Reads ``[`` or ``{``; the scanner looks ahead, at a cost that grows with it."""
        if self.flow_level > DEEPEST:
            raise self._too(TOO_DEEP)
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        """Composes a node, unless it is too deep."""
        self._depth += 1
        if self._depth > DEEPEST + 1:
            raise self._too(TOO_DEEP)
        found: Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return found

    def flatten_mapping(self, node: MappingNode) -> None:
        """Puts what ``<<`` names in its place; it may name much, many times over."""
        for key, value in node.value:
            if key.tag == MERGE:
                parts = value.value if isinstance(value, SequenceNode) else [value]
                for part in parts:
                    if isinstance(part, MappingNode):
                        self.flatten_mapping(part)
                        self._merged += len(part.value)
                        if self._merged > MOST:
                            raise self._too(f"more than {MOST} values, those of '<<' among them")
        super().flatten_mapping(node)

    def construct_yaml_int(self, node: ScalarNode) -> int:
        """Constructs a whole number; written to the base 16 or 60 it has no end."""
        number: int = super().construct_yaml_int(node)
        if number.bit_length() > (10**DIGITS).bit_length():
            raise self._too(f"a number of more than {DIGITS} digits", node)
        return number

    def _too(self, what: str, node: Node | None = None) -> TooMuch:
        return TooMuch(None, None, what, node.start_mark if node else self.get_mark())


PlainLoader.add_constructor("tag:yaml.org,2002:int", PlainLoader.construct_yaml_int)


def load(text: str) -> Any:
    """Returns the value of a YAML text.

    Raises:
        TooMuch: It goes beyond the limits.
        yaml.YAMLError: It is no YAML, or names a type of some program.
        ValueError, TypeError, LookupError, AttributeError, OverflowError: A constructor's own
            errors, of a date that is none or an empty number.
        RecursionError: Of a mapping that is to be merged into itself.
    """
    loader = PlainLoader(text)
    try:
        value = loader.get_single_data()
    finally:
        loader.dispose()
    _measure(value, 0, {})
    return value


def _measure(value: Any, depth: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Returns how many values there are in one, and how deep it is.

    A value that another name stands for counts again, since whoever walks over it meets it again;
    one that holds itself is deeper than anything.
    """
    if not isinstance(value, dict | list | tuple | set):
        return 1, 0
    count, height = known.get(id(value), (0, 0))
    if not count:
        if depth > DEEPEST:
            raise TooMuch(None, None, TOO_DEEP)
        count = 1
        for child in _children(value):
            inside, below = _measure(child, depth + 1, known)
            count, height = count + inside, max(height, below + 1)
        known[id(value)] = count, height
    if depth + height > DEEPEST:
        raise TooMuch(None, None, TOO_DEEP)
    if count > MOST:
        raise TooMuch(None, None, f"more than {MOST} values, those that '*' repeats among them")
    return count, height


def _children(value: Any) -> Any:
    return (one for pair in value.items() for one in pair) if isinstance(value, dict) else value
