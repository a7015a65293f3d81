"""The job of ``zopeft push``: a result's folder onto the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zopeft import hub
from zopeft.errors import input_error, run_error

KINDS = {
    "adapter_config.json": "adapter",
    "finetuner_config.json": "fine-tuner",
    "config.json": "model",
}
"""A file that a result has, and what it then is."""
ASIDE = ("checkpoint-*", "best-*.safetensors", "*.tmp", ".*", "run.json")
"""What stays at home: a run's checkpoints and best weights, files that are being written, and its
record, which names folders of the machine."""


def push(folder: str, repository: str, private: bool = True, message: str = "") -> dict[str, Any]:
    """Uploads an adapter, a fine-tuner or a model to a repository of the hub.

    Args:
        folder: The result's folder.
        repository: ``organisation/name``; made if there is none.
        private: Whether a repository that is made is private.
        message: Of the commit.

    Returns:
        The summary: ``kind``, ``files``, ``bytes`` and ``url``.

    Raises:
        InputError: The folder holds no result, a run in it is not done, the name is none, or
            there is no login or network.
        RunError: The upload broke.
    """
    path = Path(folder).expanduser()
    kind = _kind(path, folder)
    if not hub.is_repository(repository):
        raise input_error("REPOSITORY", "no name of one", repository, "give organisation/name")
    if not hub.reachable():
        raise input_error(
            "push", "the hub can't be reached", do="check the network, HF_HUB_OFFLINE"
        )
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if get_token() is None:
        raise input_error("push", "no login to the hub", do="hf auth login, or set HF_TOKEN")
    files = sent(path)
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=path,
            ignore_patterns=list(ASIDE),
            commit_message=message or f"{kind} made with zopeft",
        )
    except HfHubHTTPError as error:
        raise run_error(
            "push", _line(error), repository, "check the name and your rights"
        ) from error
    return {
        "job": "push",
        "kind": kind,
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "url": str(getattr(done, "commit_url", done)),
    }


def sent(path: Path) -> list[Path]:
    """Returns the files of a folder that are uploaded."""
    from huggingface_hub.utils._paths import filter_repo_objects

    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    names = [file.relative_to(path).as_posix() for file in files]
    kept = filter_repo_objects(names, ignore_patterns=list(ASIDE))
    return [path / name for name in kept]


def _kind(path: Path, folder: str) -> str:
    """Returns what a folder holds, or refuses it."""
    if not path.is_dir():
        raise input_error("FOLDER", "no such folder", folder, "give the --out of a run")
    kind = next((kind for file, kind in KINDS.items() if (path / file).is_file()), None)
    if kind is None:
        raise input_error("FOLDER", "holds no adapter, fine-tuner or model", folder)
    from zopeft.jobs.folder import RECORD

    if (path / RECORD).is_file():
        from zopeft.models.checkpoint import read_json

        status = read_json(path / RECORD).get("status", "done")
        if status == "diverged":
            do = "tune again with a lower --lr"
            raise input_error("FOLDER", "its run diverged, and is not worth sharing", folder, do)
        if status != "done":
            raise input_error("FOLDER", "its run has not ended", str(status), "--resume it first")
    return kind


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
