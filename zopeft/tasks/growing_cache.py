"""Growing cache: keys and values of a decoder, in buffers with room for what is to come."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values [R, H, T, D] in a buffer with room ahead, written once."""

    keys: Tensor
    values: Tensor
    room = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Takes the keys and values of further places; returns those of all."""
        first = self.get_seq_length()
        last = first + key_states.shape[-2]
        if not self.is_initialized or last > self.room:
            self._grow(key_states, value_states, first, last + self.spare)
        self._all_keys[:, :, first:last] = key_states
        self._all_values[:, :, first:last] = value_states
        self.keys, self.values = self._all_keys[:, :, :last], self._all_values[:, :, :last]
        return self.keys, self.values

    spare = 64
    """Places that a buffer has ahead when it is made."""

    def _grow(self, keys: Tensor, values: Tensor, kept: int, room: int) -> None:
        before = (self.keys, self.values) if kept else (None, None)
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        made = []
        for one, old in zip((keys, values), before, strict=True):
            rows, heads, _, width = one.shape
            new = one.new_empty(rows, heads, room, width)
            if old is not None:
                new[:, :, :kept] = old
            made.append(new)
        self._all_keys, self._all_values = made
        self.room = room

    def fill(self, keys: Tensor, values: Tensor, used: int) -> None:
        """Takes buffers [R, H, C, D] of which the first `used` places are filled."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._all_keys, self._all_values, self.room = keys, values, keys.shape[-2]
        self.keys, self.values = keys[:, :, :used], values[:, :, :used]

    def select(self, rows: Tensor, first: int, ahead: int) -> None:
        """Keeps some rows, and places from `first` on; with room for `ahead` more."""
        used = self.keys.shape[-2] - first
        made = []
        for old in (self.keys, self.values):
            new = old.new_empty(len(rows), old.shape[1], used + ahead, old.shape[3])
            new[:, :, :used] = old[rows, :, first:]
            made.append(new)
        self.fill(made[0], made[1], used)


def layers_of(cache: Cache) -> list[GrowingLayer]:
    """Returns the layers of a cache that was made here."""
    return cast("list[GrowingLayer]", cache.layers)


def room_for(cache: Cache, rows: int, places: int) -> list[tuple[Tensor, Tensor]]:
    """Returns empty buffers for all rows, like the layers of a portion's cache."""
    found = []
    for layer in layers_of(cache):
        shapes = ((rows, t.shape[1], places, t.shape[3]) for t in (layer.keys, layer.values))
        keys, values = (layer.keys.new_zeros(shape) for shape in shapes)
        found.append((keys, values))
    return found


def join(
    whole: list[tuple[Tensor, Tensor]],
    cache: Cache,
    copies: int,
    rows: Tensor,
    number: int,
    first: int,
) -> None:
    """Puts a prompt's keys and values in their place among all.

    Args:
        whole: Buffers [P R, H, C, D] of each layer.
        cache: Its portion's, [P U, H, T, D].
        copies: P.
        rows: The rows that it serves, some of R.
        number: Its place in the portion.
        first: Where it begins in the buffers; what follows it there is overwritten later.
    """
    for pair, layer in zip(whole, layers_of(cache), strict=True):
        for buffer, own in zip(pair, (layer.keys, layer.values), strict=True):
            target, source = (one.unflatten(0, (copies, -1)) for one in (buffer, own))
            room = min(own.shape[2], buffer.shape[2] - first)
            target[:, rows.to(own.device), :, first : first + room] = source[:, [number], :, :room]
