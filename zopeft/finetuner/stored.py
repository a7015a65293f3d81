"""A fine-tuner as data: configuration, networks and bases, copied, saved and shared."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from zopeft.finetuner import storage
from zopeft.finetuner.bases import Basis
from zopeft.finetuner.config import FineTunerConfig
from zopeft.finetuner.pertnn import PertNN


class Stored:
    """What a `FineTuner` holds, and its way to the disk and the hub and back.

    Args:
        config: The group table and how the networks are used.
        nets: The networks, one a group.
        bases: Group to the basis learned for it; None for none.
    """

    def __init__(
        self, config: FineTunerConfig, nets: PertNN, bases: Mapping[int, Basis] | None = None
    ) -> None:
        self.config = config
        self.nets = nets
        self.bases: dict[int, Basis] = dict(bases or {})

    def copy(self) -> Self:
        """Returns an independent copy."""
        return type(self)(copy.deepcopy(self.config), copy.deepcopy(self.nets), self.bases)

    def save_pretrained(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Writes ``finetuner_config.json``, ``finetuner.safetensors`` and a card ``README.md``.

        Args:
            folder: Where to; made if it does not exist.
            overwrite: Write into a folder that holds files already.

        Returns:
            The folder.

        Raises:
            InputError: The folder is not empty and `overwrite` is off, or cannot be written.
        """
        return storage.save(self.config, self.nets, self.bases, Path(folder), overwrite)

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None) -> Self:
        """Reads a fine-tuner from a folder or from the hub.

        Args:
            name: Folder that `save_pretrained` wrote, or a hub id.
            revision: Branch, tag or commit on the hub.

        Raises:
            InputError: There is no such folder or hub id, the hub cannot be reached, or the
                files are missing, foreign or damaged.
        """
        return cls(*storage.load(storage.locate(name, revision)))

    def push_to_hub(self, repo_id: str, private: bool = False, token: str | None = None) -> str:
        """Uploads the three files; makes the repository if it does not exist.

        Args:
            repo_id: ``organisation/name``.
            private: Whether a new repository is private.
            token: Access token; None takes the one that the hub's client is logged in with.

        Returns:
            The address of the repository.

        Raises:
            InputError: The hub cannot be reached or refuses.
        """
        return storage.push(self.config, self.nets, self.bases, repo_id, private, token)

    def __repr__(self) -> str:
        c = self.config
        return f"FineTuner({c.base_model or c.architecture}, {len(c.groups)} groups, {c.space})"
