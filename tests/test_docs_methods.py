"""The page of methods is what the registry says."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_is_up_to_date():
    command = [sys.executable, str(ROOT / "tools" / "methods_page.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert text.count("\n## ") >= 30
