"""Sources: where a model comes from, found out before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zopeft.errors import InputError, close_matches, input_error
from zopeft.hub import is_repository
from zopeft.models.aliases import MODELS
from zopeft.models.gguf import SUFFIX

EMBEDDED = "embedded"
"""What the model in the package is called, where no folder of that name is meant."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        path: A folder or a hub id, for ``from_pretrained``.
        alias: The alias that named it, if one did.
        embedded: True for the model inside the package.
        gated: True where the hub is known to ask for a login.
        local: True where `path` is a folder.
        gguf: Name of the GGUF file in it that holds the model; None for a usual folder.
    """

    path: str
    alias: str | None = None
    embedded: bool = False
    gated: bool = False
    local: bool = False
    gguf: str | None = None

    @property
    def label(self) -> str:
        """What names the model and can be resolved again: a folder, id, or GGUF file in one."""
        return self.path if self.gguf is None else f"{self.path}/{self.gguf}"

    @property
    def files(self) -> dict[str, str]:
        """The argument of ``from_pretrained`` that names the file, if there is one."""
        return {} if self.gguf is None else {"gguf_file": self.gguf}


def resolve(name: str | None = None) -> ModelSource:
    """Returns the source that `name` means; looks at no network.

    A folder comes first, then an alias, then a hub id.

    Args:
        name: An alias, a folder, a GGUF file or a folder of one, a hub id
            ``organisation/name`` or a GGUF file there (``organisation/name/FILE.gguf``), or None
            or "embedded" for the model in the package.

    Raises:
        InputError: `name` is none of these, or a folder of several GGUF files.
    """
    folder = Path(name or EMBEDDED).expanduser()
    if name is not None and folder.is_dir():
        return ModelSource(str(folder), local=True, gguf=_only_gguf(folder))
    if name is None or name.lower() == EMBEDDED:
        from zopeft.embedded import MODEL_DIR

        return ModelSource(str(MODEL_DIR), embedded=True, local=True)
    if folder.is_file() and folder.suffix.lower() == SUFFIX:
        return ModelSource(str(folder.parent), local=True, gguf=folder.name)
    if folder.is_file():
        raise input_error("model", "a file where a folder is needed", name, "give its folder")
    if name.lower() in MODELS:
        alias = MODELS[name.lower()]
        return ModelSource(alias.path, alias=name.lower(), gated=alias.gated)
    if is_repository(name):
        gated = any(MODELS[alias].path == name and MODELS[alias].gated for alias in MODELS)
        return ModelSource(name, gated=gated)
    repository, _, file = name.rpartition("/")
    if file.lower().endswith(SUFFIX) and is_repository(repository):
        return ModelSource(repository, gguf=file)
    raise _unknown(name)


def _only_gguf(folder: Path) -> str | None:
    """The GGUF file of a folder that holds no other model.

    Raises:
        InputError: There are several.
    """
    if any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
        return None
    files = sorted(file.name for file in folder.glob("*") if file.suffix.lower() == SUFFIX)
    if len(files) > 1:
        do = f"give one of them: {folder / files[0]}"
        raise input_error("model", f"{len(files)} GGUF files in this folder", str(folder), do)
    return files[0] if files else None


def _unknown(name: str) -> InputError:
    if "/" in name or "\\" in name or name.startswith((".", "~")):
        return input_error("model", "no such folder", name, "check the path")
    return input_error(
        "model",
        "unknown model",
        name,
        close_matches(name, MODELS) + " A folder or a hub id (organisation/name) works too",
    )
