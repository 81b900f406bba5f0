"""Which seconds of recorded noise are for training, which for labelled and which for test rows.

GPS time is cut into blocks; a fixed hash of a block's number says what it is for, the same in every detector, so that
rows of different use share no second of any of them.
"""

from __future__ import annotations

import hashlib
from functools import cache
from itertools import groupby

import numpy as np

ROLES = {"train": 0.5, "labelled": 0.25, "test": 0.25}  # shares of the blocks
# Windows of 2 s then start in four fifths of a role's seconds (in two thirds with blocks of 4 s). With 16 s it would be
# nine tenths, but files of half a minute, less 10 s around a merger, hold too few such blocks to share out.
BLOCK = 8.0  # s


@cache
def role_of(block: int) -> str:
    """What the GPS seconds from ``block`` * BLOCK to ``(block + 1) * BLOCK`` are for: a key of `ROLES`.

    The first 8 bytes of a SHA-256, read as a fraction of 2^64: no seed moves it, nor which files there are.
    """
    fraction = int.from_bytes(hashlib.sha256(f"noise {block}".encode()).digest()[:8], "big") / 2.0**64
    return next(role for role, border in zip(ROLES, np.cumsum(list(ROLES.values())), strict=True) if fraction < border)


def stretches(role: str, start: float, end: float) -> list[tuple[float, float]]:
    """What belongs to ``role`` between two GPS times, (start, end) each, neighbouring blocks joined."""
    found = []
    for owner, group in groupby(range(int(start // BLOCK), int(np.ceil(end / BLOCK))), key=role_of):
        blocks = list(group)
        if owner == role:
            found.append((max(start, blocks[0] * BLOCK), min(end, (blocks[-1] + 1) * BLOCK)))
    return found
