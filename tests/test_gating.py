"""Gating: what is taken out, what is left alone, and that it beats the taper."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal.windows import tukey

from gwosc_writer import GPS_START, coloured_noise
from gwtwins.strain.errors import InputError
from gwtwins.strain.gating import holes_around, inpaint, loud_stretches
from gwtwins.strain.psd import welch_median
from gwtwins.strain.recording import Conditioned, Recording, condition_recording
from gwtwins.strain.whitening_filter import WhiteningFilter, design_whitening

RATE = 2048


def with_burst(strain: np.ndarray, at: float, amplitude: float) -> np.ndarray:
    """A sine-Gaussian of 90 Hz; 1e-22 is about 0.4 standard deviations of the whitened noise."""
    time = np.arange(strain.size) / RATE
    return strain + amplitude * np.exp(-(((time - at) / 0.02) ** 2)) * np.sin(2 * np.pi * 90 * (time - at))


def conditioned(strain: np.ndarray) -> Conditioned:
    (piece,) = condition_recording(Recording("H1", GPS_START, RATE, strain, np.ones(32, bool)))
    return piece


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    """With mains lines 1,000 times above the floor, which no gate may switch off."""
    return coloured_noise(32, RATE, seed=1)


@pytest.fixture(scope="module")
def whitening(noise: np.ndarray) -> WhiteningFilter:
    return design_whitening(welch_median(noise, RATE), RATE, 20.0, 500.0, 0.5)


def test_loud_stretches_are_found_joined_and_independent_of_scale() -> None:
    white = np.random.default_rng(0).standard_normal(20 * RATE)
    white[1000] = 60.0
    white[1000 + RATE // 4] = -70.0  # within a second: the same stretch
    white[15 * RATE : 15 * RATE + 10] = 80.0
    expected = [(1000, 1000 + RATE // 4 + 1), (15 * RATE, 15 * RATE + 10)]
    assert loud_stretches(white, RATE) == expected
    assert loud_stretches(3e-21 * white, RATE) == expected
    assert loud_stretches(white, RATE, threshold=65.0)[0] == (1000 + RATE // 4, 1000 + RATE // 4 + 1)
    assert loud_stretches(white, RATE, threshold=100.0) == []
    assert loud_stretches(np.zeros(100), RATE) == []
    with pytest.raises(InputError, match=r"shape \(2, 10\)"):
        loud_stretches(np.zeros((2, 10)), RATE)


def test_holes_are_wider_than_stretches_and_apart() -> None:
    assert holes_around([(500, 510), (100, 101)], 1000, 20, 50) == [(80, 121), (480, 530)]
    assert holes_around([(100, 101), (200, 201)], 1000, 20, 80) == [(80, 221)]
    assert holes_around([(5, 6), (990, 999)], 1000, 20, 50) == [(0, 26), (970, 1000)]
    assert holes_around([(100, 300), (150, 160)], 1000, 0, 1) == [(100, 300)]


@pytest.mark.parametrize("hole", [(30000, 31500), (0, 900), (700, 1900), (64600, 65536), (63000, 64000)])
def test_the_fill_is_the_smallest_whitened_strain_there_is(
    noise: np.ndarray, whitening: WhiteningFilter, hole: tuple[int, int]
) -> None:
    """Also beside the ends, where the filter does not fit: no other fill has less whitened power."""
    start, stop = hole
    strain = noise.copy()
    strain[start:stop] = 1e-15  # what was there does not matter
    filled = inpaint(strain, [hole], whitening.taps)
    outside = np.ones(noise.size, bool)
    outside[start:stop] = False
    np.testing.assert_allclose(filled[outside], noise[outside], rtol=0, atol=1e-30)
    least = np.sum(whitening(filled) ** 2)
    rng = np.random.default_rng(0)
    for scale in (1e-23, 1e-22):
        for sign in (1, -1):
            other = filled.copy()
            other[start:stop] += sign * scale * rng.standard_normal(stop - start)
            assert np.sum(whitening(other) ** 2) > least
    assert least <= np.sum(whitening(noise) ** 2)
    assert np.abs(whitening(filled)).max() < 6


def test_a_hole_does_not_reach_beyond_itself_where_a_taper_does(
    noise: np.ndarray, whitening: WhiteningFilter
) -> None:
    start, stop = 15 * RATE, 16 * RATE
    clean = whitening(noise)
    before = start - whitening.half  # in whitened samples
    near = slice(before - RATE // 4, before)
    filled = whitening(inpaint(noise, [(start, stop)], whitening.taps))
    assert np.std(filled[near] - clean[near]) < 0.35
    assert np.std(filled[start - whitening.half + RATE // 4 : stop - whitening.half - RATE // 4]) < 0.15
    taper = 1 - np.pad(
        tukey(stop - start + RATE // 2, 0.4), (start - RATE // 4, noise.size - stop - RATE // 4)
    )
    tapered = whitening(noise * taper)
    assert np.abs(tapered).max() > 12  # what the lines do when switched off
    assert np.abs(filled).max() < 6


@pytest.mark.parametrize("amplitude", [3e-20, 1e-18, 1e-16])
def test_an_outlier_is_gone_and_the_strain_beside_it_is_as_if_it_had_not_been(
    noise: np.ndarray, amplitude: float
) -> None:
    clean, gated = conditioned(noise), conditioned(with_burst(noise, 12.3, amplitude))
    ((start, end),) = gated.gates
    assert start < GPS_START + 12.3 < end
    assert end - start < 2.0
    assert np.abs(gated.strain).max() < 6
    at = gated.gps_start + np.arange(gated.strain.size) / RATE
    beside = ((at > start - 1.0) & (at < start)) | ((at >= end) & (at < end + 1.0))
    far = (at < start - 1.0) | (at > end + 1.0)
    assert np.std(gated.strain[beside] - clean.strain[beside]) < 0.35
    assert np.std(gated.strain[far] - clean.strain[far]) < 0.12  # the PSD estimates differ a little
    assert clean.gates == []


def test_an_outlier_at_the_very_edge(noise: np.ndarray) -> None:
    for at in (0.02, 0.6, 31.7, 31.98):
        piece = conditioned(with_burst(noise, at, 1e-17))
        assert np.abs(piece.strain).max() < 8
        assert abs(piece.strain[3 * RATE : -3 * RATE].std() - 1) < 0.02


def test_a_second_outlier_hidden_behind_a_louder_one_is_found(noise: np.ndarray) -> None:
    piece = conditioned(with_burst(with_burst(noise, 12.3, 3e-16), 20.0, 5e-20))
    assert len(piece.gates) == 2
    assert np.abs(piece.strain).max() < 6


def test_a_loud_merger_is_not_gated(noise: np.ndarray) -> None:
    """Five times as loud as GW200129 in Hanford, which peaks at 6 standard deviations."""
    piece = conditioned(with_burst(noise, 12.3, 8e-21))
    assert 25 < np.abs(piece.strain).max() < 50
    assert piece.gates == []


def test_pycbc_finds_the_same_outliers(noise: np.ndarray) -> None:
    from pycbc.strain import detect_loud_glitches
    from pycbc.types import TimeSeries

    strain = with_burst(with_burst(noise, 9.2, 1e-18), 21.7, 1e-19)
    series = TimeSeries(strain, delta_t=1 / RATE, epoch=GPS_START)
    theirs = detect_loud_glitches(
        series, low_freq_cutoff=20.0, threshold=50.0, cluster_window=2.0, corrupt_time=2.0
    )
    ours = [(start + end) / 2 - GPS_START for start, end in conditioned(strain).gates]
    np.testing.assert_allclose(sorted(float(time) - GPS_START for time in theirs), ours, atol=0.02)
