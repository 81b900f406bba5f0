"""Detector geometry, against lal."""

from __future__ import annotations

import lal
import numpy as np
import pycbc.detector
import pytest
import torch

from gwtwins.strain.detectors import (
    DETECTORS,
    antenna_patterns,
    delays_from_geocentre,
    detector,
    light_travel_time,
    sidereal_time,
)
from gwtwins.strain.errors import InputError

NAMES = ("H1", "L1", "V1", "K1")
N = 500


@pytest.fixture(scope="module")
def sky() -> dict[str, np.ndarray]:
    """Random skies between the GPS epoch and 2033."""
    rng = np.random.default_rng(0)
    return {
        "ra": rng.uniform(0, 2 * np.pi, N),
        "dec": np.arcsin(rng.uniform(-1, 1, N)),
        "psi": rng.uniform(0, np.pi, N),
        "gps": rng.uniform(0, 1.7e9, N),
    }


def direction(sky: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right ascension, declination, polarisation angle."""
    return torch.from_numpy(sky["ra"]), torch.from_numpy(sky["dec"]), torch.from_numpy(sky["psi"])


def test_sidereal_time_is_lals(sky: dict[str, np.ndarray]) -> None:
    expected = [lal.GreenwichMeanSiderealTime(gps) for gps in sky["gps"]]
    # 1e-8 rad: what a delay of 1e-9 s needs is 5e-8, and float64 keeps 1e-9 of the angle since 2000.
    np.testing.assert_allclose(sidereal_time(torch.from_numpy(sky["gps"])), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("leap", [46828800, 914803214, 1167264017])
def test_sidereal_time_knows_the_leap_seconds(leap: int) -> None:
    gps = torch.tensor([leap - 1.0, leap + 1.0], dtype=torch.float64)
    expected = [lal.GreenwichMeanSiderealTime(float(t)) for t in gps]
    np.testing.assert_allclose(sidereal_time(gps), expected, rtol=0, atol=1e-8)
    # Two GPS seconds, one of them inserted: the Earth as UTC counts it has turned for one.
    turned = float(np.diff(sidereal_time(gps).numpy())[0])
    assert turned == pytest.approx(2 * np.pi / 86164.0905, rel=1e-3)


def test_antenna_patterns_are_lals(sky: dict[str, np.ndarray]) -> None:
    gmst = np.array([lal.GreenwichMeanSiderealTime(gps) for gps in sky["gps"]])
    ours = antenna_patterns(NAMES, *direction(sky), torch.from_numpy(gmst))
    assert ours.shape == (N, 4, 2) and ours.dtype == torch.float64
    for d, name in enumerate(NAMES):
        response = lal.cached_detector_by_prefix[name].response
        expected = [
            lal.ComputeDetAMResponse(response, *angles) for angles in zip(sky["ra"], sky["dec"], sky["psi"], gmst)
        ]
        np.testing.assert_allclose(ours[:, d], expected, rtol=0, atol=1e-6, err_msg=name)


def test_delays_are_lals(sky: dict[str, np.ndarray]) -> None:
    (ra, dec, _), gps = direction(sky), torch.from_numpy(sky["gps"])
    ours = delays_from_geocentre(NAMES, ra, dec, sidereal_time(gps))
    assert ours.shape == (N, 4)
    for d, name in enumerate(NAMES):
        location = lal.cached_detector_by_prefix[name].location
        expected = [
            lal.TimeDelayFromEarthCenter(location, *angles, lal.LIGOTimeGPS(float(t)))
            for *angles, t in zip(sky["ra"], sky["dec"], sky["gps"])
        ]
        np.testing.assert_allclose(ours[:, d], expected, rtol=0, atol=1e-9, err_msg=name)


def test_patterns_and_delays_are_pycbcs_for_every_detector(sky: dict[str, np.ndarray]) -> None:
    """KAGRA too. pycbc reckons sidereal time on from September 2015 without leap seconds: 7e-5 rad for each."""
    (ra, dec, psi), gps = direction(sky), np.linspace(1.12e9, 1.28e9, N)
    gmst = sidereal_time(torch.from_numpy(gps))
    pattern, delay = antenna_patterns(NAMES, ra, dec, psi, gmst), delays_from_geocentre(NAMES, ra, dec, gmst)
    for d, name in enumerate(NAMES):
        theirs = pycbc.detector.Detector(name)
        expected = theirs.antenna_pattern(sky["ra"], sky["dec"], sky["psi"], gps)
        np.testing.assert_allclose(pattern[:, d].T, expected, rtol=0, atol=3e-4, err_msg=name)
        expected = theirs.time_delay_from_earth_center(sky["ra"], sky["dec"], gps)
        np.testing.assert_allclose(delay[:, d], expected, rtol=0, atol=3e-6, err_msg=name)


def test_any_leading_shape_and_a_scalar_time(sky: dict[str, np.ndarray]) -> None:
    ra, dec, psi = direction(sky)
    gmst = torch.tensor(1.25, dtype=torch.float64)
    flat = antenna_patterns(NAMES[:2], ra, dec, psi, gmst)
    folded = (5, N // 5)
    shaped = antenna_patterns(NAMES[:2], ra.reshape(folded), dec.reshape(folded), psi.reshape(folded), gmst)
    torch.testing.assert_close(shaped.reshape(N, 2, 2), flat, rtol=0, atol=0)
    delays = delays_from_geocentre(NAMES[:2], ra.reshape(folded), dec.reshape(folded), gmst)
    torch.testing.assert_close(
        delays.reshape(N, 2), delays_from_geocentre(NAMES[:2], ra, dec, gmst), rtol=0, atol=1e-18
    )


def test_sky_average_of_the_antenna_power_is_a_fifth() -> None:
    """<F+^2> = <Fx^2> = 1/5 over sky and polarisation, for any detector with orthogonal arms."""
    u = torch.rand(200_000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros((), dtype=torch.float64)
    pattern = antenna_patterns(NAMES, 2 * np.pi * u[:, 0], torch.asin(2 * u[:, 1] - 1), np.pi * u[:, 2], zero)
    # The standard error of the mean is 0.0005.
    np.testing.assert_allclose(pattern.square().mean(0), np.full((4, 2), 0.2), atol=0.0025)


def test_light_travel_times() -> None:
    """10.0 ms between Hanford and Livingston, 27.3 ms to Virgo (Abbott et al. 2017, PRL 119, 141101)."""
    assert light_travel_time("H1", "L1") == pytest.approx(0.010013, abs=1e-6)
    assert light_travel_time("H1", "V1") == pytest.approx(0.027288, abs=1e-6)
    for a in NAMES:
        for b in NAMES:
            pair = (lal.cached_detector_by_prefix[a], lal.cached_detector_by_prefix[b])
            assert light_travel_time(a, b) == pytest.approx(lal.LightTravelTime(*pair) * 1e-9, abs=1e-9)


def test_no_delay_exceeds_the_light_travel_time(sky: dict[str, np.ndarray]) -> None:
    (ra, dec, _), gps = direction(sky), torch.from_numpy(sky["gps"])
    delays = delays_from_geocentre(NAMES, ra, dec, sidereal_time(gps))
    assert delays.abs().max() < 0.0213  # the Earth's radius
    for i, a in enumerate(NAMES):
        for j, b in enumerate(NAMES[:i]):
            assert (delays[:, i] - delays[:, j]).abs().max() <= light_travel_time(a, b) + 1e-12
            assert (delays[:, i] - delays[:, j]).abs().max() > 0.95 * light_travel_time(a, b)


def test_an_unknown_detector_is_named_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="detector X9: is not known; expected H1 L1 V1 K1"):
        detector("X9")
    assert tuple(DETECTORS) == NAMES
