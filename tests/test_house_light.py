"""Importing is cheap, and help is quick."""

import os
import subprocess
import sys

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


def cpu_seconds(command):
    """Returns the processor time of a command, which a busy machine does not stretch."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_utime + used.ru_stime


def test_help_answers_in_half_a_second():
    command = [sys.executable, "-m", "zopeft.cli.main", "--help"]
    assert min(cpu_seconds(command) for _ in range(4)) < 0.5


def test_the_flat_surface_is_whole():
    import zopeft

    assert len(zopeft.__all__) >= 10
    assert [name for name in zopeft.__all__ if getattr(zopeft, name, None) is None] == []
    with pytest.raises(AttributeError, match="no attribute"):
        _ = zopeft.nonsense
