"""Rehearsals: a training step on tensors without memory, and how many bytes it would hold.

The model is built of fake tensors, which know their shape, dtype and device and have no
values. A step then runs through the model's own code within seconds, whatever the size,
while a mode under torch's dispatcher adds up the storages that are alive.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zopeft.errors import input_error
from zopeft.models.quiet import quiet


class Ledger(TorchDispatchMode):
    """Counts the bytes of the storages that operations make while it is on.

    Attributes:
        live: Bytes alive now.
        peak: The most that were alive at once.

    Args:
        model: Its parameters and buffers are not counted.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, int] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            self._known[tensor.untyped_storage()._cdata] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and notes what it returns."""
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return made

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place in self._known:
            return
        size = storage.nbytes()
        self._known[place] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, place)

    def _forget(self, place: int) -> None:
        self.live -= self._known.pop(place)


class Rehearsal:
    """A model of fake tensors.

    Args:
        model: The model on the meta device, bare or with an adapter; it moves into the
            rehearsal.
    """

    def __init__(self, model: Any) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self._inside():
            self.model = model.to_empty(device="cpu")
            self.model.tie_weights()

    @contextmanager
    def _inside(self) -> Iterator[None]:
        # What goes wrong is told once, by the error.
        torch_logger = logging.getLogger("torch._subclasses.fake_tensor")
        level = torch_logger.level
        torch_logger.setLevel(logging.CRITICAL)
        try:
            with quiet(), self._mode:
                yield
        finally:
            torch_logger.setLevel(level)

    def forward(self, batch_size: int, length: int) -> int:
        """Returns the peak of a forward pass with its loss and without gradients, in bytes.

        Args:
            batch_size: Examples B.
            length: Tokens T of each.

        Raises:
            InputError: The model's code cannot run on shapes alone.
        """
        self.model.eval()
        with self._inside(), torch.no_grad(), Ledger(self.model) as ledger:
            self._loss(batch_size, length)
        return ledger.peak

    def backward(self, batch_size: int, length: int, checkpointing: bool = False) -> int:
        """Returns the peak of a forward and a backward pass, gradients included, in bytes.

        Args:
            batch_size: Examples B.
            length: Tokens T of each.
            checkpointing: Keep only the layers' inputs, and compute the rest again.

        Raises:
            InputError: The model's code cannot run on shapes alone.
        """
        model = self.model.train()
        for module in model.modules():
            # LoHa and LoKr would draw whether a module takes part at all, which takes a value.
            module.training = not hasattr(module, "module_dropout")
        # With no values, there is no state of a generator to be kept.
        settings = {"use_reentrant": False, "preserve_rng_state": False}
        with self._inside(), torch.enable_grad():
            if checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
            with Ledger(model) as ledger:
                self._loss(batch_size, length).backward()
            if checkpointing:
                model.gradient_checkpointing_disable()
        for parameter in model.parameters():
            parameter.grad = None
        return ledger.peak

    def _loss(self, batch_size: int, length: int) -> Tensor:
        tokens = torch.zeros(batch_size, length, dtype=torch.long)
        try:
            loss: Tensor = self.model(input_ids=tokens, labels=tokens, use_cache=False).loss
        except RuntimeError as error:
            # Experts that tokens choose, kernels that have no shape-only twin.
            line = (str(error).strip().splitlines() or [""])[0]
            raise input_error(
                type(self.model).__name__,
                f"its step cannot be rehearsed on shapes alone ({type(error).__name__}: {line})",
                do="measure a short run instead: every run reports its peak",
            ) from None
        return loss
