"""The paper's objective: the loss after one zeroth-order step, at a fixed step size.

``L_ZO(omega) = L(theta - eta_1 g u(omega))`` with ``u_i = scale_i(omega) z_i`` and
``g = (L(theta + eps u) - L(theta - eps u)) / (2 eps)``; g is held constant, as the paper
does to save memory, so ``dL_ZO / dscale_i = -eta_1 g <grad_i L(theta_1), z_i>``: one
ordinary backward pass at theta_1, whose gradient is met block by block with noise made
again from its address.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zopeft.engine import Direction, Engine
from zopeft.finetuner import FineTuner
from zopeft.meta.gradients import Projections
from zopeft.meta.summing import backward
from zopeft.meta.trajectory import LossFunction
from zopeft.ranks import ALONE, Ranks


@dataclass
class TaskMemory:
    """What a task's last meta-step left: inputs of the PertNNs.

    Args:
        losses: loss_plus and loss_minus, fp32 [2]; 0 before the first step.
        raw: Raw scales, fp32 [N]; 1 before the first step.
    """

    losses: Tensor
    raw: Tensor


@dataclass(frozen=True)
class Outcome:
    """What one judged zeroth-order step gave.

    Args:
        surrogate: 0-dim; its gradient with respect to the PertNNs is that of L_ZO.
        scales: Scales used, fp32 [N].
        raw: Raw scales, fp32 [N].
        losses: loss_plus and loss_minus.
        post_loss: L_ZO, the loss after the step.
        gradient_norm: Norm of the gradient at the weights after the step.
    """

    surrogate: Tensor
    scales: Tensor
    raw: Tensor
    losses: tuple[float, float]
    post_loss: float
    gradient_norm: float


class PaperObjective:
    """Evaluates `L_ZO` and its gradient with respect to the PertNNs.

    Args:
        model: The model.
        engine: The engine over the blocks.
        finetuner: The fine-tuner that is trained.
        loss_function: From model and batch to a 0-dim loss.
        eps: Finite-difference step.
        lr_zo: Learning rate of the judged step, the paper's eta_1.
        ranks: Who judges it together; each rank's batch is a part, and so is its loss.
    """

    def __init__(
        self,
        model: Any,
        engine: Engine,
        finetuner: FineTuner,
        loss_function: LossFunction,
        eps: float,
        lr_zo: float,
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        self.model, self.engine, self.finetuner = model, engine, finetuner
        self.loss_function, self.eps, self.lr_zo = loss_function, eps, lr_zo
        self.match = finetuner.match(engine.blocks)
        device = engine.blocks[0].parameter.device
        self.numels = torch.tensor(engine.blocks.numels, dtype=torch.float32, device=device)

    def __call__(self, batch: Any, seed: int, memory: TaskMemory) -> Outcome:
        """Judges one zeroth-order step on `batch` along direction `seed`."""
        mean, variance = self.engine.statistics()
        features = self.finetuner.features(
            self.match, mean.float(), variance.float(), memory.losses, memory.raw
        )
        raw = self.finetuner.raw_scales(self.match, features)
        scales = self.finetuner.used_scales(self.match, raw, self.numels)
        direction = Direction(seed, scales.detach())
        plus, minus = self._probe(batch, direction)
        grad = (plus - minus) / (2.0 * self.eps)
        projections = Projections(self.engine, seed)
        with self.engine.perturbed(direction, -self.lr_zo * grad):
            post_loss = backward(
                self.engine.blocks,
                projections,
                lambda: self.loss_function(self.model, batch),
                self.ranks,
            )
        slope = (-self.lr_zo * grad) * projections.inner
        return Outcome(
            surrogate=(scales * slope.to(scales.dtype)).sum(),
            scales=scales.detach(),
            raw=raw.detach(),
            losses=(plus, minus),
            post_loss=post_loss,
            gradient_norm=float(projections.squared_norm.sqrt()),
        )

    @torch.no_grad()
    def _probe(self, batch: Any, direction: Direction) -> tuple[float, float]:
        losses = []
        for sign in (self.eps, -self.eps):
            for _ in range(2):
                with self.engine.perturbed(direction, sign):
                    loss = self.loss_function(self.model, batch)
                if not self.engine.settle():
                    break
            losses.append(loss.float())
        plus, minus = self.ranks.summed(torch.stack(losses).cpu()).tolist()
        return plus, minus
