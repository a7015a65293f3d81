"""A small model, and the files that there are of one: weights, adapters, tokenizers."""

from __future__ import annotations

import json
import random
import re
import struct
import sys
import tempfile
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from fuzz_damage import (
    EXTREMES,
    bytes_damaged,
    json_damaged,
    pickle_damaged,
    tensors_damaged,
)
from fuzz_reader import Reader

from zopeft.embedded import MODEL_DIR

BASE = "somebody/tiny"
"""What the small model is called where an adapter names its base."""


def model(width: int = 16, vocabulary: int = 97) -> Any:
    """Returns a small model, always the same."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
            )
        ).eval()


@cache
def _base() -> Any:
    return model()


def fresh() -> Any:
    """Returns a model of one's own; to build one takes longer."""
    return deepcopy(_base())


def read_from(folder: Path) -> dict[str, bytes]:
    """Returns the files of a folder, name to content."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def adapter() -> dict[str, bytes]:
    """A LoRA as PEFT saves it."""
    return _saved("lora")


def prefix() -> dict[str, bytes]:
    """A prefix as PEFT saves it."""
    return _saved("prefix")


@cache
def _saved(kind: str) -> dict[str, bytes]:
    from zopeft.models import attach

    with tempfile.TemporaryDirectory() as place:
        attach(model(), kind).save_pretrained(place)
        found = read_from(Path(place))
    told = json.loads(found["adapter_config.json"]) | {"base_model_name_or_path": BASE}
    return {
        "adapter_config.json": json.dumps(told).encode(),
        "adapter_model.safetensors": found["adapter_model.safetensors"],
    }


@cache
def pickled_adapter() -> dict[str, bytes]:
    """A LoRA as PEFT saved it before there was safetensors."""
    import io

    from safetensors.torch import load

    files, file = adapter(), io.BytesIO()
    torch.save(load(files["adapter_model.safetensors"]), file)
    return {
        "adapter_config.json": files["adapter_config.json"],
        "adapter_model.bin": file.getvalue(),
    }


def read_adapter(folder: Path) -> None:
    """Loads an adapter onto a small model."""
    from zopeft.models import load_adapter

    base = fresh()
    base.config._name_or_path = BASE
    load_adapter(base, folder)


@cache
def model_folder() -> dict[str, bytes]:
    """A small model with a tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    with tempfile.TemporaryDirectory() as place:
        model(8, len(tokenizer)).save_pretrained(place)
        tokenizer.save_pretrained(place)
        return read_from(Path(place))


@cache
def shards() -> dict[str, bytes]:
    """A small model in two files."""
    with tempfile.TemporaryDirectory() as place:
        model(8, 60).save_pretrained(place, max_shard_size="4KB")
        found = read_from(Path(place))
    return {name: content for name, content in found.items() if not name.startswith("generation")}


def read_model(folder: Path) -> None:
    """Loads model and tokenizer."""
    from zopeft.models import load_model

    load_model(str(folder), "float32", device="cpu")


def read_tokenizer(folder: Path) -> None:
    """Loads a tokenizer and reads a text with it."""
    from zopeft.models import resolve
    from zopeft.models.loading import load_tokenizer

    load_tokenizer(resolve(str(folder)))("Tom has a ball.")


def read_shards(folder: Path) -> None:
    """Checks a model's folder before it is loaded: its config, its index, its files."""
    from zopeft.models.checkpoint import check_folder

    check_folder(folder)


@cache
def packed() -> dict[str, bytes]:
    """A small model with a tokenizer of single bytes in one file of GGUF."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    try:
        from gguf_files import write_gguf
    finally:
        sys.path.pop()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: n for n, word in enumerate(("<s>", "</s>", "<pad>", *letters, "th"))}
    inner = Tokenizer(models.BPE(words, [("t", "h")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    told = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **told)
    with tempfile.TemporaryDirectory() as place:
        write_gguf(Path(place) / "small.gguf", model(8, len(words)), tokenizer)
        return read_from(Path(place))


def gguf_damaged(content: bytes, dice: random.Random) -> bytes:
    """Damages what a file of GGUF says of itself, or the whole."""
    end = content.rindex(b".weight") + 48
    match dice.randrange(4):
        case 0:
            return bytes_damaged(content, dice)
        case 1:
            return bytes_damaged(content[:end], dice) + content[end:]
        case 2:
            # The place of a name, and what stands before it: a length, a kind.
            names = [at.start() for at in re.finditer(rb"[a-z_]{3,}[.]", content[:end])]
            at = max(0, dice.choice(names) - dice.randrange(1, 16))
        case _:
            # Version, how many tensors and settings.
            at = dice.randrange(4, 24)
    number = struct.pack("<Q", dice.choice(EXTREMES))[: dice.choice((1, 4, 8))]
    return content[:at] + number + content[at + len(number) :]


def read_gguf(file: Path) -> None:
    """Loads model and tokenizer of one file."""
    from zopeft.models import load_model

    load_model(str(file), "float32", device="cpu")


def read_outline(file: Path) -> None:
    """Makes the outline of a model from its configuration, as `blocks` and `estimate` do."""
    from zopeft.models.skeleton import skeleton

    skeleton(str(file.parent))


def _damaged(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, json_damaged)


READERS = (
    Reader(
        "adapter",
        adapter,
        {"adapter_config.json": json_damaged, "adapter_model.safetensors": tensors_damaged},
        read_adapter,
        folder=True,
    ),
    Reader(
        "prefix",
        prefix,
        {"adapter_config.json": json_damaged, "adapter_model.safetensors": tensors_damaged},
        read_adapter,
        folder=True,
    ),
    Reader("outline", model_folder, {"config.json": json_damaged}, read_outline),
    Reader(
        "pickled",
        pickled_adapter,
        {"adapter_model.bin": pickle_damaged},
        read_adapter,
        folder=True,
    ),
    Reader(
        "model",
        model_folder,
        {"config.json": json_damaged, "model.safetensors": tensors_damaged},
        read_model,
        folder=True,
    ),
    Reader(
        "shards",
        shards,
        _damaged("model.safetensors.index.json", "config.json"),
        read_shards,
        folder=True,
        depth="weights are not loaded",
    ),
    Reader(
        "tokenizer",
        model_folder,
        _damaged("tokenizer.json", "tokenizer_config.json"),
        read_tokenizer,
        folder=True,
    ),
    Reader("gguf", packed, {"small.gguf": gguf_damaged}, read_gguf),
)
