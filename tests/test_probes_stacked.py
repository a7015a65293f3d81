"""Both probes in one forward: the losses of two, and no bit of the weights changed."""

from __future__ import annotations

import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_families import CONFIGS, build
from training_run import digest, tiny_model, trainer, with_lora
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

import zopeft
from zopeft.blocks import keep_trainable
from zopeft.embedded import MODEL_DIR
from zopeft.engine import Direction, Engine
from zopeft.engine.carrier import UnstackableError
from zopeft.errors import InputError
from zopeft.models import PEFT, attach
from zopeft.probing.probing import MOST_TOKENS
from zopeft.probing.stacking import Stacking
from zopeft.tasks import Collator, TaskDataset, load_rows, load_task, task_loss

IDS = (torch.arange(3 * 8).view(3, 8) * 7 + 5) % 61
STACKED = {"lora", "rslora", "prefix", "prompt", "p-tuning"}
ADAPTERS = {
    "lora": ("lora", {}),
    "everywhere": ("lora", {"target_modules": "all-linear"}),
    "rslora": ("rslora", {"r": 3}),
    "biased": ("lora", {"lora_bias": True}),
    "B alone": ("lora", {"train": "B"}),
    "prefix": ("prefix", {}),
    "prompt": ("prompt", {}),
    "p-tuning": ("p-tuning", {}),
}
CASES = [(family, adapter) for family in CONFIGS for adapter in ADAPTERS]


def adapted(family="llama", adapter="lora"):
    """A model whose adapter has moved, so that all of it matters."""
    name, options = ADAPTERS[adapter]
    model = attach(build(family), name, options, seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in zopeft.discover(model).parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def padded():
    mask = torch.ones_like(IDS)
    mask[1, 5:] = 0
    return {"input_ids": IDS, "attention_mask": mask, "labels": IDS.masked_fill(mask == 0, -100)}


def bits(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(model, before):
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[n], before[n]) for n in now)


def dressed(model):
    """What modules hold beside parameters, buffers and modules."""
    modules = [*model.modules()]
    return [
        (set(m.__dict__), len(m._forward_pre_hooks), {k: id(p) for k, p in m._parameters.items()})
        for m in modules
    ]


def forwards(model):
    """Counts the runs of a model, in rows."""
    rows = []

    def note(module, args, kwargs):
        rows.append(len(kwargs["input_ids"]))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return rows


def probed(model, closure, probes, eps=0.05):
    method = zopeft.MeZO(zopeft.discover(model), lr=1e-3, eps=eps, seed=5, probes=probes)
    method.estimate(closure)
    return torch.tensor(method._pending.losses()), method


def test_every_case_is_there():
    assert len(CASES) == 4 * 8


@pytest.mark.parametrize(("family", "adapter"), CASES)
def test_one_forward_gives_the_losses_of_two(family, adapter):
    model = adapted(family, adapter)
    closure = zopeft.BatchLoss(model, padded())
    apart, method = probed(model, closure, "separate")
    assert method.forward_passes == 2
    before, dress = bits(model), dressed(model)
    rows = forwards(model)
    stacked, method = probed(model, closure, "stacked")
    assert rows == [6] and method.forward_passes == 2
    assert abs(apart[0] - apart[1]) > 1e-3
    torch.testing.assert_close(stacked, apart, rtol=1e-5, atol=0)
    assert same_bits(model, before)
    model._forward_pre_hooks.clear()
    assert dressed(model) == dress


@pytest.mark.parametrize("adapter", ["lora", "prefix"])
@pytest.mark.parametrize("loss", ["answer", "choice"])
def test_the_losses_of_tasks(adapter, loss):
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    torch.manual_seed(0)
    config = CONFIGS["llama"]()
    config.vocab_size, config.max_position_embeddings = len(tokenizer), 256
    model = attach(type(build("llama"))(config).eval(), *ADAPTERS[adapter], seed=1)
    task = load_task("copa")
    data = TaskDataset(task, load_rows(task, "train", None, True, 3, 0), tokenizer, 128, loss)
    batch = Collator(tokenizer)(list(data))
    closure = zopeft.BatchLoss(model, batch, task_loss)
    rows = forwards(model)
    apart, _ = probed(model, closure, "separate", 0.3)
    stacked, _ = probed(model, closure, "stacked", 0.3)
    size = len(batch["input_ids"])
    assert rows == [size, size, 2 * size]
    assert abs(apart[0] - apart[1]) > 1e-5
    torch.testing.assert_close(stacked, apart, rtol=1e-5, atol=0)


@pytest.mark.parametrize("adapter", ["everywhere", "prefix"])
def test_an_exception_inside_changes_no_bit(adapter):
    model = adapted(adapter=adapter)
    before, dress = bits(model), dressed(model)

    class Broken(zopeft.BatchLoss):
        def stacked(self, count):
            super().stacked(count)
            raise KeyboardInterrupt

    method = zopeft.MeZO(zopeft.discover(model), lr=1e-3, eps=0.05)
    dress = dressed(model)
    with pytest.raises(KeyboardInterrupt):
        method.step(Broken(model, padded()))
    assert same_bits(model, before) and dressed(model) == dress
    assert method.steps == 0


