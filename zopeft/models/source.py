"""Sources: where a model comes from, found out before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zopeft.errors import InputError, close_matches, input_error
from zopeft.hub import is_repository
from zopeft.models.aliases import MODELS


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        path: A folder or a hub id, for ``from_pretrained``.
        alias: The alias that named it, if one did.
        embedded: True for the model inside the package.
        gated: True where the hub is known to ask for a login.
        local: True where `path` is a folder.
    """

    path: str
    alias: str | None = None
    embedded: bool = False
    gated: bool = False
    local: bool = False


def resolve(name: str | None = None) -> ModelSource:
    """Returns the source that `name` means; looks at no network.

    A folder comes first, then an alias, then a hub id.

    Args:
        name: An alias, a folder, a hub id ``organisation/name``, or None for the
            embedded model.

    Raises:
        InputError: `name` is none of these.
    """
    if name is None:
        from zopeft.embedded import MODEL_DIR

        return ModelSource(str(MODEL_DIR), embedded=True, local=True)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return ModelSource(str(folder), local=True)
    if folder.is_file():
        raise input_error("model", "a file where a folder is needed", name, "give its folder")
    if name.lower() in MODELS:
        alias = MODELS[name.lower()]
        return ModelSource(alias.path, alias=name.lower(), gated=alias.gated)
    if is_repository(name):
        gated = any(MODELS[alias].path == name and MODELS[alias].gated for alias in MODELS)
        return ModelSource(name, gated=gated)
    raise _unknown(name)


def _unknown(name: str) -> InputError:
    if "/" in name or "\\" in name or name.startswith((".", "~")):
        return input_error("model", "no such folder", name, "check the path")
    return input_error(
        "model",
        "unknown model",
        name,
        close_matches(name, MODELS) + " A folder or a hub id (organisation/name) works too",
    )
