"""The product of two thin matrices beside a layer's own weight: exact to one rounding."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from zopeft.engine import side_path
from zopeft.engine.side_path import add_product, sides_of

LINEAR = nn.Linear(40, 24, bias=False)
LAYERS = {"linear": LINEAR, "conv1d": Conv1D(24, 40)}
STEP = 0.03
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
    monkeypatch.setattr(side_path, "WIDENED", widened)
    layer, factors, inputs, output, wanted = given(kind, dtype)
    before = output.data_ptr()
    found = add_product(output, inputs, sides_of(layer, factors, dtype), STEP)
    check(found, wanted, dtype)
    assert found.data_ptr() == before


@pytest.mark.parametrize("dtype", HALF)
@torch.no_grad()
def test_an_output_that_is_a_view_with_gaps_is_left_alone(dtype):
    layer, factors, inputs, output, wanted = given("linear", dtype)
    apart = torch.stack([output, output], dim=-1)[..., 0]
    assert not apart.is_contiguous()
    found = add_product(apart, inputs, sides_of(layer, factors, dtype), STEP)
    check(found, wanted, dtype)
    assert torch.equal(apart, output) and found.data_ptr() != apart.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_autograd_looks_on_nothing_is_written_in_place(dtype):
    layer, factors, inputs, output, wanted = given("linear", dtype)
    kept = output.clone()
    inputs.requires_grad_(True)
    found = add_product(output, inputs, sides_of(layer, factors, dtype), STEP)
    check(found.detach(), wanted, dtype)
    assert torch.equal(output, kept)
    found.float().sum().backward()
    assert float(inputs.grad.float().norm()) > 0.0


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dtype", HALF)
def test_sides_are_in_fp32_and_no_copies_of_the_factors(kind, dtype):
    layer, (left, right), *_ = given(kind, dtype)
    into, out = sides_of(layer, (left, right), dtype)
    assert into.shape == (40, 4) and out.shape == (4, 24)
    assert into.dtype == out.dtype == torch.float32
    assert {into.data_ptr(), out.data_ptr()} == {left.data_ptr(), right.data_ptr()}
