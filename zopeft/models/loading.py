"""Loading: a model and its tokenizer from a folder, the hub's cache or the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zopeft import hub
from zopeft.blocks.packing import keep_unpacked
from zopeft.errors import InputError, close_matches, input_error, panicked, warn
from zopeft.models.checkpoint import check_folder, read_json
from zopeft.models.counts import check_counts
from zopeft.models.gguf import check_gguf, check_reader, dense, mend
from zopeft.models.quantization import quantization_config
from zopeft.models.quiet import quiet
from zopeft.models.sharding import check_loaded, check_sharded, sharding_options
from zopeft.models.skeleton import check_size
from zopeft.models.source import ModelSource, resolve

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES: dict[str, str] = {
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
}
"""Accepted names of dtypes, besides ``auto``."""


def load_model(
    source: ModelSource | str | None = None,
    dtype: str | torch.dtype = "auto",
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
    device: str | torch.device | None = None,
    quant_type: Literal["nf4", "fp4"] = "nf4",
    double_quant: bool = False,
    offload_folder: str | Path | None = None,
    max_memory: Mapping[str, int | str] | None = None,
    sharded: Literal["none", "tensor", "fsdp"] = "none",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal language model and its tokenizer, ready for evaluation.

    Args:
        source: What `resolve` returns, or what it takes.
        dtype: "auto" (float32 on a CPU, the checkpoint's own elsewhere), "float32",
            "bfloat16", "float16", or a torch dtype.
        load_in_8bit: Quantise the linear layers to int8 (bitsandbytes).
        load_in_4bit: Quantise the linear layers to 4 bit (bitsandbytes).
        device: Where to put the model; None is the first GPU, or the CPU without one;
            "auto" spreads it over all GPUs, then the CPU, then the disk.
        quant_type: The 16 values of a 4-bit weight: "nf4" or "fp4".
        double_quant: Quantise the 4-bit weights' scales, too.
        offload_folder: Where weights go that find no other room, and copies of those that
            are trained; needed to train weights that are on disk.
        max_memory: Most memory that "auto" takes of a device, by "0", "1", ... and "cpu", in
            bytes or as "10GB".
        sharded: How the processes that were started together hold the model: "none" (each all
            of it), "tensor" (tensor parallelism, by the model's own plan) or "fsdp" (FSDP2:
            each layer is gathered for its forward pass).

    Returns:
        The model in eval mode and its tokenizer. The tokenizer is left as it is: one
        without a padding token stays so.

    Raises:
        InputError: The folder, the weights, the hub or the login is at fault; one line
            says which and what to do.
    """
    import torch

    if not isinstance(source, ModelSource):
        source = resolve(source)
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_cpu = str(place) == "cpu" or (place == "auto" and not torch.cuda.is_available())
    chosen = _dtype(dtype, on_cpu)
    if source.local:
        if source.gguf:
            check_gguf(Path(source.label))
        else:
            check_folder(Path(source.path))
        check_size(source)
    elif source.gguf:
        check_reader(source.label)
    check_sharded(sharded, source, load_in_8bit or load_in_4bit, device)
    offline = not source.local and not hub.reachable()
    compute = torch.float32 if on_cpu else _half() if chosen == "auto" else chosen
    quantised = quantization_config(load_in_8bit, load_in_4bit, compute, quant_type, double_quant)
    options: dict[str, Any] = {"dtype": chosen}
    if source.gguf:
        options = dense(source, on_cpu, chosen, quantised is not None)
    elif quantised is not None:
        _refuse_second(source)
        options |= {"quantization_config": quantised, "dtype": compute}
    if sharded != "none":
        options |= sharding_options(sharded)
    elif place == "auto":
        options |= _spread(offload_folder, max_memory)
    elif quantised is not None or not on_cpu:
        options["device_map"] = {"": str(place)}
    with quiet(relay=True), hub.cache_only(offline):
        tokenizer = load_tokenizer(source, offline)
        model = _model(source, offline, options)
        if source.gguf:
            mend(model, tokenizer, source)
    check_loaded(model, sharded, source.label)
    keep_unpacked(model)
    return model.eval(), tokenizer


def _refuse_second(source: ModelSource) -> None:
    """Refuses to quantise a folder's model again: transformers would leave it as it is."""
    if source.local and "quantization_config" in read_json(Path(source.path) / "config.json"):
        raise input_error(
            source.path,
            "the model is quantised already",
            do="leave --load-in-8bit and --load-in-4bit out",
        )


