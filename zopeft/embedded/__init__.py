"""The embedded default: a small Llama, its tokenizer and samples of seven tasks.

Everything is made by the project's own generator and training script, so the whole toolkit
works without a network. In the repository ``python tools/embedded data`` and
``python tools/embedded pretrain`` make the files again.
"""

from __future__ import annotations

from pathlib import Path

MODEL_DIR: Path = Path(__file__).parent / "model"
"""Folder with the model and its tokenizer, for ``from_pretrained``."""

DATA_DIR: Path = Path(__file__).parent / "data"
"""Folder with ``<task>/train.jsonl`` and ``<task>/validation.jsonl``."""

TASKS: tuple[str, ...] = ("sst2", "cb", "copa", "boolq", "wsc", "squad", "drop")
"""Names of the tasks that have samples, in the order of the README's table."""

__all__ = ["DATA_DIR", "MODEL_DIR", "TASKS"]
