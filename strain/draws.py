"""Random numbers as a pure function of (seed, stream, step, row), so that nothing else can change them.

Each row of each step has a Philox counter-based generator of its own (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3"). How rows are split into batches, over workers or over processes, and where a run was
interrupted, are then without influence on what is drawn.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

_MASK64 = (1 << 64) - 1


def row_generator(seed: int, stream: str, step: int, row: int) -> np.random.Generator:
    """The generator of one row of one step; ``stream`` names what is drawn ("noise", "sky", ...).

    The Philox key is (seed, stream) and its 256-bit counter starts at (0, 0, step, row), so that every row has 2^128
    draws before it would meet another.
    """
    key = np.array([seed & _MASK64, zlib.crc32(stream.encode())], dtype=np.uint64)
    counter = np.array([0, 0, step & _MASK64, row & _MASK64], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def uniform(seed: int, stream: str, step: int, rows: Iterable[int], n: int) -> Tensor:
    """Uniform numbers in [0, 1), (B, n) float64, one row of the result for each of ``rows``."""
    rows = list(rows)
    out = np.empty((len(rows), n))
    for i, row in enumerate(rows):
        row_generator(seed, stream, step, row).random(out=out[i])
    return torch.from_numpy(out)


def normal(seed: int, stream: str, step: int, rows: Iterable[int], n: int) -> Tensor:
    """Standard normal numbers, (B, n) float32, one row of the result for each of ``rows``."""
    rows = list(rows)
    out = np.empty((len(rows), n), dtype=np.float32)
    for i, row in enumerate(rows):
        row_generator(seed, stream, step, row).standard_normal(dtype=np.float32, out=out[i])
    return torch.from_numpy(out)
