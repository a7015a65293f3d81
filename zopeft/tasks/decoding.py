"""Decoding: prompts continued over the model's own cache, by a loop that computes nothing twice.

Prompts run in portions of like length, each prompt once however often it is continued; what all of
them begin with is run once. Then they stand together, padded on the left, whole and in one piece. A
row that has ended leaves the batch, and columns that hold padding alone are cut away. Rows may come
in copies, one below the other, which layers with several weights at once treat each in its own way
(`zopeft.probing.stacked`); copies of a row leave together.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from zopeft.blocks.offloaded import device_of
from zopeft.blocks.peft import base_of
from zopeft.tasks.growing_cache import GrowingLayer, join, layers_of, room_for
from zopeft.tasks.library_loop import Pick

Ended = Callable[[Sequence[int]], bool]
"""Whether new tokens end a continuation."""
LIKE = 0.8
"""Prompts of a portion are at least so long as a part of the longest."""
SHARED = 16
"""Tokens from which on a common beginning is run by itself."""
AT_ONCE = 16
"""Prompts of a portion at most, which bounds the memory of their activations."""
LEAVING = 0.25
"""Share of the rows that must have ended before they leave: leaving copies the others' cache."""


def greedy(logits: Tensor, rows: Sequence[int], place: int) -> Tensor:
    """Returns the likeliest tokens."""
    return logits.argmax(-1)


