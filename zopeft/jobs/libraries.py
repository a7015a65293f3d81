"""The libraries of a job, imported in one go, while Python's garbage collector is held back.

torch, transformers and what they bring make half a million objects that stay to the end of the
process. The collector walks them again and again while they come, and in every full collection from
then on, of which a Trainer starts one itself, and Python another as it ends: a quarter of the time
of a short run. A process that does one job and nothing else holds it back until they are there, and
then has it pass over them for good. In a program of somebody else's nothing of it happens.
"""

from __future__ import annotations

import gc
import importlib
from pathlib import Path
from typing import Any

LIBRARIES = ("peft", "transformers.models.auto.modeling_auto", "zopeft.models.loading")
"""What a job on a model imports, besides its own."""


class Collector:
    """The garbage collector of this process.

    Attributes:
        held: Whether it is held back until the libraries are there.
    """

    held = False


def hold_collector() -> None:
    """Holds the collector back until `load_libraries` is through."""
    if gc.isenabled():
        gc.disable()
        Collector.held = True


def load_libraries(*own: str) -> None:
    """Imports what is about to be used, where the collector is held back for it, and lets it go.

    Objects that hold each other in a circle and were made until then are never collected; all
    others are freed as ever.

    Args:
        *own: Modules of the job, besides `LIBRARIES`.
    """
    if not Collector.held:
        return
    try:
        from transformers.utils import import_utils

        read_models_once(import_utils)
        for name in (*LIBRARIES, *own):
            importlib.import_module(name)
    finally:
        Collector.held = False
        gc.freeze()
        gc.enable()


def read_models_once(reader: Any) -> None:
    """Has transformers not read the files of its models a second time.

    It (5.23) reads all 1,600 for the names in them as it is imported, and again for its package
    of models: of what it found, by `lru_cache`, it keeps the last 128 folders of 500, among them
    the whole, but under another name.

    Args:
        reader: Its module ``transformers.utils.import_utils``.
    """
    read: Any = getattr(reader, "create_import_structure_from_path", None)
    if not hasattr(read, "cache_info"):
        return

    def read_folder(*args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or kwargs:
            return read(*args, **kwargs)
        # At first it is given the folder, as a path, and then a file in it, as text.
        path = Path(args[0])
        return read(path.parent if path.is_file() else path)

    reader.create_import_structure_from_path = read_folder
