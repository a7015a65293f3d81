"""Models that processes hold together, as a trainer takes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zopeft.blocks.peft import base_of
from zopeft.blocks.shards import how_sharded
from zopeft.errors import input_error


@contextmanager
def held_together(model: Any) -> Iterator[None]:
    """Has accelerate take the processes of a run as they are.

    It would arrange them for gradients by what transformers says of the model, and knows no such
    arrangement of CPUs. Who is given which rows is for `Grid` to say.

    Args:
        model: The model; None where there is none yet.
    """
    base: Any = None if model is None else base_of(model)
    size = None if base is None else base.__dict__.get("_tp_size")
    if base is None or size is None:
        yield
        return
    base._tp_size = None
    try:
        yield
    finally:
        base._tp_size = size


def refuse_held(model: Any, order: int, load_best: bool, resumed: Any) -> None:
    """Refuses what a run over a model that processes hold together cannot do.

    Args:
        model: The model.
        order: The method's, 0 or 1.
        load_best: Whether the best checkpoint is to be loaded at the end.
        resumed: The checkpoint that the run goes on from; None for its journal alone.

    Raises:
        InputError: It needs gradients, or checkpoints.
    """
    held = how_sharded(model)
    if not held:
        return
    if order:
        do = "choose a method without gradients, or load the model whole"
        raise input_error("method", "needs a model that each process holds whole", held, do)
    if load_best:
        do = "leave it out: the journal is what such a run keeps"
        raise input_error("load_best_model_at_end", "has no checkpoints to load from", held, do)
    if resumed is not None:
        do = "move the checkpoints away: the run is made again from its journal"
        raise input_error("resume", "cannot take a checkpoint", str(resumed), do)
