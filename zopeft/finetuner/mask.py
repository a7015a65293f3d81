"""A mask: which few weights of a base model matter most, learned once and kept as their places."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from zopeft.blocks import Blocks
from zopeft.errors import input_error
from zopeft.staging import staged

FILE = "mask.safetensors"
"""Its name in a fine-tuner's folder."""
FORMAT = "zopeft_mask 1"
_DO = "give a file that Mask.save wrote, or a fine-tuner's folder that has one"


@dataclass(frozen=True, eq=False)
class Mask:
    """The places of the weights that are trained, block by block; all others stay still.

    Args:
        places: Block name to the flat places of its weights, int64 [n], ascending.
        facts: What it was learned on, in words.

    References:
        Guo et al., "Zeroth-Order Fine-Tuning of LLMs with Extreme Sparsity", 2024: the largest
        squared gradients on pre-training text, 0.1 % of all weights.
    """

    places: Mapping[str, Tensor]
    facts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def largest(
        cls, scores: Mapping[str, Tensor], share: float, facts: Mapping[str, str] | None = None
    ) -> Mask:
        """Returns the mask of the largest scores of all blocks together; ties go to the first.

        Args:
            scores: Block name to a score of each of its weights, of any shape.
            share: Share of all weights that is picked, above 0 and at most 1; one weight at least.
            facts: What the scores were learned on.

        Raises:
            InputError: `share` is out of range, or a score is not a finite number.
        """
        if not 0.0 < share <= 1.0:
            raise input_error("mask share", "must be above 0 and at most 1", share)
        count = max(1, round(share * sum(score.numel() for score in scores.values())))
        found: list[tuple[str, Tensor, Tensor]] = []
        for name, score in scores.items():
            flat = score.detach().reshape(-1).float()
            if not bool(flat.isfinite().all()):
                raise input_error("mask", f"the scores of {name} are not all finite numbers", None)
            own = _first(flat, count)
            found.append((name, own.cpu(), flat[own].cpu()))
        chosen = _first(torch.cat([values for _, _, values in found]), count)
        places, start = {}, 0
        for name, own, values in found:
            here = chosen[(chosen >= start) & (chosen < start + len(values))] - start
            start += len(values)
            if len(here):
                places[name] = own[here]
        return cls(places, dict(facts or {}))

    @property
    def count(self) -> int:
        """Number of weights that are picked."""
        return sum(len(own) for own in self.places.values())

    def digest(self) -> str:
        """Returns 16 hex digits that differ for masks of other places."""
        found = hashlib.blake2b(digest_size=8)
        for name, own in sorted(self.places.items()):
            found.update(name.encode() + own.to(torch.int64).cpu().numpy().tobytes())
        return found.hexdigest()

    def fitted(self, blocks: Blocks) -> dict[int, Tensor]:
        """Returns the places by the blocks' indices; blocks that it does not name have none.

        Raises:
            InputError: It names no block, or a place that a block does not have.
        """
        found = {}
        for index, block in enumerate(blocks):
            own = self.places.get(block.name)
            if own is None:
                continue
            if int(own[-1]) >= block.numel:
                what = f"has places beyond the {block.numel} weights of {block.name}"
                raise input_error("mask", what, int(own[-1]), "take one of this model")
            found[index] = own
        if not found:
            names = ", ".join(list(self.places)[:2])
            do = "take one of this model and space"
            raise input_error("mask", "names none of the blocks", names, do)
        return found

    def save(self, path: str | Path) -> Path:
        """Writes it to a file.

        Args:
            path: The file; in a folder, `FILE`.

        Returns:
            The file.

        Raises:
            InputError: It cannot be written.
        """
        from safetensors.torch import save as to_bytes

        path = Path(path)
        path = path / FILE if path.is_dir() else path
        small = all(not len(own) or int(own[-1]) < 2**31 for own in self.places.values())
        dtype = torch.int32 if small else torch.int64
        tensors = {name: own.to(dtype).contiguous() for name, own in self.places.items()}
        content = to_bytes(tensors, metadata={"zopeft": FORMAT, **self.facts})
        try:
            with staged(path) as place:
                place.write_bytes(content)
        except OSError as problem:
            reason = problem.strerror or str(problem)
            raise input_error("mask", f"cannot be written ({reason})", str(path)) from None
        return path

    @classmethod
    def load(cls, path: str | Path) -> Mask:
        """Reads what `save` wrote.

        Args:
            path: The file, or a folder that has one.

        Raises:
            InputError: There is none, or it is damaged.
        """
        from safetensors import SafetensorError, safe_open

        file = Path(path).expanduser()
        file = file / FILE if file.is_dir() else file
        if not file.is_file():
            raise input_error("mask", "no such file", str(path), _DO)
        try:
            with safe_open(file, framework="pt") as opened:
                facts = dict(opened.metadata() or {})
                places = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as problem:
            what = f"damaged or not safetensors ({problem})"
            raise input_error("mask", what, str(file)) from None
        if facts.pop("zopeft", "") != FORMAT:
            raise input_error("mask", "is no mask", str(file), _DO)
        for name, own in places.items():
            whole = own.ndim == 1 and own.dtype in (torch.int32, torch.int64) and len(own) > 0
            if not whole or int(own[0]) < 0 or bool((own[1:] <= own[:-1]).any()):
                what = f"the places of {name} are not ascending whole numbers from 0"
                raise input_error("mask", what, str(file), _DO)
        return cls({name: own.to(torch.int64) for name, own in places.items()}, facts)

    def __repr__(self) -> str:
        return f"Mask({self.count} weights of {len(self.places)} blocks)"


def _first(scores: Tensor, count: int) -> Tensor:
    """Returns the places of the largest scores [n], ascending; of equal ones the first."""
    count = min(count, len(scores))
    least = scores.topk(count).values[-1]
    above, ties = ((scores > least).nonzero().flatten(), (scores == least).nonzero().flatten())
    return torch.cat([above, ties[: count - len(above)]]).sort().values
