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


def test_help_takes_little_more_than_the_library_that_prints_it():
    """Half a second on most machines; how fast a machine is, is not for a test to say."""
    commands = (("-m", "zopeft.cli.main", "--help"), ("-c", "import typer, typer.rich_utils"))
    times = [[cpu_seconds([sys.executable, *words]) for words in commands] for _ in range(4)]
    own, library = (min(column) for column in zip(*times, strict=True))
    assert own < 2.5 * library


def test_the_flat_surface_is_whole():
    import zopeft

    assert len(zopeft.__all__) >= 10
    assert [name for name in zopeft.__all__ if getattr(zopeft, name, None) is None] == []
    with pytest.raises(AttributeError, match="no attribute"):
        _ = zopeft.nonsense
