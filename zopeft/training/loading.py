"""How a trainer reads weights back: with their dtypes, scales by name, offloaded ones too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerState

from zopeft.blocks import Blocks
from zopeft.blocks.offloaded import Offload
from zopeft.errors import InputError, ZopeftError, input_error
from zopeft.reading import checked, fits, read_object
from zopeft.training.offloaded import load_offloaded
from zopeft.training.scales import is_scales, load_scales

STATE = {
    "epoch": "number",
    "global_step": "count",
    "max_steps": "number",
    "logging_steps": "number",
    "eval_steps": "number",
    "save_steps": "number",
    "train_batch_size": "count",
    "num_train_epochs": "number",
    "num_input_tokens_seen": "count",
    "total_flos": "number",
    "log_history": "list",
    "best_metric": "real?",
    "best_global_step": "count?",
    "best_model_checkpoint": "text?",
    "is_hyper_param_search": "flag",
    "stateful_callbacks": "object",
}
"""What the Trainer reckons with of its state, and the kinds (`zopeft.reading.fits`)."""


def load_weights(model: Any, blocks: Blocks, folder: str | Path, load: Callable[[], None]) -> None:
    """Reads a checkpoint's weights as the Trainer does, and what it does not.

    16-bit adapters stay so: PEFT would load them as fp32. Scales are read by name, since a
    loaded 4-bit layer would pass over them. PEFT looks at the weights beside an adapter, which
    are shown to it where they are offloaded.

    Args:
        model: The model that is loaded.
        blocks: What is trained.
        folder: The checkpoint.
        load: The Trainer's own way to load it.
    """
    if is_scales(blocks):
        load_scales(blocks, folder)
        return
    shown = Offload(blocks.model).shown() if blocks.space == "adapter" else nullcontext()
    with _dtypes_kept(model), shown:
        load()
    load_offloaded(blocks, folder)


@contextmanager
def refused(checkpoint: str | Path | None) -> Iterator[None]:
    """Says in one line that a checkpoint's files cannot be read.

    Raises:
        InputError: In place of what the libraries that read them raise.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except InputError as error:
        if str(checkpoint) in str(error):
            raise
        raise InputError(f"{checkpoint}: {error}") from error
    except ZopeftError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        what = f"the checkpoint cannot be read ({type(error).__name__}: {lines[0]:.100})"
        do = "name an earlier one, or take this one away: the journal holds its steps"
        raise input_error(str(checkpoint), what, do=do) from error


def check_scheduler(scheduler: Any, groups: int) -> None:
    """Checks what a scheduler has been given back: what it computes rates from.

    Args:
        scheduler: The scheduler.
        groups: Of how many param groups it sets the rate.

    Raises:
        InputError: Its first rates are no numbers, or it does not know its step.
    """
    rates, step = getattr(scheduler, "base_lrs", None), getattr(scheduler, "last_epoch", None)
    numbers = isinstance(rates, list) and all(fits(float(one), "number") for one in rates)
    if rates is not None and not (numbers and len(rates) == groups):
        raise input_error("scheduler.pt", "its first rates are no numbers", f"{rates!r:.60}")
    if step is not None and not fits(step, "count"):
        raise input_error("scheduler.pt", "it does not know its step", f"{step!r:.60}")


def read_state(checkpoint: str | Path) -> TrainerState:
    """Returns the Trainer's own state in a checkpoint.

    Raises:
        InputError: It is damaged.
    """
    path = Path(checkpoint, "trainer_state.json")
    values = read_object(path, "name an earlier checkpoint")
    with refused(path):
        state = TrainerState(**values)
    # The Trainer divides by the batch size, and takes the others to be as in a new run.
    told = {name: values[name] for name in STATE if name in values}
    checked({"train_batch_size": None, **told}, STATE, str(path), "state")
    if "TrainerControl" not in values.get("stateful_callbacks", {}):
        raise input_error(str(path), "has no state of the Trainer's control")
    return state


@contextmanager
def _dtypes_kept(model: nn.Module) -> Iterator[None]:
    """Gives parameters back the dtypes that they had before."""
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    yield
    for name, parameter in model.named_parameters():
        if parameter.dtype != dtypes.get(name, parameter.dtype):
            parameter.data = parameter.data.to(dtypes[name])
