"""The maximum over a window that slides by one step at a time, and the peaks of a series."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]


def sliding_max(x: FloatArray, n: int) -> FloatArray:
    """Maximum of every n numbers that follow on each other: (T,) to (T - n + 1,).

    The maximum over 2 k numbers is that of two maxima over k, so that log2 n passes do; a maximum does not round.
    """
    if not 1 <= n <= len(x):
        raise ValueError(f"windows of {n} numbers out of {len(x)}")
    held = 1
    while held < n:
        step = min(held, n - held)
        x = np.maximum(x[:-step], x[step:])
        held += step
    return x


def loudest_within(x: FloatArray, reach: int) -> NDArray[np.bool_]:
    """(T,) bool: finite values that no other within ``reach`` steps exceeds; of equal ones the first."""
    found = np.isfinite(x)
    if reach < 1 or not x.size:
        return found
    quiet = np.full(reach, -np.inf, x.dtype)
    around = sliding_max(np.concatenate([quiet, x, quiet]), reach)  # entry i: the loudest of x[i - reach] to x[i - 1]
    return found & (x > around[: x.size]) & (x >= around[reach + 1 : reach + 1 + x.size])
