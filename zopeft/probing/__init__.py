"""Probing: how the losses of a step's probes are had, apart or as one."""
