"""The noise's PSD as it changes along the data: a median over the minutes around each moment.

Periodograms of 4 s, half overlapping or denser where there is little, are made once and kept while they are needed; a
PSD is their median, so that a signal, which touches three of them, hardly moves it. Those that hold an outlier far
beyond any signal are left out.
"""

from __future__ import annotations

import numpy as np
from scipy.fft import rfft
from scipy.signal import get_window

from gwtwins.strain.psd import median_bias

SEGMENT = 4  # s of a periodogram
# Whitened power of a periodogram, in the median's. Noise scatters by 0.03, a signal of SNR 20 adds 0.1, an outlier that
# will be gated 0.6 and more; scattered light of 1.4 to 2.5 for a third of the time is noise to be whitened.
_LOUD = 3.0
_MOST = 1e30  # what a saturated detector may reach, and float32 can add up
MANY = 40  # places for one in a block


def starts(clean: np.ndarray, gps: int) -> np.ndarray:
    """The seconds (N,) at which a block's periodograms begin: every even GPS second, or every one where there are few.

    Args:
        clean: (S + SEGMENT - 1,) bool: seconds, from the block's first on, whose strain is right to the last sample.
        gps: of the block's first second.
    """
    every = np.flatnonzero(np.lib.stride_tricks.sliding_window_view(clean, SEGMENT).all(axis=1))
    return every if every.size < MANY else every[(every + gps) % 2 == 0]


def periodograms(strain: np.ndarray, rate: int, start: np.ndarray) -> np.ndarray:
    """One-sided Hann periodograms of SEGMENT seconds, straight trends taken out.

    Args:
        strain: (T,).
        rate: samples per second.
        start: (N,) seconds after the first sample at which they begin.

    Returns:
        (N, F) float32 power per Hz, F = SEGMENT rate / 2 + 1 frequencies from 0 on.
    """
    size = SEGMENT * rate
    rows = np.lib.stride_tricks.sliding_window_view(strain, size)[start * rate]  # (N, T), a copy
    window = get_window("hann", size)
    ramp = np.arange(size) - (size - 1) / 2
    trend = np.stack([np.full(size, 1.0 / size), ramp / np.sum(ramp**2)])
    spectrum = rfft(rows * window)
    # Of the trend, only its transform has to be taken out.
    spectrum -= (rows @ trend.T) @ rfft(np.stack([window, ramp * window]))
    power = (spectrum.real**2 + spectrum.imag**2) * (2.0 / (rate * np.sum(window**2)))
    return np.minimum(power, _MOST).astype(np.float32)


def typical(power: np.ndarray, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """The median of periodograms (N, F), the loud ones left out, and which were kept (N,).

    Args:
        power: the periodograms.
        low, high: bins of the band in which a periodogram is judged.
    """
    rough = _median(power)
    level = (power[:, low:high] / rough[low:high]).mean(axis=1)
    kept = level <= _LOUD * np.median(level)
    return (rough if kept.all() else _median(power[kept])), kept


def _median(power: np.ndarray) -> np.ndarray:
    """The median over N, divided by what it is of the mean for exponential variables, as float64 above zero."""
    n = len(power)
    middle = [n // 2] if n % 2 else [n // 2 - 1, n // 2]
    # Faster by far than np.median, which looks for NaN and goes down the columns.
    ordered = np.partition(np.ascontiguousarray(power.T), middle, axis=1)[:, middle].astype(np.float64)
    return np.maximum(ordered.mean(axis=1), np.finfo(np.float32).tiny) / median_bias(n)
