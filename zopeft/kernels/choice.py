"""Which backend serves a model's weights."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable

import torch

from zopeft.errors import input_error
from zopeft.kernels import BACKENDS
from zopeft.kernels.plain_backend import PlainKernels
from zopeft.noise import Noise

logger = logging.getLogger(__name__)


def kernels_for(backend: str, noise: Noise, devices: Iterable[torch.device]) -> PlainKernels:
    """Returns the kernels of a backend.

    Args:
        backend: A name of `BACKENDS`, or "auto": triton where some weights lie on a GPU,
            numba where some lie on the CPU, each where it can be imported, else plain.
        noise: The noise family.
        devices: Where the weights lie.

    Raises:
        InputError: `backend` is unknown, or what it needs is not installed.
    """
    if backend == "auto":
        # Weights of the meta device are those that accelerate fetches from CPU or disk.
        kinds = {"cpu" if device.type == "meta" else device.type for device in devices}
        if "cuda" in kinds and _triton_works():
            backend = "triton"
        else:
            backend = "numba" if "cpu" in kinds and _numba_works() else "plain"
    try:
        kernels: PlainKernels = BACKENDS[backend](noise)
    except ImportError as error:
        do = f"pip install {backend}, or use auto"
        raise input_error("backend", f"it can't be imported ({error})", backend, do) from error
    return kernels


def _triton_works() -> bool:
    if importlib.util.find_spec("triton") is None:
        logger.warning("triton is not installed: noise is made by PyTorch, many times slower")
        return False
    try:
        BACKENDS["triton"]
    except ImportError as error:
        logger.warning("triton does not work here (%s): noise is made by PyTorch", error)
        return False
    return True


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
