"""What every benchmark row says besides its numbers, and where rows are kept."""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def about(device: str = "cpu") -> dict[str, Any]:
    """Returns hardware, threads, versions, commit and day."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        )
        commit = done.stdout.strip()
    except FileNotFoundError:
        commit = ""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    try:
        import numba

        versions["numba"] = numba.__version__
    except ImportError:
        pass
    return {
        "hardware": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "versions": versions,
        "commit": commit or "unknown",
        "date": datetime.date.today().isoformat(),
    }


def _processor() -> str:
    """The CPU's name and its widest vector instructions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return f"{name}, {len(names)} cores, {torch.backends.cpu.get_cpu_capability()}"


def keep(benchmark: str, rows: list[dict[str, Any]]) -> Path:
    """Appends rows to ``results/<benchmark>.jsonl``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{benchmark}.jsonl"
    with path.open("a") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
    return path
