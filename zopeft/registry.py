"""Registries: a name to an entry that is imported only when asked for.

One new method, task, model family, PEFT type, noise or kernel backend is one new
file and one line in such a dict. The same dict feeds the command line's lists, the
recipe check and the contract tests.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Any

from zopeft.errors import close_matches, input_error


class Registry(Mapping[str, Any]):
    """A read-only mapping from name to object, loaded on first use.

    Args:
        kind: What the entries are, as it stands in error messages ("method", "task").
        entries: Name to ``"package.module:attribute"``, or to the object itself.
        about: Name to a line that says what the entry is, for lists.
        group: Name of an entry-point group (``"zopeft.methods"``) by which installed packages
            add entries of their own; "" for none.
        refused: Names that a user may know and that are no entries, to the reason.
    """

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, Any],
        about: Mapping[str, str] | None = None,
        group: str = "",
        refused: Mapping[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self._entries = dict(entries)
        self._about = dict(about or {})
        self._group = group
        self.refused = dict(refused or {})

    def register(self, name: str, entry: Any, about: str = "") -> None:
        """Adds an entry.

        Args:
            name: Its name, new here.
            entry: ``"package.module:attribute"``, or the object itself.
            about: A line that says what it is, for lists.

        Raises:
            InputError: The name is taken.
        """
        self._load_group()
        if name in self._entries:
            raise input_error(
                self.kind, "there is one of that name already", name, "choose another"
            )
        self._entries[name] = entry
        self._about[name] = about

    def _load_group(self) -> None:
        """Adds what installed packages have to offer, once; names that are taken stay."""
        group, self._group = self._group, ""
        if group:
            for point in importlib.metadata.entry_points(group=group):
                self._entries.setdefault(point.name, point.value)
                self._about.setdefault(point.name, f"from {point.value.partition(':')[0]}")

    def __getitem__(self, name: str) -> Any:
        """Returns the entry.

        Raises:
            InputError: `name` is not registered (close matches are offered), or refused.
        """
        if name not in self and name in self.refused:
            raise input_error(f"{self.kind} {name}", f"is not made: {self.refused[name]}")
        if name not in self:
            raise input_error(
                self.kind, f"unknown {self.kind}", name, close_matches(str(name), self._entries)
            )
        entry = self._entries[name]
        if isinstance(entry, str) and ":" in entry:
            module, _, attribute = entry.partition(":")
            entry = getattr(importlib.import_module(module), attribute)
            self._entries[name] = entry
        return entry

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            self._load_group()
        return name in self._entries

    def get(self, name: str, default: Any = None) -> Any:
        """Returns the entry, or `default` where the name is unknown."""
        found = name in self
        return self[name] if found else default

    def __iter__(self) -> Iterator[str]:
        self._load_group()
        return iter(self._entries)

    def __len__(self) -> int:
        self._load_group()
        return len(self._entries)

    def about(self, name: str) -> str:
        """Returns the entry's line for lists ("" if it has none)."""
        return self._about.get(name, "")
