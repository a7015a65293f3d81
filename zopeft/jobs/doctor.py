"""The job of ``zopeft doctor``: what of the machine and the libraries zopeft can use."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zopeft import hub
from zopeft.installed import installed

NEEDED = ("torch", "transformers", "peft", "accelerate", "datasets", "numpy", "matplotlib")
ASKED = {
    "numba": "noise on a CPU is then some 50 times slower; pip install numba",
    "bitsandbytes": "no --load-in-8bit and --load-in-4bit; pip install bitsandbytes",
}
"""Packages that zopeft does without, and what is then missing."""
ENOUGH = 2e9
"""Bytes of free disk below which a warning is due."""


@dataclass(frozen=True)
class Check:
    """What was looked at.

    Attributes:
        name: Of what.
        state: "ok", "warning" (zopeft works, something is slower or missing) or "broken".
        found: What was found.
        do: What can be done about it; "" where nothing is needed.
    """

    name: str
    state: str
    found: str
    do: str = ""


def doctor() -> dict[str, Any]:
    """Looks at versions, devices, kernels, caches, the hub and one real step.

    Returns:
        ``checks``, a list of `Check` as dicts, and ``state``, the worst of theirs.
    """
    checks = [_guarded(look) for look in _LOOKS]
    found = [check for group in checks for check in group]
    order = ("ok", "warning", "broken")
    worst = max(found, key=lambda check: order.index(check.state)).state
    return {"job": "doctor", "state": worst, "checks": [asdict(check) for check in found]}


def _guarded(look: Callable[[], Iterator[Check]]) -> list[Check]:
    """Makes a check that breaks one that says so."""
    found: list[Check] = []
    try:
        found.extend(look())
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        found.append(Check(look.__name__.strip("_").replace("_", " "), "broken", line))
    return found


def _packages() -> Iterator[Check]:
    yield Check("python", "ok", platform.python_version())
    for name in ("zopeft", *NEEDED):
        yield _package(name, "broken", f"pip install {name}")
    for name, do in ASKED.items():
        yield _package(name, "warning", do)


def _package(name: str, without: str, do: str) -> Check:
    number = installed(name)
    if number is None:
        return Check(name, without, "not installed", do)
    return Check(name, "ok", number)


def _devices() -> Iterator[Check]:
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} threads"
    yield Check("cpu", "ok", f"{platform.machine()}, {capability}, {threads}")
    if not torch.cuda.is_available():
        yield Check("gpu", "ok", "none that torch sees")
        return
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        bf16 = "" if torch.cuda.is_bf16_supported() else ", no bfloat16"
        name = torch.cuda.get_device_name(number)
        yield Check(
            f"gpu {number}", "ok", f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free{bf16}"
        )


def _kernels() -> Iterator[Check]:
    """Compiles them, and compares their bits with the plain ones."""
    import torch

    from zopeft.kernels.choice import kernels_for
    from zopeft.noise import Noise

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    started = time.monotonic()
    found = []
    for backend in ("auto", "plain"):
        kernels = kernels_for(backend, Noise("gaussian"), [device])
        out = torch.empty(1000, device=device)
        kernels.shift(1, 2, 0, torch.zeros(1000, device=device), 1.0, None, out)
        found.append((type(kernels).__name__, out))
    name = found[0][0].removesuffix("Kernels").lower()
    took = f"{name}, ready in {time.monotonic() - started:.1f} s"
    if not torch.equal(found[0][1], found[1][1]):
        yield Check("kernels", "broken", f"{name} gives other bits than PyTorch", "report it")
    elif name == "plain":
        yield Check("kernels", "warning", took, "noise is made by PyTorch; install numba or triton")
    else:
        yield Check("kernels", "ok", took)


def _caches() -> Iterator[Check]:
    from huggingface_hub import constants

    places = {
        "hub cache": Path(constants.HF_HUB_CACHE),
        "here": Path.cwd(),
        "temporary files": Path(tempfile.gettempdir()),
    }
    for name, place in places.items():
        above = next((p for p in (place, *place.parents) if p.exists()), Path("/"))
        if not os.access(above, os.W_OK):
            yield Check(name, "warning", f"{place} can't be written to", "choose another place")
            continue
        free = shutil.disk_usage(above).free
        low = free < ENOUGH
        do = "little room for a model" if low else ""
        yield Check(name, "warning" if low else "ok", f"{place}, {free / 1e9:.1f} GB free", do)


def _hub() -> Iterator[Check]:
    from huggingface_hub import constants, get_token

    login = "with a login" if get_token() else "without a login (gated models need one)"
    if hub.reachable():
        yield Check("hub", "ok", f"reachable, {login}")
    else:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "no answer"
        do = "models and data have to be folders, or downloaded before"
        yield Check("hub", "warning", f"out of reach ({why})", do)


def _quantisation() -> Iterator[Check]:
    """Runs a layer of each kind once."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return
    import torch

    from zopeft.models.quiet import quiet

    with quiet():
        layers: Any = importlib.import_module("bitsandbytes.nn")

        device = "cuda" if torch.cuda.is_available() else "cpu"
        for name, make in (
            ("8 bit", lambda: layers.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)),
            ("4 bit", lambda: layers.Linear4bit(64, 64, bias=False, quant_type="nf4")),
        ):
            with torch.no_grad():
                out = make().to(device)(torch.ones(2, 64, device=device))
            good = bool(out.isfinite().all())
            yield Check(name, "ok" if good else "broken", f"a layer runs on {device}")


def _step() -> Iterator[Check]:
    """Takes one step with the embedded model, at lr 0: it has to come back bit for bit."""
    import torch

    import zopeft
    from zopeft.models import load_model
    from zopeft.models.quiet import quiet

    with quiet():
        model, _ = load_model(None)
    ids = torch.arange(8, 40, device=model.device).view(2, 16)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = zopeft.MeZO(zopeft.discover(model), lr=0.0, eps=1e-3)
    started = time.monotonic()
    loss: Any = optimizer.step(lambda: model(input_ids=ids, labels=ids).loss)
    took = time.monotonic() - started
    pairs = zip(before, model.parameters(), strict=True)
    if not all(torch.equal(one, other) for one, other in pairs):
        yield Check("a step", "broken", "probes changed the weights", "report it")
    else:
        yield Check("a step", "ok", f"loss {float(loss):.3f}, {took:.2f} s, weights as before")


_LOOKS = (_packages, _devices, _kernels, _caches, _hub, _quantisation, _step)
