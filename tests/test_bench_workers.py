"""Workers of a bench: they end with the process that started them, and Ctrl-C is its own."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from zopeft.jobs.bench.caller import begin, interrupts_withheld


def toil(told):
    """What a worker does in these tests: it says who it is, and computes."""
    told.put(os.getpid())
    while True:
        sum(range(1000))


def start_two():
    """Starts two workers, prints their numbers and waits."""
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    with interrupts_withheld():
        for _ in range(2):
            context.Process(
                target=begin, args=("test_bench_workers", "toil", told), daemon=True
            ).start()
    print(told.get(), told.get(), flush=True)
    time.sleep(600)


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # A dead child that nobody has waited for yet.
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="looks at processes in /proc")
def test_workers_end_with_a_caller_that_was_killed_and_ignore_its_interrupts():
    # The module is imported by its name in the workers, too.
    code = "import test_bench_workers as t\nif __name__ == '__main__': t.start_two()"
    caller = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=os.path.dirname(__file__),
        stdout=subprocess.PIPE,
        text=True,
    )
    workers = [int(word) for word in caller.stdout.readline().split()]
    try:
        assert len(workers) == 2
        for pid in workers:
            os.kill(pid, signal.SIGINT)
        time.sleep(0.2)
        assert not any(map(gone, workers))
        caller.kill()
        caller.wait()
        deadline = time.monotonic() + 60
        while not all(map(gone, workers)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert all(map(gone, workers))
    finally:
        caller.kill()
        for pid in workers:
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)


def test_an_interrupt_meanwhile_comes_at_the_end():
    # Where whoever runs the tests ignores it, there is nothing to be withheld.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    reached = False
    try:
        with pytest.raises(KeyboardInterrupt), interrupts_withheld():
            signal.raise_signal(signal.SIGINT)
            reached = True
    finally:
        signal.signal(signal.SIGINT, before)
    assert reached


class Quiet:
    """A context of multiprocessing whose processes do nothing but note what is done to them."""

    def __init__(self):
        self.made = []

    Queue = staticmethod(multiprocessing.SimpleQueue)

    def Process(self, target, args, **_):  # noqa: N802 - the name of multiprocessing
        assert target is begin and args[:2] == ("zopeft.jobs.bench.pool", "_work")
        self.made.append(one := Noted())
        return one


class Noted:
    pid = None

    def __init__(self):
        self.calls = []

    def start(self):
        self.pid = 1

    def terminate(self):
        self.calls.append("terminate")

    def join(self):
        self.calls.append("join")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_workers_are_ended_when_the_caller_breaks_off(kind, monkeypatch):
    from zopeft.jobs.bench import pool

    context = Quiet()
    monkeypatch.setattr(pool.multiprocessing, "get_context", lambda _: context)

    def listen(*_):
        raise kind

    monkeypatch.setattr(pool, "_listen", listen)
    with pytest.raises(kind):
        pool.hold_all(["a", "b", "c"], {}, 2, print, print)
    assert [one.calls for one in context.made] == [["terminate", "join"]] * 2
