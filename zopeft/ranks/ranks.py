"""The processes of one run: started by torchrun, accelerate or a scheduler, numbered from 0.

They exchange small things: losses, and a line where one of them fails; gradients where there are
any (`Ranks.summed`). What they say goes over the CPU (gloo), whatever the model runs on; gradients
on GPUs by NCCL, where it is set up. The first one leads: it decides, writes and prints.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from zopeft.errors import InputError, RunError, ZopeftError

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value")
TIMEOUT = 1800
"""Seconds that the others wait for one that does not answer, as torch's own."""


class Ranks:
    """The processes of a run, as one of them sees them.

    All of them must call the same methods in the same order.

    Args:
        number: This process, from 0.
        count: How many there are.
        group: Their group of torch.distributed, of backend gloo; None for one process.
        timeout: Seconds after which one that does not answer is given up.

    Attributes:
        sent: Bytes that this process has sent as numbers (`gathered`, `spread`, `summed`).
        received: Bytes that it has received so.
        waits: Whether it is in an exchange with the others.
        missing: Those that another process has missed; None where none has been.
        keeps: Whether what they do can be gone on with when it breaks off.
    """

    def __init__(
        self, number: int = 0, count: int = 1, group: Any = None, timeout: float = TIMEOUT
    ) -> None:
        self.number, self.count = number, count
        self.group, self.timeout = group, timeout
        self.sent = self.received = 0
        self.waits = False
        self.missing: list[int] | None = None
        self.keeps = True
        self._lost: RunError | None = None

    @property
    def leads(self) -> bool:
        """Whether this process is the first one."""
        return self.number == 0

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return self.count > 1

    def everyone(self, value: Value) -> list[Value]:
        """Returns what each process gave, [count]."""
        if not self.several:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.count
        self._done(lambda: dist.all_gather_object(found, value, group=self.group))
        return found

    def said(self, value: Value) -> Value:
        """Returns what the first process gave."""
        if not self.several:
            return value
        import torch.distributed as dist

        found: list[Any] = [value]
        self._done(lambda: dist.broadcast_object_list(found, src=0, group=self.group))
        said: Value = found[0]
        return said

    def gathered(self, mine: Tensor) -> Tensor | None:
        """Returns the numbers of all processes [count, ...] on the first one; None on others.

        Args:
            mine: This process's numbers, of one shape and type on all.
        """
        import torch
        import torch.distributed as dist

        mine = mine.detach().cpu().contiguous()
        if not self.several:
            return mine[None]
        every = [torch.empty_like(mine) for _ in range(self.count)] if self.leads else None
        self._done(lambda: dist.gather(mine, every, dst=0, group=self.group))
        size = mine.numel() * mine.element_size()
        if every is None:
            self.sent += size
            return None
        self.received += size * (self.count - 1)
        return torch.stack(every)

    def spread(self, numbers: Tensor) -> Tensor:
        """Returns the first process's numbers; the others give a tensor of that shape and type."""
        import torch.distributed as dist

        numbers = numbers.detach().cpu().contiguous()
        if not self.several:
            return numbers
        self._done(lambda: dist.broadcast(numbers, src=0, group=self.group))
        size = numbers.numel() * numbers.element_size()
        if self.leads:
            self.sent += size
        else:
            self.received += size
        return numbers

    def compared(self, mine: Tensor) -> Tensor:
        """Returns the numbers of all processes [count, ...], on each of them."""
        import torch

        found = self.gathered(mine)
        if found is None:
            found = torch.empty((self.count, *mine.shape), dtype=mine.dtype)
        return self.spread(found)

    def summed(self, mine: Tensor) -> Tensor:
        """Adds up the numbers of all processes, in place: the same bits on all of them.

        Numbers on a GPU go by the processes' own group for it (NCCL), if there is one. That waits
        for a process that is gone without saying so; all of them say before that they are there.

        Args:
            mine: This process's numbers, contiguous, of one shape and type on all.

        Returns:
            The same tensor, which holds the sums.
        """
        if not self.several:
            return mine
        import torch.distributed as dist

        if mine.device.type == "cpu":
            self._done(lambda: dist.all_reduce(mine, group=self.group))
        elif f"{mine.device.type}:nccl" in dist.get_backend_config():
            self._done(lambda: dist.barrier(group=self.group))
            self._done(lambda: dist.all_reduce(mine))
        else:
            return mine.copy_(self.summed(mine.cpu()))
        # Around a ring: each process says all parts but one twice.
        size = mine.numel() * mine.element_size() * 2 * (self.count - 1) // self.count
        self.sent += size
        self.received += size
        return mine

    @contextmanager
    def afresh(self) -> Iterator[None]:
        """Says that what is done inside begins anew when it breaks off."""
        before, self.keeps = self.keeps, False
        try:
            yield
        finally:
            self.keeps = before

    @contextmanager
    def gate(self) -> Iterator[None]:
        """Lets no process go on where another one has failed inside.

        Raises:
            ZopeftError: One has; on all of them the error of the first that has, which is named
                where not all have failed alike.
        """
        if not self.several:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        told = None if error is None else (line_of(error), getattr(error, "exit_code", 1))
        every = self.everyone(told)
        bad = [number for number, one in enumerate(every) if one is not None]
        if not bad:
            return
        if error is not None and len({one for one in every if one}) == 1 and len(bad) == self.count:
            raise error
        first = every[bad[0]]
        assert first is not None
        kind: type[ZopeftError] = InputError if first[1] == 2 else RunError
        # What the first one says, it says for all.
        raise kind(f"rank {bad[0]}: {first[0]}" if bad[0] else first[0]) from error

    def _done(self, exchange: Callable[[], Any]) -> None:
        """Makes an exchange; tells who is missing where it fails."""
        from zopeft.ranks.losing import lost

        if self._lost is not None:
            raise self._lost
        self.waits = True
        try:
            exchange()
            self.waits = False
        except RuntimeError as error:
            self._lost = lost(self, error)
            raise self._lost from None


