"""Versions of installed packages."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """The version of each package, by its name on PyPI; those that are not installed are left out.

    Examples
    --------
    >>> list(versions_of(["numpy", "no-such-package"]))
    ['numpy']
    """
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
