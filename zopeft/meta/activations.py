"""The leading directions of what goes into each linear layer, from one short sketch a layer.

The gradient of a linear layer is a sum of products of output gradients and inputs, so its rows lie
in what the inputs span, and a forward pass shows that span. Of the other side, that of the
outputs, a forward pass says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.blocks import Block, Blocks
from zopeft.finetuner.bases import Pair, input_side
from zopeft.meta.leading import SideSketch, matrices
from zopeft.noise import role_seed

ROLE = "activations"


class InputDirections:
    """Sketches of ``A = sum_t w_t X_t^T X_t`` of each linear layer, X_t [tokens, I] its inputs.

    Tokens are those that are no padding: on a small model their leading directions held more of
    tasks' gradients than those of the tokens alone that predict an answer. Each batch counts
    the same, ``w = 1 / tokens``. Nothing of shape [I, I] is made unless the sketch is as wide.

    Args:
        blocks: The blocks, [N].
        indices: Those to watch (see `linear_inputs`).
        rank: Directions wanted a layer, r.
        seed: Seed of the run.
    """

    def __init__(self, blocks: Blocks, indices: Sequence[int], rank: int, seed: int) -> None:
        self.blocks, self.indices, self.rank = blocks, list(indices), rank
        self.seed = role_seed(seed, ROLE)
        self.sketches: dict[int, SideSketch] = {}
        self.powers: dict[int, Tensor] = {}

    @contextmanager
    def watching(self, batch: Mapping[str, Any]) -> Iterator[None]:
        """Adds up what the forward passes of a batch show.

        Args:
            batch: The batch; its ``attention_mask`` [R, T] tells tokens from padding.
        """
        with ExitStack() as stack:
            for index in self.indices:
                module = self.blocks[index].owners[0].module
                hook = module.register_forward_pre_hook(self._look(index, batch))
                stack.callback(hook.remove)
            yield

    def _look(
        self, index: int, batch: Mapping[str, Any]
    ) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.take(index, real_tokens(inputs[0].detach(), batch.get("attention_mask")))

        return look

    def take(self, index: int, tokens: Tensor) -> None:
        """Takes inputs of a layer.

        Args:
            index: The layer's block.
            tokens: X, [tokens, I]. Those that are not all finite are left out.
        """
        tokens = tokens.float()
        if not len(tokens) or not bool(tokens.isfinite().all()):
            return
        sketch = self.sketches.get(index)
        if sketch is None:
            rank = min(self.rank, *self.blocks[index].shape)
            size, address = tokens.shape[1], self.blocks[index].address
            sketch = SideSketch(size, rank, self.seed, address, tokens.device)
            self.sketches[index] = sketch
            self.powers[index] = torch.zeros((), dtype=torch.float64, device=tokens.device)
        self.powers[index] += tokens.double().square().sum().to(self.powers[index]) / len(tokens)
        sketch.take_rows(tokens.to(sketch.total.device), 1.0 / len(tokens))

    def bases(self) -> dict[int, Pair]:
        """Returns left and right directions of the layers that something reached.

        float64 [I, r] of the side of the inputs, the columns orthonormal and in order of falling
        weight; None for the other side.
        """
        found: dict[int, Pair] = {}
        for index, sketch in sorted(self.sketches.items()):
            side = sketch.leading()
            if side is not None:
                left = input_side(self.blocks[index].kind) == "left"
                found[index] = (side, None) if left else (None, side)
        return found

    def gains(self, mix: float) -> dict[int, float]:
        """Returns how many times isotropic noise's energy a layer's directions should see.

        ``(1 - mix) c I / r + mix`` where the r directions hold a share c of the power of the I
        inputs: what they would see of a gradient that lies in its inputs as these lie themselves.

        Args:
            mix: Share of isotropic noise.
        """
        found = {}
        for index, sketch in self.sketches.items():
            spectrum = sketch.spectrum()
            if spectrum is not None:
                held = float(spectrum[1].sum() / self.powers[index])
                own = min(1.0, held) * sketch.size / len(spectrum[1])
                found[index] = (1.0 - mix) * own + mix
        return found


def real_tokens(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the vectors [tokens, I] of an activation that belong to no padding.

    Args:
        hidden: An activation [..., I].
        mask: 1 for tokens and 0 for padding, [R, T]; where `hidden` is of another layout, as where
            a model was given rows of one length at a time, all of it counts.
    """
    if mask is not None and hidden.shape[:-1] == mask.shape:
        return hidden[mask.bool().to(hidden.device)]
    return hidden.flatten(0, -2)


def linear_inputs(blocks: Blocks) -> list[int]:
    """Returns the indices of the blocks whose layers' inputs can be watched: linear layers."""
    return [i for i in matrices(blocks, embeddings=False) if _is_layer(blocks[i])]


def _is_layer(block: Block) -> bool:
    owner = block.owners[0]
    return block.kind in ("linear", "conv1d") and owner.leaf == "weight"