ALONE = Ranks()
"""A process that is alone."""


def several() -> bool:
    """Whether this process was started with others, by its environment."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


_current: Ranks | None = None


def leads() -> bool:
    """Whether this process is the first of those that it was started with, by its environment."""
    return os.environ.get("RANK", "0") == "0"


def begin(timeout: float | None = None) -> Ranks:
    """Returns the processes that this one was started with; the first call makes them meet.

    Args:
        timeout: Seconds after which one that does not answer is given up; None for those of
            the call before, or `TIMEOUT`.

    Raises:
        RunError: They do not meet in that time.
    """
    global _current
    import torch
    import torch.distributed as dist

    known = _current is not None and _current.several and dist.is_initialized()
    if known and _current is not None and timeout in (None, _current.timeout):
        return _current
    if not dist.is_available():
        return ALONE
    timeout = TIMEOUT if timeout is None else timeout
    wait = timedelta(seconds=timeout)
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "MASTER_ADDR" not in os.environ:
            return ALONE
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            backend = "cpu:gloo,cuda:nccl"
        try:
            dist.init_process_group(backend, timeout=wait)
        except (RuntimeError, ValueError) as error:
            from zopeft.errors import run_error

            what = f"the processes did not meet ({line_of(error)})"
            raise run_error("ranks", what, None, "check that all of them were started") from None
    if dist.get_world_size() < 2:
        return ALONE
    # A group of its own: of another time-out, and on the CPU beside models on accelerators.
    group = dist.new_group(backend="gloo", timeout=wait)
    _current = Ranks(dist.get_rank(), dist.get_world_size(), group, timeout)
    from zopeft.ranks.losing import watch

    watch(_current)
    return _current


def current() -> Ranks:
    """Returns the processes that have met; this one alone where none have."""
    return ALONE if _current is None else _current


def line_of(error: BaseException) -> str:
    """Returns one line on an error, with its kind where it is not zopeft's own."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ZopeftError) else f"{type(error).__name__}: {text}"
