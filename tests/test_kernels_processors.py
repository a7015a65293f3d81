"""Kernels compiled for processors other than this one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

if importlib.util.find_spec("numba") is None:
    pytest.skip("numba is not installed", allow_module_level=True)

import numba

from zopeft.kernels import numba_kernels as compiled


@numba.njit
def _widened(halves, out):
    for i in range(halves.size):
        out[i] = compiled._from_half_by_bits(halves[i])


@numba.njit
def _narrowed(numbers, out):
    for i in range(numbers.size):
        out[i] = compiled._to_half_by_bits(numbers[i])


def test_every_half_is_read_as_torch_reads_it():
    halves = np.arange(2**16, dtype=np.uint16)
    found = np.empty(2**16, dtype=np.float32)
    _widened(halves, found)
    expected = torch.from_numpy(halves.view(np.float16)).float()
    finite = torch.isnan(expected).logical_not()
    assert int(finite.sum()) == 2**16 - 2 * 1023
    assert torch.equal(torch.from_numpy(found)[finite], expected[finite])
    assert bool(torch.from_numpy(found)[~finite].isnan().all())


def test_every_half_its_neighbours_and_the_ties_between_are_rounded_as_torch_rounds():
    halves = torch.arange(2**16).to(torch.int16).view(torch.float16)
    exact = halves[halves.isfinite()].float()
    bits = exact.view(torch.int32)
    # Halfway to the next half (which is nearer below 2**-14), and a hair to either side of it.
    steps = [0, 1, -1, 0x0FFF, 0x1000, 0x1001]
    numbers = [(bits + step).view(torch.float32) for step in steps]
    halfway = exact + 2.0**-25 * exact.sign()
    tiny = [halfway, (halfway.view(torch.int32) + 1).view(torch.float32)]
    large = torch.tensor([65519.0, 65520.0, 1e30, torch.inf, 1e-45, 2.0**-25, 2.0**-14])
    numbers = torch.cat([*numbers, *tiny, large, -large])
    numbers = numbers[numbers.isnan().logical_not()]
    assert len(numbers) > 500_000
    found = np.empty(len(numbers), dtype=np.uint16)
    _narrowed(numbers.numpy(), found)
    expected = numbers.to(torch.float16).view(torch.int16)
    assert torch.equal(torch.from_numpy(found.view(np.int16)), expected)
    not_numbers = np.array([np.nan, -np.nan], dtype=np.float32)
    _narrowed(not_numbers, found[:2])
    assert np.isnan(found[:2].view(np.float16)).all()


PROBE = """
import hashlib, torch
from zopeft.kernels import BACKENDS
from zopeft.kernels import numba_kernels
from zopeft.noise import FAMILIES, Noise
sums = hashlib.blake2b(digest_size=8)
for family in sorted(FAMILIES):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        kernels = BACKENDS[NAME](Noise(family))
        weight = (torch.arange(1000) * 37 % 101 - 50).float().mul(2.0**-7).to(dtype)
        out = torch.empty_like(weight)
        kernels.shift(2**63 + 5, 0xFFFFFFFE, 3, weight, 3e-3, torch.tensor(0.7), out)
        kernels.update(2**63 + 5, 77, weight, -2e-4, 0.99, None)
        for tensor in (out, weight):
            sums.update(tensor.view(torch.uint8).numpy().tobytes())
print(sums.hexdigest(), numba_kernels._converts_halves())
"""


def _probe(backend, folder, **processor):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder), **processor}
    command = [sys.executable, "-c", PROBE.replace("NAME", repr(backend))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_a_processor_without_halves_and_fused_products_gives_the_same_bits(tmp_path):
    processor = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    digest, halves = _probe("numba", tmp_path, **processor)
    assert halves == "False"
    assert digest == _probe("plain", tmp_path, **processor)[0]
