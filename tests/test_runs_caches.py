"""Caches that cannot be written stop no run: numba's, matplotlib's, triton's, the hub's."""

import json
import os
import subprocess
import sys

CACHES = (
    *("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "HF_HOME", "NUMBA_CACHE_DIR"),
    *("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"),
)


def test_a_run_without_any_cache(tiny_model, tiny_data, tmp_path):
    """Below a file no folder can be made, not even by the system's own user."""
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    caches = {name: str(nowhere / "cache") for name in CACHES}
    words = ("tune", tiny_model, "--task", "sst2", "--data", tiny_data, "--steps", 2)
    words += ("--batch-size", 2, "--lr", "1e-3", "--out", tmp_path / "out", "--json")
    done = subprocess.run(
        [sys.executable, "-m", "zopeft", *map(str, words)],
        env={**os.environ, **caches},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-800:]
    assert json.loads(done.stdout)["steps"] == 2
    assert "Traceback" not in done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_model.safetensors", "loss.png", "journal.bin"} <= names
    assert nowhere.read_text() == ""
