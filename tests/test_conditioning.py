"""Whitening: the same as written out plainly and as pycbc's, from any rate, without delay, without edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycbc.types import FrequencySeries, TimeSeries
from scipy.signal.windows import tukey

from gwtwins.strain.conditioning import EDGE_TAPER, Conditioner
from gwtwins.strain.errors import InputError
from gwtwins.strain.psd import PSD
from test_psd import coloured_noise, true_psd

F = np.linspace(5.0, 1100.0, 8000)
PSDS = [PSD(F, true_psd(F), "H1"), PSD(F, 9 * true_psd(F) * (F / 100) ** 0.3, "V1")]
BAND = 480.0  # Hz between 20 and 500


def noise(rows: int, rate: float, seconds: float, seed: int = 0) -> np.ndarray:
    """(B, 2, T) strain of PSDS[0] in the first detector and of three times its amplitude in the second."""
    strain = coloured_noise(np.random.default_rng(seed), (rows, 2, round(rate * seconds)), rate)
    return strain * np.array([1.0, 3.0])[:, None]


def band_limited(rate: float, seconds: float, begin: float = 0.0) -> np.ndarray:
    """(1, 1, T): one continuous signal with nothing above 490 Hz, sampled at ``rate`` from ``begin`` seconds."""
    rng = np.random.default_rng(8)
    f, phase = rng.uniform(12, 490, 100), rng.uniform(0, 2 * np.pi, 100)
    t = begin + np.arange(round(rate * seconds)) / rate
    amplitude = np.sqrt(true_psd(f))[:, None] / 10
    return (amplitude * np.cos(2 * np.pi * f[:, None] * t + phase[:, None])).sum(0)[None, None]


def written_out(strain: np.ndarray, psd: PSD, rate: float, taper: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Whitened strain at ``times``: Fourier coefficients over ASD, summed without an inverse transform."""
    n = strain.size
    coefficient = np.fft.fft((strain - strain.mean()) * taper) / n
    f = np.arange(n) * rate / n
    band = (f >= 20) & (f < 500)
    wave = np.exp(2j * np.pi * f[band] * times[:, None])
    return 2 * (wave @ (coefficient[band] / np.sqrt(psd.at(f[band])))).real / np.sqrt(BAND)


@pytest.mark.parametrize("margin", [0.0, 1.0])
@pytest.mark.parametrize("rate", [1024.0, 4096.0])
def test_equals_whitening_written_out(rate: float, margin: float) -> None:
    seconds = 2.0 + 2 * margin
    strain = noise(1, rate, seconds)
    white = Conditioner(PSDS, rate, margin=margin)(torch.from_numpy(strain))
    assert white.shape == (1, 2, 4096) and white.dtype == torch.float32
    taper = np.ones(strain.shape[-1]) if margin else tukey(strain.shape[-1] + 1, EDGE_TAPER)[:-1]
    some = np.arange(0, 4096, 97)
    for d in range(2):
        expected = written_out(strain[0, d], PSDS[d], rate, taper, margin + some / 2048.0)
        np.testing.assert_allclose(white[0, d, some], expected, rtol=0, atol=1e-5)


def test_equals_pycbcs_whitening_of_a_signal() -> None:
    t = np.arange(4 * 2048) / 2048.0 - 2.0
    strain = 1e-21 * np.exp(-((t / 0.05) ** 2)) * np.sin(2 * np.pi * 120 * t + 300 * t**2)
    white = Conditioner(PSDS[:1], 2048.0, margin=1.0)(torch.from_numpy(strain)[None, None])[0, 0]
    spectrum = TimeSeries(strain, delta_t=1 / 2048.0).to_frequencyseries()
    f = spectrum.sample_frequencies.numpy()
    gain = np.where((f >= 20) & (f < 500), 1 / np.sqrt(PSDS[0].at(f)), 0.0)
    whitened = spectrum * FrequencySeries(gain, delta_f=spectrum.delta_f)
    expected = whitened.to_timeseries().numpy()[2048:-2048] / np.sqrt(BAND)
    np.testing.assert_allclose(white, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("rate", "margin"), [(2048.0, 0.0), (2048.0, 1.0), (1024.0, 1.0), (4096.0, 0.0)])
def test_noise_comes_out_white_with_variance_one(rate: float, margin: float) -> None:
    white = Conditioner(PSDS[:1], rate, margin=margin)(torch.from_numpy(noise(100, rate, 2 + 2 * margin)[:, :1]))[:, 0]
    inner = white[:, 128:-128].numpy()  # 62 ms a side
    # 100 windows of 1.9 s hold 2 * 480 * 190 independent numbers: the variance is known to 0.003.
    assert inner.var() == pytest.approx(1.0, abs=0.015)
    assert abs(inner.mean()) < 1e-3  # nothing below 20 Hz
    power = np.mean(np.abs(np.fft.rfft(inner * np.hanning(inner.shape[1]))) ** 2, axis=0)
    power /= np.sum(np.hanning(inner.shape[1]) ** 2) * 2048 / (2 * BAND)
    f = np.fft.rfftfreq(inner.shape[1], 1 / 2048.0)
    for low in range(30, 480, 50):  # 94 bins x 100 windows, correlated by Hann: standard error 0.013
        assert power[(f > low) & (f < low + 50)].mean() == pytest.approx(1.0, abs=0.06)
    assert power[(f > 505) | (f < 15)].max() < 1e-3


