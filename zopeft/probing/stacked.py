"""Several probes in one forward: each part of the batch runs with weights of its own.

An adapter's layers are small beside the base weights, which a forward over a small batch
mostly waits for. So the batch is repeated P times, the base weights are read once, and
each trained layer of the adapter applies its P perturbed weights to its P parts of the
batch; prompts and prefixes are made P times. The weights themselves are not written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.blocks import Block, Blocks
from zopeft.blocks.bare import named_modules
from zopeft.engine.carrier import UnstackableError
from zopeft.engine.tied import turned
from zopeft.probing.copies import Copies

ENCODER = "prompt_encoder."
LORA_LAYERS = ("Linear", "Linear8bitLt", "Linear4bit")
"""PEFT's LoRA layers that are known to read A and B by their forward alone."""


PROMPTS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
"""PEFT's types whose prompts are made by linear layers and embeddings alone."""


class StackedModules:
    """The linear layers of a LoRA adapter, or a prompt's encoder, with P weights at once.

    Args:
        blocks: The blocks to train, [N].

    Attributes:
        reason: Why these blocks cannot be stacked; "" if they can.
    """

    def __init__(self, blocks: Blocks) -> None:
        self.model = blocks.model
        self.reason = _why_not(blocks)
        self._owners: dict[nn.Module, dict[str, int]] = {}
        self._prompts = blocks[0].owners[0].module_name.startswith(ENCODER)
        for block in blocks if not self.reason else ():
            for owner in block.owners:
                self._owners.setdefault(owner.module, {})[owner.leaf] = id(block.parameter)

    @contextmanager
    def shown(self, stacks: Mapping[int, Tensor], copies: Copies) -> Iterator[None]:
        """Runs each layer with stacked weights inside; afterwards all is as before.

        Args:
            stacks: The P weights [P, ...] of each parameter, by its ``id``; none for none.
            copies: Where the copies lie.
        """
        swapped: list[tuple[nn.Module, str, Any]] = []
        try:
            for module, slot, forward in self._replacements(stacks, copies) if stacks else ():
                swapped.append((module, slot, module.__dict__.get(slot)))
                setattr(module, slot, forward)
            yield
        finally:
            for module, slot, before in swapped:
                if before is None:
                    delattr(module, slot)
                else:
                    setattr(module, slot, before)

    def _replacements(
        self, stacks: Mapping[int, Tensor], copies: Copies
    ) -> Iterator[tuple[nn.Module, str, Callable[..., Any]]]:
        """Yields modules, names of their methods, and what stands in for these."""
        if self._prompts:
            yield self.model, "get_prompt", self._get_prompt(stacks, copies)
            return
        for module, leaves in self._owners.items():
            slot = "_old_forward" if "_old_forward" in module.__dict__ else "forward"
            weights = {leaf: stacks[found] for leaf, found in leaves.items()}
            yield module, slot, _forward(module, weights, copies)

    def _get_prompt(self, stacks: Mapping[int, Tensor], copies: Copies) -> Callable[..., Any]:
        own: Any = self.model.get_prompt
        count = len(next(iter(stacks.values())))

        def get_prompt(batch_size: int, *args: Any, **kwargs: Any) -> Any:
            if batch_size != copies.rows or batch_size % count:
                raise UnstackableError("a prompt is not made for the whole batch", True)
            prompts = []
            for copy in range(count):
                with self._held({key: stack[copy] for key, stack in stacks.items()}):
                    prompts.append(own(batch_size // count, *args, **kwargs))
            return _joined(prompts)

        return get_prompt

    @contextmanager
    def _held(self, weights: Mapping[int, Tensor]) -> Iterator[None]:
        """Has the modules hold other weights for a while."""
        kept: list[tuple[nn.Module, str, Any]] = []
        try:
            for module, leaves in self._owners.items():
                for leaf, key in leaves.items():
                    kept.append((module, leaf, module._parameters.get(leaf)))
                    module._parameters[leaf] = weights[key]  # type: ignore[assignment]
            yield
        finally:
            for module, leaf, own in kept:
                module._parameters[leaf] = own


def _forward(
    module: nn.Module, weights: Mapping[str, Tensor], copies: Copies
) -> Callable[..., Tensor]:
    weight, bias = weights.get("weight"), weights.get("bias")
    some = next(iter(weights.values()))
    count = some.shape[0]

    def forward(inputs: Tensor) -> Tensor:
        copies.check(inputs, count)
        for leaf in weights:
            # The layer's own weights are read in place of these: who watches is told.
            module._parameters[leaf]
        parts = inputs.reshape(count, -1, inputs.shape[-1])
        own, offset = module.weight if weight is None else weight, module.bias
        assert isinstance(own, Tensor) and isinstance(offset, Tensor | None)
        turned = own.transpose(-1, -2).expand(count, -1, -1)
        if bias is not None:
            outputs = torch.baddbmm(bias.unsqueeze(1), parts, turned)
        elif offset is not None:
            outputs = torch.baddbmm(offset, parts, turned)
        else:
            outputs = torch.bmm(parts, turned)
        return outputs.view(*inputs.shape[:-1], -1)

    return forward


def _joined(copies: list[Any]) -> Any:
    """Returns prompts, or caches of keys and values, one below the other."""
    whole = copies[0]
    if isinstance(whole, Tensor):
        return torch.cat(copies)
    for layer, *others in zip(*(copy.layers for copy in copies), strict=True):
        layer.keys = torch.cat([layer.keys, *(other.keys for other in others)])
        layer.values = torch.cat([layer.values, *(other.values for other in others)])
    return whole


def _why_not(blocks: Blocks) -> str:
    if blocks.space != "adapter":
        return "full weights that are held flat are written for each probe"
    prompted = {block.owners[0].module_name.startswith(ENCODER) for block in blocks}
    if prompted == {True}:
        return _why_not_prompt(blocks)
    modules = dict(named_modules(blocks.model))
    for block in blocks:
        reason = _why_not_lora(block, modules, blocks.adapter)
        if reason:
            return f"{block.name}: {reason}"
    return ""


def _why_not_prompt(blocks: Blocks) -> str:
    config: Any = getattr(blocks.model, "active_peft_config", None)
    kind = getattr(getattr(config, "peft_type", None), "name", "unknown type")
    owners = [owner.module for block in blocks for owner in block.owners]
    if kind not in PROMPTS or any(type(owner) not in (nn.Linear, nn.Embedding) for owner in owners):
        return f"its prompts, of {kind}, are made in another way"
    return ""


def _why_not_lora(block: Block, modules: Mapping[str, Any], adapter: str | None) -> str:
    for owner in block.owners:
        if turned(block, owner) is not None:
            return "it is tied to a layer that reads it in another layout"
        parts = owner.module_name.split(".")
        if len(parts) < 3 or parts[-2] not in ("lora_A", "lora_B") or parts[-1] != adapter:
            return "it is no LoRA matrix of a linear layer"
        layer = modules[".".join(parts[:-2])]
        known = type(layer).__name__ in LORA_LAYERS
        if not known or not type(layer).__module__.startswith("peft.tuners.lora."):
            return f"its layer is a {type(layer).__name__}"
        if type(owner.module) is not nn.Linear or getattr(layer, "lora_variant", None):
            return "its layer is a variant of LoRA"
        if sum(part.isdigit() for part in parts[:-2]) > 1:
            return "its layer is one of several experts"
        if block.layer is None:
            return "it is outside the layers"
    return ""
