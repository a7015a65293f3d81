"""Work that the probes of a step share: the layers below the first that is perturbed.

Both probes see the same hidden states there, so the first probe records what the last of
these layers gives, and the others skip the layers and are given the record. What is above
does the same arithmetic on the same numbers, so the losses are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.blocks import Block, Blocks
from zopeft.blocks.survey import Survey

ABOVE = ("final_norm", "head", "project_out")
"""Roles of tensors that are used after the last layer."""
COLLECTED = ("output_hidden_states", "output_attentions", "output_router_logits")
"""Wishes for outputs of all layers, which a skipped layer would not give."""
PLAIN = (bool, int, float, str, type(None), torch.dtype)


class SharedLayers:
    """The layers of a decoder that lie below the first trained one.

    A record is used only where the decoder is given equal inputs again (a closure may run
    the model several times), where the model is in eval mode, and where nobody looks into
    the skipped layers. Otherwise the layers run as ever.

    Args:
        decoder: The module that runs the layers.
        layers: All of its layers, in order.
        first: Index of the first layer that is perturbed; ``len(layers)`` if none is.

    Attributes:
        share: Part of the layers that lies below the first perturbed one, in (0, 1].
        compiled: Whether the decoder has been seen to be compiled. Then nothing is shared
            any more: each change of its layers would have it compiled anew.
    """

    def __init__(self, decoder: nn.Module, layers: nn.ModuleList, first: int) -> None:
        self.decoder = decoder
        self.layers = list(layers)[:first]
        self.share = first / len(layers)
        self.compiled = False
        self._inside = [module for layer in self.layers for module in layer.modules()]
        self._records: list[_Record] = []
        self._current: _Record | None = None
        self._reusing = False
        self._runs = 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Records the hidden states of the forwards inside, in place of earlier records."""
        self._records = []
        with self._watched(reusing=False):
            yield

    @contextmanager
    def reusing(self) -> Iterator[None]:
        """Spares the forwards inside the layers whose outcome has been recorded."""
        with self._watched(reusing=True):
            yield

    def forget(self) -> None:
        """Lets go of all records."""
        self._records = []

    @contextmanager
    def _watched(self, reusing: bool) -> Iterator[None]:
        self._reusing, self._runs, self._current = reusing, 0, None
        hooks = [
            self.decoder.register_forward_pre_hook(self._enter, with_kwargs=True),
            self.decoder.register_forward_hook(self._leave, always_call=True),
        ]
        swapped: list[tuple[nn.Module, Any]] = []
        try:
            for index, layer in enumerate(self.layers):
                swapped.append((layer, layer.__dict__.get("forward")))
                layer.forward = self._wrap(index, layer.forward)
            yield
        finally:
            for layer, before in swapped:
                if before is None:
                    del layer.forward
                else:
                    layer.forward = before
            for hook in hooks:
                hook.remove()
            self._current = None

    def _enter(self, decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            self.compiled = True
            return
        run, self._runs = self._runs, self._runs + 1
        if self._reusing:
            record = self._records[run] if run < len(self._records) else None
            whole = record is not None and record.holds(len(self.layers))
            fits = whole and record is not None and record.fits((args, kwargs))
            self._current = record if fits and not self._looked_into(kwargs) else None
        else:
            self._current = _Record()
            self._records.append(self._current)
            if not self._looked_into(kwargs):
                self._current.take((args, kwargs))

    def _leave(self, decoder: nn.Module, args: Any, output: Any) -> None:
        self._current = None

    def _looked_into(self, kwargs: dict[str, Any]) -> bool:
        """Whether what goes on in the skipped layers matters, or is random."""
        config = getattr(self.decoder, "config", None)
        wished = any(kwargs.get(name) or getattr(config, name, False) for name in COLLECTED)
        random = self.decoder.training or torch.is_grad_enabled()
        return (
            wished or random or any(m._forward_hooks or m._forward_pre_hooks for m in self._inside)
        )

    def _wrap(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def shared_forward(*args: Any, **kwargs: Any) -> Any:
            record = self._current
            if record is None:
                return forward(*args, **kwargs)
            if self._reusing:
                # Every layer of a list answers in one form, so this serves all of them.
                return record.output
            output = forward(*args, **kwargs)
            record.note(index, output)
            return output

        return shared_forward


class _Record:
    """What one run of the decoder was given, and what the last shared layer made of it."""

    def __init__(self) -> None:
        self.output: Any = None
        self._inputs: Any = None
        self._calls: list[int] = []
        self._versions: list[int] = []

    def take(self, inputs: Any) -> None:
        """Keeps a copy of the inputs, if they are of a kind that can be compared."""
        self._inputs = _copied(inputs) if _comparable(inputs) else None

    def note(self, index: int, output: Any) -> None:
        """Takes note of a layer's output; only the last one's is kept."""
        self._calls.append(index)
        self.output = output
        self._versions = [tensor._version for tensor in _tensors(output)]

    def holds(self, count: int) -> bool:
        """Whether all layers ran, once and in order, and nobody wrote the output since."""
        versions = [tensor._version for tensor in _tensors(self.output)]
        return self._calls == list(range(count)) and versions == self._versions

    def fits(self, inputs: Any) -> bool:
        """Whether the decoder is given the same inputs again."""
        return self._inputs is not None and _same(self._inputs, inputs)


def shared_layers(blocks: Blocks, touched: Collection[int] | None = None) -> SharedLayers | None:
    """Returns the layers below the first that is perturbed; None if there are none.

    None, too, where a block lies before the layers (an embedding, a prompt) or at an
    unknown place, and for models with more than one list of layers.

    Args:
        blocks: The blocks, [N].
        touched: Indices of those that are perturbed; None for all.
    """
    survey = Survey(blocks.model)
    layers = survey.layers
    config = getattr(survey.base, "config", None)
    if layers is None or getattr(config, "num_kv_shared_layers", None):
        return None
    first = len(layers)
    for block in blocks if touched is None else (blocks[index] for index in touched):
        place = _place(block, survey, len(layers))
        if place is None:
            return None
        first = min(first, place)
    decoder = next(m for m in blocks.model.modules() if any(c is layers for c in m.children()))
    return SharedLayers(decoder, layers, first) if first else None


def _place(block: Block, survey: Survey, count: int) -> int | None:
    """The first layer that a block is part of; `count` for one after all layers."""
    if any(isinstance(owner.module, nn.Embedding) for owner in block.owners):
        return None
    found = [survey.layer_of(f"{owner.module_name}.{owner.leaf}") for owner in block.owners]
    inside = [layer for layer in found if layer is not None]
    if len(inside) == len(found):
        return min(inside)
    above = block.base_role.removesuffix("_bias") in ABOVE
    return count if above and not inside else None


def _comparable(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_comparable(part) for part in value.values())
    if isinstance(value, tuple | list):
        return all(_comparable(part) for part in value)
    return isinstance(value, (Tensor, *PLAIN))


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [_copied(part) for part in value]
    return value.clone() if isinstance(value, Tensor) else value


def _same(kept: Any, value: Any) -> bool:
    if isinstance(kept, dict):
        named = isinstance(value, dict) and kept.keys() == value.keys()
        return named and all(_same(part, value[name]) for name, part in kept.items())
    if isinstance(kept, list):
        listed = isinstance(value, tuple | list) and len(kept) == len(value)
        return listed and all(_same(*pair) for pair in zip(kept, value, strict=True))
    if isinstance(kept, Tensor):
        alike = isinstance(value, Tensor) and (kept.dtype, kept.device) == (
            value.dtype,
            value.device,
        )
        return alike and torch.equal(kept, value)
    return type(kept) is type(value) and bool(kept == value)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, tuple | list):
        return [tensor for part in value for tensor in _tensors(part)]
    return [value] if isinstance(value, Tensor) else []
