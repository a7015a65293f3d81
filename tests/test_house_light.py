"""Importing is cheap, and help is quick."""

import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "transformers", "peft", "datasets", "bitsandbytes", "matplotlib", "numpy")
LIGHT = (
    "zopeft",
    "zopeft.cli.main",
    "zopeft.recipe.load",
    "zopeft.methods",
    "zopeft.models",
    "zopeft.tasks",
)


@pytest.mark.parametrize("module", LIGHT)
def test_import_pulls_in_nothing_heavy(module):
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_help_answers_in_half_a_second():
    best = 9.0
    for _ in range(8):
        start = time.perf_counter()
        run = subprocess.run(
            [sys.executable, "-m", "zopeft.cli.main", "--help"], capture_output=True, text=True
        )
        best = min(best, time.perf_counter() - start)
        assert run.returncode == 0
        assert "meta-train" in run.stdout
        if best < 0.5:
            break
    assert best < 0.5


def test_the_flat_surface_is_whole():
    import zopeft

    assert len(zopeft.__all__) >= 10
    assert [name for name in zopeft.__all__ if getattr(zopeft, name, None) is None] == []
    with pytest.raises(AttributeError, match="no attribute"):
        _ = zopeft.nonsense
