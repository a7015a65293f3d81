"""Memory: what each way of training a model holds, from its configuration alone.

Counted, with P the model's weights, A the adapter's, b the bytes of a weight:

- weights: ``b P``; in 8 bit a byte a weight and 4 a row of every linear layer, in 4 bit
  half a byte and 4 a block of 64 weights; heads, embeddings and norms stay as they are.
- adapter: its parameters, in the dtype that PEFT gives them (fp32 over a 16-bit model).
- state: Adam's gradient and two moments, in the dtype of what is trained, ``3 b P`` or
  ``3 b A``. A zeroth-order method has what it declares (`zopeft.optim.state`), which is nothing
  for most; and an fp32 master of an adapter, ``4 A``, and none of full weights in 16 bit.
- scratch: what a zeroth-order step holds beside (`zopeft.jobs.probe_memory`); for 4-bit
  weights one linear layer in 16 bit.
- activations: the peak of a rehearsed step (see `Rehearsal`) of the whole batch with the loss
  over every token; of two batches where a zeroth-order step stacks its probes. zopeft's own
  tasks make logits for the answers alone and need less.

Adam's own temporary (one more copy of what is trained) is counted where it is larger than
the activations, which are gone by then. What the driver takes is `CONTEXT`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from zopeft.blocks import discover
from zopeft.engine.carrying import SMALL
from zopeft.errors import input_error
from zopeft.jobs.probe_memory import factor_bytes, noise_bytes, scratch_bytes
from zopeft.jobs.rehearsal import Rehearsal
from zopeft.methods import METHODS
from zopeft.models.adapters import attach
from zopeft.models.skeleton import load_config, outline
from zopeft.models.source import ModelSource, resolve
from zopeft.optim.zeroth_order import ZerothOrder
from zopeft.probing.stacked import StackedModules

CONTEXT = 600_000_000
"""Bytes that a GPU's driver and libraries take before the first tensor, about."""


@dataclass(frozen=True)
class Need:
    """The memory of one way to use a model, in bytes.

    Attributes:
        name: What is done.
        weights: The model.
        adapter: The adapter's parameters.
        state: Gradients, moments, masters.
        scratch: What is held for a moment while weights are perturbed or unpacked.
        activations: Peak of what the passes make.
    """

    name: str
    weights: int
    adapter: int = 0
    state: int = 0
    scratch: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        """All of it together."""
        return self.weights + self.adapter + self.state + self.scratch + self.activations


def estimate(
    source: ModelSource | str | None = None,
    adapter: str = "lora",
    options: Mapping[str, Any] | None = None,
    batch_size: int = 16,
    length: int = 256,
    dtype: torch.dtype | None = None,
    bits: int | None = None,
    rank: int = 0,
    stacked_tokens: int = 0,
    method: str | None = None,
    own: Mapping[str, Any] | None = None,
    twinned_tokens: int = 0,
) -> list[Need]:
    """Estimates what inference, zeroth-order and first-order training of a model need.

    No weights are read: the configuration says the shapes, and a step is rehearsed.

    Args:
        source: What `resolve` returns, or what it takes.
        adapter: A PEFT type.
        options: Its options.
        batch_size: Examples B of a step.
        length: Tokens T of an example.
        dtype: Torch dtype of the weights; None for the configuration's own.
        bits: 8 or 4 for a model that is quantised while loading; None for one that is not.
        rank: Rank of the zeroth-order methods' directions; 0 for those that have none.
        stacked_tokens: Tokens B T up to which both probes run in one forward, where they can.
        method: Name of the zeroth-order method; None for MeZO or the ZO fine-tuner.
        own: The method's own options.
        twinned_tokens: The same as `stacked_tokens` for full weights along isotropic noise.

    Returns:
        Inference, zeroth-order with an adapter and on full weights, adapter with Adam,
        the same with gradient checkpointing, full Adam; without those that cannot be: a
        quantised model has no full training, and a method may not serve all weights.

    Raises:
        InputError: There is no configuration, the adapter does not fit, a number is out
            of range, or the method is unknown or no zeroth-order one.
    """
    kind = None if method is None else METHODS[method]
    if kind is not None and kind.order:
        do = "leave it out: Adam is told in any case"
        raise input_error("--method", "takes a zeroth-order method", method, do)
    for name, count in (("--batch-size", batch_size), ("--length", length)):
        if count < 1:
            raise input_error(name, "must be 1 or more", count)
    if not isinstance(source, ModelSource):
        source = resolve(source)
    config = load_config(source)
    name = source.label
    bare = outline(config, name, dtype)
    plain = Plan(bare, batch_size, length, bits)
    # On the meta device a prefix cannot start from activations, and has the same shape.
    settings = {**dict(options or {}), **({"real": False} if adapter == "prefix" else {})}
    tuned = _tuned(outline(config, name, dtype), adapter, settings, (batch_size, length, bits))
    needs = [plain.inference()]
    for plan, space in ((tuned, adapter), (plain, "full")):
        serves = kind is None or ("full" if plan is plain else "adapter") in kind.spaces
        if serves and (bits is None or plan is tuned):
            tokens = (stacked_tokens, twinned_tokens)
            need = plan.zeroth_order(space, rank, tokens, kind, own or {})
            needs.append(need if method is None else replace(need, name=f"{method}, {space}"))
    needs += tuned.adam(adapter)
    if bits is None:
        needs += plain.adam()[:1]
    return needs


