"""A fine-tuner's files: written whole, read with suspicion, shared through the hub."""

from __future__ import annotations

import json
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zopeft import hub
from zopeft.errors import InputError, input_error
from zopeft.finetuner.bases import Basis, is_orthonormal, stored_shapes
from zopeft.finetuner.bounded import net_shapes, nets_of
from zopeft.finetuner.card import card
from zopeft.finetuner.config import FineTunerConfig
from zopeft.finetuner.mask import FILE as MASK
from zopeft.finetuner.mask import Mask
from zopeft.finetuner.pertnn import PertNN
from zopeft.finetuner.scores import KEY, put_into, section
from zopeft.reading import read_object
from zopeft.staging import staged

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CONFIG, WEIGHTS, CARD = "finetuner_config.json", "finetuner.safetensors", "README.md"
_SHOWN = 4


def save(
    config: FineTunerConfig,
    nets: PertNN,
    bases: Mapping[int, Basis],
    mask: Mask | None,
    folder: Path,
    overwrite: bool,
) -> Path:
    """Writes the files; see `FineTuner.save_pretrained`."""
    from safetensors.torch import save as to_bytes

    if folder.exists() and not folder.is_dir():
        raise input_error("folder", "is a file", str(folder), "give a folder")
    try:
        if folder.is_dir() and any(folder.iterdir()) and not overwrite:
            raise input_error(
                "folder", "exists and is not empty", str(folder), "give another or overwrite it"
            )
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {n: t.detach().float().cpu().contiguous() for n, t in nets.state_dict().items()}
        for index, basis in bases.items():
            # Two groups may hold one tensor, which the format refuses.
            tensors |= {f"{name}.{index}": side.clone() for name, side in basis.sides.items()}
        text = json.dumps(config.to_dict(), indent=2, allow_nan=False) + "\n"
        _write(folder / WEIGHTS, to_bytes(tensors, metadata={"format": "pt"}))
        _write(folder / CONFIG, text.encode())
        _write(folder / CARD, card(config).encode())
        if mask is None:
            (folder / MASK).unlink(missing_ok=True)
        else:
            mask.save(folder / MASK)
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise input_error("folder", f"cannot be written ({reason})", str(folder)) from None
    return folder


def write_comparisons(folder: Path, found: Sequence[Mapping[str, Any]]) -> None:
    """Puts comparisons into a fine-tuner's configuration and card, and leaves all else in them.

    Raises:
        InputError: A file is missing, or a link (of the hub's cache, where files are shared), or
            cannot be written; neither is changed then.
    """
    for path in (folder / CONFIG, folder / CARD):
        if path.is_symlink():
            do = "copy the folder, links followed (cp -rL), and give the copy"
            raise input_error(str(path), "is a link to a file that others may use", do=do)
    values = read_object(folder / CONFIG)
    values["training"] = {**dict(values.get("training") or {}), KEY: list(found)}
    file = folder / CARD
    try:
        text = json.dumps(values, indent=2, allow_nan=False) + "\n"
        known = file.read_bytes() if file.exists() else None
        card_ = _card_of(values, folder) if known is None else known.decode()
        _replaced(folder / CONFIG, text.encode(), file, put_into(card_, section(found)).encode())
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise input_error("folder", f"cannot be written ({reason})", str(folder)) from None


def _replaced(first: Path, content: bytes, second: Path, other: bytes) -> None:
    """Writes two files, both or neither; files that are there keep their permissions."""
    known = second.read_bytes() if second.exists() else None
    modes = {path: path.stat().st_mode for path in (first, second) if path.exists()}
    written = False
    try:
        with staged(first) as place:
            place.write_bytes(content)
            _write(second, other)
            written = True
    except OSError:
        # The second one was moved to its place, the first one could not be.
        if written and known is None:
            second.unlink()
        elif written and known is not None:
            _write(second, known)
        raise
    finally:
        for path, mode in modes.items():
            path.chmod(stat.S_IMODE(mode))


def _card_of(values: Mapping[str, Any], folder: Path) -> str:
    return card(FineTunerConfig.from_dict(values, str(folder / CONFIG)))


def _write(path: Path, content: bytes) -> None:
    with staged(path) as place:
        place.write_bytes(content)


