"""The base of all zeroth-order methods: a torch optimizer in two halves."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from zopeft.blocks import Blocks
from zopeft.engine import Shape
from zopeft.engine.unread import unread_line
from zopeft.noise import step_seed
from zopeft.optim.arguments import check_arguments, check_fit, group_of
from zopeft.optim.bad_steps import BadSteps
from zopeft.optim.budget import Budget
from zopeft.optim.checkpoint import check_groups, load_state, state_of
from zopeft.optim.clipping import RunningClip
from zopeft.optim.closing import closed
from zopeft.optim.declared import take_options
from zopeft.optim.defaults import FLAT_REACH, default_eps, default_reach, fallback_lr
from zopeft.optim.directions import directions_of, engine_of
from zopeft.optim.estimator import Estimator
from zopeft.optim.executor import Executor
from zopeft.optim.learning_rate import FirstLook, first_look
from zopeft.optim.looks import counts
from zopeft.optim.method import Method
from zopeft.optim.options import given_options
from zopeft.optim.pace import Pace
from zopeft.optim.rate import RunningRate
from zopeft.optim.recalled import recalled
from zopeft.optim.record import StepRecord
from zopeft.optim.rounds import Rounds, begun
from zopeft.optim.selection import Selection
from zopeft.optim.shown_rate import ShownRate
from zopeft.optim.signal import EXAMPLES
from zopeft.optim.state import State
from zopeft.optim.step import Step
from zopeft.optim.thrifty import ThriftyRate
from zopeft.optim.together import in_process
from zopeft.optim.writing import write_step
from zopeft.probing.batch_loss import runs_compiled
from zopeft.probing.closure import Closure
from zopeft.probing.probing import Probing

AUTO_CLIP = 2.0
"""Clipping that goes with lr="auto": the tails of the projected gradient are long."""

logger = logging.getLogger(__name__)


class ZerothOrder(Method, torch.optim.Optimizer):
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
        lr: Learning rate in the units of the weights, or "auto" for what the steps' own losses
            ask for, with one look more in twenty forward passes (`zopeft.optim.thrifty`).
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

    options: dict[str, Any]
    """What it was made with, by name."""

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
        self.blocks, self.selection = blocks, Selection(blocks, self.own, type(self).__name__)
        self.estimator = Estimator(directions, sides, normalise)
        self.budget = Budget(blocks, self.own, self.estimator)
        self.pace = Pace(lr, self.estimator)
        self.kept = State(blocks, self.declared(), lambda index: self.engine.weights(index))
        shapes = {**self.shapes(blocks), **(shapes or {})}
        self.drawn_from = directions_of(type(self).__name__, blocks, noise, rank, shapes)
        self.engine = engine_of(blocks, self.drawn_from, carrier, probes, self.groups)
        self.probing = Probing(self.engine, probes)
        self.executor: Executor = in_process(self.engine, self.probing)
        self.eps, self.seed, self.weight_decay = float(eps), int(seed), float(weight_decay)
        self.check(lr)
        self.clip, self.bad = RunningClip(float(clip)), BadSteps(int(max_bad_steps))
        self.steps = self.skipped = self.forward_passes = 0
        self.last_record: StepRecord | None = None
        self.unread = ""
        self._pending: Rounds | None = None
        first = 0.0 if self.auto else float(lr)
        groups = [group_of(block, first, self.weight_decay) for block in blocks]
        super().__init__(groups, {"lr": first, "weight_decay": 0.0, "name": ""})

    @property
    def auto(self) -> bool:
        """Whether the learning rate is still to be settled, by `settle` or `calibrate`."""
        return self.pace.auto

    @property
    def rate(self) -> RunningRate | ThriftyRate | None:
        """The running learning rate; None where one was given."""
        return self.pace.running

    @property
    def shown(self) -> ShownRate:
        """What makes the param groups tell the rate of the step."""
        return self.pace.shown

    @property
    def lr_reason(self) -> str:
        """Where the learning rate comes from, in words."""
        return self.pace.reason

    def check(self, lr: float | str) -> None:
        """Checks that a run's settings mean something for the method.

        Args:
            lr: The learning rate as given.

        Raises:
            InputError: ``lr="auto"`` has no rule for its units, it chooses its directions itself,
                or it cannot serve these weights.
        """
        check_fit(self, lr)

    @torch.no_grad()
    def calibrate(self, closure: Closure) -> float:
        """Looks ahead along random directions, to tell the learning rate before the first step.

        No run needs it: without, ``lr="auto"`` takes what it needs from the steps themselves
        (`zopeft.optim.thrifty`). It takes at most 11 forward passes, which the steps' own looks
        save again. Does nothing where the learning rate is settled.

        Args:
            closure: Returns the loss of one batch as a 0-dim tensor.

        Returns:
            The learning rate that the run begins with.

        Raises:
            InputError: There is a schedule already, which knows of no learning rate.
            RunError: The loss of the unperturbed model is not finite.
        """
        settled = self.pace.settled(self.param_groups)
        if settled is not None:
            return settled
        self.engine.adopt()
        self.flat = bool(getattr(closure, "flat", False))
        scales = self._scales()
        self._select(closure)
        first = self.selection.at(self.steps)
        given = (closure, scales, self.eps, self.seed, first, self.along)
        look = first_look(self.engine, *given)
        self.forward_passes += look.forward_passes
        return self._begin(scales, look)

    @torch.no_grad()
    def settle(self, closure: Closure) -> float:
        """Settles where lr="auto" begins, and with it what schedules multiply.

        It takes no forward pass, but for a method whose plan does not look at the weights when
        it is asked to: that one calibrates.

        Args:
            closure: Returns the loss of one batch as a 0-dim tensor.

        Raises:
            InputError: There is a schedule already, which knows of no learning rate.
        """
        settled = self.pace.settled(self.param_groups)
        if settled is not None:
            return settled
        self.engine.adopt()
        self.flat = bool(getattr(closure, "flat", False))
        scales = self._scales()
        self._select(closure)
        step = Step(self, self.steps, self.due_seed, self.eps, scales, True)
        self.selection.settle(step)
        return self._begin(scales) if begun(step).looks else self.calibrate(closure)

    def _begin(self, scales: Tensor | None, look: FirstLook | None = None) -> float:
        share, planned = (self._share(scales), self.share_origin), self.probing.steps_planned
        reach, fallback = self.eps * default_reach(self.blocks), fallback_lr(self.blocks)
        if self.flat:
            reach *= min(1.0, FLAT_REACH * math.sqrt(self.estimator.directions))
        taming = self.clip.taming and self.clip.factor > 0.0
        examples = getattr(self.own, "share", None) == EXAMPLES
        known = (reach, share, fallback, self.eps, planned, look, taming, examples)
        return self.pace.start(self.param_groups, *known)

    def begin_rate(self, start: dict[str, float] | None, lr: float) -> None:
        """Takes up the learning rate of a run that began elsewhere.

        Args:
            start: What ``rate.start`` was there; None where the rate was not a running one.
            lr: The learning rate that the run began with.
        """
        self.pace.take(self.param_groups, start, lr)

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
            self.settle(closure)
        if self._pending is None:
            self.engine.adopt()
            self.engine.reads.begin()
            if runs_compiled(closure) and not self.engine.reads.compiled:
                self.engine.is_compiled()
            scales = self._scales()
            if scales is not None and self.agree is not None:
                scales = self.agree(scales)
            self._select(closure)
            scales = self.budget.of_step(self, closure, scales)
            if self.steps == 0:
                start = scales, self.eps, self.seed, self.estimator.one_sided
                self.forward_passes += self.probing.look_for_noise(closure, *start)
            looks = self._looks(self.rate is not None and self.rate.due())
            step = Step(self, self.steps, self.due_seed, self.eps, scales, looks)
            step.looks = looks or self.budget.looking(step, self.probing.steps_planned)
            self.selection.settle(step)
            self.budget.settle(step)
            self._pending = begun(step)
        rounds = self._pending
        before = rounds.forward_passes
        losses = rounds.add(closure)
        self.bad.hear(getattr(closure, "problem", ""))
        self.forward_passes += rounds.forward_passes - before
        self.pace.show(self.param_groups, rounds.seen())
        kept = [n for n, probe in enumerate(rounds.probes) if counts(probe)]
        return (losses[kept] if kept else losses[:1]).mean()

    def _select(self, closure: Closure) -> None:
        """Looks for what the steps are about, where a batch has to tell."""
        if self.selection.looks:
            self.selection.find(closure, self.engine.reads.agree)
            self.forward_passes += 1
            logger.info("the dominant layer is layer %d", self.selection.found)

    def look_ahead(self) -> None:
        """Has a running rate take in what the budget was measured by, once."""
        if isinstance(self.rate, ThriftyRate):
            self.rate.take(*self.budget.ahead.tolist())

    @property
    def due_seed(self) -> int:
        """64-bit key of the step that is due."""
        return step_seed(self.seed, self.steps)

    @torch.no_grad()
    def apply(self) -> None:
        """Writes the update of the pending estimate; without one, does nothing.

        Blocks that no forward pass of the step has read are left as they are.
        """
        rounds, self._pending = self._pending, None
        if rounds is None:
            return
        before = rounds.forward_passes
        record, writes = closed(rounds)
        self.forward_passes += rounds.forward_passes - before
        self._settle(record)
        if self.pace.scheduled(self.param_groups):
            self.shown.hide(self.param_groups)
        if writes is not None:
            decay = [group["weight_decay"] for group in self.param_groups]
            by_sign = self.own.decay_to == "start_sign"
            write_step(self.engine, self.kept, writes, record, decay, rounds.step.chosen, by_sign)
        self._close(record, rounds.step, writes is None)

    def leave(self) -> None:
        """Forgets a pending estimate: the step is due as before."""
        self._pending = None

    def _settle(self, record: StepRecord) -> None:
        """Takes note, in the first step, of the blocks that it has not read."""
        reads = self.engine.reads
        if reads.watched is not None or record.unread is None:
            return
        reads.settle(record.left_alone)
        if record.left_alone:
            self.unread = unread_line(self.blocks, record.left_alone)
            logger.warning("%s", self.unread)

    def _close(self, record: StepRecord, step: Step, skipped: bool) -> None:
        """Closes a step that has been applied, or left out for its loss.

        Raises:
            RunError: It is one bad step too many in a row.
        """
        self.last_record = record
        self.steps += 1
        self.skipped += skipped
        self.bad.note(not skipped)
        for gradient in () if skipped else step.taken.raw:
            self.clip.note(gradient)
        asked = self._looks(self.rate is not None and self.rate.due())
        if self.rate is not None:
            self.rate.note(record)
        if self.budget.turning(step):
            self.budget.note(step, record, asked)
            if isinstance(self.rate, ThriftyRate):
                self.rate.turn()
        if skipped:
            self.bad.check(record.losses[0])
        else:
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
        """Takes a recorded step in place of an estimate; ``apply`` then repeats it bit for bit.

        Args:
            record: The record of the step that is due.

        Returns:
            0-dim fp32, the mean of the recorded losses.

        Raises:
            InputError: The record is of another step, or of a run with another seed or
                number of directions.
        """
        step = recalled(self, record)
        self.engine.adopt()
        self._pending = begun(step)
        if self.auto:
            self.begin_rate(None, record.lr[0])
        self.pace.show(self.param_groups, record)
        return torch.tensor(record.loss, dtype=torch.float32)

    def replay(self, record: StepRecord) -> None:
        """Repeats a recorded step without a forward pass."""
        self.recall(record)
        self.apply()

    def state_dict(self) -> dict[str, Any]:
        """Returns step counters and the method's own state; never noise."""
        with self.pace.saved(self.param_groups) as pace:
            return {**super().state_dict(), "zopeft": state_of(self) | pace}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what `state_dict` gave; weights must have been loaded already."""
        state = dict(state_dict)
        own = state.pop("zopeft")
        super().load_state_dict(state)
        check_groups(self.param_groups)
        self.pace.load(self.param_groups, own)
        load_state(self, own)
