"""The authors' pickled networks, read without running anything of the file.

The paper's authors publish a fine-tuner as a ``torch.save`` of a dict: parameter name to
``Sequential(Linear, Tanh, Linear)``. Unpickling runs what a file names, so a file is read
only after every name in it has been found in a short list, and then by torch's own
restricted unpickler. The modules are never called: their tensors are taken out.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.errors import InputError, input_error

ALLOWED = frozenset(
    {
        "torch.nn.modules.container.Sequential",
        "torch.nn.modules.linear.Linear",
        "torch.nn.modules.activation.Tanh",
        # What tensors and modules themselves are written with.
        "collections.OrderedDict",
        "__builtin__.set",
        "builtins.set",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor_v2",
        "torch.FloatStorage",
        "torch.HalfStorage",
        "torch.BFloat16Storage",
        "torch.DoubleStorage",
    }
)
"""Every name that a fine-tuner's pickle may mention."""

LARGEST = 1 << 30
"""Bytes; the largest published file has 3 million."""

_DO = "give a file of the authors' learned fine-tuners (a dict of Sequential(Linear, Tanh, Linear))"
_TEXTS = ("UNICODE", "STRING")
_ON_STACK = " (named on the stack)"


def read_pickle(file: Path) -> tuple[dict[str, dict[str, Tensor]], str]:
    """Reads the networks of a file that the authors' code wrote.

    Args:
        file: The ``.pth`` file.

    Returns:
        Parameter name to ``w1`` [H, F], ``b1`` [H], ``w2`` [H], ``b2`` [], in the file's dtype,
        in the file's order; and the name under which the authors saved it.

    Raises:
        InputError: It cannot be read, mentions a class outside `ALLOWED` (nothing of it has
            then been run), or does not hold such networks.
    """
    content = _content(file)
    archive = _check(content, file)
    try:
        with torch.serialization.safe_globals([nn.Sequential, nn.Linear, nn.Tanh]):
            loaded = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as problem:  # a damaged file fails in torch, zipfile or pickle
        raise _damaged(file, problem) from None
    if not isinstance(loaded, dict) or not loaded:
        raise input_error(str(file), "holds no fine-tuner", type(loaded).__name__, _DO)
    networks = {}
    for name, module in loaded.items():
        if not isinstance(name, str):
            raise input_error(str(file), "a network's name must be text", str(name), _DO)
        networks[name] = _network(file, name, module)
    sizes = {tuple(network["w1"].shape) for network in networks.values()}
    if len(sizes) > 1:
        raise input_error(str(file), "its networks are of different sizes", str(sorted(sizes)), _DO)
    return networks, archive


def _content(file: Path) -> bytes:
    if file.is_dir():
        raise input_error("FILE", "is a folder", str(file), "give the .pth file in it")
    try:
        size = file.stat().st_size
        if size > LARGEST:
            raise input_error(str(file), "too large for a fine-tuner", f"{size} bytes", _DO)
        return file.read_bytes()
    except FileNotFoundError:
        raise input_error("FILE", "no such file", str(file), "check the path") from None
    except OSError as problem:
        raise input_error(str(file), f"cannot be read ({problem.strerror or problem})") from None


def _check(content: bytes, file: Path) -> str:
    """Looks at every name in the pickle, running nothing; returns the archive's name."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name.endswith(".pkl")]
            # Two entries of one name might be read differently by two readers.
            if len(pickles) != 1 or len(set(names)) != len(names):
                raise input_error(str(file), "not a file that torch.save wrote", do=_DO)
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
                raise input_error(str(file), "too large for a fine-tuner", do=_DO)
            foreign = [name for name in _globals(archive.read(pickles[0])) if name not in ALLOWED]
    except InputError:
        raise
    except zipfile.BadZipFile:
        raise input_error(str(file), "not a file that torch.save wrote", do=_DO) from None
    except Exception as problem:  # pickletools raises what it meets
        raise _damaged(file, problem) from None
    if foreign:
        # What is really foreign is named before what is only written in an odd way.
        foreign.sort(key=lambda name: name.removesuffix(_ON_STACK) in ALLOWED)
        more = f" and {len(set(foreign)) - 1} more" if len(set(foreign)) > 1 else ""
        raise input_error(
            str(file),
            "refused, nothing of it was run: it mentions what a fine-tuner has no use for",
            f"{foreign[0]}{more}",
            _DO,
        )
    return pickles[0].rpartition("/")[0]


def _globals(pickle: bytes) -> Iterator[str]:
    """Yields the dotted names that a pickle would import."""
    texts: list[str] = []
    memo: dict[int, str] = {}
    places, last = 0, ""
    for op, argument, _ in pickletools.genops(pickle):
        if "PUT" in op.name or op.name == "MEMOIZE":
            place = places if argument is None else int(argument)
            memo[place], places = last, places + 1
            continue
        last = ""
        if op.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif op.name == "STACK_GLOBAL":
            # torch.save's own protocol has no such operation, and what it names can be made up
            # on the way: refused whatever it seems to say.
            yield ".".join(texts[-2:]) + _ON_STACK
        elif op.name.startswith("EXT"):
            yield f"extension {argument}"
        elif "GET" in op.name or any(word in op.name for word in _TEXTS):
            last = memo.get(int(argument or 0), "") if "GET" in op.name else str(argument)
            texts.append(last)


def _network(file: Path, name: str, module: Any) -> dict[str, Tensor]:
    """Returns the four tensors of one network, read from the modules' own dicts."""
    parts = list(_dict(module, "_modules").values()) if type(module) is nn.Sequential else []
    if [type(part) for part in parts] != [nn.Linear, nn.Tanh, nn.Linear]:
        raise input_error(str(file), f"{name} is not Linear, Tanh, Linear", do=_DO)
    first, second = _dict(parts[0], "_parameters"), _dict(parts[2], "_parameters")
    found = [first.get("weight"), first.get("bias"), second.get("weight"), second.get("bias")]
    tensors = [one.detach() for one in found if isinstance(one, Tensor) and one.is_floating_point()]
    shapes = [tuple(one.shape) for one in tensors]
    hidden, inputs = shapes[0] if shapes and len(shapes[0]) == 2 else (0, 0)
    if shapes != [(hidden, inputs), (hidden,), (1, hidden), (1,)] or not hidden * inputs:
        raise input_error(str(file), f"{name}: not a network of one output", str(shapes), _DO)
    if not all(bool(one.isfinite().all()) for one in tensors):
        raise input_error(str(file), f"{name} holds values that are not finite numbers")
    w1, b1, w2, b2 = tensors
    return {"w1": w1, "b1": b1, "w2": w2[0], "b2": b2[0]}


def _dict(module: Any, name: str) -> dict[str, Any]:
    found = vars(module).get(name)
    return found if isinstance(found, dict) else {}


def _damaged(file: Path, problem: Exception) -> InputError:
    line = (str(problem).strip().splitlines() or [""])[0]
    return input_error(
        str(file),
        f"damaged or not a fine-tuner ({type(problem).__name__}: {line[:120]})",
        do="copy or download it again",
    )