def load(folder: Path) -> tuple[FineTunerConfig, PertNN, dict[int, Basis], Mask | None]:
    """Reads and checks the files of a fine-tuner.

    Raises:
        InputError: A file is missing, damaged, or does not fit the other.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise input_error(
            str(folder),
            f"not a fine-tuner: has no {CONFIG}",
            do="give a folder that FineTuner.save_pretrained wrote",
        )
    values = read_object(path)
    try:
        config = FineTunerConfig.from_dict(values, str(path))
    except InputError as problem:
        where = str(path)
        if str(problem).startswith(where):
            raise
        raise InputError(f"{where}: {problem}") from None
    tensors = _checked(config, folder / WEIGHTS)
    mask = Mask.load(folder / MASK) if (folder / MASK).is_file() else None
    return config, _nets(config, tensors), _bases(tensors), mask


def _checked(config: FineTunerConfig, path: Path) -> dict[str, Tensor]:
    """Returns the file's tensors, which are those that the configuration asks for.

    Raises:
        InputError: A tensor is missing, foreign, of another shape, or not what it must be.
    """
    tensors = _tensors(path)
    groups = len(config.groups)
    wanted: Mapping[str, tuple[int, ...]] = {**net_shapes(config), **stored_shapes(config)}
    if set(tensors) != set(wanted):
        missing, foreign = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
        found = [f"no {n}" for n in missing[:_SHOWN]] + [f"also {n}" for n in foreign[:_SHOWN]]
        raise input_error(
            str(path), f"must hold the {len(wanted)} tensors {_named(wanted)}", ", ".join(found)
        )
    for name, shape in wanted.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape:
            raise input_error(
                str(path),
                f"{name} does not fit the {groups} groups of {CONFIG}, expected {list(shape)}",
                list(tensor.shape),
            )
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise input_error(str(path), f"{name} holds values that are not finite numbers")
        if "." in name and not is_orthonormal(tensor):
            raise input_error(str(path), f"{name} holds directions that are not orthonormal")
    return tensors


def _named(names: Mapping[str, Any]) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return ", ".join(list(names)[:_SHOWN]) + more


def _nets(config: FineTunerConfig, tensors: Mapping[str, Tensor]) -> PertNN:
    nets = nets_of(config, torch.Generator())
    nets.load_state_dict({name: tensors[name] for name in net_shapes(config)})
    return nets


def _bases(tensors: Mapping[str, Tensor]) -> dict[int, Basis]:
    indices = sorted({int(name.split(".")[1]) for name in tensors if "." in name})
    return {i: Basis.of(tensors.get(f"left.{i}"), tensors.get(f"right.{i}")) for i in indices}


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    if not path.is_file():
        raise input_error(str(path.parent), f"not a complete fine-tuner: has no {path.name}")
    try:
        tensors: dict[str, Tensor] = from_bytes(path.read_bytes())
    except (SafetensorError, OSError, ValueError, KeyError) as problem:
        raise input_error(str(path), f"damaged or not safetensors ({problem})") from None
    return tensors


def locate(name: str | Path, revision: str | None = None) -> Path:
    """Returns the folder of a fine-tuner; fetches it from the hub where `name` is a hub id.

    Raises:
        InputError: There is neither such a folder nor such a hub id, or the hub cannot be
            reached.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise input_error("fine-tuner", "is a file", str(name), "give the folder it stands in")
    if isinstance(name, Path) or not hub.is_repository(name):
        raise input_error(
            "fine-tuner", "no such folder", str(name), "give a folder or a hub id (owner/name)"
        )
    return _fetch(name, revision)


def _fetch(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    online = hub.reachable()
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=[CONFIG, WEIGHTS, CARD, MASK],
                local_files_only=not online,
            )
        )
    except Exception as problem:  # the hub's client raises its own, httpx's and the system's
        if not online:
            raise input_error(
                "fine-tuner",
                "no such folder, and the hub cannot be reached",
                name,
                "give a local folder",
            ) from None
        raise _refused("fine-tuner", name, problem) from None


def push(
    config: FineTunerConfig,
    nets: PertNN,
    bases: Mapping[int, Basis],
    mask: Mask | None,
    repo_id: str,
    private: bool,
    token: str | None,
) -> str:
    """Uploads the files; see `FineTuner.push_to_hub`."""
    if not hub.is_repository(repo_id):
        raise input_error("push_to_hub", "not a hub id", repo_id, "give owner/name")
    if not hub.reachable():
        raise input_error(
            "push_to_hub", "the hub cannot be reached", repo_id, "use save_pretrained(FOLDER)"
        )
    api = _client(token)
    with tempfile.TemporaryDirectory() as folder:
        save(config, nets, bases, mask, Path(folder), overwrite=True)
        try:
            address = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Fine-tuner")
        except Exception as problem:  # as in _fetch
            raise _refused("push_to_hub", repo_id, problem) from None
    return str(address)


def _client(token: str | None) -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(token=token, library_name="zopeft")


def _refused(where: str, name: str, problem: Exception) -> InputError:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    login = "log in with: hf auth login"
    if isinstance(problem, GatedRepoError):
        return input_error(where, "access to it must be asked for on the hub", name, login)
    if isinstance(problem, RepositoryNotFoundError):
        return input_error(where, "no such folder, and no such public hub id", name, login)
    lines: list[Any] = str(problem).strip().splitlines() or [""]
    return input_error(where, f"the hub refused ({type(problem).__name__}: {lines[0]})", name)
