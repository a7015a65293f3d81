"""Lost processes: which one is missing, and who says so; errors of all are told once.

What processes leave for each other when they can exchange nothing more stands in the store by which
they have met: under torchrun it outlives each of them.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from zopeft.errors import RunError, explain

if TYPE_CHECKING:
    from zopeft.ranks.ranks import Ranks

GRACE = 4.0
"""Seconds in which nothing new is heard of processes that have lost one another."""
ASKING = 1.0
"""Seconds from one look for news of lost processes to the next."""
SOON = 0.05
"""The same, once one is known to be lost."""
PLACE = f"zopeft/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
"""Where the processes leave word, which is another place after each restart."""
ASK_AGAIN = "start the command again with --resume auto: the steps that were made are kept"
ASK_AFRESH = "start it again: nothing of it is kept"


class LostError(RunError):
    """Another process of the run is missing, or has failed: this one cannot go on."""


def lost(ranks: Ranks, error: Exception) -> LostError:
    """Returns the error of a process whose exchange with the others has failed.

    Args:
        ranks: The processes.
        error: What torch says.
    """
    timed_out = "timed out" in str(error).lower() or "timeout" in str(error).lower()
    missing = _missing(ranks, timed_out)
    words = ", ".join(map(str, missing)) or "of the others"
    name = f"rank {words}" if len(missing) == 1 else f"ranks {words}" if missing else f"one {words}"
    many = len(missing) > 1
    if timed_out:
        what = f"{name} {'have' if many else 'has'} not answered for {ranks.timeout:g} s"
    else:
        what = f"{name} {'are' if many else 'is'} gone"
    return LostError(explain("ranks", what, None, ASK_AGAIN if ranks.keeps else ASK_AFRESH))


def watch(ranks: Ranks) -> None:
    """Has a thread say of this process, once one of them is lost, whether it waits for the others.

    The process itself may be held up: in an exchange with one that is gone, or where it hangs.
    """
    found = store()
    if found is None:
        return
    over = threading.Event()

    def said(own: Any, key: str, every: float) -> bool:
        # It asks, and does not wait in the store: a thread that is held up there when Python ends,
        # and then loses the store, aborts the process.
        while not own.check([key]):
            if over.wait(every):
                return False
        return True

    def say() -> None:
        # It ends with the store or with the process.
        with suppress(Exception):
            own = found.clone()
            if said(own, f"{PLACE}/lost", ASKING):
                own.set(f"{PLACE}/here/{ranks.number}", "1" if ranks.waits else "0")
                if said(own, f"{PLACE}/missing", SOON):
                    ranks.missing = _numbers(own.get(f"{PLACE}/missing"))
                    own.set(f"{PLACE}/heard/{ranks.number}", "1")

    worker = threading.Thread(target=say, name="zopeft-ranks", daemon=True)
    worker.start()

    def end() -> None:
        over.set()
        worker.join(ASKING)

    atexit.register(end)


def _missing(ranks: Ranks, hangs: bool) -> list[int]:
    """Returns the processes that are not there.

    Args:
        ranks: The processes.
        hangs: Whether those count, too, that are there and do not wait for the others.
    """
    if ranks.missing is not None:
        return ranks.missing
    found = store()
    waits: dict[int, bool] = {ranks.number: True}
    try:
        if found is None:
            return []
        found.set(f"{PLACE}/here/{ranks.number}", "1")
        found.set(f"{PLACE}/lost", "1")
        news = time.monotonic()
        while len(waits) < ranks.count and time.monotonic() - news < GRACE:
            for number in set(range(ranks.count)) - set(waits):
                if found.check([f"{PLACE}/here/{number}"]):
                    waits[number] = found.get(f"{PLACE}/here/{number}") == b"1"
                    news = time.monotonic()
            time.sleep(0.05)
        there = waits if not hangs else {n for n, one in waits.items() if one}
        missing = [number for number in range(ranks.count) if number not in there]
        found.set(f"{PLACE}/missing", " ".join(map(str, missing)))
    except Exception:
        # The store is gone with the process that kept it.
        return ranks.missing or ([0] if ranks.number else [])
    with suppress(Exception):
        for number in set(waits) - {ranks.number}:
            # The store may go with this process.
            _until(found, f"{PLACE}/heard/{number}", 3 * ASKING)
    return missing


def _numbers(words: bytes) -> list[int]:
    return [int(word) for word in words.split()]


def tells(second_hand: bool, code: int) -> tuple[bool, int]:
    """Says whether this process is the one that tells the user what went wrong.

    Args:
        second_hand: Whether it only knows that another one is lost.
        code: The exit code that it would end with.

    Returns:
        Whether it tells, and the exit code: that of the process that tells.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return True, code
    found = store()
    try:
        if found is None:
            raise RuntimeError
        if second_hand:
            # One that knows more may be about to tell.
            _until(found, f"{PLACE}/code", 1.0)
        first = found.add(f"{PLACE}/told", 1) == 1
        if first:
            found.set(f"{PLACE}/code", str(code))
            return True, code
        if _until(found, f"{PLACE}/code", 2.0):
            code = int(found.get(f"{PLACE}/code"))
        return False, code
    except Exception:
        # The store is gone with the process that kept it, the first one.
        number = int(os.environ.get("RANK", "0"))
        return number == 0 or (second_hand and number == 1), code


def leave(code: int) -> None:
    """Parts from the others; one that fails waits until they know, so that nobody ends them."""
    import sys

    dist: Any = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_initialized():
        return
    count, found = dist.get_world_size(), store()
    if code and found is not None:
        number = dist.get_rank()
        with suppress(Exception):
            found.set(f"{PLACE}/here/{number}", "1")
            found.set(f"{PLACE}/left/{number}", "1")
    with suppress(Exception):
        dist.destroy_process_group()
    if code and found is not None:
        deadline = time.monotonic() + GRACE
        with suppress(Exception):
            keys = [f"{PLACE}/left/{n}" for n in range(count)]
            while time.monotonic() < deadline and not all(found.check([key]) for key in keys):
                time.sleep(0.1)


def _until(found: Any, key: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not found.check([key]):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def store() -> Any:
    """Returns the store by which the processes have met; None where there is none."""
    try:
        import torch.distributed

        dist: Any = torch.distributed
        if dist.is_initialized():
            return dist.distributed_c10d._get_default_store()
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return None
        return dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=2),
            wait_for_workers=False,
        )
    except Exception:
        return None
