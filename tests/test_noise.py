"""The addressed noise: known answers, statistics, and independence of how it is read."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from zopeft.errors import InputError
from zopeft.noise import FAMILIES, Noise, rounding_words, step_seed
from zopeft.noise.philox import philox4x32

KNOWN_ANSWERS = [
    ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (
        (0xFFFFFFFF,) * 4,
        0xFFFFFFFFFFFFFFFF,
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0A4093822,
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(counter, key, words):
    got = philox4x32(tuple(torch.tensor([c]) for c in counter), key)
    assert " ".join(f"{int(w):08x}" for w in got) == words


def test_philox_agrees_with_numpy():
    # numpy's Philox is the 64-bit variant, so the check is a plain Python one.
    def reference(counter, key):
        c, k = list(counter), [key & 0xFFFFFFFF, key >> 32]
        for _ in range(10):
            p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            high0, high1, low = p0 >> 32, p1 >> 32, 0xFFFFFFFF
            c = [high1 ^ c[1] ^ k[0], p1 & low, high0 ^ c[3] ^ k[1], p0 & low]
            k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
        return c

    rng = np.random.default_rng(0)
    for _ in range(20):
        counter = [int(x) for x in rng.integers(0, 2**32, 4)]
        key = int(rng.integers(0, 2**63))
        got = philox4x32(tuple(torch.tensor([c]) for c in counter), key)
        assert [int(w) for w in got] == reference(counter, key)


def test_there_are_three_families():
    assert sorted(FAMILIES) == ["binomial", "gaussian", "rademacher"]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_mean_variance_and_independence(family):
    noise = Noise(family)
    count = 1 << 20
    z = noise.at_elements(step_seed(0, 0), 7, 0, count).double()
    others = [
        noise.at_elements(step_seed(0, 1), 7, 0, count).double(),
        noise.at_elements(step_seed(1, 0), 7, 0, count).double(),
        noise.at_elements(step_seed(0, 0), 8, 0, count).double(),
    ]
    five_sigma = 5 / count**0.5
    assert abs(z.mean()) < five_sigma
    assert abs(z.square().mean() - 1) < 2 * five_sigma
    for lag in (1, 2, 3, 4, 32, 128):
        assert abs((z[:-lag] * z[lag:]).mean()) < five_sigma
    for other in others:
        assert abs((z * other).mean()) < five_sigma


def test_kurtosis_of_each_family():
    def kurtosis(family):
        z = Noise(family).at_elements(3, 1, 0, 1 << 20).double()
        return float((z**4).mean())

    assert kurtosis("gaussian") == pytest.approx(3.0, abs=0.03)
    assert kurtosis("binomial") == pytest.approx(2.7, abs=0.03)
    assert kurtosis("rademacher") == 1.0


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("count", [1, 63, 1000, 2**20 + 1])
def test_pieces_are_the_whole(family, count):
    noise = Noise(family)
    whole = noise.at_elements(11, 5, 0, count)
    assert whole.shape == (count,) and whole.dtype == torch.float32
    cuts = sorted({0, min(1, count), min(5, count), count // 3, count // 2, count})
    pieces = [noise.at_elements(11, 5, a, b - a) for a, b in itertools.pairwise(cuts) if b > a]
    assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("width", [1, 7, 64, 128, 130])
def test_rows_are_rows_of_the_whole(family, width):
    noise = Noise(family)
    whole = noise.at_elements(2, 9, 0, 50 * width).view(50, width)
    rows = torch.tensor([0, 3, 49, 3, 17])
    assert torch.equal(noise.at_rows(2, 9, rows, width), whole[rows])


def test_threads_do_not_matter():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = Noise().at_elements(1, 1, 0, 100_003)
        torch.set_num_threads(2)
        assert torch.equal(Noise().at_elements(1, 1, 0, 100_003), one)
    finally:
        torch.set_num_threads(before)


def test_noise_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Noise().at_elements(0, 0, 0, 1000)
    assert torch.equal(torch.rand(3), expected)


def test_rounding_words_are_addressed_and_apart_from_the_noise():
    words = rounding_words(4, 2, 0, 1001)
    assert torch.equal(rounding_words(4, 2, 333, 77), words[333 : 333 + 77])
    assert words.min() >= 0 and words.max() < 2**32
    drawn = philox4x32((torch.arange(251), 2, 0, 0), 4)
    assert not torch.equal(torch.stack(drawn, -1).flatten()[:1001], words)


def test_step_seeds_differ_and_fit_64_bits():
    seeds = {step_seed(run, step) for run in range(30) for step in range(-3, 100)}
    assert len(seeds) == 30 * 103
    assert all(0 <= s < 2**64 for s in seeds)


def test_unknown_family_is_refused_with_a_hint():
    with pytest.raises(InputError, match="family, got 'gausian'; did you mean 'gaussian'"):
        Noise("gausian")


def test_gaussian_is_box_muller_with_polynomials_good_to_1e_6():
    generator = torch.Generator().manual_seed(0)
    words = [torch.randint(0, 2**32, (1 << 18,), generator=generator) for _ in range(4)]
    for place, extreme in enumerate((0, 2**32 - 1, 2**31, 2**31 - 1)):
        for word in words:
            word[place] = extreme
    z = FAMILIES["gaussian"].draw(tuple(words)).double().view(-1, 2, 2)
    uniform = torch.stack(words[0::2], -1).bitwise_right_shift(8).float().add(0.5).double() / 2**24
    angle = torch.stack(words[1::2], -1).to(torch.int32)
    turn = (angle >> 8).double() / 2**24 * torch.pi
    radius = (-2 * uniform.log()).sqrt()
    cosine = turn.cos() * (1 - 2 * (angle & 1).double())
    exact = torch.stack((radius * cosine, radius * turn.sin()), -1)
    assert (z - exact).abs().max() < 1e-6
    assert 5.88 < z.abs().max() < 5.89


def test_gaussian_quantiles_are_normal():
    z = Noise().at_elements(17, 3, 0, 1 << 20).double()
    for bound in (0.5, 1.0, 2.0, 3.0, 4.0):
        share = 1 - torch.erf(torch.tensor(bound / 2**0.5, dtype=torch.float64)).item()
        deviation = (share / (1 << 20)) ** 0.5
        for side in (z > bound, z < -bound):
            assert abs(side.double().mean().item() - share / 2) < 5 * deviation
