"""The fixed split of recorded windows into those that may be learnt from and those that test."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

TEST_SHARE = 0.25
_TEST_BELOW = int(TEST_SHARE * 2**64)


def is_test(id: str) -> bool:
    """Whether the window of this id belongs to the test share (a quarter).

    The first 8 bytes of the id's SHA-256, read as a fraction of 2^64, lie below 0.25. It depends on the id
    alone: no seed, no fraction of labels, and no other window of the set can move a row across the border.
    """
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") < _TEST_BELOW


def held_out(ids: Sequence[str]) -> np.ndarray:
    """(N,) bool: :func:`is_test` of each id."""
    return np.fromiter((is_test(id) for id in ids), dtype=bool, count=len(ids))
