"""Layout: where the tokens of a batch's texts lie when texts share rows.

A row holds a forest. Texts that begin alike share the tokens they begin with, and each goes on
from there; a text that shares nothing is a tree of its own. Trees are written depth first, so
what a token may be seen by is an interval: those behind it, up to where its own tree, or the
branch that it begins, ends. Padding is seen by itself alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zopeft.probing.rows import Bin, Costs, spread

Text = Sequence[int]
PARTS = (0.5, 0.1)
"""Texts may make a tree where they share so much of the shorter one."""


@dataclass(frozen=True)
class Layout:
    """The texts of a batch in shared rows.

    Attributes:
        ids: Token ids, [R, W].
        positions: Place of each token in its text, from 0; 0 for padding, [R, W].
        ends: First place of the row that no longer sees the token, [R, W].
        places: For each token of the padded batch [B T], flat, its place ``row * W + column``
            here; 0 for what is left out.
        joined: Whether texts share tokens.
    """

    ids: Tensor
    positions: Tensor
    ends: Tensor
    places: Tensor
    joined: bool

    @property
    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """`ids`, `positions` and `ends`."""
        return self.ids, self.positions, self.ends

    @property
    def mask(self) -> int:
        """Places of its mask: R W W."""
        return self.ids.numel() * self.ids.shape[1]

    def to(self, device: torch.device) -> Layout:
        """Returns the layout on another device."""
        ids, positions, ends = (tensor.to(device) for tensor in self.rows)
        return Layout(ids, positions, ends, self.places.to(device), self.joined)

    def copies(self, count: int) -> Layout:
        """Returns `count` copies of the rows, one below the other; `places` are of the first."""
        ids, positions, ends = (tensor.repeat(count, 1) for tensor in self.rows)
        return Layout(ids, positions, ends, self.places, self.joined)


def lay_out(
    texts: Sequence[Text], width: int, costs: Costs, join: bool = True, line: bool = False
) -> tuple[Layout, float]:
    """Returns the cheapest layout found, and its cost in tokens without attention.

    The same texts always have the same layout.

    Args:
        texts: Token ids of each text, [B]; some may be empty, not all.
        width: Row length of the padded batch, T.
        costs: What rows cost, and how long they may be.
        join: Whether texts that begin alike may share these tokens.
        line: Whether all texts are to stand in one row, whatever its length.
    """
    order = [index for index in range(len(texts)) if texts[index]]
    order.sort(key=lambda index: (list(texts[index]), index))
    start = _common(texts[order[0]], texts[order[-1]]) if join else 0
    most = costs.most(max(len(texts[index]) for index in order))
    apart = [[index] for index in order]
    ways = [_grouped(texts, order, start, most, part) for part in PARTS] if join else []
    best: tuple[float, list[Bin]] | None = None
    for trees in [*ways, apart]:
        sizes = [_size(texts, tree, start) for tree in trees]
        if line:
            cost, found = float(sum(sizes)), [Bin(sum(sizes), list(range(len(sizes))))]
        else:
            cost, found = spread(sizes, start, most, costs)
        filled = [Bin(b.filled, [i for number in b.items for i in trees[number]]) for b in found]
        if best is None or cost < best[0]:
            best = cost, filled
    assert best is not None
    return _written(texts, best[1], width, join), best[0]


def _common(one: Text, other: Text) -> int:
    """How many tokens two texts begin with that are the same."""
    count = 0
    for mine, yours in zip(one, other, strict=False):
        if mine != yours:
            break
        count += 1
    return count


def _grouped(
    texts: Sequence[Text], order: Sequence[int], start: int, most: int, part: float
) -> list[list[int]]:
    """Trees of texts that share this part of what is theirs or more, beside the common start."""
    trees: list[list[int]] = []
    size = 0
    for index in order:
        text = texts[index]
        shared = _common(texts[trees[-1][-1]], text) if trees else 0
        own = min(len(text), len(texts[trees[-1][-1]])) - start if trees else 0
        if trees and shared - start >= part * own and size + len(text) - shared <= most:
            trees[-1].append(index)
            size += len(text) - shared
        else:
            trees.append([index])
            size = len(text)
    return trees


def _size(texts: Sequence[Text], tree: Sequence[int], start: int) -> int:
    """Tokens of a tree beside the start that it shares with its row."""
    total, before = len(texts[tree[0]]) - start, texts[tree[0]]
    for index in tree[1:]:
        total += len(texts[index]) - _common(before, texts[index])
        before = texts[index]
    return total


def _written(texts: Sequence[Text], rows: Sequence[Bin], width: int, join: bool) -> Layout:
    """Writes texts into their rows, each going on from what it shares with the one before."""
    written = [_row(texts, row.items, join) for row in rows]
    length = max(len(row.ids) for row in written)
    places = [0] * (len(texts) * width)
    for number, row in enumerate(written):
        for index, path in row.paths.items():
            first = index * width
            places[first : first + len(path)] = [number * length + place for place in path]
        for place in range(len(row.ids), length):
            row.ids.append(0)
            row.positions.append(0)
            row.ends.append(place + 1)
    ids = torch.tensor([row.ids for row in written])
    positions = torch.tensor([row.positions for row in written])
    ends = torch.tensor([row.ends for row in written])
    joined = any(row.joined for row in written)
    return Layout(ids, positions, ends, torch.tensor(places), joined)


@dataclass
class _Row:
    """One row while it is written; `paths` are the places of each text's tokens."""

    ids: list[int]
    positions: list[int]
    ends: list[int]
    paths: dict[int, list[int]]
    joined: bool = False


def _row(texts: Sequence[Text], items: Sequence[int], join: bool) -> _Row:
    row = _Row([], [], [], {})
    path: list[int] = []
    before: Text = ()
    for index in sorted(items, key=lambda i: (list(texts[i]), i)) if join else items:
        text = texts[index]
        shared = _common(before, text) if join else 0
        row.joined = row.joined or shared > 0
        for place in path[shared:]:
            row.ends[place] = len(row.ids)
        path = path[:shared] + [len(row.ids) + more for more in range(len(text) - shared)]
        row.ids += text[shared:]
        row.positions += range(shared, len(text))
        row.ends += [0] * (len(text) - shared)
        row.paths[index], before = path, text
    for place in path:
        row.ends[place] = len(row.ids)
    return row
