"""On a GPU: Triton gives the plain bits, steps are exact, and a step's memory is inference's.

Run with ``pytest -m gpu tests/test_gpu.py`` on a machine that has one.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

from kernel_pairs import DTYPES, SEED, same, weights
from transformers import LlamaConfig, LlamaForCausalLM

import zopeft
from zopeft.engine import Direction, Engine
from zopeft.kernels.plain_backend import PlainKernels
from zopeft.kernels.triton_backend import TritonKernels
from zopeft.noise import FAMILIES, Noise

pytestmark = pytest.mark.gpu

COUNTS = [1, 63, 1000, 2**20 + 1]


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", COUNTS)
def test_triton_has_the_bits_of_the_cpu(family, dtype, count):
    plain, fast = PlainKernels(Noise(family)), TritonKernels(Noise(family))
    for start, scale in ((0, None), (333, torch.tensor(0.7))):
        weight = weights(count, dtype)
        expected = torch.empty_like(weight)
        got = torch.empty_like(weight, device="cuda")
        plain.shift(SEED, 5, start, weight, 3e-3, scale, expected)
        fast.shift(SEED, 5, start, weight.cuda(), 3e-3, scale, got)
        assert same(got.cpu(), expected)
        changed = weight.cuda()
        plain.update(SEED, 5, weight, -2e-4, 0.99, scale)
        mean, variance = fast.update(SEED, 5, changed, -2e-4, 0.99, scale)
        assert same(changed.cpu(), weight)
        exact = plain.statistics(weight)
        for value, known in zip((mean, variance), exact, strict=True):
            torch.testing.assert_close(value.cpu(), known, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_rows_have_the_bits_of_the_cpu(family):
    plain, fast = PlainKernels(Noise(family)), TritonKernels(Noise(family))
    weight, rows = torch.randn(3000, 130), torch.randint(0, 3000, (1500,)).unique()
    expected = plain.shift_rows(SEED, 5, rows, weight, 1e-2, None)
    got = fast.shift_rows(SEED, 5, rows.cuda(), weight.cuda(), 1e-2, None)
    assert same(got.cpu(), expected)


def llama(dtype, hidden=256, layers=4, vocabulary=4096):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("carrier", ["modules", "flat"])
def test_an_update_on_the_gpu_is_that_of_the_cpu(dtype, carrier):
    models = [llama(dtype), llama(dtype).cuda()]
    for model in models:
        blocks = zopeft.discover(model)
        scales = torch.linspace(0.5, 2, len(blocks), device=model.device)
        Engine(blocks, "gaussian", carrier).update(Direction(7, scales), 1e-3, 0.999)
    here, there = (dict(model.named_parameters()) for model in models)
    for name, weight in here.items():
        assert same(there[name].detach().cpu().contiguous(), weight.detach().contiguous()), name


def test_a_step_needs_the_memory_of_inference():
    model = llama(torch.bfloat16, 1024, 8, 8192).cuda()
    ids = torch.randint(0, 8192, (4, 128), device="cuda")

    def closure():
        return model(input_ids=ids, labels=ids).loss

    def peak(call):
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    with torch.no_grad():
        inference = peak(closure)
    optimizer = zopeft.MeZO(zopeft.discover(model), lr=1e-6, eps=1e-3)
    largest = max(p.numel() * p.element_size() for p in model.parameters())
    assert peak(lambda: optimizer.step(closure)) <= inference + 2 * largest
