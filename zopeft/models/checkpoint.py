"""Checkpoint folders: what is wrong with one, said before it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zopeft.errors import InputError, input_error
from zopeft.models.counts import check_counts
from zopeft.reading import fits, is_there, read_object

_POINTER = b"version https://git-lfs"


def check_folder(folder: Path) -> None:
    """Checks that `folder` holds a whole causal language model.

    Args:
        folder: A folder as ``save_pretrained`` writes it.

    Raises:
        InputError: No or an unreadable config.json, no weights, a weight file that is
            missing, cut short or unreadable, an adapter folder, or another kind of model.
    """
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise input_error(
                str(folder),
                "this folder holds an adapter, not a model",
                do="give the base model as MODEL and this folder as the adapter",
            )
        raise input_error(
            str(folder),
            "no config.json in this folder",
            do="give a folder that save_pretrained wrote",
        )
    config = read_json(folder / "config.json")
    _check_architecture(folder, config)
    check_counts(config, str(folder / "config.json"))
    for weights in weight_files(folder):
        check_weights(weights)


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
        InputError: The file can't be read or holds no JSON object.
    """
    return read_object(path, "copy or download the folder again")


def _check_architecture(folder: Path, config: dict[str, Any]) -> None:
    """Refuses masked and sequence-to-sequence models by their own config."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        where = str(folder / "config.json")
        raise input_error(where, "architectures must be a list of names", f"{names!r:.60}")
    causal = [n for n in names if n in known or n.endswith(("CausalLM", "LMHeadModel"))]
    foreign = names and not causal and not all(n.endswith("Model") for n in names)
    kind = config.get("model_type")
    if foreign or config.get("is_encoder_decoder") or not kind:
        raise input_error(
            str(folder / "config.json"),
            "not a causal language model",
            ", ".join(names) or f"model_type {kind!r}",
            "zopeft tunes decoder models (AutoModelForCausalLM)",
        )


def weight_files(folder: Path) -> list[Path]:
    """Returns the weight files of a model folder, shards in order.

    Raises:
        InputError: There are none, or the index names a file that is not there.
    """
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).is_file():
            table = read_json(folder / index).get("weight_map", {})
            if not fits(table, "texts"):
                raise input_error(str(folder / index), "its weight_map does not name files")
            files = [folder / name for name in sorted(set(table.values()))]
            missing = [path.name for path in files if not (is_there(path) and path.is_file())]
            if missing:
                raise input_error(
                    str(folder),
                    f"{len(missing)} of {len(files)} weight files are missing",
                    ", ".join(missing[:3]),
                    "copy or download the folder again",
                )
            return files
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
    raise input_error(
        str(folder),
        "no weights in this folder (model.safetensors)",
        do="copy or download the folder again",
    )


def check_weights(path: Path) -> None:
    """Checks that a weight file is whole, without reading its tensors.

    Raises:
        InputError: The file is empty, a git-lfs pointer, cut short, or no safetensors.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(32)
        if head.startswith(_POINTER):
            raise input_error(
                str(path), "a git-lfs pointer instead of weights", do="run `git lfs pull`"
            )
        if size == 0:
            raise _corrupt(path, "the file is empty")
        if path.suffix != ".safetensors":
            return
        length = int.from_bytes(head[:8], "little")
        if size < 8 or length > size - 8:
            raise _corrupt(path, "the file is cut short or no safetensors file")
        file.seek(8)
        try:
            header = json.loads(file.read(length))
            ends = [t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"]
            whole = 8 + length + max(ends, default=0)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise _corrupt(path, "the header is unreadable") from error
    if size != whole:
        raise _corrupt(path, f"{size} bytes where its header says {whole}")


def _corrupt(path: Path, why: str) -> InputError:
    return input_error(str(path), f"corrupt weights: {why}", do="copy or download the file again")
