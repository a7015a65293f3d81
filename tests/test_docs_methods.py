"""The pages of methods and of meta-training are what registry and settings say."""

import runpy
import sys
from dataclasses import fields
from pathlib import Path

from zopeft.meta.options import MetaOptions

ROOT = Path(__file__).resolve().parents[1]


def test_the_pages_are_up_to_date(monkeypatch):
    script = str(ROOT / "tools" / "methods_page.py")
    monkeypatch.setattr(sys, "argv", [script, "--check"])
    # Ends with what to do where a page is not.
    runpy.run_path(script, run_name="__main__")
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert text.count("\n## ") >= 30
    told = (ROOT / "docs" / "meta-training.md").read_text(encoding="utf-8")
    names = [each.name for each in fields(MetaOptions)]
    assert len(names) >= 20
    assert [name for name in names if f"| `meta.{name}` |" not in told] == []
