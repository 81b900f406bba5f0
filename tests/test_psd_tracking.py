"""The PSD along the data: a median that follows the noise and neither signals nor outliers."""

from __future__ import annotations

import numpy as np
import pytest

from gwosc_writer import GPS_START, coloured_noise, detector_asd
from gwtwins.strain.detector_stream import DetectorStream
from gwtwins.strain.psd import PSD, welch_median
from gwtwins.strain.psd_tracking import SEGMENT, periodograms, starts, typical
from gwtwins.strain.strain_file import StrainFile
from gwtwins.strain.strain_index import StrainIndex

RATE = 1024
LOW, HIGH = 20 * SEGMENT, 500 * SEGMENT
BAND = np.arange(20.0, 500.0, 0.25)


def psd_of(strain: np.ndarray) -> PSD:
    """The PSD by which the middle of ``strain`` is whitened."""
    file = StrainFile("memory", "memory", "H1", float(GPS_START), strain.size, RATE, values=strain)
    stream = DetectorStream(StrainIndex((file,)), "H1", RATE, 20.0, 500.0, 64, gated=True)
    whitening = stream.whitening((GPS_START + strain.size // RATE // 2) // 64)
    return whitening.psd


def merger(strain: np.ndarray, snr: float) -> np.ndarray:
    """A chirp that ends 0.6 of the way, of that SNR: the Newtonian amplitude and phase of two 30 Msun, to 250 Hz."""
    time = np.arange(strain.size) / RATE
    to_go = np.maximum(0.6 * strain.size / RATE - time, 1e-3)
    mass = 26.1 * 4.925e-6  # chirp mass, s
    frequency = (5 / 256 / to_go) ** 0.375 * mass**-0.625 / np.pi
    phase = -2 * (to_go / (5 * mass)) ** 0.625
    signal = np.where((frequency > 15) & (frequency < 250), to_go**-0.25 * np.cos(phase), 0.0)
    spectrum, f = np.fft.rfft(signal) / RATE, np.fft.rfftfreq(signal.size, 1 / RATE)
    inside = (f >= 20) & (f <= 500)
    squared = 4 * np.sum(np.abs(spectrum[inside]) ** 2 / detector_asd(f[inside]) ** 2) * f[1]
    return signal * snr / np.sqrt(squared)


def test_a_periodogram_is_scipys() -> None:
    strain = coloured_noise(16, RATE, lines=False) / 1e-21 + 3.0 + 1e-3 * np.arange(16 * RATE)
    power = periodograms(strain, RATE, np.arange(0, 13, 2))
    expected = welch_median(strain, RATE)
    got = np.median(power, axis=0)[1:]
    inside = slice(LOW, HIGH)
    assert got[inside] / got[inside].mean() == pytest.approx(
        expected.value[inside] / expected.value[inside].mean(), rel=1e-3
    )


def test_where_there_is_little_strain_periodograms_overlap_more() -> None:
    clean = np.ones(64 + SEGMENT - 1, bool)
    assert starts(clean, 64).tolist() == list(range(0, 64, 2))
    assert starts(clean, 65).tolist() == list(range(1, 64, 2))  # the same seconds of GPS time
    clean[20:] = False
    assert starts(clean, 64).tolist() == list(range(0, 17))


def test_the_median_is_right_on_average_and_outliers_are_left_out() -> None:
    rng = np.random.default_rng(0)
    power = rng.exponential(2.0, (41, 1 + RATE * SEGMENT // 2)).astype(np.float32)
    value, kept = typical(power, LOW, HIGH)
    assert kept.all()
    assert value.mean() == pytest.approx(2.0, rel=0.01)
    power[5:9] *= 1e6
    value, kept = typical(power, LOW, HIGH)
    assert np.flatnonzero(~kept).tolist() == [5, 6, 7, 8]
    assert value.mean() == pytest.approx(2.0, rel=0.02)


def test_a_loud_signal_in_a_short_stretch_hardly_whitens_itself() -> None:
    """SNR 20 in 32 s, the length of the shortest GWOSC files: 5 of 27 periodograms see the merger, so where it is loud
    the median moves from the 50th to at most the 61st percentile of the noise. The SNR that a filter with these weights
    keeps falls by less than 1%. The whitened signal becomes smaller by 3-4%, since its own power is in the PSD; in 64 s
    it is 1.5%, in 256 s 0.4%."""
    kept, size = [], []
    for seed in range(4):
        noise = coloured_noise(32, RATE, seed=seed)
        signal = merger(noise, 20.0)
        f = np.fft.rfftfreq(noise.size, 1 / RATE)
        inside = (f >= 20) & (f <= 500) & (np.abs(f[:, None] - [60.0, 120.0, 300.0]).min(axis=1) > 2)
        power, truth = np.abs(np.fft.rfft(signal)[inside]) ** 2, detector_asd(f[inside]) ** 2
        own = []
        for strain in (noise, noise + signal):
            weight = 1 / psd_of(strain).at(f[inside])
            own.append((np.sum(power * weight) / np.sqrt(np.sum(power * weight**2 * truth)), np.sum(power * weight)))
        kept.append(own[1][0] / own[0][0])
        size.append(np.sqrt(own[1][1] / own[0][1]))
    assert np.mean(kept) > 0.99 and min(kept) > 0.985
    assert np.mean(size) > 0.95


def test_the_psd_follows_noise_that_becomes_louder() -> None:
    strain = coloured_noise(640, RATE, seed=3)
    strain[320 * RATE :] *= 2.0
    file = StrainFile("memory", "memory", "H1", float(GPS_START), strain.size, RATE, values=strain)
    stream = DetectorStream(StrainIndex((file,)), "H1", RATE, 20.0, 500.0, 64, gated=True)
    first = GPS_START // 64
    early, late = (stream.whitening(first + k) for k in (2, 8))
    ratio = late.psd.at(BAND) / early.psd.at(BAND)
    assert np.median(ratio) == pytest.approx(4.0, rel=0.05)
