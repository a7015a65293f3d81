"""The result of a run: a folder that others load without zopeft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zopeft.blocks.packing import keep_unpacked
from zopeft.blocks.peft import base_of
from zopeft.blocks.shards import gathered_state, how_sharded, leads
from zopeft.errors import run_error
from zopeft.models.soundness import spoilt
from zopeft.staging import staged_files


def save_result(model: Any, tokenizer: Any, out: str | Path) -> Path:
    """Writes a model or adapter folder, and its tokenizer.

    A `PeftModel` gives a normal adapter folder (``PeftModel.from_pretrained`` loads it),
    any other model a model folder. Files are written beside and moved into place, so that
    none is ever seen half written. Where processes hold the model together all of them call it,
    and the first one writes.

    Args:
        model: The trained model.
        tokenizer: Its tokenizer; None to leave it out.
        out: The folder; what else it holds is left alone.

    Returns:
        The folder.

    Raises:
        RunError: A weight is not finite; nothing has been written.
    """
    # Of what processes hold together each sees a part, and all of them must go on alike.
    found = "" if how_sharded(model) else spoilt(model)
    if found:
        do = "nothing was written; lower --lr, or use a wider --dtype"
        raise run_error("result", f"has weights that are not finite: {found}", do=do)
    keep_unpacked(model)
    out = Path(out)
    gathered = None
    if how_sharded(model):
        gathered = gathered_state(model)
        if not leads(model):
            return out
    out.mkdir(parents=True, exist_ok=True)
    with staged_files(out) as place:
        if gathered is None:
            _save(model, place)
        else:
            _save_gathered(model, place, gathered)
        if tokenizer is not None:
            tokenizer.save_pretrained(place)
    return out


def _save(model: Any, folder: Path) -> None:
    try:
        model.save_pretrained(folder)
    except NotImplementedError:
        # transformers 5.23 knows no way back for the tensors of a model that it read from a
        # torchao folder; as they are in memory, they are in the form of that folder.
        model.save_pretrained(folder, save_original_format=False)


def _save_gathered(model: Any, folder: Path, state: dict[str, Any]) -> None:
    """Writes what processes hold together as one of them would that held all of it."""
    config: Any = base_of(model).config
    shared = config.__dict__.pop("distributed_config", None)
    try:
        model.save_pretrained(folder, state_dict=state)
    finally:
        if shared is not None:
            config.distributed_config = shared
