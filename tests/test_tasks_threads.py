"""Tokenizers use all cores for many texts, and stay quiet in processes that are forked later."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from zopeft.embedded import MODEL_DIR
from zopeft.tasks import threads
from zopeft.tasks.encoding import tokenize

TEXTS = [f"the number {number} is told" for number in range(threads.MANY)]


@pytest.fixture(autouse=True)
def nobody_has_said(monkeypatch):
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    monkeypatch.setattr(threads.Held, "by_us", False)


class Watching:
    """A tokenizer that notes what the environment says while it works."""

    def __init__(self):
        self.seen = []

    def __call__(self, texts, **options):
        self.seen.append(os.environ.get(threads.VARIABLE))
        return type("Ids", (), {"input_ids": [[len(text)] for text in texts]})


def test_many_texts_take_all_cores_and_few_take_one():
    threads.hold_threads()
    tokenizer = Watching()
    assert tokenize(tokenizer, TEXTS) == [[len(text)] for text in TEXTS]
    tokenize(tokenizer, TEXTS[:-1])
    assert tokenizer.seen == ["true", "false"]
    assert os.environ[threads.VARIABLE] == "false"


def test_one_thread_again_after_a_failure():
    threads.hold_threads()
    with pytest.raises(KeyError), threads.threads_for(threads.MANY):
        raise KeyError
    assert os.environ[threads.VARIABLE] == "false"


@pytest.mark.parametrize("said", ["false", "true", None])
def test_what_the_user_says_holds(monkeypatch, said):
    if said is not None:
        monkeypatch.setenv(threads.VARIABLE, said)
        threads.hold_threads()
    tokenizer = Watching()
    tokenize(tokenizer, TEXTS)
    assert tokenizer.seen == [said]
    assert os.environ.get(threads.VARIABLE) == said


FORKED = """
import os, sys
from transformers import AutoTokenizer
from zopeft.tasks import threads
from zopeft.tasks.encoding import tokenize
threads.hold_threads()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
texts = [f"the number {number} is told" for number in range(threads.MANY)]
found = tokenize(tokenizer, texts)
child = os.fork()
if not child:
    same = tokenize(tokenizer, texts[:100]) == found[:100]
    os._exit(0 if same else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_process_forked_later_encodes_and_says_nothing():
    environment = {k: v for k, v in os.environ.items() if k != threads.VARIABLE}
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(MODEL_DIR)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "0", done.stderr
    assert "fork" not in done.stderr
