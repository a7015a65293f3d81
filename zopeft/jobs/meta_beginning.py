"""What a meta-training says of itself before its first step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zopeft.jobs.beginning import model_lines
from zopeft.meta.forward_trainer import looks_of
from zopeft.meta.probe_statistics import groups_of_probes
from zopeft.meta.summing import bytes_sent
from zopeft.meta.train import MASK_BATCHES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zopeft.blocks import Blocks
    from zopeft.meta.settings import MetaSettings
    from zopeft.models import ModelSource
    from zopeft.recipe.schema import Recipe


def begin_lines(
    recipe: Recipe,
    blocks: Blocks,
    source: ModelSource,
    rows: Mapping[str, Sequence[Any]],
    settings: MetaSettings,
    ranks: int = 1,
) -> list[str]:
    """Returns the lines: model, what is trained, rows, what is learned, passes planned, ranks.

    Args:
        recipe: The run's settings.
        blocks: What scales are learned for.
        source: Where the model came from.
        rows: The training rows of each task.
        settings: The settings of the meta-training, with nothing left to decide.
        ranks: Processes that share it out.
    """
    counts = ", ".join(f"{len(found):,} of {name}" for name, found in rows.items())
    lines = [*model_lines(recipe, blocks, source), f"rows: {counts}"]
    lines += [_method(settings), _planned(settings, len(rows), blocks)]
    return lines if ranks == 1 else [*lines, _shared(blocks, settings, ranks)]


def _shared(blocks: Blocks, settings: MetaSettings, ranks: int) -> str:
    """Says what ranks share out, and what that costs."""
    sent = f"{bytes_sent(blocks, ranks) / 1e6:,.1f} MB"
    line = f"ranks: {ranks} share out the rows of a batch; a backward pass has each send {sent}"
    idle = ranks - settings.batch_size
    if idle < 1:
        return line
    return f"{line}; {idle} of them have no row of their own (--batch-size {ranks} gives each one)"


def _method(settings: MetaSettings) -> str:
    both = settings.capacity == "subspace"
    forward = settings.gradients == "forward"
    learned = f"scales and subspaces of rank {settings.directions}" if both else "scales"
    learned += " of the inputs" if both and forward else ""
    moving = ", which move with the run" if settings.policy == "state" else ""
    shared = f"one PertNN a {settings.sharing}"
    way = ", from forward passes alone" if forward else ""
    return f"learned: {learned}{moving}, by the objective {settings.objective}{way}, {shared}"


def _planned(settings: MetaSettings, tasks: int, blocks: Blocks) -> str:
    passes = passes_of(settings, tasks, blocks)
    stop = settings.stop and settings.policy == "constant" and settings.objective == "signal"
    words = [f"{settings.steps:,} meta-steps{' at most' if stop else ''}"]
    if settings.capacity == "subspace":
        alone = settings.gradients == "forward"
        first = looks_of(settings) if alone else settings.steps // 2
        words.append(f"the first {first:,} for the subspaces")
    if settings.mask:
        words.append("then the mask")
    forward, backward = passes["forward"], passes["backward"]
    return f"passes: about {forward:,} forward, {backward:,} backward planned: {', '.join(words)}"


def passes_of(settings: MetaSettings, tasks: int, blocks: Blocks) -> dict[str, int]:
    """Returns the forward and the backward passes of a meta-training.

    The signal objective makes one forward pass a meta-step, and another backward pass of labels
    drawn from the model every second one; subspaces look at each task once more. The paper's has
    two probes, the step that is judged, and the step of the run. Forward passes alone: one that
    looks at activations, or one at the weights and two for each group that is probed.

    Args:
        settings: The settings, with nothing left to decide.
        tasks: Number of tasks.
        blocks: What scales are learned for.
    """
    steps = settings.steps
    if settings.gradients == "forward":
        looks, groups = looks_of(settings), len(groups_of_probes(blocks))
        return {"forward": looks + (steps - looks) * (1 + 2 * groups), "backward": 0}
    mask = min(steps, MASK_BATCHES) if settings.mask else 0
    if settings.objective == "paper":
        return {"forward": 4 * steps + mask, "backward": 2 * steps + mask}
    first = steps // 2 if settings.capacity == "subspace" else 0
    looks = min(tasks, first)
    drawn = sum(step % 2 == 0 for step in range(first, steps))
    return {"forward": steps + looks + mask, "backward": steps + looks + drawn + mask}
