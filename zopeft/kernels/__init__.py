"""Kernels of the engine; `zopeft.kernels.plain` is the definition of each."""
