"""The pages of reference are what commands, settings and docstrings say."""

import re
import runpy
from pathlib import Path

import pytest

import zopeft

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tool():
    return runpy.run_path(str(ROOT / "tools" / "reference_pages.py"))


def test_the_pages_are_up_to_date(tool):
    found = tool["pages"]()
    assert len(found) == 3
    for name, text in found.items():
        shown = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
        assert shown == text, f"{name} is out of date: run python tools/reference_pages.py"


def test_every_command_is_shown_with_its_flags_and_one_example(tool):
    parts = re.split(r"^## zopeft ", tool["commands_page"](), flags=re.M)[1:]
    told = dict(part.split("\n", 1) for part in parts)
    assert {"tune", "meta-train", "bench", "doctor", "finetuner show"} <= set(told)
    assert set(told) == set(tool["EXAMPLES"])
    for words, part in told.items():
        assert part.count("```bash") == 1 and f"\nzopeft {words}" in part
        assert "`--debug` | off |" in part
    assert "| `--steps N` | 1000 | Optimizer steps. |" in told["tune"]


def test_every_key_and_every_name_is_told(tool):
    keys, names = tool["keys_page"](), tool["python_page"]()
    assert "| `training.steps` | a whole number | 1000 | >= 1 | Optimizer steps. |" in keys
    assert "| `method.nu` | [`lozo`](../methods.md#lozo), " in keys
    assert keys.count("| `method.layers` |") == 1
    missing = [name for name in zopeft.__all__ if f"\n## {name}\n" not in names]
    assert missing == []
    assert "- `InputError`: " in names and "transformers.TrainingArguments)" in names


def test_what_a_bench_is_made_of_is_told_with_its_defaults(tool):
    part = tool["commands_page"]().partition("## zopeft bench")[2].partition("\n## ")[0]
    for row in ("--seeds N` | 3", "--tune-seeds N` | 1", "--forwards N` | 1000", "--grid N` | 5"):
        assert f"| `{row} |" in part
