"""Constant-Q transform of whitened strain: how much more power a time and frequency holds than noise does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gwtwins.strain.conditioning import F_HIGH, F_LOW
from gwtwins.strain.errors import InputError

Array = NDArray[np.float64]

Q = 6.0
"""Central frequency over bandwidth: low, as the last cycles of tens of solar masses sweep fast."""
ROWS = 96
"""Frequencies: neighbours of Q 6 from 20 to 500 Hz overlap by more than 99% in amplitude."""


@dataclass(frozen=True)
class QMap:
    """Normalised energy over time and frequency."""

    time: Array
    """(T,) seconds from the window's first sample."""
    frequency: Array
    """(F,) Hz, in equal steps of its logarithm."""
    energy: Array
    """(..., F, T): 1 on average in noise, where it exceeds z with probability exp(-z)."""


def q_transform(
    strain: ArrayLike,
    rate: float,
    q: float = Q,
    rows: int = ROWS,
    f_low: float = F_LOW,
    f_high: float = F_HIGH,
) -> QMap:
    """Energy in tiles of constant Q with bisquare windows in frequency (Chatterji et al., CQG 21 S1809).

    The strain is whitened and band-limited, so what noise puts into a tile is known, and energies are divided
    by that; no median over the window is taken, which a loud signal would raise. A matched sine-Gaussian of
    SNR rho has energy rho^2 / 2 (+ 1 from the noise). The window is padded with zeros: nothing wraps from one
    end to the other, and energies fall off within a tile's length of the ends.

    Args:
        strain: (..., T), of variance 1 in noise: white from ``f_low`` to ``f_high`` Hz, zero outside.
        rate: samples per second.
        q: central frequency over bandwidth; more than sqrt(11), or the windows reach below 0 Hz.
        rows: number of frequencies from ``f_low`` to ``f_high``.

    Raises:
        InputError: the band is empty or reaches beyond half of the rate, or Q is too low for such windows.
    """
    if not 0 < f_low < f_high <= rate / 2:
        fault = f"band {f_low:g}-{f_high:g} Hz at {rate:g} Hz"
        raise InputError("Q-transform", fault, "0 < low < high <= rate / 2")
    if not q > np.sqrt(11):
        raise InputError("Q-transform", f"Q = {q:g}", "more than sqrt(11), or windows reach below 0 Hz")
    x = np.asarray(strain, dtype=np.float64)
    n = x.shape[-1]
    padded = 2 * n
    spectrum = np.fft.rfft(x, padded)
    grid = np.arange(spectrum.shape[-1]) * rate / padded
    inside = (grid >= f_low) & (grid < f_high)
    centre = np.geomspace(f_low, f_high, rows)
    offset = (grid - centre[:, None]) / (centre[:, None] * np.sqrt(11) / q)
    window = np.where((np.abs(offset) < 1) & inside, (1 - offset**2) ** 2, 0.0)  # (F, bins)
    # White noise of variance 1 in the band has E|X_k|^2 = M rate / (2 (f_high - f_low)) for M samples.
    noise = rate / (2 * (f_high - f_low)) / padded * np.sum(window**2, axis=1)
    energy = np.empty((*x.shape[:-1], rows, n))
    analytic = np.zeros((*x.shape[:-1], padded), dtype=complex)
    for i in range(rows):  # one row at a time: a thousandth of the memory
        analytic[..., : grid.size] = spectrum * window[i]
        tile = np.fft.ifft(analytic)[..., :n]
        energy[..., i, :] = (tile.real**2 + tile.imag**2) / noise[i]
    return QMap(np.arange(n) / rate, centre, energy)
