"""Maps: updates that are more than a sum of directions, written piece by piece in fp32.

``(w, s_1, ..., s_m) <- f(w, v_1, ..., v_k, s_1, ..., s_m)`` for the weights w of every block,
vectors v and state s. What is arithmetic of single elements is done by the kernels, all blocks in
one pass (`zopeft.engine.traced`); of the rest each piece is read, changed and stored while it is in
the cache. 16-bit weights are rounded stochastically, with bits addressed like the noise, so that
the same map gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from zopeft.blocks.shards import sums_over
from zopeft.engine.bundles import Group
from zopeft.engine.carrier import Carrier
from zopeft.engine.elements import Elements
from zopeft.engine.traced import Numbers, traced
from zopeft.engine.vector import Vector
from zopeft.kernels.formula import Target


def map_weights(
    carriers: Sequence[Carrier],
    elements: Elements,
    function: Callable[..., tuple[Tensor, ...]],
    vectors: Sequence[Vector],
    buffers: Sequence[Sequence[Tensor]],
    seed: int,
    decays: Tensor,
    alone: Collection[int] = (),
    together: bool = False,
) -> None:
    """Writes what a function makes of the weights and of state beside them.

    Args:
        carriers: What holds the weights.
        elements: What makes the numbers of vectors.
        function: From a block's index, its decayed weights, the vectors' numbers and the
            buffers' (fp32 [n, W] each, free to be changed) to new weights and new buffers.
        vectors: Vectors, [k]; a block that one of them does not touch is left as it is.
        buffers: State, [m], each one tensor a block in the block's shape, [N].
        seed: 64-bit key of the step: it addresses the rounding.
        decays: What the weights are multiplied by first, float64 [N].
        alone: Indices of blocks that are left as they are.
        together: Whether the function is the same for all blocks: small ones are then bundled.
    """
    with torch.no_grad():
        for carrier in carriers:
            done: set[int] = set(alone)
            if elements.kernels.formulas:
                given = (function, vectors, buffers, seed, decays)
                done |= _map_traced(carrier, elements, *given, done, together)
            for group in carrier.groups if together else ():
                if done.isdisjoint(group.indices) and group.takes(vectors):
                    _map_group(carrier, group, function, vectors, buffers, decays)
                    done.update(group.indices)
            for index in carrier.indices:
                if index in done or not all(vector.touches(index) for vector in vectors):
                    continue
                decay = float(decays[index])
                with carrier.edited(index, seed) as weight:
                    for part in elements.parts(index, weight):
                        own = [part.of(buffer[index]).float() for buffer in buffers]
                        # Vectors may be functions of the weights as they are.
                        values = [vector.values(part) for vector in vectors]
                        # Weights in fp32 are changed where they lie, as state is.
                        shown = part.stored.float()
                        if decay != 1.0:
                            shown.mul_(decay)
                        new, *kept = function(index, shown, *values, *own)
                        elements.store(seed, part, new)
                        for buffer, value in zip(buffers, kept, strict=True):
                            part.view(buffer[index]).copy_(value)
            carrier.finish()


def _map_traced(
    carrier: Carrier,
    elements: Elements,
    function: Callable[..., tuple[Tensor, ...]],
    vectors: Sequence[Vector],
    buffers: Sequence[Sequence[Tensor]],
    seed: int,
    decays: Tensor,
    done: Collection[int],
    together: bool,
) -> set[int]:
    """Does a map for the blocks that it has a formula for; returns their indices."""
    plain = [
        index
        for index in carrier.indices
        if index not in done
        and index not in elements.forms
        and elements.blocks[index].columns is None
        and all(vector.touches(index) for vector in vectors)
    ]
    alike = together and all(vector.spans(plain) for vector in vectors)
    found: set[int] = set()
    for group in [plain] if alike and plain else [[index] for index in plain]:
        own: Numbers = 1.0 if bool((decays[group] == 1.0).all()) else decays.tolist()
        made = traced(elements, group[0], function, vectors, buffers, own)
        if made is None:
            continue
        formula, trace = made
        for some in [group] if carrier.at_once else [[index] for index in group]:
            with ExitStack() as stack:
                targets, indices = [], []
                for index in some:
                    weight = stack.enter_context(carrier.edited(index, seed))
                    beside = tuple(each[index] for each in trace.buffers)
                    if weight.numel() and all(
                        tensor.is_contiguous() for tensor in (weight, *beside)
                    ):
                        block = elements.blocks[index]
                        table = None if block.shard is None else elements.table(index)
                        targets.append(Target(block.address, weight, beside, table))
                        indices.append(index)
                if targets:
                    constants = trace.numbers(indices)
                    elements.kernels.map(formula, targets, constants, trace.noises, seed)
                    found.update(indices)
    return found


def _map_group(
    carrier: Carrier,
    group: Group,
    function: Callable[..., tuple[Tensor, ...]],
    vectors: Sequence[Vector],
    buffers: Sequence[Sequence[Tensor]],
    decays: Tensor,
) -> None:
    """Does a map for the blocks of a group at once, whose weights are fp32."""
    bundle = group.bundle(carrier.stored)
    values = [vector.values(bundle) for vector in vectors]
    own = decays[list(group.indices)]
    even = bool((own == own[0]).all())
    weight = bundle.stored.mul_(float(own[0]) if even else bundle.each(decays.tolist()))
    kept_before = [bundle.held(buffer) for buffer in buffers]
    new, *kept = function(bundle.index, weight, *values, *kept_before)
    bundle.put(new, carrier.stored)
    for buffer, value in zip(buffers, kept, strict=True):
        bundle.put(value, buffer.__getitem__)


def inner_products(
    carriers: Sequence[Carrier], elements: Elements, first: Vector, second: Vector
) -> Tensor:
    """Returns ``<first, second>`` of each block, float64 [N] on the CPU."""
    found = torch.zeros(len(elements.blocks), dtype=torch.float64)
    with torch.no_grad():
        for carrier in carriers:
            done: set[int] = set()
            for group in carrier.groups:
                if group.takes((first, second)):
                    bundle = group.bundle(carrier.stored)
                    row = first.values(bundle).double().mul_(second.values(bundle))
                    found[list(group.indices)] = bundle.sums(row).cpu()
                    done.update(group.indices)
            for index in carrier.indices:
                if index in done or not (first.touches(index) and second.touches(index)):
                    continue
                for part in elements.parts(index, carrier.stored(index)):
                    product = first.values(part).double().mul_(second.values(part))
                    found[index] += product.sum().cpu()
    return sums_over(elements.blocks, found)
