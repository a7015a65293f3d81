"""A second process beside this one, for benchmarks that two processes make together."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import torch

from zopeft.ranks import Ranks, begin


def together(work: Callable[[Ranks], Any]) -> Any:
    """Has a fork of this process, and this one, do something as two ranks; returns this one's.

    Args:
        work: What both do.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    child = os.fork()
    rank = 0 if child else 1
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {k: str(v) for k, v in own.items()} | {"MASTER_ADDR": "127.0.0.1"}
    found = work(begin())
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    torch.distributed.destroy_process_group()
    for name in own:
        del os.environ[name]
    return found
