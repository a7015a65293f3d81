"""Which backend serves a model's weights."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable

import torch

from zopeft.kernels import BACKENDS
from zopeft.kernels.plain_backend import PlainKernels
from zopeft.noise import Noise

logger = logging.getLogger(__name__)


def kernels_for(backend: str, noise: Noise, devices: Iterable[torch.device]) -> PlainKernels:
    """Returns the kernels of a backend.

    Args:
        backend: A name of `BACKENDS`, or "auto": numba where some weights lie on the CPU
            and numba can be imported, else plain.
        noise: The noise family.
        devices: Where the weights lie.

    Raises:
        InputError: `backend` is unknown.
    """
    if backend == "auto":
        # Weights of the meta device are those that accelerate fetches from CPU or disk.
        on_cpu = any(device.type in ("cpu", "meta") for device in devices)
        backend = "numba" if on_cpu and _numba_works() else "plain"
    kernels: PlainKernels = BACKENDS[backend](noise)
    return kernels


def _numba_works() -> bool:
    if importlib.util.find_spec("numba") is None:
        logger.warning("numba is not installed: noise is made by PyTorch, some 50 times slower")
        return False
    try:
        BACKENDS["numba"]
    except ImportError as error:
        logger.warning("numba does not work here (%s): noise is made by PyTorch", error)
        return False
    return True
