"""What a method says of itself: all of it has a default but the plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from zopeft.blocks import Blocks
from zopeft.engine import Shape
from zopeft.engine.direction import Direction
from zopeft.engine.vector import Vector
from zopeft.optim.declared import Options, take_options
from zopeft.optim.estimator import Estimator
from zopeft.optim.rate import SHARE
from zopeft.optim.record import StepRecord
from zopeft.optim.selection import Selection
from zopeft.optim.state import ANCHOR, Kept, Start, State
from zopeft.optim.step import Plan, Step


class Method(ABC):
    """What the driver, `zopeft.optim.zeroth_order.ZerothOrder`, asks of every method.

    A method is a plan and what it keeps; the rest is here for those that need more: scales of
    their own (`_scales`), what the journal must hold of them (`_memory`, `_finish`), and state
    that is not declared (`_own_state`).
    """

    order = 0
    needs_finetuner = False
    Options: type[Options] = Options
    """The dataclass of the options that a method has of its own."""
    required: tuple[str, ...] = ()
    """Names of its own options that must be given."""
    gradient_units = True
    """Whether a learning rate of MeZO is right here, too: what lr="auto" measures."""
    single = False
    """Whether a step's directions are its own choice, whatever the run asks for."""
    differentiates = False
    """Whether it asks for slopes of the loss itself, which a score does not have."""
    groups = False
    """Whether groups of a batch see weights of their own (`zopeft.probing.groups`)."""
    flat = False
    """Whether the loss is a score that is flat in places, as its closure says."""
    eps_open = False
    """Whether the finite-difference step is that of the checkpoint which is gone on from."""
    decays = True
    """Whether weight decay can go with it."""
    spaces: tuple[str, ...] = ("full", "adapter", "scales")
    """The spaces (`zopeft.blocks.Blocks.space`) that it can serve."""
    shards = True
    """Whether it can serve weights of which each process holds a part (`zopeft.blocks.shards`)."""

    blocks: Blocks
    """The blocks to train, [N]."""
    own: Any
    """Its options, of the kind `Options`."""
    estimator: Estimator
    """How a step's directions are probed."""
    agree: Callable[[Tensor], Tensor] | None = None
    """Makes scales that this process has found those of all; None where all find the same."""
    share_origin = ""
    """Where `_share` has its number from, in words that follow it."""

    @abstractmethod
    def plan(self, step: Step) -> Plan:
        """Yields the points that a step looks at, is sent their losses, returns its writes.

        Args:
            step: The step: what the plan may depend on, beside the losses.
        """

    def keeps(self) -> Mapping[str, Kept]:
        """Returns what the method keeps beside the weights, by name.

        It may ask for `own` and `blocks` alone: estimates of memory ask before there is a run.
        """
        return {}

    @classmethod
    def state_on(cls, blocks: Blocks, options: Mapping[str, Any]) -> State:
        """Returns the state that the method would keep beside some blocks; nothing is made.

        Args:
            blocks: The blocks, [N]; they need no values.
            options: The method's own options.

        Raises:
            InputError: An option is unknown or out of range.
        """
        bare = cls.__new__(cls)
        bare.own, bare.blocks = take_options(cls.__name__, cls.Options, dict(options)), blocks
        return State(blocks, bare.declared())

    @classmethod
    def chosen_on(cls, blocks: Blocks, options: Mapping[str, Any]) -> frozenset[int]:
        """Returns the indices of the blocks that the method would keep state of.

        Args:
            blocks: The blocks, [N]; they need no values.
            options: The method's own options.
        """
        own = take_options(cls.__name__, cls.Options, dict(options))
        return Selection(blocks, own, cls.__name__).most()

    def declared(self) -> dict[str, Kept]:
        """Returns all that is kept beside the weights: the method's own, and the options'."""
        return {**self.keeps(), **({} if self.own.decay_to == "zero" else {ANCHOR: Start()})}

    @property
    def forwards(self) -> int:
        """Forward passes of a usual step and micro-batch; now and then one takes more."""
        return self.estimator.forwards

    @classmethod
    def forwards_on(cls, estimator: Estimator, options: Mapping[str, Any]) -> int:
        """Returns the `forwards` that the method would have; nothing is made.

        Args:
            estimator: How a step's directions are probed.
            options: The method's own options.

        Raises:
            InputError: An option is unknown or out of range.
        """
        bare = cls.__new__(cls)
        bare.own = take_options(cls.__name__, cls.Options, dict(options))
        bare.estimator = estimator
        return bare.forwards

    def shapes(self, blocks: Blocks) -> Mapping[int, Shape]:
        """Returns the shapes that the method gives to blocks of its own accord, by index."""
        return {}

    def along(self, direction: Direction) -> Vector:
        """Returns what the method makes of a random direction, where lr="auto" looks first."""
        return direction

    def _scales(self) -> Tensor | None:
        """Returns the blocks' scales [N] of the step that begins; None for ones."""
        return None

    def _looks(self, due: bool) -> bool:
        """Returns whether the step that is due also takes the loss that tells the curvature.

        That is the loss at the weights themselves, or, where it is taken anyway, the one on
        the other side of the first direction.

        Args:
            due: Whether the running learning rate asks for it.
        """
        return due

    def _share(self, scales: Tensor | None) -> float:
        """Returns the signal share that a running learning rate begins with."""
        return SHARE

    def _memory(self) -> Tensor | None:
        """Returns what the journal must hold of the method's own state for this step."""
        return None

    def _finish(self, record: StepRecord) -> None:  # noqa: B027 - most have nothing to do
        """Takes note of a step that has been applied (or replayed)."""

    def _own_state(self) -> dict[str, Any]:
        """Returns what a checkpoint must hold of the method beside its declared state."""
        return {}

    def _load_own_state(self, state: dict[str, Any]) -> None:  # noqa: B027 - nor here
        """Takes what `_own_state` gave."""
