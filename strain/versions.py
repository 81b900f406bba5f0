"""Versions of what decides a result, to be saved beside it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_DECIDING = ("gwtwins", "torch", "lightly", "pytorch-lightning", "numpy", "scipy", "scikit-learn", "pycbc")


def versions() -> dict[str, str]:
    """Name to version; "absent" for what is not installed."""
    found = {"python": platform.python_version()}
    for name in _DECIDING:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found
