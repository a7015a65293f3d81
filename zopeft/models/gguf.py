"""GGUF: one file that holds a model's weights, often quantised, its tokenizer and its settings.

transformers reads such files, and unpacks the weights into a dense model. What its reader leaves
wrong is mended here and told: the model's length is not the tokenizer's, settings in float32
become long decimals, and some ways of splitting texts before BPE are not known to it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zopeft.errors import input_error, warn
from zopeft.models.counts import check_counts

if TYPE_CHECKING:
    from zopeft.models.source import ModelSource

SUFFIX = ".gguf"
MAGIC = b"GGUF"
UNLIMITED = 10**20
"""A tokenizer's length from which on it has none."""
DIGITS = frozenset(
    ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
)
"""Ways of splitting that are GPT-2's, with each digit by itself."""
PLAIN = frozenset(
    ("default", "gpt-2", "phi-2", "mpt", "olmo", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de")
)
"""Ways of splitting that are GPT-2's, which is what the reader takes where it knows none."""
BYTE_LEVEL = "gpt2"
"""What the file calls a byte-level BPE."""


def check_gguf(path: Path) -> None:
    """Checks that a file can be read as GGUF here.

    Raises:
        InputError: It is none, it claims more layers than any model has, or the package that
            reads it is not installed.
    """
    try:
        with path.open("rb") as file:
            begins = file.read(len(MAGIC))
    except OSError as error:
        raise input_error(str(path), f"cannot be read ({error.strerror})") from None
    if begins != MAGIC:
        raise input_error(str(path), "not a GGUF file", do="download it again")
    check_reader(str(path))
    try:
        settings = settings_of(path)
    except Exception:
        return  # What cannot be read, the loader says.
    check_counts(settings, str(path))


def settings_of(path: str | Path) -> dict[str, Any]:
    """Returns the settings in a file, by name: of the model, ``llama.block_count``, and others."""
    from transformers.integrations.gguf.reader import read_gguf_metadata

    metadata, _ = read_gguf_metadata(str(path))
    return dict(metadata)


def check_reader(name: str) -> None:
    """Refuses GGUF where the package that reads it is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise input_error(name, "GGUF is read by a package that is not here", do="pip install gguf")


def dense(source: ModelSource, on_cpu: bool, dtype: Any, quantise: bool) -> dict[str, Any]:
    """Returns the arguments by which transformers makes a dense model of the file.

    Args:
        source: The model's source.
        on_cpu: Whether it will be on a CPU.
        dtype: Torch dtype of the weights, or "auto": float32 on a CPU, 16 bit elsewhere.
        quantise: Whether the user wants it quantised while it is loaded.

    Raises:
        InputError: It is to be quantised.
    """
    import torch
    from transformers import GgufConfig

    if quantise:
        raise input_error(
            source.label,
            "a GGUF model is unpacked while it is loaded and not packed again",
            do="leave --load-in-8bit and --load-in-4bit out, or give the original model",
        )
    if dtype == "auto":
        half = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        dtype = torch.float32 if on_cpu else half
    packing = GgufConfig(dequantize=True)
    return {"gguf_file": source.gguf, "quantization_config": packing, "dtype": dtype}


def mend(model: Any, tokenizer: Any, source: ModelSource) -> None:
    """Sets right what the reader leaves wrong, in place, and tells what that was.

    Args:
        model: The model that was read.
        tokenizer: Its tokenizer.
        source: Where they came from.
    """
    import numpy as np

    config = model.config
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config  # The weights are plain ones.
    config._name_or_path = model.name_or_path = source.label
    done = []
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    if length and tokenizer.model_max_length > UNLIMITED:
        tokenizer.model_max_length = int(length)
        done.append(f"the tokenizer's length is {length}")
    for name in ("rms_norm_eps", "layer_norm_eps"):
        given = getattr(config, name, None)
        if isinstance(given, float) and float(str(np.float32(given))) != given:
            short = float(str(np.float32(given)))
            setattr(config, name, short)
            for module in model.modules():
                for held in ("variance_epsilon", "eps"):
                    if getattr(module, held, None) == given:
                        setattr(module, held, short)
            done.append(f"{name} is {short:g}")
    done += _split(tokenizer, source)
    if done:
        warn(source.label, f"read from GGUF, and mended: {', '.join(done)}")


def _split(tokenizer: Any, source: ModelSource) -> list[str]:
    """Sets how texts are split before BPE, where the reader does not know the file's way."""
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    from transformers.utils.hub import cached_file

    metadata = settings_of(str(cached_file(source.path, str(source.gguf))))
    way = str(metadata.get("tokenizer.ggml.pre", "default"))
    known = way in GGUF_PRE_TOKENIZER_SPLITS or way in PLAIN
    if metadata.get("tokenizer.ggml.model") != BYTE_LEVEL or known:
        return []
    if way in DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
        return [f"texts are split as for {way}, each digit by itself"]
    warn(
        source.label,
        f"the file's way of splitting texts ({way}) is not known here, and GPT-2's is taken",
        do="compare with the original tokenizer before you trust a score",
    )
    return []
