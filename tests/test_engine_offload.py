"""Models whose weights accelerate keeps on the CPU or on disk train as those in memory do."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model, load_checkpoint_and_dispatch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig
from transformers import LlamaForCausalLM as Llama

import zopeft
from zopeft.blocks.offloaded import Offload, device_of
from zopeft.engine import Direction, Engine
from zopeft.errors import InputError

LLAMA = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
HALF = {
    "tied": {"model.embed_tokens": "cpu", "lm_head": "cpu", "model.layers.0": "cpu"},
    "untied": {"model.embed_tokens": "cpu", "lm_head": "disk", "model.layers.0": "cpu"},
    "gpt2": {"transformer.wte": "disk", "lm_head": "disk", "transformer.h.0": "cpu"},
}
REST = {
    "tied": ["model.layers.1", "model.norm", "model.rotary_emb"],
    "untied": ["model.layers.1", "model.norm", "model.rotary_emb"],
    "gpt2": ["transformer.wpe", "transformer.h.1", "transformer.ln_f"],
}
KINDS = sorted(HALF)
DTYPES = [torch.float32, torch.bfloat16]


def made(kind, dtype=torch.float32):
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64)
        model = GPT2LMHeadModel(config)
    else:
        model = Llama(LlamaConfig(**LLAMA, tie_word_embeddings=kind == "tied"))
    for parameter in model.parameters():
        # Buffers stay as they are, which is what from_pretrained does.
        parameter.data = parameter.data.to(dtype)
    return model.eval()


def half_on_disk(kind, prefix=""):
    return {
        prefix + name: device
        for name, device in {**HALF[kind], **dict.fromkeys(REST[kind], "disk")}.items()
    }


def from_pretrained(kind, dtype, folder, device_map=None):
    made(kind, dtype).save_pretrained(folder / "base")
    return AutoModelForCausalLM.from_pretrained(
        folder / "base",
        dtype=dtype,
        device_map=device_map or half_on_disk(kind),
        offload_folder=folder / "off",
    ).eval()


def all_on_disk(kind, dtype, folder):
    return from_pretrained(kind, dtype, folder, {"": "disk"})


def dispatched(kind, dtype, folder):
    model = made(kind, dtype)
    return dispatch_model(model, half_on_disk(kind), offload_dir=folder / "off")


def checkpoint_dispatched(kind, dtype, folder):
    made(kind, dtype).save_pretrained(folder / "base")
    model, places = made(kind, dtype), half_on_disk(kind)
    if kind == "gpt2":
        # accelerate can't run it with tied weights on disk: the checkpoint names but one.
        places |= {"transformer.wte": "cpu", "lm_head": "cpu"}
    return load_checkpoint_and_dispatch(
        model, folder / "base", places, offload_folder=folder / "off"
    )


def on_cpu(kind, dtype, folder):
    return cpu_offload(made(kind, dtype), torch.device("cpu"))


def on_disk(kind, dtype, folder):
    return disk_offload(made(kind, dtype), folder / "off", torch.device("cpu"))


WAYS = {
    way.__name__: way
    for way in (from_pretrained, all_on_disk, dispatched, checkpoint_dispatched, on_cpu, on_disk)
}


def ids():
    return torch.arange(2 * 9).view(2, 9) * 5 % 97


def loss_of(model):
    return model(input_ids=ids(), labels=ids()).loss


def values(model):
    """Every parameter's values by name, tied ones under all names."""
    offload = Offload(model)
    found = {}
    for block in zopeft.discover(model):
        for owner in block.owners:
            found[f"{owner.module_name}.{owner.leaf}"] = offload.value(block).clone()
    return found


def files(folder):
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def steps(model, count=3, method=zopeft.MeZO, **options):
    blocks = zopeft.discover(model)
    optimizer = method(blocks, lr=1e-2, eps=1e-2, noise="binomial", **options)
    losses = [float(optimizer.step(lambda: loss_of(model))) for _ in range(count)]
    return losses, optimizer


def same(a, b):
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype
        and torch.equal(a[n].contiguous().view(torch.uint8), b[n].contiguous().view(torch.uint8))
        for n in a
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", sorted(WAYS))
def test_full_weights_train_to_the_same_bits(way, kind, dtype, tmp_path):
    here = made(kind, dtype)
    expected, _ = steps(here)
    model = WAYS[way](kind, dtype, tmp_path)
    assert any(p.is_meta for p in model.parameters())
    start, kept = values(model), files(tmp_path)
    losses, optimizer = steps(model)
    assert losses == expected
    assert same(values(model), values(here))
    assert not same(values(model), start)
    assert float(loss_of(model)) == float(loss_of(here))
    # Neither the checkpoint nor what accelerate keeps on disk has been written.
    assert files(tmp_path) == kept
    assert len(optimizer.blocks) == len(zopeft.discover(model)) == len(zopeft.discover(here))


def test_there_are_six_ways():
    assert len(WAYS) == 6
