"""How a trainer reads weights back: with their dtypes, scales by name, offloaded ones too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import nn

from zopeft.blocks import Blocks, discover
from zopeft.blocks.offloaded import Offload
from zopeft.training.offloaded import load_offloaded
from zopeft.training.scales import is_scales, load_scales

if TYPE_CHECKING:
    from transformers import Trainer as Beneath
else:
    Beneath = object


class Loading(Beneath):
    """The part of a trainer that loads checkpoints.

    Stands before `transformers.Trainer`, or a class made from it, among the bases.

    Attributes:
        model: The model.
        blocks: What is trained; None until it has been looked for.
    """

    model: Any
    blocks: Blocks | None = None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As the Trainer, but 16-bit adapters stay so: PEFT would load them as fp32.

        Scales are read by name, since a loaded 4-bit layer would pass over them.
        """
        if self.blocks is not None and is_scales(self.blocks):
            load_scales(self.blocks, resume_from_checkpoint)
            return
        with _dtypes_kept(self.model if model is None else model), self._shown():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_offloaded(self._find_blocks(), resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.blocks is not None and is_scales(self.blocks):
            load_scales(self.blocks, str(self.state.best_model_checkpoint))
            return
        with _dtypes_kept(self.model), self._shown():
            super()._load_best_model()
        load_offloaded(self._find_blocks(), str(self.state.best_model_checkpoint))

    def _shown(self) -> AbstractContextManager[None]:
        """Shows offloaded weights to PEFT, which looks at those beside an adapter."""
        adapter = self._find_blocks().space == "adapter"
        return Offload(self.model).shown() if adapter else nullcontext()

    def _find_blocks(self) -> Blocks:
        if self.blocks is None:
            self.blocks = discover(self.model)
        return self.blocks


@contextmanager
def _dtypes_kept(model: nn.Module) -> Iterator[None]:
    """Gives parameters back the dtypes that they had before."""
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    yield
    for name, parameter in model.named_parameters():
        if parameter.dtype != dtypes.get(name, parameter.dtype):
            parameter.data = parameter.data.to(dtypes[name])
