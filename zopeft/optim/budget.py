"""Budget: how the power of a step's direction is shared between sorts of blocks, as measured.

A direction has the power ``sum_i d_i scale_i^2``, the budget that scales share. Which sort of
blocks it serves best differs from task to task: tables of the vocabulary where a word is the
answer, matrices where the answer is text. First probes can tell. Along directions ``u_k`` of the
whole budget on sort k alone, ``E_k = E[projected_grad^2]`` is what a step sees and ``h_k = E[u_k'
H u_k]`` what it pays. With a share ``a_k`` for each sort, the same part of all of E signal, and lr
at its best, one step takes off ``sum a_k E_k / sum a_k h_k`` of the loss, times a constant
(`zopeft.meta.signal`). So the budget goes with E over h, tempered, since both are means over few
directions:

    ``a_k = given_k^(1 - TRUST) (E_k / h_k)^power / sum``

Sorts keep what they are inside: the ratio of their blocks' scales and their blocks' shapes.

The rule is in `zopeft.optim.sorts`. "turns" takes E and h from the run's first steps
(`zopeft.optim.turns`), "measured" from probes before the first one (`zopeft.optim.first_probes`),
which are many passes for few directions of one batch.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from zopeft.blocks import Blocks
from zopeft.optim.estimator import PAIR, Estimator
from zopeft.optim.first_probes import Look
from zopeft.optim.record import StepRecord
from zopeft.optim.sorts import POWER, POWER_OF_TURNS, Sort, shares, sort_of
from zopeft.optim.turns import Turns

if TYPE_CHECKING:
    from zopeft.optim.step import Step
    from zopeft.optim.zeroth_order import ZerothOrder
    from zopeft.probing.closure import Closure

logger = logging.getLogger(__name__)

GIVEN, MEASURED, TURNS = "given", "measured", "turns"
TAKING_TURNS = frozenset({"vocabulary", "rest"})
"""Sorts that take turns, where a step is about both and about nothing else."""
NOTE, AHEAD = "budget", "ahead"
"""Names of the notes in each step's record: what scales are multiplied by, fp32 [N]; and the
curvature and energy of the shared budget, over how many directions they are means, and the
forward passes that were measured with and that no look of the rate has been, fp32 [4]."""
MOST_SORTS = 6
"""Sorts that are told apart; smaller ones are taken together."""


class Budget:
    """The shares of a run: measured before its first step or by its first steps, then kept.

    Args:
        blocks: The blocks, [N].
        options: The method's options; those without ``budget`` have none measured.
        estimator: How a step's directions are probed.

    Attributes:
        factors: What the blocks' scales are multiplied by, before the budget is restored, fp32
            [N]; None as long as nothing was measured.
        ahead: Curvature and energy of directions that share the budget so, over how many
            directions they are means (0 where bends were lost), and the forward passes, fp32 [4].
        turns: The turns that the first steps take; None where none do.
    """

    def __init__(self, blocks: Blocks, options: Any, estimator: Estimator = PAIR) -> None:
        kind = getattr(options, "budget", GIVEN)
        self.measured = kind == MEASURED
        self.names = [sort_of(block) for block in blocks]
        self.turns: Turns | None = None
        if kind == TURNS and set(self.names) == TAKING_TURNS:
            self.turns = Turns(sorted(TAKING_TURNS), estimator)
        self.factors: np.ndarray | None = None
        self.ahead = np.zeros(4, dtype=np.float32)
        self._numels = torch.tensor(blocks.numels, dtype=torch.float64)
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def sorts(self, chosen: frozenset[int] | None) -> dict[str, frozenset[int]]:
        """Returns the sorts among some blocks, by name; one at most where nothing is shared.

        Args:
            chosen: The blocks' indices; None for all.
        """
        sizes: Counter[str] = Counter()
        own = range(len(self.names)) if chosen is None else sorted(chosen)
        for index in own:
            sizes[self.names[index]] += int(self._numels[index])
        # Of equal sizes, the first name.
        largest = sorted(sizes, key=lambda name: (-sizes[name], name))
        apart = largest if len(sizes) <= MOST_SORTS else largest[: MOST_SORTS - 1]
        found: dict[str, set[int]] = {}
        for index in own:
            name = self.names[index]
            found.setdefault(name if name in apart else "others", set()).add(index)
        return {name: frozenset(found[name]) for name in sorted(found)}

    def due(self, chosen: frozenset[int] | None) -> bool:
        """Whether it is still to be measured.

        Args:
            chosen: Indices of the blocks that the step is about; None for all.
        """
        return self.measured and self.factors is None and len(self.sorts(chosen)) > 1

    def of_step(
        self, method: ZerothOrder, closure: Closure, scales: Tensor | None
    ) -> Tensor | None:
        """Returns the scales of the step that is due, which may have to measure first.

        Args:
            method: The method.
            closure: Returns the loss of the step's batch.
            scales: fp32 [N], as the method has them; None for ones.
        """
        chosen = method.selection.at(method.steps)
        if self.due(chosen):
            method.forward_passes += self.measure(method, closure, scales, chosen)
            method.look_ahead()
        elif self.turns is not None and self.factors is None:
            own, sorts = self._own(scales), self.sorts(chosen)
            given = self._given(own, sorts)
            if set(sorts) != TAKING_TURNS:
                return scales
            if not all(given):
                # A sort whose scales are zero has no turn, so there are none to be told from it.
                self.turns = None
                return scales
            if not self.turns.over(method.probing.steps_planned):
                name = self.turns.next
                number = list(sorts).index(name)
                return self._whole(own, sorts[name], given[number]).to(method.engine.device)
            self._conclude(self.turns, sorts, given)
            method.look_ahead()
        return self.shared(scales)

    def _own(self, scales: Tensor | None) -> Tensor:
        return torch.ones(len(self.names)) if scales is None else scales.detach().cpu()

    def _given(self, own: Tensor, sorts: dict[str, frozenset[int]]) -> list[float]:
        """Returns the share of each sort as the scales have it, [K]."""
        powers = self._numels * own.double().square()
        parts = [float(powers[list(sort)].sum()) for sort in sorts.values()]
        return [part / sum(parts) for part in parts]

    def _whole(self, own: Tensor, sort: frozenset[int], given: float) -> Tensor:
        """Returns scales with the whole budget on one sort, fp32 [N].

        Scales of zero, and no block left out: what shows probes keeps whom they touch.
        """
        whole = torch.zeros(len(self.names))
        whole[list(sort)] = (own[list(sort)].double() / math.sqrt(given)).float()
        return whole

    def turning(self, step: Step) -> str:
        """Returns the sort that a step serves alone in its turn; "" for none."""
        if self.turns is None or self.factors is not None or step.scales is None:
            return ""
        served = {self.names[n] for n in torch.nonzero(step.scales).flatten().tolist()}
        return served.pop() if len(served) == 1 else ""

    def looking(self, step: Step, planned: int) -> bool:
        """Whether a step is a turn that is to look at the curvature."""
        return bool(self.turning(step)) and self.turns is not None and self.turns.looking(planned)

    def note(self, step: Step, record: StepRecord, asked: bool) -> None:
        """Takes note of a step that has been made, or left out for its loss.

        Args:
            step: The step.
            record: Its record.
            asked: Whether it would have looked at the curvature without a turn.
        """
        name = self.turning(step)
        if name and self.turns is not None:
            self.turns.note(name, record, asked)

    def _conclude(self, turns: Turns, sorts: dict[str, frozenset[int]], given: list[float]) -> None:
        """Settles the shares by what all turns have shown."""
        tallies = [turns.tallies[name] for name in sorts]
        found = [
            Sort(part, one.energy, one.curvature) for part, one in zip(given, tallies, strict=True)
        ]
        self._take(list(sorts.values()), found, turns.bends, turns.looks)

    def shared(self, scales: Tensor | None) -> Tensor | None:
        """Returns scales with the measured shares, of the same budget; None for ones.

        Args:
            scales: fp32 [N], as the method has them; None for ones.
        """
        if self.factors is None:
            return scales
        device = torch.device("cpu") if scales is None else scales.device
        if device not in self._on:
            factors = torch.tensor(self.factors, dtype=torch.float64, device=device)
            self._on[device] = factors, self._numels.to(device)
        factors, numels = self._on[device]
        own = torch.ones_like(factors) if scales is None else scales.double()
        found = own * factors
        restored = (numels * own.square()).sum() / (numels * found.square()).sum()
        return (found * restored.sqrt()).float()

    def measure(
        self,
        method: ZerothOrder,
        closure: Closure,
        scales: Tensor | None,
        chosen: frozenset[int] | None,
    ) -> int:
        """Measures the sorts along directions of their own.

        Where the loss is not finite nothing is settled, and the next step measures.

        Args:
            method: The method.
            closure: Returns the loss of one batch.
            scales: fp32 [N], as the method has them; None for ones.
            chosen: Indices of the blocks that the step is about; None for all.

        Returns:
            The number of forward passes.
        """
        own, sorts = self._own(scales), self.sorts(chosen)
        look, found = Look(method, closure, len(sorts)), []
        given = self._given(own, sorts)
        for number, (sort, part) in enumerate(zip(sorts.values(), given, strict=True)):
            whole = self._whole(own, sort, part).to(method.engine.device)
            found.append(look.along(number, whole, part))
            if not found[-1].energy > 0.0:
                # The others would tell nothing that is to be compared with this one.
                break
        if all(math.isfinite(one.energy) for one in found):
            self._take(list(sorts.values()), found, look.pairs * len(sorts), look.passes)
        return look.passes

    def _take(
        self, sorts: list[frozenset[int]], found: list[Sort], directions: int, passes: int
    ) -> None:
        self.factors = np.ones(len(self.names), dtype=np.float32)
        self.ahead = np.array([0.0, 0.0, 0.0, passes], dtype=np.float32)
        if len(found) < len(sorts):
            return
        new = shares(found, POWER if self.turns is None else POWER_OF_TURNS)
        for sort, one, share in zip(sorts, found, new, strict=True):
            # Of a step that is about some blocks alone, the others of their sorts learn from it.
            named = {self.names[index] for index in sort}
            alike = [index for index, name in enumerate(self.names) if name in named]
            self.factors[alike] = math.sqrt(share / one.given)
            told = self.names[min(sort)], 100.0 * share, 100.0 * one.given
            logger.info("budget: %s has %.0f %% of it, %.0f by the scales", *told)
        if all(one.curvature > 0.0 for one in found):
            pairs = list(zip(new, found, strict=True))
            # Directions of different sorts are independent: what they see adds up.
            self.ahead[0] = sum(share * one.curvature for share, one in pairs)
            self.ahead[1] = sum(share * one.energy for share, one in pairs)
            self.ahead[2] = directions

    def settle(self, step: Step) -> None:
        """Notes the shares in a step's record; one that is repeated tells them."""
        if not self.measured and self.turns is None:
            return
        notes = (step.record and step.record.notes) or {}
        if step.record is not None and NOTE not in notes:
            return
        found, ahead = self.factors, self.ahead
        if step.record is None and found is None:
            return
        self.factors = step.note(NOTE, lambda: np.asarray(found))
        self.ahead = step.note(AHEAD, lambda: ahead)
        if found is None:
            step.method.look_ahead()

    def state_dict(self) -> dict[str, Any] | None:
        """Returns what later steps depend on; None where there is nothing."""
        if self.factors is not None:
            return {"factors": torch.from_numpy(self.factors.copy())}
        return None if self.turns is None else {"turns": self.turns.state_dict()}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Takes what `state_dict` gave."""
        state = state or {}
        self.factors = state["factors"].numpy().copy() if "factors" in state else None
        if self.turns is not None and "turns" in state:
            self.turns.load_state_dict(state["turns"])
        elif self.factors is None:
            # The run began without turns, and goes on so.
            self.turns = None
        self._on.clear()
