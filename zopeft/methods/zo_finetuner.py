"""ZO Fine-tuner: small learned networks choose how strongly each block is perturbed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zopeft.blocks import Blocks
from zopeft.engine import Shape
from zopeft.errors import input_error
from zopeft.finetuner import Course, FineTuner
from zopeft.methods.mezo import MeZO
from zopeft.optim.defaults import default_eps
from zopeft.optim.rate import SHARE_LEAST, SHARE_MOST
from zopeft.optim.record import StepRecord


def own_eps(blocks: Blocks, finetuner: FineTuner) -> float:
    """Returns the finite-difference step of a run that is given none."""
    usual = default_eps(blocks)
    if blocks.space != "full":
        # What is known of a base's weights says nothing of an adapter's.
        return usual
    return finetuner.straight_eps(finetuner.match(blocks), usual)


class ZOFineTuner(MeZO):
    """MeZO along ``u_i = scale_i z_i`` with scales from a learned fine-tuner.

    ``raw_i = PertNN_i(features_i)`` of the block's mean and variance, the last step's two
    losses and the block's last raw scale; ``scale = raw sqrt(sum d) / sqrt(sum d raw^2)``;
    then the step of `ZerothOrder`. As in the authors' code, losses start at 0, raw scales
    at 1, and the last raw scale is fed back before normalisation; the scale multiplies
    the noise as a standard deviation. Where the fine-tuner holds subspaces, or scales
    embeddings by token frequency, z_i has that shape (`FineTuner.fitted`). Where it knows the
    share of signal of its meta-training, lr="auto" begins with that (`FineTuner.signal_share`).
    Over whole weights eps is, where none is given, at most the one at which the loss is still about
    straight along learned directions (`FineTuner.straight_eps`).

    A fine-tuner may read the course of the run instead (`zopeft.finetuner.Course`): running
    loss and change of the loss along the directions. One that reads ``bend`` costs another
    forward pass a step: at the weights themselves, or one-sided at ``theta - eps u``.

    Fine-tuners are learned with one direction a step. Of several, the last step's two losses
    are those of the first (one-sided, loss_minus is put where a straight line has it), and the
    course is the mean over all of them.

    With ``budget="turns"`` the learned scales hold within tables of the vocabulary and within
    the other blocks, and the first 48 steps, which serve one of the two each, tell what either has
    of the whole (`zopeft.optim.turns`). With "measured" probes before the first step tell it.

    Args:
        blocks: The blocks to train, as `zopeft.discover` gives them, [N].
        finetuner: A `FineTuner`, whose groups are matched to the blocks.
        token_counts: How often each token occurs in the training data, [V], for a
            fine-tuner with ``rows="frequency"``; None perturbs all rows alike.
        shapes: Block index to shape, in place of those of the fine-tuner.
        adapter_bases: Whether LoRA's A and B are perturbed in the subspaces that were learned
            for the inputs and outputs of their base.
        **options: The arguments of `ZerothOrder`.

    Raises:
        InputError: Nothing of the fine-tuner matches, or an argument is out of range.

    References:
        Zhang et al., "Learning a Zeroth-Order Optimizer for Fine-Tuning LLMs", 2025,
        Algorithm 1, equations 2 and 3.
    """

    needs_finetuner = True

    def __init__(
        self,
        blocks: Blocks,
        finetuner: FineTuner,
        token_counts: Tensor | None = None,
        shapes: Mapping[int, Shape] | None = None,
        adapter_bases: bool = False,
        **options: Any,
    ) -> None:
        if not isinstance(finetuner, FineTuner):
            raise input_error(
                "ZOFineTuner finetuner",
                "takes a FineTuner",
                type(finetuner).__name__,
                "load one with zopeft.FineTuner.from_pretrained(FOLDER)",
            )
        self.finetuner = finetuner
        if isinstance(blocks, Blocks):
            self.match = finetuner.match(blocks)
            self.fitted = finetuner.fitted(self.match, token_counts, adapter_bases)
            shapes = {**self.fitted.shapes, **(shapes or {})}
            if options.get("eps") is None:
                options["eps"] = own_eps(blocks, finetuner)
        super().__init__(blocks, shapes=shapes, **options)
        self._device = self.engine.device
        self._numels = torch.tensor(blocks.numels, dtype=torch.float32, device=self._device)
        self._losses = torch.zeros(2, device=self._device)
        self._raw = torch.ones(len(blocks), device=self._device)
        self._next_raw = self._raw
        self.course = Course()

    @torch.no_grad()
    def _scales(self) -> Tensor:
        mean, variance = self.engine.statistics()
        features = self.finetuner.features(
            self.match,
            mean.float(),
            variance.float(),
            self._losses,
            self._raw,
            self.course.reading(),
        )
        self._next_raw = self.finetuner.raw_scales(self.match, features)
        return self.finetuner.used_scales(self.match, self._next_raw, self._numels)

    def _share(self, scales: Tensor | None) -> float:
        learned = None if scales is None else self.finetuner.signal_share(self.match, scales)
        if learned is None:
            return super()._share(scales)
        self.share_origin = " from the fine-tuner"
        return min(SHARE_MOST, max(SHARE_LEAST, learned))

    def _looks(self, due: bool) -> bool:
        return due or self.finetuner.reads("bend")

    def _memory(self) -> Tensor:
        return self._next_raw

    def _finish(self, record: StepRecord) -> None:
        pair = self.estimator.pair(record)
        self._losses = torch.tensor(pair, dtype=torch.float32, device=self._device)
        assert record.memory is not None
        self._raw = torch.tensor(record.memory, device=self._device)
        # The rate's own looks are too rare for a running mean.
        zero = record.centre if self.finetuner.reads("bend") else None
        plus, minus = self.estimator.typical_pair(record)
        self.course.note(plus, minus, math.nan if zero is None else zero)

    def _own_state(self) -> dict[str, Any]:
        course = self.course.state_dict()
        return {"losses": self._losses.clone(), "raw": self._raw.clone(), "course": course}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        self._losses = state["losses"].to(self._device)
        self._raw = state["raw"].to(self._device)
        if "course" in state:
            self.course.load_state_dict(state["course"])
