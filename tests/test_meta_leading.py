"""Leading directions of gradients: the sketch against the sum itself."""

from __future__ import annotations

import pytest
import torch
from test_meta import batches, loss_of, tiny

import zopeft
from zopeft.meta.gradients import consumed
from zopeft.meta.leading import CHUNK, LeadingDirections, SideSketch, matrices
from zopeft.noise import Noise


class Matrix(torch.nn.Module):
    def __init__(self, rows, columns, dtype=torch.float32):
        super().__init__()
        self.lin = torch.nn.Linear(columns, rows, bias=False, dtype=dtype)


def gathered(module, gradients, rank, weights=None):
    blocks = zopeft.discover(module)
    found = LeadingDirections(blocks, matrices(blocks), rank, seed=3)
    for gradient, weight in zip(gradients, weights or [1.0] * len(gradients), strict=True):
        found.begin(weight)
        found.take(blocks[0].parameter, [0], gradient)
    return found


def overlap(found, exact):
    """Share of the exact directions that the found ones hold, 1 at most."""
    return float((exact.t() @ found).square().sum() / exact.shape[1])


def decaying(rows, columns, count, generator, power=2.0):
    """Gradients whose sum of products has a spectrum that falls like a power."""
    left = torch.linalg.qr(torch.randn(rows, rows, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(columns, columns, generator=generator))[0]
    kept = min(rows, columns)
    fall = torch.arange(1, kept + 1).float().pow(-power)
    return [
        left[:, :kept]
        @ (fall[:, None] * torch.randn(kept, kept, generator=generator) * fall)
        @ right[:, :kept].t()
        for _ in range(count)
    ]


@pytest.mark.parametrize(("rows", "columns"), [(70, 90), (300, 40), (9, 200), (5, 3)])
def test_the_sketchs_directions_are_those_of_the_exact_sums(rows, columns):
    generator = torch.Generator().manual_seed(rows)
    gradients = decaying(rows, columns, 12, generator)
    weights = [0.5 + 0.1 * i for i in range(12)]
    rank = 4
    left, right = gathered(Matrix(rows, columns), gradients, rank, weights).bases()[0]
    kept = min(rank, rows, columns)
    assert left.shape == (rows, kept) and right.shape == (columns, kept)
    for found, sums in (
        (left, sum(w * g @ g.t() for w, g in zip(weights, gradients, strict=True))),
        (right, sum(w * g.t() @ g for w, g in zip(weights, gradients, strict=True))),
    ):
        eye = torch.eye(kept, dtype=torch.float64)
        torch.testing.assert_close(found.t() @ found, eye, atol=1e-9, rtol=0)
        exact = torch.linalg.eigh(sums.double())[1].flip(1)[:, :kept]
        assert overlap(found, exact) > 0.999
        # In order: the first direction alone is the exact first one.
        assert overlap(found[:, :1], exact[:, :1]) > 0.999


def test_a_narrow_side_is_summed_exactly_and_a_wide_one_is_not():
    sketches = gathered(Matrix(300, 24), [torch.ones(300, 24)], rank=4).sketches[0]
    assert [s.width for s in sketches] == [24, 24]
    assert [s.exact for s in sketches] == [False, True]
    torch.testing.assert_close(sketches[1].total, torch.full((24, 24), 300.0))


def test_a_flat_spectrum_still_gives_orthonormal_directions():
    """White gradients have no leading directions; the factorisation must not fail on them."""
    generator = torch.Generator().manual_seed(0)
    white = [torch.randn(100, 120, generator=generator) for _ in range(3)]
    for found in gathered(Matrix(100, 120), white, rank=6).bases()[0]:
        eye = torch.eye(6, dtype=torch.float64)
        torch.testing.assert_close(found.t() @ found, eye, atol=1e-9, rtol=0)


def test_gradients_of_lower_rank_than_asked_for():
    """Two directions carry everything; the others are any that are orthonormal to them."""
    generator = torch.Generator().manual_seed(1)
    inside = torch.linalg.qr(torch.randn(150, 2, generator=generator))[0]
    gradients = [inside @ torch.randn(2, 80, generator=generator) for _ in range(9)]
    left, _ = gathered(Matrix(150, 80), gradients, rank=8).bases()[0]
    torch.testing.assert_close(
        left.t() @ left, torch.eye(8, dtype=torch.float64), atol=1e-9, rtol=0
    )
    assert overlap(left[:, :2], inside.double()) > 0.9999


def test_the_order_of_chunks_does_not_matter(monkeypatch):
    generator = torch.Generator().manual_seed(2)
    gradients = decaying(60, 50, 3, generator)
    whole = gathered(Matrix(60, 50), gradients, rank=3)
    monkeypatch.setattr("zopeft.meta.leading.CHUNK", 7 * 50)
    parts = gathered(Matrix(60, 50), gradients, rank=3)
    for a, b in zip(whole.sketches[0], parts.sketches[0], strict=True):
        torch.testing.assert_close(a.total, b.total, rtol=1e-5, atol=1e-6)
    assert CHUNK > 60 * 50


def test_sixteen_bit_gradients_and_gradients_of_zero():
    generator = torch.Generator().manual_seed(4)
    gradients = decaying(60, 50, 6, generator)
    exact = gathered(Matrix(60, 50), gradients, rank=2).bases()[0]
    rounded = gathered(Matrix(60, 50), [g.bfloat16() for g in gradients], rank=2).bases()[0]
    for a, b in zip(exact, rounded, strict=True):
        assert overlap(a, b) > 0.99
    assert gathered(Matrix(60, 50), [torch.zeros(60, 50)], rank=2).bases() == {}


def test_gathering_in_a_backward_pass_takes_matrices_and_the_whole_norm():
    model = tiny()
    blocks = zopeft.discover(model)
    chosen = matrices(blocks)
    assert len(chosen) == 15 and {blocks[i].kind for i in chosen} == {"linear", "embedding"}
    assert len(matrices(blocks, embeddings=False)) == 14
    found = LeadingDirections(blocks, chosen, rank=3, seed=0)
    _, batch = next(batches())
    found.begin(2.0)
    with consumed(blocks, found.take):
        loss_of(model, batch).backward()
    loss_of(model, batch).backward()
    norm = sum(float(p.grad.square().sum()) for p in blocks.parameters()) ** 0.5
    assert float(found.gradient_norm) == pytest.approx(norm, rel=1e-5)
    bases = found.bases()
    assert sorted(bases) == chosen
    for index in chosen:
        gradient = blocks[index].parameter.grad.double()
        u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
        left, right = bases[index]
        assert overlap(left, u[:, :3]) > 0.98
        assert overlap(right, vh[:3].t()) > 0.98


def test_the_test_matrix_depends_on_its_address_alone():
    a, b = (SideSketch(200, 3, 7, address, torch.device("cpu")) for address in (1, 2))
    assert a.test().shape == (200, a.width)
    torch.testing.assert_close(a.test().view(-1)[70:90], Noise().at_elements(7, 1, 70, 20))
    assert not torch.equal(a.test(), b.test())
