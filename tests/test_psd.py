"""Noise spectra: analytic ones as pycbc's, files, and measurements on noise of a known spectrum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycbc.psd
import pytest
import scipy.signal
from pycbc.types import TimeSeries

from gwtwins.strain.errors import InputError
from gwtwins.strain.psd import (
    DEFAULT_PSDS,
    PSD,
    load_psd,
    measured_from_windows,
    named_psd,
    psd_from_asd_file,
    welch_median,
)

RATE = 2048.0


def true_psd(frequency: np.ndarray) -> np.ndarray:
    """A smooth spectrum of detector size: a steep wall, a floor of (1e-23)^2 / Hz, a rise."""
    f = np.maximum(frequency, 8.0)
    return 1e-46 * (1.0 + (25.0 / f) ** 6 + (f / 400.0) ** 2)


def coloured_noise(rng: np.random.Generator, shape: tuple[int, ...], rate: float = RATE) -> np.ndarray:
    """Gaussian noise of :func:`true_psd`, cut from a stretch 1.5 times as long so that it is not periodic."""
    n = int(1.5 * shape[-1])
    sigma = np.sqrt(true_psd(np.fft.rfftfreq(n, 1 / rate)) * rate * n / 4)
    spectrum = sigma * (rng.standard_normal((*shape[:-1], sigma.size, 2)) @ [1, 1j])
    return np.fft.irfft(spectrum, n)[..., : shape[-1]]


@pytest.mark.parametrize("name", sorted(set(DEFAULT_PSDS.values())))
def test_named_psds_are_pycbcs(name: str) -> None:
    ours = named_psd(name)
    theirs = pycbc.psd.from_string(name, 2048 * 4, 0.25, 20.0)
    frequency = theirs.sample_frequencies.numpy()
    band = (frequency >= 20) & (frequency < 1024)
    # Both interpolate the same table, on grids of 1/8 and 1/4 Hz.
    np.testing.assert_allclose(ours.at(frequency[band]), theirs.numpy()[band], rtol=1e-6)
    assert ours.name == name and ours.covers(20, 1024)


def test_interpolation_is_in_the_logarithm_and_constant_beyond_the_ends() -> None:
    psd = PSD(np.array([10.0, 20.0, 40.0]), np.array([1e-40, 1e-46, 1e-44]))
    np.testing.assert_allclose(psd.at(np.array([10, 15, 30, 5, 100])), [1e-40, 1e-43, 1e-45, 1e-40, 1e-44], rtol=1e-12)
    assert psd.covers(10, 40) and not psd.covers(9, 40) and not psd.covers(10, 41)


def test_welch_median_is_pycbcs() -> None:
    strain = coloured_noise(np.random.default_rng(1), (int(64 * RATE),))
    ours = welch_median(strain, RATE)
    segment = int(4 * RATE)
    theirs = pycbc.psd.welch(TimeSeries(strain, 1 / RATE), segment, segment // 2, avg_method="median")
    frequency = theirs.sample_frequencies.numpy()
    band = (frequency >= 20) & (frequency < 1000)
    # Theirs takes no trend out of a segment, and windows with a symmetric Hann window.
    np.testing.assert_allclose(ours.at(frequency[band]), theirs.numpy()[band], rtol=2e-3)


def test_welch_median_is_unbiased_and_as_noisy_as_it_should_be() -> None:
    strain = coloured_noise(np.random.default_rng(2), (int(128 * RATE),))
    psd = welch_median(strain, RATE)
    band = (psd.frequency >= 20) & (psd.frequency < 1000)
    ratio = psd.value[band] / true_psd(psd.frequency[band])
    # 63 half-overlapping segments: a median scatters by 1.2 / sqrt(63) = 0.15 a bin; 3,920 bins, of which
    # Hann correlates neighbours, leave 0.003 for the mean.
    assert ratio.mean() == pytest.approx(1.0, abs=0.01)
    assert 0.10 < ratio.std() < 0.20


def test_a_loud_short_signal_hardly_moves_the_median() -> None:
    strain = coloured_noise(np.random.default_rng(3), (int(64 * RATE),))
    clean = welch_median(strain, RATE)
    t = np.arange(int(0.2 * RATE)) / RATE
    strain[60_000 : 60_000 + t.size] += 1e-20 * np.sin(2 * np.pi * 150 * t) * np.hanning(t.size)
    loud = welch_median(strain, RATE)
    near = (clean.frequency > 140) & (clean.frequency < 160)
    assert np.mean(loud.value[near] / clean.value[near]) < 1.15  # two of 31 segments hold it
    _, mean = scipy.signal.welch(strain, RATE, "hann", int(4 * RATE))
    assert np.mean(mean[1:][near] / clean.value[near]) > 10


@pytest.mark.parametrize("count", [8, 9, 30, 400])
def test_measured_from_windows_is_unbiased_for_any_number_of_windows(count: int) -> None:
    repeats = max(1, 400 // count)
    windows = coloured_noise(np.random.default_rng(count), (repeats, count, int(2 * RATE)))
    psds = [measured_from_windows(batch, RATE) for batch in windows]
    frequency = psds[0].frequency
    band = (frequency >= 30) & (frequency < 1000)
    ratio = np.mean([psd.value for psd in psds], axis=0)[band] / true_psd(frequency[band])
    # Standard error of the mean over 1,940 bins and 400 windows: 0.002.
    assert ratio.mean() == pytest.approx(1.0, abs=0.01)


def test_measured_from_windows_is_not_moved_by_a_fifth_of_them_holding_signals() -> None:
    windows = coloured_noise(np.random.default_rng(5), (200, int(2 * RATE)))
    clean = measured_from_windows(windows, RATE)
    windows[:40] *= 30.0
    assert np.median(measured_from_windows(windows, RATE).value / clean.value) < 1.5  # a mean would give 180


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e6])
def test_measurements_scale_with_the_square_of_the_strain(scale: float) -> None:
    strain = coloured_noise(np.random.default_rng(6), (int(16 * RATE),))
    np.testing.assert_allclose(
        welch_median(strain * scale, RATE).value, welch_median(strain, RATE).value * scale**2, rtol=1e-9
    )
    windows = strain.reshape(16, -1)
    np.testing.assert_allclose(
        measured_from_windows(windows * scale, RATE).value,
        measured_from_windows(windows, RATE).value * scale**2,
        rtol=1e-9,
    )


def test_bad_strain_is_refused() -> None:
    good = coloured_noise(np.random.default_rng(7), (int(16 * RATE),))
    gap, silent = good.copy(), np.zeros_like(good)
    gap[100] = np.nan
    for bad, fault in (
        (good[: int(7.9 * RATE)], "7.9 s of strain; expected at least 8.0 s"),
        (gap, "NaN"),
        (silent, "all samples are zero"),
        (good.reshape(2, -1), "expected at least"),
    ):
        with pytest.raises(InputError, match=fault):
            welch_median(bad, RATE, name="H1")
    windows = good.reshape(16, -1)
    for bad, fault in (
        (windows[:7], "at least 8 windows"),
        (good, "at least 8 windows"),
        (gap.reshape(16, -1), "NaN"),
        (silent.reshape(16, -1), "all samples are zero"),
    ):
        with pytest.raises(InputError, match=fault):
            measured_from_windows(bad, RATE, name="H1")


def test_asd_file_round_trip(tmp_path: Path) -> None:
    psd = named_psd(DEFAULT_PSDS["V1"])
    path = tmp_path / "virgo.txt"
    np.savetxt(path, np.stack([psd.frequency, np.sqrt(psd.value)], 1), header="frequency (Hz)  ASD (1/rtHz)")
    read = load_psd(str(path))
    np.testing.assert_allclose(read.frequency, psd.frequency, rtol=1e-15)
    np.testing.assert_allclose(read.value, psd.value, rtol=1e-15)
    assert read.name == str(path)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "columns|values"),
        ("# nothing but a comment\n", "columns|values"),
        ("10 1e-22\n20 one\n", "not a table of numbers"),
        ("10 1e-22\n20\n", "not a table of numbers"),
        ("10 1e-22 3\n20 1e-23 3\n", "3 columns"),
        ("10 1e-22\n", "at least 2 points"),
        ("20 1e-22\n10 1e-23\n", "ascending"),
        ("10 1e-22\n10 1e-23\n", "ascending"),
        ("10 1e-22\nnan 1e-23\n", "ascending"),
        ("10 1e-22\n20 0\n", "positive"),
        ("10 1e-22\n20 -1e-23\n", "positive"),
        ("10 1e-22\n20 nan\n", "positive"),
        ("10 1e-22\n20 inf\n", "positive"),
        ("10 1e-22\n20 1e-170\n", "positive"),  # its square is nothing
    ],
)
def test_bad_asd_files_are_refused(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "asd.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=fault) as error:
        load_psd(str(path))
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "asd.bin").write_bytes(bytes(range(256)) * 10)
    with pytest.raises(InputError, match="is not (a table of numbers|text)"):
        psd_from_asd_file(tmp_path / "asd.bin")
    for path in (tmp_path / "absent.txt", tmp_path):
        with pytest.raises(InputError, match="no such file|cannot be read"):
            psd_from_asd_file(path)


def test_an_unknown_name_is_refused_with_an_example() -> None:
    with pytest.raises(InputError, match="^aLIGOzeroDet: no PSD of that name; expected a pycbc PSD name"):
        load_psd("aLIGOzeroDet")


def test_arrays_that_are_no_psd_are_refused() -> None:
    f, v = np.arange(1.0, 5.0), np.ones(4)
    for frequency, value in ((f, v[:3]), (f[:1], v[:1]), (f.reshape(2, 2), v.reshape(2, 2)), (f[::-1], v)):
        with pytest.raises(InputError):
            PSD(frequency, value)
