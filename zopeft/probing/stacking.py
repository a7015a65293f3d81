"""Stacking: several probes in one forward over copies of a batch, whatever holds the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor

from zopeft.engine import Engine
from zopeft.engine.carrier import Carrier
from zopeft.engine.direction import Probe
from zopeft.probing.copies import Copies
from zopeft.probing.stacked import StackedModules


class Stacking:
    """Shows probe p to copy p of a batch: in LoRA, prompts, prefixes and full weights.

    Args:
        engine: The engine over the blocks to train.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._layers = StackedModules(engine.blocks)

    @property
    def unstackable(self) -> str:
        """Why `shown` cannot be used for these blocks; "" if it can."""
        return self._first_reason(lambda carrier: carrier.unstackable)

    @property
    def twinned(self) -> bool:
        """Whether layers have weights of their own for each probe, see `Carrier.twinned`."""
        return any(carrier.twinned for carrier in self.engine.carriers)

    @property
    def ungroupable(self) -> str:
        """Why `shown` cannot be used for `Flips` of one direction; "" if it can."""
        return self._first_reason(lambda carrier: carrier.ungroupable)

    def _first_reason(self, reason_of: Callable[[Carrier], str]) -> str:
        carriers = self.engine.carriers
        if len({carrier.by_layer for carrier in carriers}) > 1:
            return "the weights are not all held in one way"
        found = next(filter(None, map(reason_of, carriers)), "")
        return found or (self._layers.reason if carriers[0].by_layer else "")

    @contextmanager
    def shown(self, probes: Sequence[Probe]) -> Iterator[None]:
        """Shows ``theta + step * u`` of several probes at once to the forwards inside.

        The batch must be repeated once a probe along its rows: copy p sees probe p. Only for
        blocks for which `unstackable` is empty: LoRA, prompts and prefixes (`StackedModules`),
        and full weights (`ModuleWeights.stacked`). Probes that are
        patterns of one direction (`zopeft.engine.flips`) can where `ungroupable` is empty; then
        part p of a batch sees probe p.

        Args:
            probes: Directions and finite-difference steps with their signs, [P].

        Raises:
            UnstackableError: By a forward inside, if a trained layer does not see the batch so.
        """
        model = self.engine.blocks.model
        head = getattr(model, "get_output_embeddings", lambda: None)()
        copies, watching = Copies(model, head), self.engine.watching()
        with copies.watched(), ExitStack() as stack:
            weights: dict[int, Tensor] = {}
            for carrier in self.engine.carriers:
                weights.update(stack.enter_context(carrier.stacked(probes, copies)))
            stack.enter_context(self._layers.shown(weights, copies))
            with watching:
                yield