def _tuned(model: Any, adapter: str, settings: Mapping[str, Any], sizes: tuple[Any, ...]) -> Plan:
    """Returns the plan of a model's outline with the adapter on it.

    Raises:
        InputError: The adapter is made from the weights, which an outline does not have.
    """
    try:
        return Plan(attach(model, adapter, settings), *sizes)
    except RuntimeError as error:
        what = "is made from the weights, so its memory can't be told from the configuration"
        do = "measure a short run instead: every run reports its peak"
        raise input_error(f"peft {adapter}", what, do=do) from error


class Plan:
    """What one model, bare or with an adapter, takes in each use.

    Args:
        model: The model on the meta device.
        batch_size: Examples B of a step.
        length: Tokens T of an example.
        bits: 8 or 4 where the weights are to be quantised.
    """

    def __init__(self, model: Any, batch_size: int, length: int, bits: int | None) -> None:
        self.size = (batch_size, length)
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        trained = [p for p in model.parameters() if p.requires_grad]
        self.model, self.parameters = model, trained
        self.trained = sum(p.numel() for p in trained)
        self.trained_bytes = sum(p.nbytes for p in trained)
        self.in_adapter = base is not model
        self.blocks = discover(model)
        self.stackable = self.in_adapter and not StackedModules(self.blocks).reason
        self.tensors = len(trained)
        own = {id(p) for p in trained} if self.in_adapter else set()
        kept = [p for p in (*model.parameters(), *model.buffers()) if id(p) not in own]
        saved, unpacked = _quantised(base, own, bits)
        self.weights = sum(p.nbytes for p in kept) - saved
        self.unpacked = unpacked
        self.half = max((p.element_size() for p in kept), default=4)
        self.scratch = {low: scratch_bytes(model, low) for low in (False, True)}
        self.rehearsal = Rehearsal(model)

    def inference(self) -> Need:
        """A forward pass with its loss."""
        return Need(
            "inference",
            self.weights,
            scratch=self.unpacked,
            activations=self.rehearsal.forward(*self.size),
        )

    def zeroth_order(
        self,
        adapter: str,
        rank: int,
        tokens: tuple[int, int],
        kind: type[ZerothOrder] | None,
        own: Mapping[str, Any],
    ) -> Need:
        """A zeroth-order method; a fine-tuner's networks, where it has one, take 2 kB a tensor."""
        held_flat = self.in_adapter or (self.half == 4 and self.trained <= SMALL)
        state = 4 * self.trained if held_flat else 0
        if kind is None or kind.needs_finetuner:
            state += 4 * 449 * self.tensors
        if kind is not None:
            state += kind.state_on(self.blocks, own).bytes(kind.chosen_on(self.blocks, own))
        scratch = 0 if held_flat else self.scratch[rank > 0]
        scratch += noise_bytes(self.trained) + factor_bytes(self.parameters, rank)
        batch_size, length = self.size
        twinned = not held_flat and rank == 0
        stacks = self.stackable or not held_flat
        if stacks and batch_size * length <= tokens[twinned]:
            batch_size *= 2
            # What each probe has of its own: its adapter, or the twin of a layer.
            scratch += 2 * self.trained_bytes if held_flat else 0
            scratch += self.scratch[False] if twinned else 0
        return Need(
            f"zeroth-order, {adapter}",
            self.weights,
            self.trained_bytes if self.in_adapter else 0,
            state,
            scratch + self.unpacked,
            self.rehearsal.forward(batch_size, length),
        )

    def adam(self, adapter: str = "full") -> list[Need]:
        """Adam, and Adam with gradient checkpointing, which PEFT's prefixes do not work with."""
        found = []
        ways = (("Adam", False), ("Adam, checkpointing", True))
        for name, saving in ways[:1] if adapter == "prefix" else ways:
            peak = self.rehearsal.backward(*self.size, checkpointing=saving)
            # The peak has the gradients in it; the step's own temporary comes after.
            activations = max(peak - self.trained_bytes, self.trained_bytes)
            found.append(
                Need(
                    f"{name}, {adapter}",
                    self.weights,
                    self.trained_bytes if self.in_adapter else 0,
                    3 * self.trained_bytes,
                    self.unpacked,
                    activations,
                )
            )
        return found


def _quantised(base: nn.Module, own: set[int], bits: int | None) -> tuple[int, int]:
    """Returns the bytes that quantising the linear layers saves, and those of the widest one."""
    if bits is None:
        return 0, 0
    head = getattr(base, "get_output_embeddings", lambda: None)()
    saved = widest = 0
    for module in base.modules():
        weight = getattr(module, "weight", None)
        linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        if not linear or module is head or not isinstance(weight, nn.Parameter):
            continue
        if id(weight) in own or not weight.is_floating_point():
            continue
        count = weight.numel()
        packed = count + 4 * weight.shape[0] if bits == 8 else count // 2 + 4 * (-(-count // 64))
        saved += weight.nbytes - packed
        widest = max(widest, weight.nbytes)
    return saved, widest if bits == 4 else 0
