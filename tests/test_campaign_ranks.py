"""Runs of several processes that are killed at random: one of the campaign's trials."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parent.parent / "tools" / "campaign_ranks.py"


@pytest.mark.slow
def test_ranks_that_are_killed_end_with_the_same_bits(tmp_path):
    rows = tmp_path / "rows.jsonl"
    words = [sys.executable, TOOL, "--kills", "2", "--keep", str(rows)]
    done = subprocess.run(words, capture_output=True, text=True)
    row = json.loads(rows.read_text())
    assert (row["faults"], done.returncode) == ([], 0), done.stderr[-500:]
    assert row["kills"] == 2