def _spread(
    offload_folder: str | Path | None, max_memory: Mapping[str, int | str] | None
) -> dict[str, Any]:
    """Returns transformers' options for a model over all devices."""
    options: dict[str, Any] = {"device_map": "auto"}
    if offload_folder is not None:
        options["offload_folder"] = str(offload_folder)
    if max_memory:
        for name, amount in max_memory.items():
            if not (name.isdigit() or name in ("cpu", "mps")):
                raise input_error(
                    "max_memory", "no device of that name", name, 'use "0", "1", ... or "cpu"'
                )
            options.setdefault("max_memory", {})[int(name) if name.isdigit() else name] = amount
    return options


def _dtype(dtype: str | torch.dtype, on_cpu: bool) -> Any:
    import torch

    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if on_cpu else "auto"
    if dtype not in DTYPES:
        raise input_error(
            "--dtype", "unknown dtype", dtype, close_matches(dtype, ["auto", *DTYPES])
        )
    return getattr(torch, DTYPES[dtype])


def _half() -> torch.dtype:
    import torch

    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def load_tokenizer(source: ModelSource, offline: bool = False) -> PreTrainedTokenizerBase:
    """Loads a model's tokenizer.

    Args:
        source: What `resolve` returns.
        offline: Whether the hub is known to be out of reach.

    Raises:
        InputError: There is none, or none that can be used.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, **source.files)
        special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", ())}
        # Some files are read, and then give a tokenizer that reads nothing.
        tokenizer("a")
    except BaseException as error:
        if not isinstance(error, Exception) and not panicked(error):
            raise
        if not source.local and isinstance(error, Exception):
            raise _hub_error(source, offline, error) from error
        raise _no_tokenizer(source, _first_line(error)) from error
    if len(tokenizer) <= len(special):
        # Without files, transformers makes a tokenizer of its class's special tokens alone.
        raise _no_tokenizer(source, f"a {type(tokenizer).__name__} without a vocabulary")
    return tokenizer


def _no_tokenizer(source: ModelSource, why: str) -> InputError:
    if not source.local:
        do = "give the folder of a local copy that has the base model's tokenizer files"
        return input_error(source.label, f"no usable tokenizer there ({why})", do=do)
    do = "copy the base model's tokenizer files into it"
    return input_error(source.label, f"no usable tokenizer in this folder ({why})", do=do)


def _model(source: ModelSource, offline: bool, options: dict[str, Any]) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM, PreTrainedConfig

    try:
        if not source.local and not source.gguf:
            told, _ = PreTrainedConfig.get_config_dict(source.path)
            check_counts(told, f"{source.label}/config.json")
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.path, output_loading_info=True, **options
        )
        model, info = loaded
    except InputError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not panicked(error):
            raise
        if not source.local and isinstance(error, OSError):
            raise _hub_error(source, offline, error) from error
        if type(error).__name__ == "OutOfMemoryError":
            raise
        raise input_error(
            source.label,
            f"the model can't be loaded ({_first_line(error)})",
            do="check the folder against the config.json in it",
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        # transformers would go on with random numbers in their place.
        raise input_error(
            source.label,
            f"{len(missing)} of the model's tensors are not in its weight files",
            ", ".join(missing[:3]),
            "copy or download the folder again",
        )
    unread = sorted(info["unexpected_keys"])
    if unread:
        warn(
            source.label,
            f"{len(unread)} of the tensors in its weight files have no place in"
            f" {type(model).__name__} and are left out",
            ", ".join(unread[:3]),
        )
    return model


def _hub_error(source: ModelSource, offline: bool, error: Exception) -> InputError:
    """One line for everything that goes wrong between here and the hub."""
    name = source.alias or source.label
    text = str(error).lower()
    login = "accept its licence on its hub page and log in with `hf auth login`"
    if offline or "couldn't connect" in text:
        do = "give the folder of a local copy as MODEL, or no MODEL for the embedded one"
        if source.gated:
            do += f"; with a network, the model is gated: {login}"
        here = "" if source.alias else "no folder of that name here, "
        return input_error(
            name,
            f"{here}the hub can't be reached and {source.path} was not downloaded before",
            do=do,
        )
    if "gated" in text or "401" in text or "403" in text:
        return input_error(name, f"{source.path} needs a login", do=login)
    if "not a valid model identifier" in text or "404" in text or "not found" in text:
        return input_error(
            name,
            "no such model on the hub",
            source.path,
            "check the id, or log in if it is private",
        )
    return input_error(
        name,
        f"{source.path} can't be loaded from the hub ({_first_line(error)})",
        do="try again, or give the folder of a local copy as MODEL",
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    return line if len(line) <= 160 else line[:157] + "..."
