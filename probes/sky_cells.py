"""Isotropic sky positions and orientations, sorted by the delays between detectors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gwtwins.strain.detectors import antenna_patterns, delays_from_geocentre, detector

ORIENTATIONS = 32  # polarisations and inclinations at each position
_SEED = 6


class SkyCells:
    """Positions fixed to the Earth, evenly spread, in cells of equal delays to the nearest sample.

    With three detectors a cell lies on one side of their plane.

    An isotropic sky is isotropic to the turning Earth at any time of day. Every position has polarisations and
    inclinations of its own from one low-discrepancy sequence (Sobol', scrambled).

    Args:
        detectors: D names; delays are counted from the first.
        rate: samples per second that delays are rounded to.
        positions: a power of two, M.

    Attributes:
        delay: (M, D) float64, arrival after the geocentre in seconds.
        response: (M, 32, D) complex64, the factor of the face-on waveform in each detector, phase 0.
        cell_delay: (C, D) int64, samples after the first detector.
        cell_share: (C,) float32, part of the sky.
        cell_start, cell_count: (C,) int64, where each cell's positions stand.
    """

    def __init__(self, detectors: tuple[str, ...], rate: float, positions: int = 16384, device: str = "cpu") -> None:
        n = torch.arange(positions, dtype=torch.float64) + 0.5
        golden = np.pi * (3.0 - np.sqrt(5.0))  # Fibonacci's lattice on the sphere
        longitude, latitude = (golden * n) % (2 * np.pi), torch.asin(1.0 - 2.0 * n / positions)
        zero = torch.zeros_like(longitude)
        delay = delays_from_geocentre(detectors, longitude, latitude, zero)
        samples = torch.round((delay - delay[:, :1]) * rate).long()
        if len(detectors) == 3:  # two positions, mirrored in the detectors' plane, have the same delays
            normal = torch.linalg.cross(*_baselines(detectors))
            towards = torch.stack([latitude.cos() * longitude.cos(), latitude.cos() * longitude.sin(), latitude.sin()])
            samples[:, 0] = (normal @ towards > 0).long()
        cells, cell, count = torch.unique(samples, dim=0, return_inverse=True, return_counts=True)
        cells[:, 0] = 0
        order = torch.argsort(cell, stable=True)
        u = torch.quasirandom.SobolEngine(2, scramble=True, seed=_SEED).draw(positions * ORIENTATIONS)
        u = u.double().view(positions, ORIENTATIONS, 2)
        psi, cosine = 0.5 * np.pi * u[..., 0], 2.0 * u[..., 1] - 1.0  # a quarter turn of psi is half a turn of phase
        longitude, latitude, zero = (x[order, None].expand(-1, ORIENTATIONS) for x in (longitude, latitude, zero))
        pattern = antenna_patterns(detectors, longitude, latitude, psi, zero)  # (M, 32, D, 2)
        cosine = cosine[..., None]
        response = torch.complex(pattern[..., 0] * (1 + cosine**2) / 2, -pattern[..., 1] * cosine)
        self.delay = delay[order].to(device)
        self.response = response.to(torch.complex64).to(device)
        self.cell_delay, self.cell_count = cells.to(device), count.to(device)
        self.cell_start = (count.cumsum(0) - count).to(device)
        self.cell_share = (count / positions).to(device)


def _baselines(detectors: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    first, second, third = (torch.tensor(detector(name).location, dtype=torch.float64) for name in detectors)
    return second - first, third - first
