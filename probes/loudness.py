"""Phase and loudness averaged out of a likelihood ratio.

With u the complex matched-filter output of a template whose in-window SNR is the fraction nu of its network SNR rho,
the likelihood ratio of a signal of phase phi against noise is exp(rho Re(exp(-2 i phi) u) - rho^2 nu^2 / 2). Over a
uniform phase this is I0(rho |u|) exp(-rho^2 nu^2 / 2) (Whalen 1971, "Detection of signals in noise", 7.2); over the
population's SNRs one integral is left.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import i0e
from torch import Tensor

from gwtwins.strain.population import Distribution

Array = NDArray[np.floating]
_NODES = 96  # Gauss-Legendre: 0.12 apart for SNRs from 4 to 16, where the integrand is a unit Gaussian
_STEP_Y, _STEP_NU = 0.04, 0.01  # of the table
_ABOVE = 8.0  # the table goes so far beyond the largest SNR; noise does not


def density(distribution: Distribution, x: Tensor) -> Tensor:
    """The distribution's probability density at ``x``, zero outside of its range."""
    low, high, n = distribution.low, distribution.high, distribution.exponent + 1.0
    area = np.log(high / low) if n == 0 else (high**n - low**n) / n
    inside = (x >= low) & (x <= high)
    return torch.where(inside, x.clamp(min=low) ** distribution.exponent / area, 0.0)


def log_ratio(y: Array, nu: Array, snr: Distribution) -> Array:
    """Logarithm of the likelihood ratio averaged over phase and SNR, less y^2 / 2, by quadrature.

    Args:
        y: |u| / nu, the SNR that the filter finds inside the window; shapes broadcast with that of nu.
        nu: fraction of the SNR that is inside the window.
        snr: distribution of the network SNR.
    """
    node, weight = np.polynomial.legendre.leggauss(_NODES)
    rho = snr.low + 0.5 * (node + 1.0) * (snr.high - snr.low)
    weight = weight * rho**snr.exponent
    r = rho * nu[..., None]
    terms = np.exp(-0.5 * (r - y[..., None]) ** 2) * i0e(r * y[..., None])
    with np.errstate(divide="ignore"):
        return np.log(terms @ weight / weight.sum())


class LoudnessMarginal:
    """`log_ratio` plus y^2 / 2, from a table: to 0.003 up to the largest SNR of the population."""

    def __init__(self, snr: Distribution, device: str = "cpu") -> None:
        y = np.arange(0.0, snr.high + _ABOVE, _STEP_Y)
        nu = np.arange(0.0, 1.1, _STEP_NU)
        # Far below the SNRs of the population the ratio underflows: it is nothing there.
        rows = [np.maximum(log_ratio(y, np.full_like(y, value), snr), -700.0) for value in nu]
        self.table = torch.tensor(np.stack(rows), dtype=torch.float32, device=device)  # (nu, y)

    def __call__(self, y: Tensor, nu: Tensor) -> Tensor:
        """Logarithm of the likelihood ratio averaged over phase and SNR, of the shape of ``y`` and ``nu``."""
        n_nu, n_y = self.table.shape
        column, row = y / _STEP_Y, nu / _STEP_NU
        i, j = row.long().clamp_(0, n_nu - 2), column.long().clamp_(0, n_y - 2)
        a, b = row - i, column - j
        flat, at = self.table.view(-1), i * n_y + j
        lower = torch.lerp(flat[at], flat[at + 1], b)
        upper = torch.lerp(flat[at + n_y], flat[at + n_y + 1], b)
        return torch.lerp(lower, upper, a) + 0.5 * y * y


def average_over_snrs(squared: Array, snr: Array) -> Array:
    """log of the mean over ``snr`` (R,) of I0(r z) exp(-r^2 / 2), for each z^2 in ``squared`` (Z,)."""
    z = np.sqrt(squared)[:, None]
    return np.log(np.mean(np.exp(-0.5 * (snr - z) ** 2) * i0e(snr * z), axis=1)) + 0.5 * squared
