"""The job of ``zopeft import-finetuner``: a released fine-tuner becomes an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zopeft.errors import InputError, input_error
from zopeft.jobs.claim import Claim, holds_files, unwritable
from zopeft.jobs.progress import Listener, Progress, ignore

if TYPE_CHECKING:
    from zopeft.blocks import Blocks
    from zopeft.models import ModelSource


def import_finetuner(
    file: str | Path,
    model: str,
    out: str | Path | None = None,
    batch_size: int = 16,
    overwrite: bool = False,
    listener: Listener = ignore,
) -> dict[str, Any]:
    """Converts a fine-tuner that the paper's authors released, and saves it.

    The names in the file say roles and layers. Where the model's configuration can be had
    (a folder, the hub or its cache), the file is checked against it as well; no weights are
    read.

    Args:
        file: The authors' ``.pth`` file.
        model: Alias, hub id or folder of the model that it was learned on.
        out: Folder of the artifact; None takes the file's name without its ending.
        batch_size: Examples a step of the tuning runs to come: the authors' weight of an
            embedding depends on it.
        overwrite: Whether an artifact in the folder may be replaced.
        listener: Is told what was checked.

    Returns:
        ``out``, ``model``, ``groups``, ``layers``, ``architecture``, ``checked`` (whether
        against a configuration), ``unserved`` (blocks of the model without a network) and
        ``embed_rows``.

    Raises:
        InputError: The file or the model is at fault, or the folder holds files.
    """
    from zopeft.models import resolve

    source = resolve(model)
    folder = Path(out).expanduser() if out is not None else Path(Path(file).stem)
    if folder.exists() and not folder.is_dir():
        raise input_error("--out", "is a file", str(folder), "give a folder")
    try:
        claim = Claim(folder)
    except OSError as error:
        raise unwritable(folder, error) from None
    with claim:
        if holds_files(folder) and not overwrite:
            do = "choose another folder, or --overwrite"
            raise input_error("--out", "the folder holds files", str(folder), do)
        return _imported(file, source, folder, batch_size, listener)


def _imported(
    file: str | Path, source: ModelSource, folder: Path, batch_size: int, listener: Listener
) -> dict[str, Any]:
    """Converts the file into a folder."""
    from zopeft.finetuner.legacy import import_pickle

    blocks = _blocks(source, listener)
    finetuner = import_pickle(file, source.path, batch_size, blocks=blocks)
    config = finetuner.config
    keys = {group.key for group in config.groups}
    unserved = [] if blocks is None else [b.key for b in blocks if b.key not in keys]
    finetuner.save_pretrained(folder, overwrite=True)
    return {
        "out": str(folder),
        "model": config.base_model,
        "groups": len(config.groups),
        "layers": config.num_layers,
        "architecture": config.architecture,
        "checked": blocks is not None,
        "unserved": unserved,
        "embed_rows": config.embed_rows,
    }


def _blocks(source: ModelSource, listener: Listener) -> Blocks | None:
    """Returns the model's blocks without weights, or None where its configuration is not to be had.

    Raises:
        InputError: A folder was given, and holds no usable configuration.
    """
    from zopeft.blocks import discover
    from zopeft.models.skeleton import skeleton

    try:
        return discover(skeleton(source), "full")
    except InputError as problem:
        if source.local:
            raise
        note = f"roles and layers come from the file's names alone: {problem}"
        listener(Progress("import", note=note))
        return None
