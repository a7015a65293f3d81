"""Models whose weights accelerate keeps on the CPU or on disk train as those in memory do."""

from __future__ import annotations

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
from zopeft.models import attach, load_adapter

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
    start = values(model)
    optimizer = method(blocks, lr=1e-2, eps=1e-2, noise="binomial", **options)
    losses = [float(optimizer.step(lambda: loss_of(model))) for _ in range(count)]
    assert not same(values(model), start)
    return losses, optimizer


def same(a, b):
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype
        and torch.equal(a[n].contiguous().view(torch.uint8), b[n].contiguous().view(torch.uint8))
        for n in a
    )


@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, torch.bfloat16) for kind in KINDS), ("tied", torch.float32)]
)
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


LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


def tuned_adapter(model, folder):
    """Three steps of LoRA; returns the losses and the bytes of the adapter saved after."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            generator = torch.Generator().manual_seed(3)
            start = torch.randn(parameter.shape, generator=generator) * 0.02
            parameter.data.copy_(start)
    losses, optimizer = steps(model)
    assert len(optimizer.blocks) == 8
    model.save_pretrained(folder)
    return losses, (folder / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", ["from_pretrained", "all_on_disk", "on_cpu", "on_disk"])
def test_an_adapter_over_an_offloaded_base_trains_to_the_same_bits(way, dtype, tmp_path):
    here = attach(made("tied", dtype), "lora", LORA)
    expected = tuned_adapter(here, tmp_path / "here")
    base = WAYS[way]("tied", dtype, tmp_path / "there")
    kept = files(tmp_path / "there")
    model = attach(base, "lora", LORA)
    assert sum(p.is_meta for p in model.parameters()) >= 10
    got = tuned_adapter(model, tmp_path / "saved")
    assert got == expected
    assert files(tmp_path / "there") == kept


@pytest.mark.parametrize("name", ["ia3", "prefix", "prompt", "adalora", "vera", "layernorm"])
def test_other_adapters_start_the_same_over_an_offloaded_base(name, tmp_path):
    results = []
    for offloaded in (False, True):
        # Not by a device map: PEFT's prefixes find no GPU in one of CPU and disk alone.
        model = on_disk("tied", torch.float32, tmp_path) if offloaded else made("tied")
        model = attach(model, name)
        results.append(steps(model)[0])
    assert results[0] == results[1]


def test_dora_over_an_offloaded_base_is_refused(tmp_path):
    model = all_on_disk("tied", torch.float32, tmp_path)
    with pytest.raises(InputError, match="peft dora: DoRA reads weights outside"):
        attach(model, "dora")


def test_an_adapter_made_by_peft_alone_is_refused(tmp_path):
    model = get_peft_model(all_on_disk("tied", torch.float32, tmp_path), LoraConfig(**LORA))
    with pytest.raises(InputError, match="no values; attach adapters to an offloaded model with"):
        zopeft.MeZO(zopeft.discover(model))


def test_an_adapter_may_be_offloaded_itself(tmp_path):
    results = []
    for offloaded in (False, True):
        torch.manual_seed(0)
        model = get_peft_model(made("tied"), LoraConfig(**LORA))
        if offloaded:
            model = dispatch_model(
                model, half_on_disk("tied", "base_model.model."), offload_dir=tmp_path
            )
            assert any(p.is_meta for n, p in model.named_parameters() if "lora" in n)
        results.append((steps(model)[0], values(model)))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])


def test_statistics_and_finetuner_scales_are_those_of_weights_in_memory(tmp_path):
    results = []
    for offloaded in (False, True):
        model = made("tied", torch.bfloat16)
        if offloaded:
            model = from_pretrained("tied", torch.bfloat16, tmp_path)
        blocks = zopeft.discover(model)
        before = Engine(blocks, carrier="auto").statistics()
        finetuner = zopeft.FineTuner.initial(blocks)
        losses, optimizer = steps(model, method=zopeft.ZOFineTuner, finetuner=finetuner)
        results.append((before, losses, values(model), optimizer.engine.statistics()))
    (early, losses, weights, late), (early2, losses2, weights2, late2) = results
    assert losses == losses2
    assert same(weights, weights2)
    for a, b in zip((*early, *late), (*early2, *late2), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("way", ["from_pretrained", "dispatched"])
def test_an_exception_inside_a_probe_changes_no_bit(way, tmp_path):
    model = WAYS[way]("tied", torch.float32, tmp_path)
    engine = Engine(zopeft.discover(model))
    before, clean = values(model), loss_of(model).item()

    class Boom(Exception):
        pass

    def hook(module, args):
        raise Boom

    handle = model.model.layers[1].mlp.act_fn.register_forward_pre_hook(hook)
    with pytest.raises(Boom), engine.perturbed(Direction(5), 0.1):
        loss_of(model)
    handle.remove()
    assert same(values(model), before)
    assert loss_of(model).item() == clean
    engine.update(Direction(5), 0.0)
    assert same(values(model), before)
    engine.update(Direction(5), 0.1)
    assert not same(values(model), before)
    with engine.perturbed(Direction(6), 0.1):
        probed = loss_of(model).item()
    here = made("tied")
    twin = Engine(zopeft.discover(here))
    twin.update(Direction(5), 0.1)
    with twin.perturbed(Direction(6), 0.1):
        assert loss_of(here).item() == probed


def test_weights_in_read_only_files_need_a_folder(tmp_path):
    made("tied").save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=half_on_disk("tied"))
    with pytest.raises(InputError, match="only read; load the model with offload_folder=FOLDER"):
        zopeft.MeZO(zopeft.discover(model))
    model.requires_grad_(False)
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(True)
    losses, _ = steps(model)
    assert len(losses) == 3


def test_gradients_are_refused(tmp_path):
    blocks = zopeft.discover(from_pretrained("tied", torch.float32, tmp_path))
    for kind in ("fo_sgd", "fo_adam"):
        with pytest.raises(InputError, match=f"{kind}: 10 trained tensors are offloaded"):
            zopeft.methods.METHODS[kind](blocks)
    with pytest.raises(InputError, match="flat"):
        Engine(blocks, carrier="flat")


def test_weights_loaded_by_a_parent_are_perturbed_in_their_own_forward_or_refused():
    class Reader(torch.nn.Module):
        def __init__(self, reads):
            super().__init__()
            self.inner, self.reads = torch.nn.Linear(4, 4, bias=False), reads

        def forward(self, x):
            return x @ self.inner.weight.t() if self.reads else self.inner(x)

    x, losses = torch.ones(1, 4), []
    for offloaded in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(Reader(False), torch.nn.Linear(4, 1))
        if offloaded:
            cpu_offload(model, torch.device("cpu"), preload_module_classes=["Reader"])
        optimizer = zopeft.MeZO(
            zopeft.discover(model),
            lr=1e-3,
            eps=1e-2,
            carrier="modules" if not offloaded else "auto",
        )

        def closure(model=model):
            return model(x).sum()

        losses.append([float(optimizer.step(closure)) for _ in range(3)])
    assert losses[0] == losses[1]
    model = torch.nn.Sequential(Reader(True), torch.nn.Linear(4, 1))
    cpu_offload(model, torch.device("cpu"), preload_module_classes=["Reader"])
    optimizer = zopeft.MeZO(zopeft.discover(model), lr=1e-3, eps=1e-2)
    with pytest.raises(InputError, match="read by another module than their own"):
        optimizer.step(lambda: model(x).sum())


@pytest.mark.parametrize("way", ["from_pretrained", "all_on_disk", "dispatched"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_is_the_tuned_one(way, kind, tmp_path):
    model = WAYS[way](kind, torch.float32, tmp_path)
    steps(model)
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert same(values(again), values(model))


def test_inputs_go_where_an_offloaded_model_runs(tmp_path):
    model = all_on_disk("tied", torch.float32, tmp_path)
    assert model.device.type == "meta"
    assert device_of(model) == torch.device("cpu") == device_of(made("tied"))


def test_a_saved_adapter_loads_over_an_offloaded_base(tmp_path):
    here = attach(made("tied"), "lora", LORA)
    tuned_adapter(here, tmp_path / "adapter")
    expected = steps(here)[0]
    model = load_adapter(from_pretrained("tied", torch.float32, tmp_path), tmp_path / "adapter")
    assert steps(model)[0] == expected
    assert set(model.hf_device_map.values()) == {"cpu", "disk"}


@pytest.mark.parametrize("offloaded", [False, True])
def test_nothing_that_a_forward_fetched_is_held_for_later_ones(offloaded, tmp_path):
    pytest.importorskip("numba")
    model = on_disk("tied", torch.float32, tmp_path) if offloaded else made("tied")
    engine = Engine(zopeft.discover(model), carrier="modules", backend="numba")
    for seed in (1, 2):
        with torch.no_grad(), engine.perturbed(Direction(seed), 1e-3):
            model(input_ids=ids())
    held = [layer._standing for layer in engine.carriers[0]._layers.values()]
    assert held and any(held) != offloaded
