"""What every summary says about the machine and the software it ran on."""

from __future__ import annotations

import math
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from zopeft.installed import LIBRARIES, versions_of


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that shape a run."""
    return {
        "python": platform.python_version(),
        **versions_of((*LIBRARIES, "datasets", "bitsandbytes")),
    }


def ends(losses: Sequence[float]) -> dict[str, float | None]:
    """Returns the mean loss of the first and of the last twentieth of a run.

    A single batch says little; losses that are not finite are left out.
    """
    finite = [loss for loss in losses if math.isfinite(loss)]
    width = max(1, len(finite) // 20)
    parts = {"loss_first": finite[:width], "loss_last": finite[-width:]}
    return {name: sum(part) / len(part) if part else None for name, part in parts.items()}


def score_ends(losses: Sequence[float], score: str) -> dict[str, Any]:
    """Returns the same of a score, whose negative was minimised; nothing where none was."""
    if not score:
        return {}
    # 0 - 0.0 is 0, and not -0.
    first, last = (None if loss is None else 0.0 - loss for loss in ends(losses).values())
    return {"score": score, "score_first": first, "score_last": last}


def hardware() -> dict[str, Any]:
    """Returns what the run runs on."""
    import torch

    found: dict[str, Any] = {"machine": platform.machine(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


@cache
def commit() -> str | None:
    """Returns the commit of zopeft's own source, with a + where files differ from it.

    None where zopeft does not run from a git checkout.
    """
    home = Path(__file__).resolve().parents[2]
    if not (home / ".git").exists():
        return None
    words = ["git", "-C", str(home), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def peak_bytes() -> int:
    """Returns the most memory used so far, in bytes: the GPU's where there is one.

    On a CPU it is the largest resident size of the whole process, libraries included.
    """
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
