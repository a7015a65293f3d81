"""Adapters: attaching a new one by the name of its type, loading a saved one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zopeft import hub
from zopeft.blocks.offloaded import Offload, device_of
from zopeft.blocks.packing import keep_unpacked
from zopeft.errors import InputError, input_error
from zopeft.models.checkpoint import check_weights, read_json
from zopeft.models.peft_types import PEFT
from zopeft.models.quiet import quiet
from zopeft.models.tied import warn_tied
from zopeft.models.whole_start import start_whole
from zopeft.reading import is_there

if TYPE_CHECKING:
    from peft import PeftModel


def attach(
    model: Any, name: str, options: Mapping[str, Any] | None = None, seed: int = 0
) -> PeftModel:
    """Puts a new adapter of type `name` on `model`.

    Args:
        model: The base model; its own parameters are frozen.
        name: An entry of `PEFT`.
        options: Fields of the PEFT config, or ``rank``, ``alpha``, ``dropout``,
            ``targets``, ``tokens``.
        seed: Seed of the adapter's start. Torch's own generators are left as they were.

    Returns:
        The ``PeftModel`` in eval mode, its adapter trainable.

    Raises:
        InputError: Unknown type, unknown option, or the type does not fit the model.
    """
    import torch

    build = PEFT[name]
    keep_unpacked(model)
    offload = Offload(model)
    devices = [model.device] if model.device.type == "cuda" else []
    # PEFT makes an adapter where the weights are: with values shown, never on "meta".
    with quiet(relay=True), torch.random.fork_rng(devices=devices), offload.shown():
        torch.manual_seed(seed)
        tuned: PeftModel = build(model, **dict(options or {}))
        start_whole(tuned, name, build, options or {}, seed)
    warn_tied(tuned, f"peft {name}")
    offload.bring(tuned)
    if offload and any(any(getattr(m, "use_dora", {}).values()) for m in tuned.modules()):
        raise input_error(
            f"peft {name}",
            "DoRA reads weights outside their own layer, where offloaded ones are not",
            do="use lora, or keep the model on one device",
        )
    return tuned.eval()


def load_adapter(model: Any, folder: str | Path) -> PeftModel:
    """Puts a saved adapter on the model that it was trained for, ready to be trained on.

    Args:
        model: The base model.
        folder: A PEFT adapter folder, or the hub id of one.

    Returns:
        The ``PeftModel`` in eval mode, its adapter trainable. A prompt of several tasks
        takes ``task_ids`` at each forward pass.

    Raises:
        InputError: No adapter there, corrupt weights, or an adapter for another model.
    """
    keep_unpacked(model)
    name = str(folder)
    path = Path(folder).expanduser()
    config: dict[str, Any] = {}
    if path.is_dir():
        config = _check_adapter(path)
        _check_base(model, config, name)
    elif not hub.is_repository(name) or path.exists():
        raise input_error("--adapter", "no such folder", name, "give an adapter folder")
    offline = not path.is_dir() and not hub.reachable()
    try:
        with quiet(relay=True), hub.cache_only(offline):
            tuned = _load(model, name)
    except Exception as error:
        if offline:
            raise input_error(
                "--adapter",
                "no such folder, and the hub can't be reached",
                name,
                "give a local adapter folder",
            ) from error
        raise _misfit(model, config, name, error) from error
    if path.is_dir():
        _check_loaded(tuned, path, config)
    if tuned.active_peft_config.is_prompt_learning and not _prompt_fits(tuned):
        raise _other_base(model, config, name)
    warn_tied(tuned, "--adapter")
    return tuned.eval()


def _load(model: Any, name: str) -> Any:
    from peft import PeftConfig, PeftModel

    prompt = PeftConfig.from_pretrained(name).is_prompt_learning
    offload = Offload(model)
    with offload.shown():
        tuned: Any = PeftModel.from_pretrained(model, name, is_trainable=not prompt)
    offload.bring(tuned)
    if prompt:
        # PEFT loads prompts for inference alone: the vectors stand in the embedding as
        # they are used, whatever encoder made them, and can be tuned there. Those of several
        # tasks stand beside their tasks' factors.
        encoder = tuned.prompt_encoder[tuned.active_adapter]
        free = getattr(encoder, "trainable_embedding", None)  # A cartridge's own.
        (encoder.embedding.weight if free is None else free).requires_grad_(True)
        if needs_task_ids(tuned):
            encoder.requires_grad_(True)
    return tuned


def needs_task_ids(tuned: Any) -> bool:
    """Tells whether every forward pass has to say its rows' tasks (``task_ids``)."""
    return str(tuned.active_peft_config.peft_type.value) == "MULTITASK_PROMPT_TUNING"


