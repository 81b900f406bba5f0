"""Detector geometry: antenna patterns and light travel times, vectorised in torch, equal to lal's.

Response tensors and vertex positions are those of LALDetectors.h (Earth-fixed frame), copied here as numbers so that
training from a stored bank needs no lal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gwtwins.strain.errors import InputError

SPEED_OF_LIGHT = 299792458.0  # m/s, exact


@dataclass(frozen=True)
class Detector:
    """One interferometer."""

    name: str
    location: tuple[float, float, float]
    """Vertex, Earth-fixed, metres."""
    response: tuple[tuple[float, float, float], ...]
    """Response tensor D_ij = (x_i x_j - y_i y_j) / 2 of arms x and y."""


DETECTORS = {
    "H1": Detector(
        "H1",
        (-2161414.92636, -3834695.17889, 4600350.22664),
        (
            (-0.39261409640312195, -0.07761341333389282, -0.2473890483379364),
            (-0.07761341333389282, 0.3195240795612335, 0.22799783945083618),
            (-0.2473890483379364, 0.22799783945083618, 0.07309003174304962),
        ),
    ),
    "L1": Detector(
        "L1",
        (-74276.0447238, -5496283.71971, 3224257.01744),
        (
            (0.41128087043762207, 0.14021027088165283, 0.2472945898771286),
            (0.14021027088165283, -0.10900568962097168, -0.18161563575267792),
            (0.2472945898771286, -0.18161563575267792, -0.302275151014328),
        ),
    ),
    "V1": Detector(
        "V1",
        (4546374.099, 842989.697626, 4378576.96241),
        (
            (0.24387404322624207, -0.0990837812423706, -0.23257622122764587),
            (-0.0990837812423706, -0.4478258490562439, 0.18783310055732727),
            (-0.23257622122764587, 0.18783310055732727, 0.20395180583000183),
        ),
    ),
    "K1": Detector(
        "K1",
        (-3777336.024, 3484898.411, 3765313.697),
        (
            (-0.185989648103714, 0.15316680073738098, -0.3249514698982239),
            (0.15316680073738098, 0.3495182991027832, -0.17087440192699432),
            (-0.3249514698982239, -0.17087440192699432, -0.16352863609790802),
        ),
    ),
}

# GPS seconds at which UTC gained a leap second since the GPS epoch (IERS Bulletin C), all there are to date.
_LEAPS = torch.tensor(
    [46828800, 78364801, 109900802, 173059203, 252028804, 315187205, 346723206, 393984007, 425520008]
    + [457056009, 504489610, 551750411, 599184012, 820108813, 914803214, 1025136015, 1119744016, 1167264017],
    dtype=torch.float64,
)
_GPS_EPOCH_J2000 = -630763200.0  # seconds from 2000-01-01 12:00 UT to 1980-01-06 00:00 UTC


def detector(name: str) -> Detector:
    """The detector of a two-character name such as "H1".

    Raises:
        InputError: no detector of that name.
    """
    if name not in DETECTORS:
        raise InputError(f"detector {name}", "is not known", " ".join(DETECTORS))
    return DETECTORS[name]


def sidereal_time(gps: Tensor) -> Tensor:
    """Greenwich mean sidereal time in radians, unwrapped, at ``gps`` seconds (float64, any shape).

    IAU 1982 (Aoki et al. 1982, A&A 105, 359) with UT1 taken as UTC, as lal does.
    """
    gps = gps.to(torch.float64)
    leaps = torch.searchsorted(_LEAPS.to(gps.device), gps, right=True)
    since_j2000 = gps - leaps + _GPS_EPOCH_J2000
    century = since_j2000 / (36525.0 * 86400.0)
    seconds = 67310.54841 + (876600.0 * 3600 + 8640184.812866 + (0.093104 - 6.2e-6 * century) * century) * century
    return seconds * (2 * np.pi / 86400.0)


def antenna_patterns(names: tuple[str, ...], ra: Tensor, dec: Tensor, psi: Tensor, gmst: Tensor) -> Tensor:
    """Plus and cross responses (..., D, 2) float64 of D detectors to sources at ``ra``, ``dec`` (radians).

    Anderson et al. 2001 (Phys. Rev. D 63, 042003), appendix B, in lal's convention (ComputeDetAMResponse).

    Args:
        names: D detectors.
        ra, dec, psi: right ascension, declination, polarisation angle in radians, float64 of one shape (...).
        gmst: Greenwich sidereal time in radians, same shape or a scalar tensor.
    """
    response = torch.tensor([detector(n).response for n in names], dtype=torch.float64, device=ra.device)
    hour = gmst - ra
    cos_h, sin_h, cos_d, sin_d = torch.cos(hour), torch.sin(hour), torch.cos(dec), torch.sin(dec)
    cos_p, sin_p = torch.cos(psi), torch.sin(psi)
    x = torch.stack(
        [-cos_p * sin_h - sin_p * cos_h * sin_d, -cos_p * cos_h + sin_p * sin_h * sin_d, sin_p * cos_d], -1
    )
    y = torch.stack(
        [sin_p * sin_h - cos_p * cos_h * sin_d, sin_p * cos_h + cos_p * sin_h * sin_d, cos_p * cos_d], -1
    )
    dx = torch.einsum("dij,...j->...di", response, x)
    dy = torch.einsum("dij,...j->...di", response, y)
    x, y = x.unsqueeze(-2), y.unsqueeze(-2)
    plus = (x * dx).sum(-1) - (y * dy).sum(-1)
    cross = (x * dy).sum(-1) + (y * dx).sum(-1)
    return torch.stack([plus, cross], -1)


def delays_from_geocentre(names: tuple[str, ...], ra: Tensor, dec: Tensor, gmst: Tensor) -> Tensor:
    """Arrival at D detectors minus arrival at the Earth's centre, seconds, (..., D) float64."""
    hour = gmst - ra
    towards = torch.stack(
        [torch.cos(dec) * torch.cos(hour), -torch.cos(dec) * torch.sin(hour), torch.sin(dec)], -1
    )
    location = torch.tensor([detector(n).location for n in names], dtype=torch.float64, device=ra.device)
    return -(towards @ location.T) / SPEED_OF_LIGHT


def light_travel_time(first: str, second: str) -> float:
    """Seconds that light takes between two detectors: the largest possible difference of arrival times."""
    a, b = np.array(detector(first).location), np.array(detector(second).location)
    return float(np.linalg.norm(a - b) / SPEED_OF_LIGHT)
