"""The pages of methods and of meta-training are what registry and settings say."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from zopeft.meta.options import MetaOptions

ROOT = Path(__file__).resolve().parents[1]


def test_the_pages_are_up_to_date():
    command = [sys.executable, str(ROOT / "tools" / "methods_page.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert text.count("\n## ") >= 30
    told = (ROOT / "docs" / "meta-training.md").read_text(encoding="utf-8")
    names = [each.name for each in fields(MetaOptions)]
    assert len(names) >= 20
    assert [name for name in names if f"| `meta.{name}` |" not in told] == []