def _prompt_fits(tuned: Any) -> bool:
    """Tries a prompt on one token: its sizes are its own config's, not the model's."""
    import torch

    config = tuned.active_peft_config
    text = tuned.config.get_text_config()
    layers = getattr(text, "num_hidden_layers", config.num_layers)
    layers -= getattr(text, "num_kv_shared_layers", 0)  # These have no keys of their own.
    if config.peft_type.value == "PREFIX_TUNING" and config.num_layers != layers:
        return False
    token = torch.zeros(1, 1, dtype=torch.long, device=device_of(tuned))
    task = {"task_ids": token[0]} if needs_task_ids(tuned) else {}
    try:
        with torch.no_grad(), quiet():
            tuned(input_ids=token, **task)
    except Exception as error:  # Of shapes, of caches of another kind of model.
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return False
    return True


def _check_adapter(path: Path) -> dict[str, Any]:
    if not (path / "adapter_config.json").is_file():
        raise input_error(
            str(path), "no adapter_config.json in this folder", do="give a PEFT adapter folder"
        )
    config = read_json(path / "adapter_config.json")
    if not isinstance(config.get("peft_type"), str):
        raise input_error(str(path / "adapter_config.json"), "no peft_type in it")
    files = [path / f"adapter_model.{kind}" for kind in ("safetensors", "bin")]
    found = [file for file in files if file.is_file()]
    if not found:
        raise input_error(str(path), "no adapter_model.safetensors in this folder")
    check_weights(found[0])
    return config


def _check_base(model: Any, config: Mapping[str, Any], name: str) -> None:
    """Refuses an adapter whose base is certainly another model.

    A folder that was moved, or a local copy of a hub model, can't be told from its name:
    there the shapes decide.
    """
    base = str(config.get("base_model_name_or_path") or "")
    here = str(getattr(model.config, "_name_or_path", "") or "")
    if not base or not here or base == here or Path(base).name.lower() == Path(here).name.lower():
        return
    there = is_there(Path(base))
    folders = there and Path(base).is_dir() and Path(here).is_dir()
    ids = hub.is_repository(base) and hub.is_repository(here)
    ids = ids and not there and not Path(here).exists()
    if ids or (folders and Path(base).resolve() != Path(here).resolve()):
        raise _other_base(model, config, name)


def _other_base(model: Any, config: Mapping[str, Any], name: str) -> InputError:
    base = config.get("base_model_name_or_path") or "another model"
    here = getattr(model.config, "_name_or_path", "") or type(model).__name__
    return input_error(
        "--adapter", f"{name} was made for {base}, the model here is {here}", do=f"give {base}"
    )


def _misfit(model: Any, config: Mapping[str, Any], name: str, error: Exception) -> InputError:
    text = str(error)
    if "size mismatch" in text or "not found in the base model" in text:
        return _other_base(model, config, name)
    line = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return input_error("--adapter", f"{name} can't be loaded ({line[:160]})")


def _check_loaded(tuned: Any, path: Path, config: Mapping[str, Any]) -> None:
    """Compares the tensors of the file with the adapter's: PEFT drops strangers silently."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    file = path / "adapter_model.safetensors"
    if not file.is_file():
        return
    with safe_open(str(file), "pt") as tensors:
        saved = set(tensors.keys())
    # Left to itself, PEFT asks the hub here whether the vocabulary was extended.
    built = set(get_peft_model_state_dict(tuned, save_embedding_layers=False))
    extended = {key for key in saved - built if "embed_tokens" in key or "lm_head" in key}
    stray = sorted((saved ^ built) - extended)
    if stray:
        error = _other_base(tuned.get_base_model(), config, str(path))
        raise InputError(f"{error} ({len(stray)} tensors don't fit, e.g. {stray[0]})")
