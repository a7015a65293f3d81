"""The model hub: whether it can be reached, and how to stay away from it.

The hub's clients retry for tens of seconds before they give up. One short look at
the hub's address, before anything is asked for, keeps a machine without a network
from waiting for that.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Iterator
from typing import Any

PATIENCE = 3.0
"""Seconds to wait for the hub's first answer."""


@functools.cache
def reachable() -> bool:
    """Tells whether the hub answers; asked once per process, through the user's proxies.

    Returns:
        False when offline mode is set (``HF_HUB_OFFLINE=1``), or when there was no
        answer within `PATIENCE` seconds.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answered: list[bool] = []

    def ask() -> None:
        from huggingface_hub import get_session

        with contextlib.suppress(Exception):
            reply = get_session().head(constants.ENDPOINT, timeout=PATIENCE)
            answered.append(reply.status_code < 500 and reply.status_code != 407)

    # A resolver may hang for longer than any timeout given to the client, so the
    # question is asked in a thread that may be left behind.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE + 0.5)
    return bool(answered and answered[0])


@contextlib.contextmanager
def cache_only(active: bool = True) -> Iterator[None]:
    """Inside, the hub's clients use what was downloaded before and ask no network.

    Args:
        active: False makes this a no-op.
    """
    if not active:
        yield
        return
    from huggingface_hub import constants

    modules: list[Any] = [constants]
    if "datasets" in sys.modules:
        modules.append(sys.modules["datasets"].config)
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def is_repository(name: str) -> bool:
    """Tells whether `name` has the form of a hub id, ``organisation/name``."""
    parts = name.split("/")
    return len(parts) == 2 and all(
        part
        and part[0] not in ".~"
        and part.replace("-", "").replace("_", "").replace(".", "").isalnum()
        for part in parts
    )
