"""Names of models: aliases, folders, hub ids, and what is none of them."""

import pytest

from zopeft import hub
from zopeft.errors import InputError
from zopeft.models import MODELS, resolve


def test_aliases():
    assert len(MODELS) >= 40
    for name in MODELS:
        alias = MODELS[name]
        assert name == name.lower()
        assert hub.is_repository(alias.path)
        assert MODELS.about(name).startswith(alias.path)
        source = resolve(name)
        assert (source.path, source.alias, source.gated) == (alias.path, name, alias.gated)
        assert not source.local
        assert not source.embedded
    assert MODELS["llama-3.2-1b"].path == "meta-llama/Llama-3.2-1B"
    assert MODELS["llama-3.2-1b"].gated
    assert MODELS["qwen2.5-14b"].path == "Qwen/Qwen2.5-14B"
    assert MODELS["opt-30b"].path == "facebook/opt-30b"
    assert MODELS["gemma-3-1b"].path == "google/gemma-3-1b-pt" and MODELS["gemma-3-1b"].gated
    assert MODELS["smollm2-135m-instruct"].path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert MODELS["smollm3-3b"].path == "HuggingFaceTB/SmolLM3-3B"


def test_case_is_forgiven():
    assert resolve("Llama-3.2-1B").alias == "llama-3.2-1b"


def test_none_is_embedded():
    source = resolve(None)
    assert source.embedded
    assert source.local


def test_folder_goes_before_alias(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    assert resolve("gpt2").local
    assert resolve(str(tmp_path)).path == str(tmp_path)


def test_hub_id():
    source = resolve("some-one/My_Model.v2")
    assert source.path == "some-one/My_Model.v2"
    assert not source.local
    assert resolve("meta-llama/Llama-3.2-1B").gated


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("lama-3.2-1b", "did you mean 'llama-3.2-1b'"),
        ("qwen2.5-14", "did you mean 'qwen2.5-14b'"),
        ("./nowhere", "no such folder"),
        ("/nowhere/at/all", "no such folder"),
        ("a/b/c", "no such folder"),
        ("~/nowhere-at-all", "no such folder"),
    ],
)
def test_unknown(name, match):
    with pytest.raises(InputError, match=match) as caught:
        resolve(name)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_file_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("x")
    with pytest.raises(InputError, match="give its folder"):
        resolve(str(path))


def test_offline_context_is_put_back():
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    with hub.cache_only():
        assert constants.HF_HUB_OFFLINE
    assert before == constants.HF_HUB_OFFLINE
    with hub.cache_only(active=False):
        assert before == constants.HF_HUB_OFFLINE


def test_embedded_is_a_name_too(tmp_path, monkeypatch):
    from zopeft.recipe.load import load_recipe

    monkeypatch.chdir(tmp_path)
    assert resolve("embedded") == resolve("Embedded") == resolve(None)
    flags = {"model.name": ("MODEL", "embedded"), "task.name": ("--task", "sst2")}
    assert load_recipe("tune", flags=flags).model.name is None
    # A folder of that name is the user's own.
    (tmp_path / "embedded").mkdir()
    assert not resolve("embedded").embedded
    assert load_recipe("tune", flags=flags).model.name == "embedded"
