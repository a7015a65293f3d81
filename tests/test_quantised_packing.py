"""4-bit layers of a user's own model stay as they were loaded, whatever the processor can."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

import zopeft
from zopeft.blocks.packing import PERMIT, keep_unpacked
from zopeft.models import attach, load_adapter
from zopeft.training import ZOTrainer, ZOTrainingArguments, save_result

pytest.importorskip("bitsandbytes")
from bitsandbytes import functional

IDS = torch.arange(4 * 12).view(4, 12) % 90 + 3
BATCH = {"input_ids": IDS, "labels": IDS}
LORA = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(**sizes, **heads, initializer_range=0.1)
        LlamaForCausalLM(config).save_pretrained(path)
    return path


def unpacked_codes(packed, rows):
    """The inverse of bitsandbytes' packing, 32 rows at a time, written on its own."""
    nibbles = torch.cat([packed.view(-1, 32) & 15, packed.view(-1, 32) >> 4], -1)
    pairs = nibbles.view(rows // 32, -1, 32, 2).transpose(1, 2)
    return (pairs[..., 0] << 4 | pairs[..., 1]).reshape(-1, 1)


@pytest.fixture
def packing(monkeypatch):
    """Has 4-bit layers pack themselves as on a CPU with AVX-512 for bfloat16.

    The packing is bitsandbytes' own; the product with packed weights, which needs such a CPU,
    is made by plain PyTorch.
    """
    products = []

    def product(x, weight, out=None, state=None):
        products.append(1)
        rows, columns = state.shape
        codes = unpacked_codes(weight, rows).view(rows, columns // 2)
        values = state.code[torch.stack([codes >> 4, codes & 15], -1).long()].view(rows, columns)
        scales = state.absmax.T.float().repeat_interleave(state.blocksize, 1)
        return torch.nn.functional.linear(x, (values * scales).to(x.dtype))

    def has():
        return True

    from bitsandbytes.nn import modules

    monkeypatch.setattr(modules, "has_avx512bf16", has)
    monkeypatch.setattr(functional, "gemv_4bit", product)
    return products


def own(folder, double=False):
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_use_double_quant=double,
    )
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    flags = [getattr(m, PERMIT) for m in model.modules() if PERMIT in vars(m)]
    assert len(flags) == 14
    assert all(flags)
    return model.eval()


def loss(model):
    with torch.no_grad():
        return float(model.eval()(**BATCH).loss)


def weights(model):
    layers = [m for m in model.modules() if PERMIT in vars(m)]
    return [functional.dequantize_4bit(m.weight.data, m.weight.quant_state) for m in layers]


def test_the_packing_here_is_that_which_damages(folder, packing, tmp_path):
    model = own(folder)
    before = loss(model)
    assert packing
    model.save_pretrained(tmp_path)
    assert abs(loss(model) - before) > 1e-3, "bitsandbytes has mended its inverse"


def by_discover(model, tmp_path):
    zopeft.discover(get_peft_model(model, LORA))


def by_evaluation(model, tmp_path):
    from transformers import AutoTokenizer

    from zopeft.models import resolve
    from zopeft.tasks import evaluate, load_task

    task = load_task("sst2")
    tokenizer = AutoTokenizer.from_pretrained(resolve(None).path)
    rows = [{"sentence": "a", "label": 0}]
    model.resize_token_embeddings(len(tokenizer))
    evaluate(model, tokenizer, task, rows)


def by_attaching(model, tmp_path):
    attach(model, "lora")


def by_loading_an_adapter(model, tmp_path):
    get_peft_model(own(model.name_or_path), LORA).save_pretrained(tmp_path / "adapter")
    load_adapter(model, tmp_path / "adapter")


def by_a_trainer(model, tmp_path):
    arguments = {"max_steps": 1, "use_cpu": True, "report_to": [], "method": "fo_adam"}
    args = ZOTrainingArguments(output_dir=str(tmp_path / "run"), learning_rate=1e-3, **arguments)
    ZOTrainer(get_peft_model(model, LORA), args, train_dataset=[{"input_ids": [1]}])


@pytest.mark.parametrize(
    "entry", [by_discover, by_evaluation, by_attaching, by_loading_an_adapter, by_a_trainer]
)
def test_every_entry_keeps_the_layers_as_they_are(folder, packing, tmp_path, entry):
    model = own(folder)
    before = weights(model)
    entry(model, tmp_path)
    del packing[:]
    here = loss(model)
    save_result(model, None, tmp_path / "saved")
    assert loss(model) == here
    assert packing == []
    assert all(map(torch.equal, weights(model), before))


def test_a_run_of_the_trainer_with_a_checkpoint(folder, packing, tmp_path):
    model = get_peft_model(own(folder), LORA)
    args = ZOTrainingArguments(
        output_dir=str(tmp_path),
        method="mezo",
        learning_rate=1e-9,
        eps=1e-5,
        max_steps=4,
        save_steps=2,
        logging_steps=1,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = [{name: value[0] for name, value in BATCH.items()}] * 16
    trainer = ZOTrainer(model=model, args=args, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert (tmp_path / "checkpoint-2").is_dir()
    assert len(losses) == 4
    assert max(losses) - min(losses) < 1e-3


@pytest.mark.parametrize("double", [False, True])
def test_layers_that_are_packed_already_are_brought_back(folder, packing, caplog, double):
    model = own(folder, double)
    before = weights(model)
    codes = [m.weight.data.clone() for m in model.modules() if PERMIT in vars(m)]
    loss(model)
    assert packing
    assert keep_unpacked(model) == 14
    assert "14 4-bit layers had been packed" in caplog.text
    assert keep_unpacked(model) == 0
    after = [m.weight.data for m in model.modules() if PERMIT in vars(m)]
    assert all(map(torch.equal, after, codes))
    # bfloat16 keeps 8 bits of a scale; double quantisation rounds them a second time.
    tolerance = 0.05 if double else 2.0**-8
    for old, new in zip(before, weights(model), strict=True):
        assert float((new - old).abs().max()) <= tolerance * float(old.abs().max())
    here = loss(model)
    model.state_dict()
    assert loss(model) == here
    assert not any(m.weight.quant_state.absmax.dtype == torch.bfloat16 for m in _layers(model))


def _layers(model):
    return [m for m in model.modules() if PERMIT in vars(m)]


def test_scales_that_have_been_packed_are_not_tuned(folder, packing):
    model = own(folder)
    loss(model)
    with pytest.raises(zopeft.InputError, match="load the model anew"):
        zopeft.discover(model, space="scales")


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_a_trained_bias_that_its_layer_would_replace_is_refused(tmp_path, compute):
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"vocab_size": 96, "hidden_size": 64, "ffn_dim": 64, "word_embed_proj_dim": 64}
    OPTForCausalLM(OPTConfig(**sizes, num_hidden_layers=1, num_attention_heads=4)).save_pretrained(
        tmp_path
    )
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=compute)
    base = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=config, dtype=torch.float32
    )
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], bias="all")
    model = get_peft_model(base, lora).eval()
    blocks = zopeft.discover(model)
    before = [block.data.clone() for block in blocks]
    method = zopeft.MeZO(blocks, lr=1e-2)
    if compute == torch.float32:
        method.step(lambda: model(**BATCH).loss)
        assert not any(map(torch.equal, [b.data for b in blocks], before))
        return
    with pytest.raises(zopeft.InputError, match=r"bias: its layer replaces it by a copy in bfloat"):
        method.step(lambda: model(**BATCH).loss)
    assert all(map(torch.equal, [b.data for b in blocks], before))
    # As the line says: cast before, and it is trained.
    for module in model.modules():
        if PERMIT in vars(module) and module.bias is not None:
            module.bias.data = module.bias.data.to(compute)
    blocks = zopeft.discover(model)
    method = zopeft.MeZO(blocks, lr=1.0)
    before = [block.data.clone() for block in blocks]
    method.step(lambda: model(**BATCH).loss)
    biases = [(b.data, old) for b, old in zip(blocks, before, strict=True) if "bias" in b.name]
    assert sum(b.dtype == compute for b, _ in biases) >= 6
    assert not any(torch.equal(new, old) for new, old in biases)
