"""The product of two thin matrices beside a layer's own weight: exact to one rounding."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from zopeft.engine import side_path
from zopeft.engine.side_path import add_product, sides_of
from zopeft.kernels import BACKENDS, plain_backend
from zopeft.noise import Noise

LINEAR = nn.Linear(40, 24, bias=False)
LAYERS = {"linear": LINEAR, "conv1d": Conv1D(24, 40)}
STEP = 0.03
KERNELS = BACKENDS["plain"](Noise())
HALF = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Half a unit in the last place, relative; of fp32 what a sum of 40 numbers takes."""


def given(kind, dtype, shape=(3, 7)):
    """A layer's input and output, and the factors of its direction."""
    generator = torch.Generator().manual_seed(3)
    layer = LAYERS[kind]
    rows, columns = layer.weight.shape
    left = torch.randn(rows, 4, generator=generator)
    right = torch.randn(4, columns, generator=generator)
    inputs = torch.randn(*shape, 40, generator=generator).to(dtype)
    output = torch.randn(*shape, 24, generator=generator).to(dtype)
    weight = left.double() @ right.double()
    product = weight if kind == "conv1d" else weight.t()
    wanted = output.double() + STEP * inputs.double() @ product
    return layer, (left, right), inputs, output, wanted


def check(found, wanted, dtype):
    assert found.dtype == dtype and found.shape == wanted.shape
    # What fp32 loses in a sum may be a large part of what is left where terms cancel.
    error = (found.double() - wanted).abs()
    assert float((error / (wanted.abs() * HALF[dtype] + 1e-5)).max()) < 1.01


@pytest.mark.parametrize("widened", [1, 50, 1 << 18])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_the_sum_is_rounded_once(kind, dtype, widened, monkeypatch):
    monkeypatch.setattr(plain_backend, "WIDENED", widened)
    layer, factors, inputs, output, wanted = given(kind, dtype)
    before = output.data_ptr()
    found = add_product(KERNELS, output, inputs, sides_of(layer, factors, dtype), [STEP])
    check(found, wanted, dtype)
    assert found.data_ptr() == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_compiled_kernels_give_the_bits_of_the_plain_ones(kind, dtype):
    pytest.importorskip("numba")
    found = []
    for backend in ("plain", "numba"):
        # Beyond a tile, and beyond what one thread does alone.
        layer, factors, inputs, output, _ = given(kind, dtype, (3, 1001))
        sides = sides_of(layer, factors, dtype)
        before = output.clone()
        found.append(add_product(BACKENDS[backend](Noise()), output, inputs, sides, [STEP]))
        assert not torch.equal(before, found[-1])
    assert torch.equal(*found)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("dtype", HALF)
@torch.no_grad()
def test_each_part_of_the_rows_has_its_own_step(dtype, wide):
    """To its last bit also where both sides have 16 bits, as on a GPU."""
    layer, factors, inputs, output, _ = given("linear", dtype, (6, 7))
    sides, steps = sides_of(layer, factors, dtype), [3e-4, -3e-4, 0.5]
    if not wide:
        sides = tuple(side.to(dtype) for side in sides)
    parts = zip(output.clone().chunk(3), inputs.chunk(3), steps, strict=True)
    alone = [add_product(KERNELS, own, given, sides, [step]) for own, given, step in parts]
    found = add_product(KERNELS, output, inputs, sides, steps)
    assert not torch.equal(alone[0], alone[1])
    if dtype == torch.float32:
        torch.testing.assert_close(found, torch.cat(alone))
    else:
        assert torch.equal(found, torch.cat(alone))


@pytest.mark.parametrize("dtype", HALF)
@torch.no_grad()
def test_an_output_that_is_a_view_with_gaps_is_left_alone(dtype):
    layer, factors, inputs, output, wanted = given("linear", dtype)
    apart = torch.stack([output, output], dim=-1)[..., 0]
    assert not apart.is_contiguous()
    found = add_product(KERNELS, apart, inputs, sides_of(layer, factors, dtype), [STEP])
    check(found, wanted, dtype)
    assert torch.equal(apart, output) and found.data_ptr() != apart.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_autograd_looks_on_nothing_is_written_in_place(dtype):
    layer, factors, inputs, output, wanted = given("linear", dtype)
    kept = output.clone()
    inputs.requires_grad_(True)
    found = add_product(KERNELS, output, inputs, sides_of(layer, factors, dtype), [STEP])
    check(found.detach(), wanted, dtype)
    assert torch.equal(output, kept)
    found.float().sum().backward()
    assert float(inputs.grad.float().norm()) > 0.0


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dtype", HALF)
def test_sides_are_in_fp32_and_copies_where_rows_are_added_by_a_kernel(kind, dtype):
    layer, (left, right), *_ = given(kind, dtype)
    into, out = sides_of(layer, (left, right), dtype)
    assert into.shape == (40, 4) and out.shape == (4, 24)
    assert into.dtype == out.dtype == torch.float32
    assert into.data_ptr() in (left.data_ptr(), right.data_ptr())
    assert out.is_contiguous() or dtype == torch.float32
    assert out.data_ptr() in (left.data_ptr(), right.data_ptr()) or dtype != torch.float32


@torch.no_grad()
def test_a_step_is_not_rounded_to_the_dtype_of_the_sides():
    """In bf16 3e-4 is 0.2 % off, and so would every projected gradient be."""
    thin = torch.ones(4, 2, dtype=torch.bfloat16)
    for steps in ([3e-4], [3e-4, -3e-4]):
        found = KERNELS.stretched(1000 * thin, steps)
        exact = (1000.0 * torch.tensor(steps)).bfloat16()
        assert torch.equal(found[:: 4 // len(steps), 0], exact)
        out, right = torch.zeros(4, 3, dtype=torch.bfloat16), thin[:2, :1].expand(2, 3)
        KERNELS.add_rows(out, 500 * thin, right.contiguous(), steps)
        assert torch.equal(out[:: 4 // len(steps), 0], exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_inputs_are_widened_in_pieces(dtype, monkeypatch):
    layer, factors, inputs, output, wanted = given("linear", dtype)
    monkeypatch.setattr(side_path, "WIDENED", 85)
    sides = sides_of(layer, factors, dtype)
    check(add_product(KERNELS, output, inputs, sides, [STEP]), wanted, dtype)
