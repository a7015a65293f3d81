"""Which versions of packages are installed: looked up once a process."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("zopeft", "torch", "transformers", "peft")
"""Of these a result has the versions beside it."""


@cache
def installed(package: str) -> str | None:
    """Returns the version of a package, None where it is not installed.

    To look it up takes a millisecond, as long as a step of a small model.

    Args:
        package: Its name on the index that it comes from.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Returns the versions of those that are installed, by name."""
    found = {package: installed(package) for package in packages}
    return {package: number for package, number in found.items() if number is not None}


def library_versions() -> dict[str, str]:
    """Returns the versions of zopeft and of what its numbers depend on."""
    return versions_of(LIBRARIES)
