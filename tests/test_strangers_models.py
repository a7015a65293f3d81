"""Models, prompts and tokenizers from strangers: what they claim is looked at before it is made."""

import json
import shutil
from types import SimpleNamespace

import pytest
import transformers
from training_run import tiny_model

from zopeft.errors import InputError
from zopeft.models import adapters, load_model
from zopeft.models.counts import MOST_LAYERS, check_counts
from zopeft.models.skeleton import skeleton
from zopeft.tasks.encoding import tokenize


class PanicException(BaseException):
    """What PyO3 raises where code in Rust gives up."""


def test_a_tokenizer_that_gives_up_is_told_in_a_line(monkeypatch, zopeft_command, tiny_model):
    def gives_up(*_, **__):
        raise PanicException("an index is out of range")

    for name in ("AutoTokenizer", "AutoModelForCausalLM"):
        with monkeypatch.context() as patched:
            patched.setattr(f"transformers.{name}.from_pretrained", gives_up)
            line = zopeft_command.refused("tune", tiny_model, "--task", "sst2")
            assert "(an index is out of range)" in line and str(tiny_model) in line
    with pytest.raises(InputError, match="tokenizer: gives up on a text"):
        tokenize(gives_up, ["a"])
    # Wherever else that may be.
    monkeypatch.setattr("zopeft.models.load_model", gives_up)
    assert "an index" in zopeft_command.refused("tune", tiny_model, "--task", "sst2", code=1)


def test_a_tokenizer_that_is_interrupted_has_not_given_up():
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize(interrupted, ["a"])


@pytest.mark.parametrize(
    "claim",
    [
        {"num_hidden_layers": 2**63},
        {"num_hidden_layers": 2049},
        {"n_layer": 1e9},
        {"text_config": {"vision": {"num_local_experts": 10**7}}},
    ],
)
def test_layers_that_no_model_has_are_refused_before_it_is_built(claim, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | claim))
    for load in (load_model, skeleton):
        with pytest.raises(InputError, match=r"config.json: \w+ must be at most \d+, got"):
            load(str(tmp_path / "m"))
    most = {"num_hidden_layers": MOST_LAYERS, "layer_norm_eps": 1e9, "parts": [{"layers": 9**9}]}
    check_counts(most, "a file")


def test_layers_of_a_gguf_are_counted_before_it_is_built(tmp_path):
    pytest.importorskip("gguf")
    from gguf import GGUFWriter

    for count, told in ((3000, "llama.block_count must be at most"), (2, "claims .* weights")):
        writer = GGUFWriter(str(tmp_path / "a.gguf"), "llama")
        writer.add_block_count(count)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(InputError, match=told):
            load_model(str(tmp_path / "a.gguf"), device="cpu")


def test_what_no_outline_can_be_made_of_is_one_line(tiny_model, monkeypatch):
    def raises(*_, **__):
        raise AssertionError("heads do not divide the width")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_config", raises)
    with pytest.raises(InputError, match=r"language model \(heads do not divide the width\)"):
        skeleton(str(tiny_model))


def test_a_prompt_for_an_encoder_and_a_decoder_is_refused(tmp_path):
    model = tiny_model().eval()
    adapters.attach(model, "prefix").save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_transformer_submodules": 2}))
    with pytest.raises(InputError, match="--adapter"):
        adapters.load_adapter(tiny_model().eval(), tmp_path)


@pytest.mark.parametrize("name", ["vocab_size", "intermediate_size"])
def test_a_size_that_the_weights_cannot_have_is_refused_before_it_is_made(
    name, tiny_model, tmp_path
):
    shutil.copytree(tiny_model, tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: 2**18}))
    with pytest.raises(InputError, match=r"config.json: claims [\d,]+ weights, which [\d,]+ bytes"):
        load_model(str(tmp_path / "m"), device="cpu")


def test_layers_of_a_model_on_the_hub_are_counted_before_it_is_built(monkeypatch):
    def built(*_, **__):
        pytest.fail("it was built")

    monkeypatch.setattr("zopeft.hub.reachable", lambda: True)
    monkeypatch.setattr("zopeft.models.loading.load_tokenizer", lambda *_: SimpleNamespace())
    told = {"num_hidden_layers": 10**6}
    monkeypatch.setattr(
        transformers.PreTrainedConfig, "get_config_dict", lambda *_, **__: (told, {})
    )
    for name in ("AutoModelForCausalLM", "AutoConfig"):
        monkeypatch.setattr(f"transformers.{name}.from_pretrained", built)
    for load in (load_model, skeleton):
        with pytest.raises(
            InputError, match=r"someone/deep/config.json: num_hidden_layers must be"
        ):
            load("someone/deep")
