"""Skeletons: a model as its configuration describes it, on the meta device, without weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zopeft import hub
from zopeft.errors import InputError, input_error
from zopeft.models.checkpoint import weight_files
from zopeft.models.counts import check_counts
from zopeft.models.gguf import check_gguf, check_reader
from zopeft.models.quiet import quiet
from zopeft.models.source import ModelSource, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG = "config.json"
DENSEST = 16
"""Numbers a byte of weight files at most: those of one bit are eight, and some may be tied."""


def load_config(source: ModelSource | str | None = None) -> Any:
    """Returns the configuration of a model; of the hub's models it alone is fetched.

    Args:
        source: What `resolve` returns, or what it takes.

    Raises:
        InputError: There is no configuration, or it cannot be had.
    """
    from transformers import AutoConfig, PreTrainedConfig

    if not isinstance(source, ModelSource):
        source = resolve(source)
    if source.gguf:
        check_gguf(Path(source.label)) if source.local else check_reader(source.label)
    elif source.local and not (Path(source.path) / CONFIG).is_file():
        raise input_error(source.path, f"no {CONFIG} in this folder", do="give a model's folder")
    offline = not source.local and not hub.reachable()
    try:
        with quiet(), hub.cache_only(offline):
            if not source.gguf:
                told, _ = PreTrainedConfig.get_config_dict(source.path)
                check_counts(told, f"{source.label}/{CONFIG}")
            return AutoConfig.from_pretrained(source.path, **source.files)
    except InputError:
        raise
    except Exception as error:  # the hub's client raises its own, httpx's and the system's
        raise _unavailable(source, error) from None


def skeleton(source: ModelSource | str | None = None, dtype: Any = None) -> PreTrainedModel:
    """Returns the model of a configuration on the meta device: shapes, names and ties only.

    Args:
        source: What `resolve` returns, or what it takes.
        dtype: Torch dtype of the weights; None for the configuration's own.

    Raises:
        InputError: There is no configuration, or it is not one of a causal language model.
    """
    if not isinstance(source, ModelSource):
        source = resolve(source)
    return outline(load_config(source), source.path, dtype)


def bits_of(config: Any) -> int | None:
    """Returns the bits of a weight that a configuration's quantisation names, None for none."""
    held = getattr(config, "quantization_config", None) or {}
    get = held.get if isinstance(held, dict) else lambda name: getattr(held, name, None)
    if get("load_in_8bit") or get("load_in_4bit"):
        return 8 if get("load_in_8bit") else 4
    bits = get("bits") or get("nbits")
    return int(bits) if bits else None


def outline(config: Any, name: str, dtype: Any = None) -> PreTrainedModel:
    """Returns the meta-device model of a configuration, as it is before quantisation.

    Args:
        config: A transformers configuration.
        name: What the model is called in messages and in its own ``_name_or_path``.
        dtype: Torch dtype of the weights; None for the configuration's own.

    Raises:
        InputError: It is not the configuration of a causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if getattr(config, "quantization_config", None) is not None:
        config = copy.deepcopy(config)
        del config.quantization_config
    try:
        with quiet(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype or config.dtype or torch.float32
            )
    except Exception as error:  # Each architecture has its own for what it cannot be made of.
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise input_error(
            name,
            f"not the configuration of a causal language model ({line[:120]})",
            do="zopeft tunes decoder models (AutoModelForCausalLM)",
        ) from None
    model.config._name_or_path = name
    model.tie_weights()
    return model.eval()


def check_size(source: ModelSource) -> None:
    """Checks that a local model is no larger than its weight files can hold.

    The loader would make and fill tensors of the size that the configuration claims, before it says
    that those in the files are of another.

    Args:
        source: A folder with weights, or a file of GGUF.

    Raises:
        InputError: It has more than `DENSEST` numbers for each byte of them.
    """
    try:
        found = skeleton(source)
    except InputError:
        return  # The loader says what is wrong.
    count = sum(parameter.numel() for parameter in found.parameters())
    files = [Path(source.label)] if source.gguf else weight_files(Path(source.path))
    size = sum(path.stat().st_size for path in files)
    if count > DENSEST * size:
        raise input_error(
            source.label if source.gguf else f"{source.path}/{CONFIG}",
            f"claims {count:,} weights, which {size:,} bytes of weight files cannot hold",
            do="copy or download the folder again",
        )


def _unavailable(source: ModelSource, error: Exception) -> InputError:
    name = source.alias or source.path
    if source.local:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, json.JSONDecodeError):
            line = "not JSON"
        return input_error(f"{source.path}/{CONFIG}", f"cannot be read ({line[:120]})")
    do = f"give a folder that holds its {CONFIG}"
    if source.gated:
        do += ", or accept its licence on its hub page and log in with `hf auth login`"
    return input_error(name, f"the {CONFIG} of {source.path} is neither here nor to be had", do=do)
