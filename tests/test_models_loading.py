"""Loading: dtypes, quantisation, the hub out of reach, and every broken folder."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from zopeft.errors import InputError
from zopeft.models import load_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A Llama of two layers with a tokenizer, as save_pretrained writes them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {word: index for index, word in enumerate(["<unk>", "<end>", "a", "b"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def broken(tiny, tmp_path):
    """A copy to break."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def fails(folder, match, **options):
    with pytest.raises(InputError, match=match) as caught:
        load_model(str(folder), **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert caught.value.exit_code == 2


def test_folder(tiny, capfd, caplog):
    with caplog.at_level(logging.WARNING):
        model, tokenizer = load_model(str(tiny), device="cpu")
    assert not model.training
    assert model.dtype == torch.float32
    assert tokenizer.pad_token_id is None
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("float32", torch.float32),
        ("bf16", torch.bfloat16),
        ("float16", torch.float16),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_dtypes(tiny, name, dtype):
    model, _ = load_model(str(tiny), dtype=name, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_auto_is_float32_on_a_cpu(tiny, tmp_path):
    model, tokenizer = load_model(str(tiny), dtype="bfloat16", device="cpu")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_model(str(tmp_path), device="cpu")[0].dtype == torch.float32


def test_unknown_dtype(tiny):
    fails(tiny, "did you mean 'float32'", dtype="flot32")


@pytest.mark.parametrize("flag", ["load_in_8bit", "load_in_4bit"])
def test_quantised(tiny, flag):
    pytest.importorskip("bitsandbytes")
    plain, _ = load_model(str(tiny), device="cpu")
    model, _ = load_model(str(tiny), device="cpu", **{flag: True})
    layer = model.model.layers[0].self_attn.q_proj
    assert type(layer).__name__ == {"load_in_8bit": "Linear8bitLt"}.get(flag, "Linear4bit")
    ids = torch.tensor([[2, 3, 2]])
    with torch.no_grad():
        logits = model(ids).logits
        assert logits.dtype == torch.float32
        assert (logits - plain(ids).logits).abs().max() < 0.2
    if flag == "load_in_4bit":
        assert not layer.weight.quant_state.nested


def test_both_quantisations(tiny):
    fails(tiny, "keep one", load_in_8bit=True, load_in_4bit=True)


def test_no_bitsandbytes(tiny, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "bitsandbytes" else real(n, *a)
    )
    fails(tiny, "pip install bitsandbytes", load_in_8bit=True)


def test_no_config(broken):
    (broken / "config.json").unlink()
    fails(broken, "no config.json")


def test_corrupt_config(broken):
    (broken / "config.json").write_text('{"model_type": ')
    fails(broken, "config.json: unreadable JSON")
    (broken / "config.json").write_text("[]")
    fails(broken, "a JSON object is needed")


def test_adapter_folder(broken):
    (broken / "config.json").unlink()
    (broken / "adapter_config.json").write_text("{}")
    fails(broken, "holds an adapter, not a model")


def test_not_causal(broken):
    config = json.loads((broken / "config.json").read_text())
    for change in (
        {"architectures": ["BertForMaskedLM"], "model_type": "bert"},
        {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"},
        {"architectures": ["ViTForImageClassification"], "model_type": "vit"},
    ):
        (broken / "config.json").write_text(json.dumps(config | change))
        fails(broken, f"not a causal language model, got '{change['architectures'][0]}'")


def test_missing_weights(broken):
    (broken / "model.safetensors").unlink()
    fails(broken, "no weights in this folder")


def test_truncated_weights(broken):
    path = broken / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    fails(broken, "corrupt weights: .* bytes where its header says")
    path.write_bytes(whole[:50])
    fails(broken, "cut short")
    path.write_bytes(b"")
    fails(broken, "empty")
    path.write_bytes(whole[:8] + b"x" * (len(whole) - 8))
    fails(broken, "header is unreadable")
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    fails(broken, "git lfs pull")


def test_missing_shard(broken):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    fails(broken, "1 of 2 weight files are missing, got 'model-00001")


def test_weights_of_another_shape(broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"intermediate_size": 32}))
    fails(broken, "can't be loaded")


def test_tensors_that_are_not_there(broken):
    """transformers would fill them with random numbers and go on."""
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    fails(broken, r"9 of the model's tensors are not in its weight files")


def test_no_tokenizer(broken):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (broken / name).unlink()
    fails(broken, "no usable tokenizer")


@pytest.mark.parametrize("kind", ["gpt2", "gemma", "gpt_neox"])
def test_a_tokenizer_made_up_for_want_of_files(kind, tmp_path):
    """transformers builds one of special tokens alone, and reads every text as nothing."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

    from zopeft.meta import meta_train

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CONFIG_MAPPING[kind](**sizes, vocab_size=32, intermediate_size=16)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert len(AutoTokenizer.from_pretrained(tmp_path)) < 6
    fails(tmp_path, "no usable tokenizer in this folder .*Tokenizer without a vocabulary.*copy")
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="no usable tokenizer in this folder"):
        meta_train(model, ["sst2"], rows={"sst2": [{"sentence": "a", "label": 1}]})


OUT_OF_REACH = ("llama-3.2-1b", "opt-125m", "some/model")


def told_apart(lines):
    """Whether these lines tell what to do about `OUT_OF_REACH`, each its own."""
    assert len(lines) == 3
    assert "the hub can't be reached" in lines[0]
    assert "local copy" in lines[0]
    assert "hf auth login" in lines[0]
    assert "hf auth login" not in lines[1]
    assert "no folder of that name" in lines[2]


def test_hub_out_of_reach_ends_in_seconds():
    """In a fresh process, out of the offline mode; the address answers to nobody."""
    program = (
        "import time, zopeft.models as m, zopeft.errors as e\n"
        "import transformers\n"
        "start = time.perf_counter()\n"
        f"for name in {OUT_OF_REACH}:\n"
        "    try: m.load_model(name)\n"
        "    except e.InputError as error: print(error)\n"
        "print(time.perf_counter() - start)\n"
    )
    environment = os.environ | {
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=90
    )
    *lines, seconds = done.stdout.splitlines() or [""]
    assert not done.stderr
    told_apart(lines)
    # Asked again and again, each model would take more than this.
    assert float(seconds) < 30


def test_offline_mode_says_the_same(capfd):
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE
    lines = []
    for name in OUT_OF_REACH:
        with pytest.raises(InputError) as caught:
            load_model(name)
        lines.append(str(caught.value))
    told_apart(lines)
    assert capfd.readouterr() == ("", "")


def test_a_hub_that_never_answers(monkeypatch):
    """A resolver or proxy may hang: the question is left behind in its thread."""
    import huggingface_hub
    from huggingface_hub import constants

    from zopeft import hub

    def hang():
        time.sleep(30)

    monkeypatch.setattr(huggingface_hub, "get_session", hang)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "PATIENCE", 0.1)
    hub.reachable.cache_clear()
    start = time.perf_counter()
    assert not hub.reachable()
    assert time.perf_counter() - start < 2
    hub.reachable.cache_clear()
