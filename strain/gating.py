"""Gating: outliers so loud that whitening would smear them over seconds are taken out first.

What is loud is decided as in the matched-filter searches (Usman et al. 2016, arXiv:1508.02357; pycbc's
``--autogating-threshold``). There the strain is then multiplied by zero with a cosine taper. But a mains line
switched off within a quarter of a second becomes wider than its notch and rings on both sides of the gate: 18
standard deviations where 60 Hz is as strong as in Hanford in August 2017. So the hole is filled instead with
the strain that is the likeliest given what lies around it (Zackay et al. 2021, arXiv:1908.05644): lines and
seismic motion run on through it, the whitened strain is next to zero inside, and what lies outside stays.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_toeplitz, toeplitz
from scipy.signal import oaconvolve

from gwtwins.strain.errors import InputError

THRESHOLD = 50.0  # standard deviations; a merger of network SNR 26 peaks at 8
HALF_WIDTH = 0.25  # s taken out on each side of a loud stretch
ROUNDS = 3  # an outlier may hide behind a louder one
LONGEST_FILL = 4.0  # s; the time it takes grows with the square

# Keeps the equations regular where the filter lets nothing through, and the filling does not matter.
_RIDGE = 1e-8


def loud_stretches(
    whitened: np.ndarray,
    rate: float,
    threshold: float = THRESHOLD,
    merge: float = 1.0,
    sigma: float | None = None,
) -> list[tuple[int, int]]:
    """Where |whitened| exceeds ``threshold``: half-open sample ranges, those closer than ``merge`` s joined.

    Args:
        whitened: (T,) strain.
        rate: samples per second.
        threshold: in standard deviations.
        merge: seconds.
        sigma: standard deviation of the noise. By default from the median of the absolute values, which for a
            Gaussian is 0.6745 standard deviations and which an outlier does not move.
    """
    if whitened.ndim != 1:
        raise InputError("whitened strain", f"shape {whitened.shape}", "(T,)")
    if sigma is None:
        sigma = float(np.median(np.abs(whitened))) / 0.6745
    loud = np.flatnonzero(np.abs(whitened) > threshold * sigma)
    if loud.size == 0 or sigma == 0.0:
        return []
    breaks = np.flatnonzero(np.diff(loud) > merge * rate)
    first = loud[np.concatenate([[0], breaks + 1])]
    last = loud[np.concatenate([breaks, [loud.size - 1]])]
    return [(int(a), int(b) + 1) for a, b in zip(first, last, strict=True)]


def holes_around(stretches: list[tuple[int, int]], samples: int, width: int, apart: int) -> list[tuple[int, int]]:
    """The stretches widened by ``width`` samples a side within [0, samples), joined if within ``apart``."""
    holes: list[tuple[int, int]] = []
    for start, stop in sorted(stretches):
        start, stop = max(0, start - width), min(samples, stop + width)
        if holes and start - holes[-1][1] <= apart:
            holes[-1] = (holes[-1][0], max(stop, holes[-1][1]))
        else:
            holes.append((start, stop))
    return holes


def take_out(x: np.ndarray, taps: np.ndarray, rate: float) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """``x`` (T,) with what is loud once whitened filled in, and the holes, half-open sample ranges.

    Holes beyond LONGEST_FILL are not worth a fill: they are cut out, and widened by what the filter spoils beside them.

    Args:
        x: strain.
        taps: (2 n + 1,) whitening filter that gives the noise a standard deviation of 1.
        rate: samples per second.
    """
    half, width = taps.size // 2, round(HALF_WIDTH * rate)
    loud: list[tuple[int, int]] = []
    holes: list[tuple[int, int]] = []
    cut: list[tuple[int, int]] = []
    filled = x
    for _ in range(ROUNDS):
        white = np.pad(oaconvolve(filled, taps, mode="valid"), half)
        for start, stop in cut:
            white[max(0, start - half) : stop + half] = 0.0
        new = loud_stretches(white, rate, sigma=1.0)
        if not new:
            break
        loud += reaching_ends(new, x.size, half + width)
        holes = holes_around(loud, x.size, width, taps.size)
        cut = [(start, stop) for start, stop in holes if stop - start > LONGEST_FILL * rate]
        filled = x.copy()
        for start, stop in cut:
            filled[start:stop] = 0.0
        filled = inpaint(filled, [hole for hole in holes if hole not in cut], taps)
    wide = [(max(0, start - half), min(x.size, stop + half)) for start, stop in cut]
    return filled, sorted([hole for hole in holes if hole not in cut] + wide)


def reaching_ends(stretches: list[tuple[int, int]], samples: int, reach: int) -> list[tuple[int, int]]:
    """Loud where the filter begins to fit: the outlier may lie in the edge, seen through the filter only."""
    return [(0 if a <= reach else a, samples if b >= samples - reach else b) for a, b in stretches]


def inpaint(strain: np.ndarray, holes: list[tuple[int, int]], taps: np.ndarray) -> np.ndarray:
    """``strain`` (T,) with new samples in ``holes``: those with which the whitened strain is smallest.

    The fill minimises the sum of squares of ``taps * strain`` over all places where the filter lies inside
    the strain: normal equations in the filter's autocorrelation, Toeplitz but for holes near the ends.

    Args:
        strain: (T,) float64.
        holes: half-open sample ranges, further apart than ``taps`` is long.
        taps: (2 n + 1,) whitening filter, symmetric.
    """
    n = taps.size // 2
    outside = np.ones(strain.size, bool)
    for start, stop in holes:
        outside[start:stop] = False
    offset = strain[outside].mean() if outside.any() else 0.0
    out = np.where(outside, strain - offset, 0.0)
    autocorrelation = oaconvolve(taps, taps)[2 * n :]  # lags 0 to 2 n
    for start, stop in holes:
        size = stop - start
        low, high = max(start - 2 * n, 0), min(stop + 2 * n, strain.size)
        if high - low <= 2 * n:
            continue  # the filter fits nowhere: nothing is known and nothing is needed
        white = oaconvolve(out[low:high], taps, mode="valid")  # of the strain around the hole
        right = -oaconvolve(white, taps)[start - low : stop - low]
        column = np.zeros(size)
        column[: 2 * n + 1] = autocorrelation[:size]
        column[0] *= 1 + _RIDGE
        if start - low == 2 * n and high - stop == 2 * n:
            out[start:stop] = solve_toeplitz(column, right)
        else:
            # Near an end, outputs that would need samples beyond it do not count: rows of `beyond`.
            normal = toeplitz(column)
            for places in (np.arange(start - n, low + n), np.arange(high - n, stop + n)):
                lag = np.arange(start, stop) - places[:, None] + n
                beyond = np.where((lag >= 0) & (lag <= 2 * n), taps[lag.clip(0, 2 * n)], 0.0)
                normal -= beyond.T @ beyond
            out[start:stop] = cho_solve(cho_factor(normal), right)
    return out + offset
