"""Trackers: the services that transformers' callbacks report a run to."""

from __future__ import annotations

import importlib.util

from zopeft.errors import input_error

PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
}
"""Tracker to the packages of which it needs one."""


def check_tracker(name: str) -> None:
    """Refuses a tracker whose package is not there.

    Args:
        name: The tracker; "none" for none.

    Raises:
        InputError: Its package is missing.
    """
    packages = PACKAGES.get(name, ())
    if packages and not any(importlib.util.find_spec(package) for package in packages):
        do = f"pip install {packages[0]}"
        raise input_error("--report-to", "needs a package that is not installed", name, do)