def test_many_steps_are_those_of_two_forwards():
    ends = []
    for probes in ("stacked", "separate"):
        model = adapted(adapter="everywhere")
        method = zopeft.MeZO(zopeft.discover(model), lr=1e-3, eps=1e-2, probes=probes)
        for _ in range(20):
            method.step(zopeft.BatchLoss(model, padded()))
        assert method.forward_passes == 40
        ends.append(torch.cat([p.flatten() for p in zopeft.discover(model).parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)
    start = zopeft.discover(adapted(adapter="everywhere")).parameters()
    assert float((ends[0] - torch.cat([p.flatten() for p in start])).abs().max()) > 1e-3


def test_16_bit_adapters():
    model = adapted().to(torch.bfloat16)
    apart, _ = probed(model, zopeft.BatchLoss(model, padded()), "separate")
    stacked, _ = probed(model, zopeft.BatchLoss(model, padded()), "stacked")
    torch.testing.assert_close(stacked, apart, rtol=1e-2, atol=0)


@pytest.mark.parametrize("bits_", [8, 4])
def test_quantised_bases(bits_, tmp_path):
    pytest.importorskip("bitsandbytes")
    from zopeft.models import load_model, resolve

    torch.manual_seed(0)
    config = CONFIGS["llama"]()
    config.hidden_size, config.intermediate_size = 64, 128
    type(build("llama"))(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(tmp_path)
    base, _ = load_model(resolve(str(tmp_path)), "float32", bits_ == 8, bits_ == 4, "cpu")
    model = attach(base, "lora", {"target_modules": "all-linear"}, seed=1)
    for module in model.modules():
        # Which columns of its input an 8-bit layer spares goes by all rows of a batch.
        if getattr(getattr(module, "state", None), "threshold", 0):
            module.state.threshold = 0.0
    rows = forwards(model)
    apart, _ = probed(model, zopeft.BatchLoss(model, padded()), "separate")
    stacked, _ = probed(model, zopeft.BatchLoss(model, padded()), "stacked")
    # Over 8 bits a run begins with measuring the noise of its probes.
    looks = [3] * (17 if bits_ == 8 else 0)
    assert rows == [*looks, 3, 3, *looks, 6]
    assert abs(apart[0] - apart[1]) > 1e-3
    torch.testing.assert_close(stacked, apart, rtol=1e-4, atol=0)


OTHERS = ["dora", "ia3", "vera", "lokr", "layernorm", "hra", "miss", "fourierft"]


@pytest.mark.parametrize("name", sorted(STACKED) + OTHERS)
def test_other_adapters_run_apart(name):
    assert set(PEFT) > STACKED
    model = attach(build("llama"), name, {"r": 4} if name == "vera" else {}, seed=1)
    blocks = zopeft.discover(model)
    assert (Stacking(Engine(blocks)).unstackable == "") == (name in STACKED)
    assert (zopeft.MeZO(blocks, lr=0.0).engine.unstackable == "") == (name in STACKED)
    if name in STACKED:
        return
    rows = forwards(model)
    method = zopeft.MeZO(blocks, lr=1e-4, eps=1e-3)
    method.step(zopeft.BatchLoss(model, padded()))
    assert rows == [3, 3] and method.forward_passes == 2
    with pytest.raises(InputError, match=r"probes: cannot be stacked: .*use auto") as caught:
        zopeft.MeZO(blocks, probes="stacked")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
    ],
)
def test_lora_that_reaches_further_runs_apart(options):
    model = attach(build("llama"), "lora", options, seed=1)
    assert Stacking(Engine(zopeft.discover(model))).unstackable


def test_full_weights_and_other_carriers_run_apart():
    model = build("llama")
    keep_trainable(model, "q_proj")
    assert Stacking(Engine(zopeft.discover(model))).unstackable.startswith(
        "full weights that are held flat"
    )
    blocks = zopeft.discover(adapted())
    assert (
        Stacking(Engine(blocks, carrier="modules", backend="plain")).unstackable
        == "the directions are not of low rank"
    )
    with pytest.raises(InputError, match="probes: unknown way of probing, got 'twice'"):
        zopeft.MeZO(blocks, probes="twice")


def test_plain_closures_and_odd_batches_run_apart():
    model = adapted()
    batch = padded()
    with pytest.raises(UnstackableError, match="the model is compiled"):
        zopeft.BatchLoss(torch.compile(model, backend="eager"), batch).stacked(2)
    rows = forwards(model)
    method = zopeft.MeZO(zopeft.discover(model), lr=1e-3, eps=1e-2, probes="stacked")
    method.step(lambda: model(**batch).loss)
    odd = {**batch, "cache_position": torch.arange(8)}
    method.step(zopeft.BatchLoss(model, odd))
    listed = {**batch, "names": ["a", "b", "c"]}
    with pytest.raises(UnstackableError, match="'names' is neither"):
        zopeft.BatchLoss(model, listed).stacked(2)
    method.step(zopeft.BatchLoss(model, batch, lambda model, batch: model(**batch).loss))
    assert rows == [3, 3] * 3
    method.step(zopeft.BatchLoss(model, batch))
    assert rows[6:] == [6]


@pytest.mark.parametrize("shape", [(3, 8, 32), (1, 48, 32), (8, 6, 32), (24, 32), (6, 32)])
def test_a_layer_that_does_not_see_the_rows_is_refused(shape):
    model = adapted()
    engine = Engine(zopeft.discover(model))
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    with torch.no_grad(), Stacking(engine).shown([(Direction(1), 0.1), (Direction(1), -0.1)]):
        with pytest.raises(UnstackableError, match="row by row"):
            layer(torch.zeros(6, 8, 32))
        model(input_ids=IDS.repeat(2, 1))
        assert layer(torch.zeros(6, 8, 32)).shape == (6, 8, 32)
        assert layer(torch.zeros(48, 32)).shape == (48, 32)
        with pytest.raises(UnstackableError, match="row by row"):
            layer(torch.zeros(shape))


def test_a_loss_that_is_more_than_its_function_runs_apart():
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2}
    config = MixtralConfig(**sizes, **heads, output_router_logits=True)
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(MixtralForCausalLM(config).eval(), lora)
    own = model.get_base_model().loss_function
    method = zopeft.MeZO(zopeft.discover(model), lr=1e-3, eps=1e-2)
    closure = zopeft.BatchLoss(model, padded())
    rows = forwards(model)
    probed(model, closure, "separate")
    method.step(closure)
    assert rows == [3, 3, 6, 3, 3]
    method.step(closure)
    assert rows[5:] == [3, 3]
    assert model.get_base_model().loss_function == own


