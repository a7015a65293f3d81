"""The base of all zeroth-order methods: a torch optimizer in two halves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from zopeft.blocks import Block, Blocks
from zopeft.engine import Engine, Shape
from zopeft.engine.direction import Probe
from zopeft.errors import input_error
from zopeft.noise import step_seed
from zopeft.optim.arguments import check_arguments
from zopeft.optim.bookkeeping import Bookkeeping
from zopeft.optim.clipping import RunningClip
from zopeft.optim.declared import Options, take_options
from zopeft.optim.defaults import default_eps, default_reach, fallback_lr
from zopeft.optim.directions import directions_of
from zopeft.optim.estimator import Estimator
from zopeft.optim.learning_rate import first_look
from zopeft.optim.looks import counts, run_looks
from zopeft.optim.options import given_options
from zopeft.optim.rate import SHARE, RunningRate
from zopeft.optim.record import StepRecord
from zopeft.optim.rounds import Rounds
from zopeft.optim.shown_rate import ShownRate
from zopeft.optim.state import Kept, State
from zopeft.optim.step import Plan, Step
from zopeft.optim.writing import write_all
from zopeft.probing.batch_loss import runs_compiled
from zopeft.probing.probing import Probing

NUMBER, LEAVE = "give a number", "leave it out"
OTHER = "choose another method or other weights"
Closure = Callable[[], Tensor]
AUTO_CLIP = 2.0
"""Clipping that goes with lr="auto": the tails of the projected gradient are long."""


class ZerothOrder(Bookkeeping):
    """Two-point estimate along one random direction a step, or along several.

    ``u_i = scale_i z_i``; ``projected_grad = (L(theta + eps u) - L(theta - eps u)) / (2
    eps)``; ``theta_i <- (1 - lr wd) theta_i - lr projected_grad u_i``. A method says how
    the scales are chosen by overriding `_scales`. With K directions the last term is their
    mean, ``- lr / K sum_k projected_grad_k u_ki``, and the weights are written once.

    `estimate` runs the probes and keeps (seed, projected gradient); `apply` writes the
    update; ``step(closure)`` does both, and ``step()`` alone is `apply`, which is what a
    training loop calls that has already estimated. Calling `estimate` several times
    before `apply` accumulates micro-batches: same direction, averaged losses. Each block
    is one param group that carries its name.

    Args:
        blocks: The blocks to train, as `zopeft.discover` gives them, [N].
        lr: Learning rate in the units of the weights, or "auto" to have `calibrate`
            propose it from the first batch and `RunningRate` keep it fitting.
        eps: Finite-difference step in the units of the weights, > 0; None for the
            space's default (1e-3; LoRA 1e-2; prompts and prefixes 1e-1, as MeZO).
        weight_decay: Decoupled weight decay, >= 0; not applied to vectors (biases, norms).
        noise: A name of `zopeft.noise.NOISES`; "low_rank" is for matrices, and leaves
            vectors Gaussian.
        seed: Seed of the run's directions.
        max_bad_steps: Steps in a row with a loss that is not finite before giving up.
        clip: Largest projected gradient, in multiples of the running root mean square of
            those before (`RunningClip`); 0 for no clipping; None for 2 with lr="auto", else 0.
        carrier: How weights are held, see `zopeft.engine.Engine`.
        probes: "stacked" runs all probes in one forward, which needs a closure such as
            `zopeft.BatchLoss` and as many times the memory for activations; "separate" each
            in its own; "auto" stacks small batches, see `zopeft.probing.probing.Probing`.
        rank: Rank of low_rank noise, 1 to 64.
        shapes: Block index to shape, see `zopeft.engine.shapes`; other blocks are as
            `noise` says.
        directions: K, independent directions a step, 1 to 64. All have the step's scales.
        sides: "two" for K pairs of forward passes; "one" for K + 1 passes, whose projected
            gradient is ``(L(theta + eps u) - L(theta)) / eps``.
        normalise: Whether one-sided differences of losses are divided by their spread over
            the directions, 2 at least (FZOO). The learning rate then is in the units of the
            weights, whatever the loss; see `zopeft.optim.estimator.Estimator`.
        **options: The method's own options, see its ``Options``.

    Raises:
        InputError: An argument is out of range, or `blocks` is not a `Blocks`.

    References:
        Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", 2023,
        Algorithm 1.
    """

    order = 0
    needs_finetuner = False
    Options: type[Options] = Options
    """The dataclass of the options that a method has of its own."""
    gradient_units = True
    """Whether a learning rate of MeZO is right here, too: what lr="auto" measures."""
    single = False
    """Whether a step's directions are its own choice, whatever the run asks for."""
    decays = True
    """Whether weight decay can go with it."""
    spaces: tuple[str, ...] = ("full", "adapter", "scales")
    """The spaces (`zopeft.blocks.Blocks.space`) that it can serve."""

    def __new__(cls, *args: Any, **given: Any) -> Self:
        """Keeps what the method is made with, for its header in a journal."""
        made = super().__new__(cls)
        made.options = given_options(cls, args, given)
        return made

    def __init__(
        self,
        blocks: Blocks,
        lr: float | str = "auto",
        eps: float | None = None,
        weight_decay: float = 0.0,
        noise: str = "gaussian",
        seed: int = 0,
        max_bad_steps: int = 10,
        clip: float | None = None,
        carrier: str = "auto",
        probes: str = "auto",
        rank: int = 4,
        shapes: Mapping[int, Shape] | None = None,
        directions: int = 1,
        sides: str = "two",
        normalise: bool = False,
        **options: Any,
    ) -> None:
        self.own: Any = take_options(type(self).__name__, self.Options, options)
        if clip is None:
            clip = AUTO_CLIP if lr == "auto" else 0.0
        eps = default_eps(blocks) if eps is None and isinstance(blocks, Blocks) else eps
        check_arguments(type(self).__name__, blocks, lr, eps, weight_decay, max_bad_steps, clip)
        assert eps is not None
        self.auto = lr == "auto"
        self.rate: RunningRate | None = None
        self.shown, self.guarded = ShownRate(), False
        self.blocks = blocks
        self.estimator = Estimator(directions, sides, normalise)
        self.kept = State(blocks, self.keeps())
        shapes = {**self.shapes(blocks), **(shapes or {})}
        found = directions_of(type(self).__name__, blocks, noise, rank, shapes)
        self.drawn_from = found
        if carrier == "auto" and probes == "stacked" and blocks.space == "full":
            # Flat weights would be written for each probe.
            carrier = "modules"
        self.engine = Engine(blocks, found.family, carrier, shapes=found.shapes)
        self.probing = Probing(self.engine, probes)
        self.eps, self.seed, self.max_bad_steps = float(eps), int(seed), int(max_bad_steps)
        self.weight_decay = float(weight_decay)
        self.check(lr)
        self.clip = RunningClip(float(clip))
        self.steps = self.skipped = self.forward_passes = 0
        self.lr_reason = "waiting for the first batch" if self.auto else "given"
        self.last_record: StepRecord | None = None
        self.unread = ""
        self._share_origin = ""
        self._bad_in_a_row = 0
        self._pending: Rounds | None = None
        first = 0.0 if self.auto else float(lr)
        defaults = {"lr": first, "weight_decay": 0.0, "name": ""}
        super().__init__([self._group(block, first) for block in blocks], defaults)

    def check(self, lr: float | str) -> None:
        """Checks that a run's settings mean something for the method.

        Args:
            lr: The learning rate as given.

        Raises:
            InputError: ``lr="auto"`` has no rule for its units, it chooses its directions itself,
                or it cannot serve these weights.
        """
        name, estimator = type(self).__name__, self.estimator
        found = f"directions={estimator.directions}, sides={estimator.sides}"
        wide, space = (estimator.directions, estimator.sides) != (1, "two"), self.blocks.space
        decay = self.weight_decay
        for wrong, where, what, got, do in (
            (lr == "auto" and not self.gradient_units, " lr", "has no rule for auto", lr, NUMBER),
            (self.single and wide, "", "chooses its directions itself", found, LEAVE),
            (bool(decay) and not self.decays, " weight_decay", "must be 0", decay, LEAVE),
            (space not in self.spaces, "", "cannot serve these weights", space, OTHER),
        ):
            if wrong:
                raise input_error(name + where, what, got, do)

    def keeps(self) -> Mapping[str, Kept]:
        """Returns what the method keeps beside the weights, by name."""
        return {}

    def shapes(self, blocks: Blocks) -> Mapping[int, Shape]:
        """Returns the shapes that the method gives to blocks of its own accord, by index."""
        return {}

    def _group(self, block: Block, lr: float) -> dict[str, Any]:
        parameter: Tensor = block.parameter
        if block.columns is not None:
            view = parameter.data[..., slice(*block.columns)]
            parameter = nn.Parameter(view, requires_grad=False)
        decay = 0.0 if block.kind == "vector" else self.weight_decay
        return {"params": [parameter], "name": block.name, "lr": lr, "weight_decay": decay}

    @abstractmethod
    def plan(self, step: Step) -> Plan:
        """Yields the points that a step looks at, is sent their losses, returns its writes.

        Args:
            step: The step: what the plan may depend on, beside the losses.
        """

    def _scales(self) -> Tensor | None:
        """Returns the blocks' scales [N] of the step that begins; None for ones."""
        return None

    def _looks(self) -> bool:
        """Returns whether the step that is due also takes the loss that tells the curvature.

        That is the loss at the weights themselves, or, where it is taken anyway, the one on
        the other side of the first direction.
        """
        return self.rate is not None and self.rate.due()

    def _share(self, scales: Tensor | None) -> float:
        """Returns the signal share that a running learning rate begins with."""
        return SHARE

    @torch.no_grad()
    def calibrate(self, closure: Closure) -> float:
        """Proposes the learning rate from the loss's curvature along random directions.

        See `zopeft.optim.rate`. Does nothing where an lr was given.

        Args:
            closure: Returns the loss of one batch as a 0-dim tensor.

        Returns:
            The learning rate that the run begins with.

        Raises:
            InputError: There is a schedule already, which knows of no learning rate.
            RunError: The loss of the unperturbed model is not finite.
        """
        if not self.auto:
            given = float(self.param_groups[0]["lr"])
            return given if self.rate is None else self.rate.first
        if any("initial_lr" in group for group in self.param_groups):
            raise input_error(
                "lr",
                "a schedule was made before 'auto' was settled, and would keep it at",
                0.0,
                "call calibrate(closure) of the optimizer first, then make the schedule",
            )
        self.engine.adopt()
        scales = self._scales()
        look = first_look(self.engine, closure, scales, self.eps, self.seed)
        share, fallback = self._share(scales), fallback_lr(self.blocks)
        reach = self.eps * default_reach(self.blocks)
        self.rate = RunningRate(
            look.curvature, look.energy, reach, share, fallback, self.eps, self.estimator
        )
        self._set_lr(self.rate.first)
        self.auto = False
        self.forward_passes += look.forward_passes
        reason = look.reason(f"signal share {share:.2g}{self._share_origin}")
        self.lr_reason = reason + self.estimator.units
        return self.rate.first

    @torch.no_grad()
    def estimate(self, closure: Closure) -> Tensor:
        """Runs the probes of this step, or of one more micro-batch of it.

        Of a plan that asks more than once, further rounds are run by `apply`, over all
        micro-batches: their closures are kept until then.

        Args:
            closure: Returns the loss of the batch as a 0-dim tensor; called once a probe,
                each time for the same batch. A `zopeft.BatchLoss` may be called once for all.

        Returns:
            0-dim fp32, the mean of loss_plus and loss_minus; one-sided, of all loss_plus.

        Raises:
            RunError: The loss has not been finite for `max_bad_steps` steps in a row; the
                weights are those of the last good step.
        """
        if self.auto:
            self.calibrate(closure)
        if self._pending is None:
            self.engine.adopt()
            self.engine.reads.begin()
            if runs_compiled(closure) and not self.engine.reads.compiled:
                self.engine.is_compiled()
            scales = self._scales()
            if self.steps == 0:
                start = scales, self.eps, self.seed, self.estimator.one_sided
                self.forward_passes += self.probing.look_for_noise(closure, *start)
            self._pending = self._begin(step_seed(self.seed, self.steps), scales)
        rounds = self._pending
        before = rounds.forward_passes
        losses = rounds.add(closure)
        self.forward_passes += rounds.forward_passes - before
        self._show_rate(rounds.losses(), rounds.centre(), rounds.step.eps)
        kept = [n for n, probe in enumerate(rounds.probes) if counts(probe)]
        return (losses[kept] if kept else losses[:1]).mean()

    def _begin(self, seed: int, scales: Tensor | None, record: StepRecord | None = None) -> Rounds:
        """Returns the rounds of the step that is due."""
        eps, looks = self.eps, record is None and self._looks()
        if record is not None:
            eps, aside = record.eps, (record.centre, record.mirror)
            looks = aside[self.estimator.one_sided] is not None
        step = Step(self, self.steps, seed, eps, scales, looks, record)
        return Rounds(step, self.plan(step), self._run)

    def _run(self, probes: Sequence[Probe], closure: Any) -> tuple[Tensor, int]:
        return run_looks(self.engine, self.probing, probes, closure)

    @torch.no_grad()
    def apply(self) -> None:
        """Writes the update of the pending estimate; without one, does nothing.

        Blocks that no forward pass of the step has read are left as they are.
        """
        rounds, self._pending = self._pending, None
        if rounds is None:
            return
        record = rounds.step.record
        if record is None:
            before = rounds.forward_passes
            writes = rounds.finish()
            self.forward_passes += rounds.forward_passes - before
            record = self._record(rounds, skipped=writes is None)
        else:
            writes = None if record.skipped else self._repeat(rounds, record)
        self._settle(record)
        if self.scheduled:
            self.shown.hide(self.param_groups)
        if writes is None:
            self._skip(record)
            return
        self._bad_in_a_row = 0
        lr = torch.tensor(record.lr, dtype=torch.float64).expand(len(self.blocks))
        decay = torch.tensor([g["weight_decay"] for g in self.param_groups], dtype=torch.float64)
        decays = 1.0 - lr * decay
        # The loss does not depend on what was not read, so this would be noise.
        decays[record.left_alone] = 1.0
        write_all(self.engine, self.kept, writes, record.seed, lr, decays, record.left_alone)
        self._close(record, rounds.step)

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

    def replay(self, record: StepRecord) -> None:
        """Repeats a recorded step without a forward pass."""
        self.recall(record)
        self.apply()
