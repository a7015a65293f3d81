"""What a run leaves is loaded by others without zopeft."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from training_run import digest, tiny_model, trainer, with_lora
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from zopeft.training import save_result


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="a")


def test_an_adapter_folder_is_a_normal_one(tmp_path):
    from peft import PeftModel

    made = trainer(with_lora(tiny_model()), tmp_path)
    made.train()
    save_result(made.model, tokenizer(), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert {"journal.bin", "journal_start.safetensors"} <= names
    assert not [name for name in names if name.startswith(".")]
    assert digest(PeftModel.from_pretrained(tiny_model(), tmp_path)) == digest(made.model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_folder_is_a_normal_one(tmp_path, dtype):
    made = trainer(tiny_model(dtype), tmp_path / "out", max_steps=3)
    made.train()
    out = save_result(made.model, tokenizer(), tmp_path / "result")
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.dtype == dtype
    assert digest(loaded) == digest(made.model)
    assert AutoTokenizer.from_pretrained(out)("a b")["input_ids"] == [0, 1]


def test_a_save_that_fails_leaves_what_was_there(tmp_path):
    class Breaking(nn.Module):
        def save_pretrained(self, folder):
            (Path(folder) / "model.safetensors").write_bytes(b"half")
            raise OSError("no space left")

    (tmp_path / "model.safetensors").write_bytes(b"whole")
    with pytest.raises(OSError, match="no space left"):
        save_result(Breaking(), None, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == b"whole"


def test_a_model_that_has_no_way_back_is_saved_as_it_is(tmp_path):
    """As transformers does for a model that it read from a torchao folder."""

    class Model(nn.Module):
        def save_pretrained(self, folder, save_original_format=True):
            if save_original_format:
                raise NotImplementedError
            (folder / "model.safetensors").write_bytes(b"weights")

    save_result(Model(), None, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == b"weights"
