"""Fit: whether a model's code goes with a prompt, found by letting it read one token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zopeft.blocks.offloaded import device_of
from zopeft.errors import InputError, input_error

if TYPE_CHECKING:
    from peft import PeftModel


def unfit(name: str, model: Any, why: str, got: str | None = None) -> InputError:
    """Returns the error of a PEFT type `name` that does not go with `model`."""
    return input_error(
        f"peft {name}", f"does not fit {type(model).__name__}: {why}", got, "use --lora"
    )


def rehearse(tuned: PeftModel, name: str, changes: bool = True) -> None:
    """Lets the model read one token behind its new prompt.

    Args:
        tuned: The model with its prompt or prefix.
        name: The PEFT type, for messages.
        changes: Whether it gives other logits from the start.

    Raises:
        InputError: The model's code does not go with the prompt, or does not read it.
    """
    import torch

    device = device_of(tuned)
    if device.type == "meta":
        return
    base: Any = tuned.get_base_model()
    token = torch.zeros(1, 1, dtype=torch.long, device=device)
    training = tuned.training
    tuned.eval()
    try:
        with torch.no_grad():
            behind = tuned(input_ids=token).logits[:, -1]
            alone = base(input_ids=token).logits[:, -1]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # every model's code raises its own
        raise unfit(name, base, f"a forward pass fails ({first_line(error)})") from error
    finally:
        tuned.train(training)
    if changes and torch.equal(behind, alone):
        raise unfit(name, base, "its forward pass does not read it")


def first_line(error: Exception) -> str:
    """Returns the first line of an error, cut to what fits a message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:160].rstrip(".")
