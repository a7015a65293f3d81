"""docs/errors.md says what zopeft says; every line of it is one that a user can act on."""

import importlib
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent.parent / "tools"


@pytest.fixture(scope="module")
def tool():
    sys.path.insert(0, str(TOOLS))
    try:
        yield importlib.import_module("errors_page")
    finally:
        sys.path.remove(str(TOOLS))


def test_the_page_is_what_is_said(tool, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tool.prepare(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    shown, cases = tool.PAGE.read_text(encoding="utf-8"), 0
    for case in [case for found in tool.CASES.values() for case in found]:
        code, line = tool.said(case, tmp_path)
        assert (case.what, code) == (case.what, 2)
        assert f"| {case.what} | {tool._cell(line)} |" in shown, (
            f"{line}; run python tools/errors_page.py"
        )
        cases += 1
    assert cases >= 60
    assert shown.count("\n| ") - shown.count("\n| what") == cases
    # Nothing has been changed on disk, and nothing has been left there.
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before
