"""Whitened Gaussian noise, fresh for every row."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from gwtwins.strain import draws
from gwtwins.strain.conditioning import band_bins

# Noise is made on a periodic stretch longer than the window by this, so that the window's two ends are independent.
_PERIOD_EXCESS = 0.25  # seconds


def gaussian_noise(
    seed: int,
    stream: str,
    step: int,
    rows: Iterable[int],
    n_detectors: int,
    rate: float,
    window: float,
    f_low: float,
    f_high: float,
    normal: Callable[[int, str, int, Iterable[int], int], Tensor] = draws.normal,
) -> Tensor:
    """Band-limited white noise of variance 1, (B, D, T) float32, a function of (seed, stream, step, row).

    Drawn in the frequency domain, where only the bins inside the band cost random numbers; ``normal`` draws them.
    """
    rows = list(rows)
    period = window + _PERIOD_EXCESS
    n, n_window = round(period * rate), round(window * rate)
    low, high = band_bins(n, rate, f_low, f_high)
    k = high - low
    drawn = normal(seed, stream, step, rows, n_detectors * k * 2)
    drawn = torch.view_as_complex(drawn.view(len(rows), n_detectors, k, 2))
    spectrum = torch.zeros(len(rows), n_detectors, n // 2 + 1, dtype=torch.complex64)
    # Unit real and imaginary parts have twice unit power: variance is 2 K E|X|^2 / N^2 = 4 K / N^2 without the factor.
    torch.mul(drawn, n / np.sqrt(4 * k), out=spectrum[..., low:high])
    return torch.fft.irfft(spectrum, n=n)[..., :n_window].contiguous()
