"""Kernels of the engine; `zopeft.kernels.plain` is the definition of each.

A backend is a subclass of `zopeft.kernels.plain_backend.PlainKernels`: it takes over what
it does faster, and leaves other devices and dtypes to the plain way.
"""

from zopeft.registry import Registry

BACKENDS = Registry(
    "backend",
    {
        "plain": "zopeft.kernels.plain_backend:PlainKernels",
        "numba": "zopeft.kernels.numba_backend:NumbaKernels",
        "triton": "zopeft.kernels.triton_backend:TritonKernels",
    },
    {
        "plain": "PyTorch operations, on any device: the definition",
        "numba": "compiled for the CPU at hand, several threads; same bits as plain",
        "triton": "compiled for the GPU at hand; same bits as plain",
    },
)

__all__ = ["BACKENDS"]