@pytest.mark.parametrize("margin", [0.0, 1.0])
def test_every_source_rate_gives_the_same_window(margin: float) -> None:
    windows = {
        rate: Conditioner(PSDS[:1], rate, margin=margin)(torch.from_numpy(band_limited(rate, 2 + 2 * margin, -margin)))[
            0, 0
        ]
        for rate in (1024.0, 2048.0, 4096.0, 16384.0)
    }
    reference = windows.pop(16384.0)
    for rate, window in windows.items():
        assert (window - reference).abs().max() < 1e-3 * reference.abs().max(), rate


def test_the_output_rate_only_samples_the_window_elsewhere() -> None:
    strain = torch.from_numpy(noise(3, 4096.0, 2.0))
    fine = Conditioner(PSDS, 4096.0, rate_out=2048.0)(strain)
    coarse = Conditioner(PSDS, 4096.0, rate_out=1024.0)(strain)
    torch.testing.assert_close(coarse, fine[..., ::2], rtol=0, atol=2e-5)


@pytest.mark.parametrize("rate", [2048.0, 4096.0])
def test_an_impulse_stays_where_it_is_and_rings_alike_before_and_after(rate: float) -> None:
    """The filter is real and even: no delay, no phase."""
    for second in (0.25, 1.0, 1.75):
        strain = torch.zeros(1, 1, round(4 * rate), dtype=torch.float64)
        strain[0, 0, round((1 + second) * rate)] = 1e-21
        white = Conditioner(PSDS[:1], rate, margin=1.0)(strain)[0, 0].numpy()
        at = round(second * 2048)
        assert np.argmax(np.abs(white)) == at and white[at] > 0
        reach = min(at, 4095 - at)
        before, after = white[at - reach : at][::-1], white[at + 1 : at + 1 + reach]
        np.testing.assert_allclose(before, after, rtol=0, atol=1e-6 * white[at])


def test_the_margin_takes_the_edges_away() -> None:
    """With 2 s of margin a window is what it is in the middle of 32 s of strain; without, its ends differ."""
    rate, seconds = 2048.0, 32.0
    strain = torch.from_numpy(noise(2, rate, seconds))
    middle = Conditioner(PSDS, rate, window=2.0, margin=15.0)(strain)
    n = round(rate)
    cropped = Conditioner(PSDS, rate, margin=2.0)(strain[..., 13 * n : 19 * n])
    bare = Conditioner(PSDS, rate)(strain[..., 15 * n : 17 * n])
    # The band's sharp ends ring as 1/t: what remains of the step from the last sample to the first.
    assert (cropped - middle).square().mean().sqrt() < 0.02 and (cropped - middle).abs().max() < 0.06
    assert (bare - middle)[..., 512:-512].abs().max() < 0.1
    assert (bare - middle)[..., :64].abs().max() > 0.5  # half of the taper


def test_an_offset_is_removed() -> None:
    strain = torch.from_numpy(noise(2, 2048.0, 2.0))
    conditioner = Conditioner(PSDS, 2048.0)
    torch.testing.assert_close(conditioner(strain + 1e-17), conditioner(strain), rtol=0, atol=1e-5)


def test_single_precision_strain_is_enough() -> None:
    """1e-21 squared underflows in float32; the strain itself does not, and all arithmetic is in float64."""
    strain = torch.from_numpy(noise(2, 2048.0, 2.0))
    conditioner = Conditioner(PSDS, 2048.0)
    torch.testing.assert_close(conditioner(strain.float()), conditioner(strain), rtol=0, atol=1e-4)


def test_a_dead_detector_stays_silent_and_spoils_nothing() -> None:
    strain = torch.from_numpy(noise(3, 2048.0, 2.0))
    conditioner = Conditioner(PSDS, 2048.0)
    whole = conditioner(strain)
    strain[1, 0] = 0.0
    white = conditioner(strain)
    assert (white[1, 0] == 0).all() and torch.isfinite(white).all()
    whole[1, 0] = 0.0
    assert torch.equal(white, whole)


def test_rows_do_not_depend_on_each_other() -> None:
    strain = torch.from_numpy(noise(5, 2048.0, 2.0))
    conditioner = Conditioner(PSDS, 2048.0)
    torch.testing.assert_close(conditioner(strain)[3:4], conditioner(strain[3:4]), rtol=0, atol=1e-6)


def test_another_band_and_another_window() -> None:
    strain = torch.from_numpy(noise(50, 4096.0, 5.0)[:, :1])
    white = Conditioner(PSDS[:1], 4096.0, window=4.0, f_low=40.0, f_high=900.0, margin=0.5)(strain)
    assert white.shape == (50, 1, 8192)
    assert white.var().item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"rate_in": 512.0}, "source rate: band 20-500 Hz at 512 Hz"),
        ({"rate_out": 512.0}, "output rate: band 20-500 Hz at 512 Hz"),
        ({"f_low": 0.0}, "0 < f_low < f_high"),
        ({"f_low": 500.0}, "0 < f_low < f_high"),
        ({"f_low": 4.0}, "PSD reaches over 5-1100 Hz; expected all of 4-500 Hz"),
        ({"rate_in": 4096.0, "rate_out": 4096.0, "f_high": 1200.0}, "PSD reaches over 5-1100 Hz"),
    ],
)
def test_a_band_that_rates_or_psd_do_not_hold_is_refused(options: dict[str, float], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        Conditioner(PSDS, **{"rate_in": 2048.0, **options})


@pytest.mark.parametrize("shape", [(1, 2, 4095), (1, 3, 4096), (2, 4096), (1, 1, 2, 4096)])
def test_strain_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected \(B, 2, 4096\)"):
        Conditioner(PSDS, 2048.0)(torch.zeros(shape))