class Decoder:
    """Continues prompts with one model.

    Args:
        model: A causal language model whose cache is one of keys and values.
        pad: The id that fills a batch.
        copies: P, so many copies of every row, [P R] in the model's batches.
        hear: Whether log-probabilities of the new tokens are kept.

    Attributes:
        heard: Those log-probabilities, by copy and row.
    """

    def __init__(self, model: Any, pad: int, copies: int = 1, hear: bool = False) -> None:
        self.model, self.pad, self.copies, self.hear = model, pad, copies, hear
        taken = inspect.signature(type(base_of(model)).forward).parameters
        self._positions = "position_ids" in taken
        self._kept = "logits_to_keep" in taken
        self.device = device_of(model)
        self.heard: list[list[list[float]]] = []

    def __call__(
        self, prompts: Sequence[Sequence[int]], most: int, ended: Ended, pick: Pick = greedy
    ) -> list[list[list[int]]]:
        """Continues prompts.

        Args:
            prompts: Token ids, [R] of them.
            most: Most new tokens of each.
            ended: Whether new tokens end a continuation.
            pick: Chooses the next tokens.

        Returns:
            The new tokens by copy and row, with what ended them.
        """
        count = self.copies
        made: list[list[list[int]]] = [[[] for _ in prompts] for _ in range(count)]
        self.heard = [[[] for _ in prompts] for _ in range(count)]
        open_ = [[True] * len(prompts) for _ in range(count)]
        rows = list(range(len(prompts)))
        logits, mask, cache = self._read(prompts, most)
        for place in range(most):
            chosen = pick(logits, rows * count, place)
            self._listen(logits, chosen, rows, open_)
            ids = chosen.view(count, -1).tolist()
            for copy in range(count):
                for row, token in zip(rows, ids[copy], strict=True):
                    if open_[copy][row]:
                        made[copy][row].append(token)
                        open_[copy][row] = not ended(made[copy][row])
            staying = [n for n, row in enumerate(rows) if any(open_[c][row] for c in range(count))]
            if not staying or place == most - 1:
                break
            if len(staying) <= (1.0 - LEAVING) * len(rows):
                mask, chosen = self._leave(cache, mask, chosen, staying, len(rows), most - place)
                rows = [rows[n] for n in staying]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            positions = mask.sum(1, keepdim=True) - 1
            logits = self._run(chosen.unsqueeze(1), mask, positions, cache, [0])[:, 0].float()
        return made

    def _listen(
        self, logits: Tensor, chosen: Tensor, rows: Sequence[int], open_: Sequence[Sequence[bool]]
    ) -> None:
        if not self.hear:
            return
        found = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        for copy, own in enumerate(found.view(self.copies, -1).tolist()):
            for row, number in zip(rows, own, strict=True):
                if open_[copy][row]:
                    self.heard[copy][row].append(number)

    def _run(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache, places: list[int]
    ) -> Tensor:
        """Runs new tokens [R, T]; returns the logits [R, L, V] after those at some places, [L]."""
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": mask,
            "past_key_values": cache,
            "use_cache": True,
        }
        if self._positions:
            inputs["position_ids"] = positions
        last = places == [ids.shape[1] - 1]
        asked = torch.tensor(places, device=ids.device)
        if self._kept:
            inputs["logits_to_keep"] = 1 if last else asked
        logits: Tensor = self.model(**inputs).logits
        if not self._kept:
            logits = logits[:, asked]
        return logits

    def _read(self, prompts: Sequence[Sequence[int]], most: int) -> tuple[Tensor, Tensor, Cache]:
        """Runs the prompts; returns logits [P R, V], mask [P R, T], and the cache."""
        texts = sorted(dict.fromkeys(map(tuple, prompts)), key=len, reverse=True)
        owners: dict[tuple[int, ...], list[int]] = {}
        for row, prompt in enumerate(prompts):
            owners.setdefault(tuple(prompt), []).append(row)
        common, width = _common(texts), len(texts[0])
        begun = self._begin(texts[0][:common]) if common else None
        whole: list[tuple[Tensor, Tensor]] = []
        logits: Any = None
        for first, last in _portions([len(text) - common for text in texts]):
            part = texts[first:last]
            found, cache = self._portion([text[common:] for text in part], common, begun)
            if logits is None:
                whole = room_for(cache, self.copies * len(prompts), width + most)
                logits = found.new_empty(self.copies, len(prompts), found.shape[-1])
            for number, text in enumerate(part):
                rows = torch.tensor(owners[text], device=self.device)
                logits[:, rows] = found.unflatten(0, (self.copies, -1))[:, [number]]
                join(whole, cache, self.copies, rows, number, width - len(text))
        filled = Cache(layer_class_to_replicate=GrowingLayer)
        for keys, values in whole:
            layer = GrowingLayer()
            layer.fill(keys, values, width)
            filled.layers.append(layer)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        mask = torch.arange(width, device=self.device) >= width - lengths[:, None]
        return logits.flatten(0, 1).float(), mask.long().repeat(self.copies, 1), filled

    def _begin(self, ids: Sequence[int]) -> Cache:
        """Returns the cache of what all prompts begin with, [P] rows."""
        cache = Cache(layer_class_to_replicate=GrowingLayer)
        tokens = torch.tensor([list(ids)] * self.copies, device=self.device)
        places = torch.arange(len(ids), device=self.device).expand(self.copies, -1)
        self._run(tokens, torch.ones_like(tokens), places, cache, [len(ids) - 1])
        return cache

    def _portion(
        self, part: Sequence[Sequence[int]], common: int, begun: Cache | None
    ) -> tuple[Tensor, Cache]:
        """Runs prompts of like length, after what they have in common with all.

        They are padded on the right, where none of their tokens looks.
        """
        cache = Cache(layer_class_to_replicate=GrowingLayer)
        for old in () if begun is None else layers_of(begun):
            layer = GrowingLayer()
            keys, values = (t.repeat_interleave(len(part), 0) for t in (old.keys, old.values))
            layer.update(keys, values)
            cache.layers.append(layer)
        longest = len(part[0])
        ids = [list(one) + [self.pad] * (longest - len(one)) for one in part]
        marks = [[1] * (common + len(one)) + [0] * (longest - len(one)) for one in part]
        tokens, mask = (
            torch.tensor(one, device=self.device).repeat(self.copies, 1) for one in (ids, marks)
        )
        positions = torch.arange(common, common + longest, device=self.device)
        ends = sorted({len(one) - 1 for one in part})
        where = torch.tensor([ends.index(len(one) - 1) for one in part], device=self.device)
        logits = self._run(tokens, mask, positions.expand(len(tokens), -1), cache, ends)
        rows = torch.arange(len(tokens), device=self.device)
        return logits[rows, where.repeat(self.copies)], cache

    def _leave(
        self,
        cache: Cache,
        mask: Tensor,
        chosen: Tensor,
        staying: Sequence[int],
        before: int,
        ahead: int,
    ) -> tuple[Tensor, Tensor]:
        """Has rows leave; returns mask and tokens of those that stay."""
        kept = [copy * before + n for copy in range(self.copies) for n in staying]
        index = torch.tensor(kept, device=mask.device)
        mask = mask[index]
        first = int(mask.any(0).int().argmax())
        for layer in layers_of(cache):
            layer.select(index.to(layer.keys.device), first, ahead)
        return mask[:, first:], chosen[index]


def _common(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens all texts begin with, of which one is left to each; 0 if too few."""
    if len(texts) < 2:
        return 0
    shortest = min(map(len, texts)) - 1
    columns = zip(*(text[:shortest] for text in texts), strict=True)
    count = next((n for n, column in enumerate(columns) if len(set(column)) > 1), shortest)
    return count if count >= SHARED else 0


def _portions(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cuts texts, the longest first, into portions of like length."""
    cuts = [0]
    for n, length in enumerate(lengths):
        if length < LIKE * lengths[cuts[-1]] or n - cuts[-1] == AT_ONCE:
            cuts.append(n)
    return list(zip(cuts, [*cuts[1:], len(lengths)], strict=True))
