"""Layers of other quantisation packages, their own where installed: scales, LoRA, refusal.

None of the packages is needed by zopeft. The layers are put in place of a model's by hand, so
that no loader stands between.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import zopeft
from zopeft.errors import InputError
from zopeft.models import attach

GROUP = 32
IDS = (torch.arange(2 * 9).view(2, 9) * 5 + 3) % 97
LINEARS = 2 * 7


def build():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.15,
    )
    return LlamaForCausalLM(config).eval()


def replace_linears(model, make):
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and name != "lm_head":
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, make(layer))


def rounded(layer):
    """Rounds a layer's weights to 4 bit; returns scales and zeros, [O, groups]."""
    grouped = layer.weight.data.view(layer.out_features, -1, GROUP)
    low = grouped.amin(-1)
    scales = ((grouped.amax(-1) - low) / 15).clamp(min=1e-5)
    zeros = (-low / scales).round()
    s, z = scales[..., None], zeros[..., None]
    codes = (grouped / s).round().add(z).clamp(0, 15)
    layer.weight.data = ((codes - z) * s).view_as(layer.weight)
    return scales, zeros


def torchao(model):
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(
        model, torchao.Int8WeightOnlyConfig(), filter_fn=lambda m, n: _inner(m) and n != "lm_head"
    )


def _inner(module):
    return isinstance(module, nn.Linear)


def hqq(model):
    quantize = pytest.importorskip("hqq.core.quantize")
    config = quantize.BaseQuantizeConfig(nbits=4, group_size=GROUP, axis=1)
    replace_linears(
        model,
        lambda layer: quantize.HQQLinear(
            layer, quant_config=config, compute_dtype=torch.float32, device="cpu"
        ),
    )


def awq(model):
    gemm = pytest.importorskip("awq.modules.linear.gemm")

    def make(layer):
        scales, zeros = rounded(layer)
        scales, zeros = scales.t().contiguous(), zeros.t().contiguous()
        return gemm.WQLinear_GEMM.from_linear(layer, 4, GROUP, False, scales, zeros)

    replace_linears(model, make)


def gptq(model):
    qlinear = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch")

    def make(layer):
        scales, zeros = rounded(layer)
        packed = qlinear.TorchLinear(
            bits=4,
            group_size=GROUP,
            sym=False,
            desc_act=False,
            in_features=layer.in_features,
            out_features=layer.out_features,
            bias=False,
            pack_dtype=torch.int32,
        )
        groups = torch.arange(layer.in_features, dtype=torch.int32) // GROUP
        packed.pack_original(layer, scales, zeros, groups)
        packed.post_init()
        return packed.eval()

    replace_linears(model, make)


KINDS = {"torchao": torchao, "hqq": hqq, "awq": awq, "gptq": gptq}


def loss_of(model):
    return model(input_ids=IDS, labels=IDS).loss


def tune(model, lr):
    blocks = zopeft.discover(model, "auto" if hasattr(model, "peft_config") else "scales")
    method = zopeft.MeZO(blocks, lr=lr, seed=2)
    with torch.no_grad():
        first = float(loss_of(model))
    for _ in range(12):
        method.step(lambda: loss_of(model))
    with torch.no_grad():
        return first, float(loss_of(model)), blocks


@pytest.mark.parametrize("kind", KINDS)
def test_scales_and_lora(kind):
    model = build()
    KINDS[kind](model)
    with pytest.raises(InputError, match="the weights are quantised"):
        zopeft.discover(model)
    first, last, blocks = tune(model, 3e-4)
    assert len(blocks) == LINEARS
    assert last < first
    before = [block.data.clone() for block in blocks]
    with torch.no_grad():
        clean = model(input_ids=IDS).logits
        with zopeft.engine.Engine(blocks).perturbed(zopeft.engine.Direction(7), 0.1):
            assert not torch.equal(model(input_ids=IDS).logits, clean)
        assert torch.equal(model(input_ids=IDS).logits, clean)
    assert all(torch.equal(block.data, old) for block, old in zip(blocks, before, strict=True))
    if kind != "awq":  # PEFT takes AWQ's layers from gptqmodel alone
        first, last, blocks = tune(attach(model, "lora"), 1e-3)
        assert last < first
        assert all("lora_" in block.name for block in blocks)