def test_auto_goes_by_the_tokens_of_the_batch_and_the_share_of_common_layers():
    model = adapted()
    method = zopeft.MeZO(zopeft.discover(model))
    most = MOST_TOKENS["cpu"]
    for tokens, stacks in ((most, True), (most + 1, False)):
        ids = torch.zeros(1, tokens, dtype=torch.long)
        assert method.probing.stacks(zopeft.BatchLoss(model, {"input_ids": ids})) is stacks
    upper = attach(build("llama"), "lora", {"layers_to_transform": [1]})
    method = zopeft.MeZO(zopeft.discover(upper))
    assert method.probing.sharing.share == 0.5
    assert not method.probing.stacks(zopeft.BatchLoss(upper, padded()))


def test_the_choice_is_part_of_the_state():
    model = adapted()
    blocks = zopeft.discover(model)
    method = zopeft.MeZO(blocks, lr=1e-3)
    method.probing.most_tokens = 7
    state = method.state_dict()
    other = zopeft.MeZO(blocks, lr=1e-3)
    other.load_state_dict(state)
    assert (other.probing.probes, other.probing.most_tokens) == ("auto", 7)
    # A checkpoint of a version that knew only one way goes on in that way.
    del state["zopeft"]["probing"]
    other.load_state_dict(state)
    assert not other.probing.stacks(zopeft.BatchLoss(model, padded()))


def test_the_trainer_stacks_and_resumes_bit_for_bit(tmp_path):
    options = {"gradient_accumulation_steps": 2, "max_steps": 6, "layout": "padded"}
    model = with_lora(tiny_model())
    rows = forwards(model)
    whole = trainer(model, tmp_path / "whole", **options)
    whole.train()
    assert rows == [8] * 12
    assert whole.method.forward_passes == 24

    broken = {**options, "max_steps": 4, "save_strategy": "steps", "save_steps": 3}
    trainer(with_lora(tiny_model()), tmp_path / "broken", **broken).train()
    shutil.copytree(tmp_path / "broken", tmp_path / "journal")
    for seal in (tmp_path / "journal").glob("*/complete.json"):
        seal.unlink()
    for folder in ("broken", "journal"):
        again = trainer(with_lora(tiny_model()), tmp_path / folder, **options)
        again.train(resume_from_checkpoint=True)
        assert again.method.steps == 6
        assert digest(again.model) == digest(model) != digest(with_lora(tiny_model()))


def test_a_trainer_resumed_from_its_journal_probes_as_it_began(tmp_path):
    first = trainer(with_lora(tiny_model()), tmp_path, max_steps=2)
    first.train()
    settings = first.method.probing.state_dict()
    most = MOST_TOKENS["cpu"]
    assert settings == {
        "probes": "auto",
        "most_tokens": most,
        "layout": first.layout.way,
        "twins_together": True,
    }
    again = trainer(with_lora(tiny_model()), tmp_path, max_steps=3, probes="separate")
    with pytest.raises(InputError, match="probes 'separate' instead of 'auto'"):
        again.train(resume_from_checkpoint=True)


def test_a_trainer_with_a_loss_of_its_own_runs_apart(tmp_path):
    made = trainer(with_lora(tiny_model()), tmp_path, max_steps=1, probes="stacked")

    class Doubled(type(made)):
        def compute_loss(self, *args, **kwargs):
            return 2 * super().compute_loss(*args, **kwargs)

    rows = forwards(made.model)
    made.__class__ = Doubled
    made.train()
    assert rows == [4, 4]
