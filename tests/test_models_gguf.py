"""GGUF: a file is tuned, saved, loaded and scored like the model that it was made from."""

import importlib.util
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from zopeft.cli.main import main
from zopeft.embedded import DATA_DIR, MODEL_DIR
from zopeft.errors import InputError, ZopeftWarning
from zopeft.models import load_model, resolve
from zopeft.models.skeleton import skeleton

pytest.importorskip("gguf")
from gguf_files import write_gguf

IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module")
def original():
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR).eval(), tokenizer


@pytest.fixture(scope="module")
def files(original, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, options in {
        "float": {},
        "eight": {"quantised": True},
        "digits": {"pre": "smollm"},
        "strange": {"pre": "of-tomorrow"},
    }.items():
        (folder / name).mkdir()
        write_gguf(folder / name / "small.gguf", *original, **options)
    return folder


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


@pytest.mark.parametrize(("name", "apart"), [("float", 1e-6), ("eight", 0.5)])
@pytest.mark.parametrize("given", ["file", "folder"])
def test_a_file_is_the_model_that_it_was_made_from(files, original, name, apart, given):
    source = files / name / ("small.gguf" if given == "file" else "")
    with pytest.warns(ZopeftWarning, match="rms_norm_eps is 1e-06"):
        model, tokenizer = load_model(str(source))
    difference = float((logits(model) - logits(original[0])).abs().max())
    assert difference <= apart
    assert name == "float" or difference > 1e-3
    text = "Tom has 12 hats ."
    assert tokenizer(text).input_ids == original[1](text).input_ids
    assert tokenizer.model_max_length == original[0].config.max_position_embeddings
    assert model.config.rms_norm_eps == model.model.norm.variance_epsilon == 1e-6
    assert not hasattr(model.config, "quantization_config")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.name_or_path == str(files / name / "small.gguf")


def test_digits_that_the_reader_would_join_are_split(files, original):
    with pytest.warns(ZopeftWarning, match="split as for smollm"):
        _, tokenizer = load_model(str(files / "digits"))
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("In 1987")
    assert [piece for piece, _ in split][-4:] == ["1", "9", "8", "7"]


def test_an_unknown_way_of_splitting_is_told(files):
    with pytest.warns(ZopeftWarning, match="of-tomorrow"):
        load_model(str(files / "strange"))


def test_an_adapter_and_full_weights_are_saved_and_found_again(files, tmp_path, capsys):
    base = ["--task", "sst2", "--data", str(DATA_DIR / "sst2"), "--steps", "2", "--lr", "1e-3"]
    base += ["task.train_examples=16", "task.eval_examples=4", "training.eval_before=false"]
    file = str(files / "eight" / "small.gguf")
    lora, full = tmp_path / "lora", tmp_path / "full"
    assert main(["tune", file, "--lora", *base, "--out", str(lora), "--json"]) == 0
    tuned = json.loads(capsys.readouterr().out)
    assert json.loads((lora / "adapter_config.json").read_text())["base_model_name_or_path"] == file
    score = ["--task", "sst2", "--data", str(DATA_DIR / "sst2"), "task.eval_examples=4", "--json"]
    assert main(["eval", "--adapter", str(lora), *score]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["metrics"]["loss"] == pytest.approx(tuned["metrics"]["after"]["loss"], rel=1e-5)
    assert main(["tune", file, "--full", *base, "--out", str(full)]) == 0
    capsys.readouterr()
    assert "quantization_config" not in json.loads((full / "config.json").read_text())
    assert main(["eval", str(full), *score]) == 0


def test_the_outline_is_read_without_the_weights(files):
    outline = skeleton(str(files / "eight" / "small.gguf"))
    assert outline.device.type == "meta"
    assert sum(p.numel() for p in outline.parameters()) == 877_952


def test_what_cannot_be_read_is_one_line(files, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="load-in-8bit"):
        load_model(str(files / "float"), load_in_8bit=True)
    (tmp_path / "a.gguf").write_bytes(b"GGML then")
    with pytest.raises(InputError, match="not a GGUF file"):
        load_model(str(tmp_path))
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match="2 GGUF files"):
        resolve(str(tmp_path))
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gguf" else found(name)
    )
    with pytest.raises(InputError, match="pip install gguf"):
        load_model(str(files / "float"))


def test_a_file_on_the_hub_is_named_by_repository_and_file():
    source = resolve("someone/model-GGUF/model-q4_k_m.gguf")
    assert (source.path, source.gguf) == ("someone/model-GGUF", "model-q4_k_m.gguf")
    assert not source.local
    with pytest.raises(InputError, match="no such folder"):
        resolve("a/b/c/model.gguf")
