"""Runs that are broken off where they write: twenty of the campaign's breaks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parent.parent / "tools" / "campaign.py"
KINDS = ("kill", "half", "sigterm", "full-disk", "broken-disk")


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs cc on Linux")
def test_runs_that_are_broken_off_end_with_the_same_bits(tmp_path):
    rows = tmp_path / "rows.jsonl"
    words = ["journal", "--places", "4", "--kinds", *KINDS, "--keep", str(rows)]
    # Without coverage's or another preloaded library of the tests' own.
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run([sys.executable, TOOL, *words], env=env, capture_output=True, text=True)
    row = json.loads(rows.read_text())
    assert (row["faults"], done.returncode) == ([], 0), done.stderr[-500:]
    assert row["breaks"] == 4 * len(KINDS)
    # There is something to break: journal, start weights, record, result.
    assert row["writes"] > 50
