"""The base of all zeroth-order methods: a torch optimizer in two halves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.blocks import Block, Blocks
from zopeft.engine import Direction, Engine, Shape
from zopeft.errors import input_error, run_error
from zopeft.methods.arguments import check_arguments
from zopeft.methods.clipping import RunningClip
from zopeft.methods.defaults import default_eps
from zopeft.methods.directions import directions_of
from zopeft.methods.learning_rate import Proposal, propose
from zopeft.methods.pending import Pending
from zopeft.methods.record import StepRecord
from zopeft.noise import step_seed

Closure = Callable[[], Tensor]


class ZerothOrder(torch.optim.Optimizer):
    """Two-point estimate along one random direction a step.

    ``u_i = scale_i z_i``; ``projected_grad = (L(theta + eps u) - L(theta - eps u)) / (2
    eps)``; ``theta_i <- (1 - lr wd) theta_i - lr projected_grad u_i``. A method says how
    the scales are chosen by overriding `_scales`.

    `estimate` runs the probes and keeps (seed, projected gradient); `apply` writes the
    update; ``step(closure)`` does both, and ``step()`` alone is `apply`, which is what a
    training loop calls that has already estimated. Calling `estimate` several times
    before `apply` accumulates micro-batches: same direction, averaged losses. Each block
    is one param group that carries its name.

    Args:
        blocks: The blocks to train, as `zopeft.discover` gives them, [N].
        lr: Learning rate in the units of the weights, or "auto" to have `calibrate`
            propose it from the first batch.
        eps: Finite-difference step in the units of the weights, > 0; None for the
            space's default (1e-3; LoRA 1e-2; prompts and prefixes 1e-1, as MeZO).
        weight_decay: Decoupled weight decay, >= 0; not applied to vectors (biases, norms).
        noise: A name of `zopeft.noise.NOISES`; "low_rank" is for matrices, and leaves
            vectors Gaussian.
        seed: Seed of the run's directions.
        max_bad_steps: Steps in a row with a loss that is not finite before giving up.
        clip: Largest projected gradient, in multiples of the running root mean square of
            those before (`RunningClip`); 0 for no clipping.
        carrier: How weights are held, see `zopeft.engine.Engine`.
        rank: Rank of low_rank noise, 1 to 64.
        shapes: Block index to shape, see `zopeft.engine.shapes`; other blocks are as
            `noise` says.

    Raises:
        InputError: An argument is out of range, or `blocks` is not a `Blocks`.

    References:
        Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", 2023,
        Algorithm 1.
    """

    order = 0
    needs_finetuner = False

    def __init__(
        self,
        blocks: Blocks,
        lr: float | str = "auto",
        eps: float | None = None,
        weight_decay: float = 0.0,
        noise: str = "gaussian",
        seed: int = 0,
        max_bad_steps: int = 10,
        clip: float = 0.0,
        carrier: str = "auto",
        rank: int = 4,
        shapes: Mapping[int, Shape] | None = None,
    ) -> None:
        eps = default_eps(blocks) if eps is None and isinstance(blocks, Blocks) else eps
        check_arguments(type(self).__name__, blocks, lr, eps, weight_decay, max_bad_steps, clip)
        assert eps is not None
        self.auto = lr == "auto"
        self.blocks = blocks
        found = directions_of(type(self).__name__, blocks, noise, rank, shapes)
        self.directions = found
        self.engine = Engine(blocks, found.family, carrier, shapes=found.shapes)
        self.eps, self.seed, self.max_bad_steps = float(eps), int(seed), int(max_bad_steps)
        self.weight_decay = float(weight_decay)
        self.clip = RunningClip(float(clip))
        self.steps = self.skipped = self.forward_passes = 0
        self.lr_reason = "waiting for the first batch" if self.auto else "given"
        self.last_record: StepRecord | None = None
        self._bad_in_a_row = 0
        self._pending: Pending | None = None
        first = 0.0 if self.auto else float(lr)
        defaults = {"lr": first, "weight_decay": 0.0, "name": ""}
        super().__init__([self._group(block, first) for block in blocks], defaults)

    def _group(self, block: Block, lr: float) -> dict[str, Any]:
        parameter: Tensor = block.parameter
        if block.columns is not None:
            view = parameter.data[..., slice(*block.columns)]
            parameter = nn.Parameter(view, requires_grad=False)
        decay = 0.0 if block.kind == "vector" else self.weight_decay
        return {"params": [parameter], "name": block.name, "lr": lr, "weight_decay": decay}

    def _scales(self) -> Tensor | None:
        """Returns the blocks' scales [N] of the step that begins; None for ones."""
        return None

    def _memory(self) -> Tensor | None:
        """Returns what the journal must hold of the method's own state for this step."""
        return None

    def _finish(self, record: StepRecord) -> None:
        """Takes note of a step that has been applied (or replayed)."""

    @torch.no_grad()
    def calibrate(self, closure: Closure) -> float:
        """Proposes the learning rate from the loss's curvature along random directions.

        See `zopeft.methods.learning_rate`. Does nothing where an lr was given.

        Args:
            closure: Returns the loss of one batch as a 0-dim tensor.

        Returns:
            The learning rate in use.
        """
        if self.auto:
            proposal = propose(self.engine, closure, self._scales(), self.eps, self.seed)
            self._take(proposal)
        return float(self.param_groups[0]["lr"])

    def _take(self, proposal: Proposal) -> None:
        for group in self.param_groups:
            group["lr"] = proposal.lr
            if "initial_lr" in group:
                group["initial_lr"] = proposal.lr
        self.auto = False
        self.lr_reason = proposal.reason
        self.forward_passes += proposal.forward_passes

    @torch.no_grad()
    def estimate(self, closure: Closure) -> Tensor:
        """Runs the two probes of this step, or of one more micro-batch of it.

        Args:
            closure: Returns the loss of the batch as a 0-dim tensor; called twice.

        Returns:
            0-dim fp32, the mean of loss_plus and loss_minus.

        Raises:
            RunError: The loss has not been finite for `max_bad_steps` steps in a row; the
                weights are those of the last good step.
        """
        if self.auto:
            self.calibrate(closure)
        if self._pending is None:
            self.engine.adopt()
            direction = Direction(step_seed(self.seed, self.steps), self._scales())
            self._pending = Pending(direction, self.eps)
        pending = self._pending
        losses = torch.stack([self._probe(pending, closure, sign) for sign in (1.0, -1.0)])
        plus, minus = losses.tolist()
        pending.add(plus, minus)
        return losses.mean()

    def _probe(self, pending: Pending, closure: Closure, sign: float) -> Tensor:
        for _ in range(2):
            with self.engine.perturbed(pending.direction, sign * pending.eps):
                loss = closure()
            self.forward_passes += 1
            if not self.engine.settle():
                break
        return loss.detach().float()

    @torch.no_grad()
    def apply(self) -> None:
        """Writes the update of the pending estimate; without one, does nothing."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        record = pending.recorded or self._record(pending)
        if record.skipped:
            self._skip(record)
            return
        self._bad_in_a_row = 0
        lr = torch.tensor(record.lr, dtype=torch.float64)
        decay = torch.tensor([g["weight_decay"] for g in self.param_groups], dtype=torch.float64)
        grad = record.projected_grads[0]
        self.engine.update(pending.direction, -lr * grad, 1.0 - lr * decay)
        self._close(record)

    def _record(self, pending: Pending) -> StepRecord:
        plus, minus = pending.losses()
        bad = not (math.isfinite(plus) and math.isfinite(minus))
        grad = 0.0 if bad else self.clip.clipped((plus - minus) / (2.0 * pending.eps))
        rates = [float(group["lr"]) for group in self.param_groups]
        scales, memory = pending.direction.scales, self._memory()
        return StepRecord(
            step=self.steps,
            seed=pending.direction.seed,
            losses=(plus, minus),
            projected_grads=(grad,),
            lr=(rates[0],) if len(set(rates)) == 1 else tuple(rates),
            eps=pending.eps,
            decay=self.weight_decay,
            scales=None if scales is None else scales.detach().float().cpu().numpy(),
            memory=None if memory is None else memory.detach().float().cpu().numpy(),
            skipped=bad,
        )

    def _skip(self, record: StepRecord) -> None:
        self.skipped += 1
        self._bad_in_a_row += 1
        self.last_record = record
        self.steps += 1
        if self._bad_in_a_row >= self.max_bad_steps:
            raise run_error(
                "loss",
                f"not finite for {self._bad_in_a_row} steps in a row",
                record.losses[0],
                "lower --lr or --eps, or use a wider --dtype; the last good weights are kept",
            )

    def _close(self, record: StepRecord) -> None:
        self.last_record = record
        self.steps += 1
        plus, minus = record.losses
        self.clip.note((plus - minus) / (2.0 * record.eps))
        self._finish(record)

    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        """Estimates with `closure` if there is one, then applies.

        Args:
            closure: Returns the loss of the batch as a 0-dim tensor.

        Returns:
            The mean of the probes' losses, or None without a closure.
        """
        loss = None if closure is None else self.estimate(closure)
        self.apply()
        return loss

    def recall(self, record: StepRecord) -> Tensor:
        """Takes a recorded step in place of `estimate`; `apply` then repeats it bit for bit.

        Args:
            record: The record of the step that is due.

        Returns:
            0-dim fp32, the mean of the recorded losses.

        Raises:
            InputError: The record is of another step, or of a run with another seed.
        """
        seed = step_seed(self.seed, self.steps)
        if (record.step, record.seed) != (self.steps, seed):
            raise input_error(
                "journal",
                f"step {self.steps} of this run has another address than the record's",
                f"step {record.step}, seed {record.seed}",
                "use the journal of this run",
            )
        device = self.blocks[0].parameter.device
        scales = None if record.scales is None else torch.tensor(record.scales, device=device)
        self.engine.adopt()
        self._pending = Pending(Direction(record.seed, scales), record.eps, record)
        if self.auto:
            self._take(Proposal(record.lr[0], "as in the journal", 0))
        return torch.tensor(sum(record.losses) / len(record.losses), dtype=torch.float32)

    def replay(self, record: StepRecord) -> None:
        """Repeats a recorded step without a forward pass."""
        self.recall(record)
        self.apply()

    def state_dict(self) -> dict[str, Any]:
        """Returns step counters and the method's own state; never noise."""
        own = {
            "steps": self.steps,
            "skipped": self.skipped,
            "bad_in_a_row": self._bad_in_a_row,
            "forward_passes": self.forward_passes,
            "auto": self.auto,
            "lr_reason": self.lr_reason,
            "engine": self.engine.state_dict(),
            "clip": self.clip.state_dict(),
            **self._own_state(),
        }
        return {**super().state_dict(), "zopeft": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what `state_dict` gave; weights must have been loaded already."""
        state = dict(state_dict)
        own = dict(state.pop("zopeft"))
        super().load_state_dict(state)
        self.steps, self.skipped = own.pop("steps"), own.pop("skipped")
        self._bad_in_a_row = own.pop("bad_in_a_row")
        self.forward_passes = own.pop("forward_passes")
        self.auto, self.lr_reason = own.pop("auto"), own.pop("lr_reason")
        self.engine.adopt()
        self.engine.load_state_dict(own.pop("engine"))
        self.clip.load_state_dict(own.pop("clip"))
        self._load_own_state(own)

    def _own_state(self) -> dict[str, Any]:
        return {}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        pass
