"""The end of a command's own process: nothing that was asked for is lost with what is left out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zopeft.cli.leaving import OURS, Leaving
from zopeft.cli.main import main
from zopeft.cli.spared import Process

ENDS = """
import atexit, sys
from zopeft.cli.leaving import Leaving, leave_at_once

class Taken:
    def __del__(self):
        print("taken apart")

taken = Taken()
BEFORE
leave_at_once()
atexit.register(print, "asked for")
Leaving.code = CODE
print("last word", end=", ")
sys.exit(2)
"""


def ended(code, before="", **options):
    words = [sys.executable, "-c", ENDS.replace("CODE", code).replace("BEFORE", before)]
    held = {name: one for name, one in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(words, env=held, stderr=subprocess.PIPE, text=True, timeout=60, **options)


def test_a_process_goes_with_its_code_when_all_that_was_asked_for_is_done():
    done = ended("3", stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (3, "last word, asked for\n")
    assert done.stderr == ""


def test_one_whose_command_is_not_through_ends_as_others_do():
    done = ended("None", stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (2, "last word, asked for\ntaken apart\n")


def test_what_was_asked_for_before_is_done_too():
    done = ended("3", 'atexit.register(print, "measured")', stdout=subprocess.PIPE)
    expected = "last word, asked for\nmeasured\ntaken apart\n"
    assert (done.returncode, done.stdout) == (2, expected)


def test_nothing_of_a_commands_own_is_asked_for_before():
    asked = "import atexit, zopeft.cli.main, zopeft.cli.output; print(atexit._ncallbacks())"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    assert done.stdout == f"{OURS}\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is full")
def test_words_that_cannot_be_written_are_told_of():
    with Path("/dev/full").open("w") as full:
        done = ended("3", stdout=full)
    assert done.returncode == 120
    assert "No space left" in done.stderr


def test_the_code_is_that_of_the_command_in_a_process_of_its_own(monkeypatch, capsys):
    monkeypatch.setattr(Leaving, "code", None)
    monkeypatch.setattr(Process, "own", False)
    assert main(["list", "nothing"]) == 2
    assert Leaving.code is None
    monkeypatch.setattr(sys, "argv", ["zopeft", "list", "nothing"])
    assert main() == 2
    assert Leaving.code == 2
