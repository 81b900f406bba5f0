"""Gaussian noise: white inside the band, nothing outside, independent of everything but its name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from gwtwins.strain.noise import gaussian_noise

BAND = 480.0  # Hz between 20 and 500
# Independent numbers in a window of 2 s, and with them the standard error of a correlation between two windows.
FREEDOM = 2 * BAND * 2.0
ERROR = FREEDOM**-0.5


def noise(
    rows: range | list[int],
    seed: int = 0,
    stream: str = "noise",
    step: int = 0,
    detectors: int = 3,
    rate: float = 2048.0,
    window: float = 2.0,
    f_low: float = 20.0,
    f_high: float = 500.0,
) -> torch.Tensor:
    return gaussian_noise(seed, stream, step, rows, detectors, rate, window, f_low, f_high)


def correlation(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Of windows along the last axis, at no lag."""
    return (one * other).mean(-1) / (one.square().mean(-1) * other.square().mean(-1)).sqrt()


@pytest.mark.parametrize("rate", [1024.0, 2048.0])
def test_is_gaussian_with_variance_one(rate: float) -> None:
    x = noise(range(150), rate=rate)
    assert x.shape == (150, 3, round(2 * rate)) and x.dtype == torch.float32
    # 450 windows of 1,920 independent numbers: the variance is known to 0.0015.
    assert x.var().item() == pytest.approx(1.0, abs=0.006)
    assert abs(x.mean().item()) < 1e-3
    every = x[..., :: round(rate / 64)].flatten().numpy()  # 16 ms apart
    assert kstest(every, "norm").pvalue > 1e-3
    # Each sample of the window alike, its ends too.
    assert x.var(dim=(0, 1)).std().item() < 0.09  # (2 / 450)^0.5 = 0.067


@pytest.mark.parametrize(("f_low", "f_high"), [(20.0, 500.0), (40.0, 300.0)])
def test_is_flat_in_the_band_and_nothing_outside(f_low: float, f_high: float) -> None:
    x = noise(range(200), f_low=f_low, f_high=f_high).reshape(600, -1).double()
    taper = torch.hann_window(4096, dtype=torch.float64)
    power = torch.fft.rfft(x * taper).abs().square().mean(0) / taper.square().sum()
    power = power * 2 * (f_high - f_low) / 2048.0  # 1 for noise of variance 1 spread over the band
    f = torch.arange(2049) / 2.0
    for low in np.arange(f_low + 5, f_high - 25, 20.0):  # 40 bins x 600 windows: standard error 0.009
        assert power[(f >= low) & (f < low + 20)].mean().item() == pytest.approx(1.0, abs=0.04)
    assert power[(f < f_low - 3) | (f > f_high + 3)].max() < 1e-4


def test_the_ends_of_a_window_know_nothing_of_each_other() -> None:
    """Noise made by an inverse transform of the window's own length would be periodic: its ends would be alike."""
    x = noise(range(200))
    first, last = x[..., :64].flatten(), x[..., -64:].flatten()
    # 600 pairs of 31 ms: 30 independent numbers each.
    assert abs(correlation(first, last).item()) < 5 * (600 * 30) ** -0.5
    ends = torch.cat([x[..., -32:], x[..., :32]], -1)  # as it would go on, were it periodic
    whole = x[..., 1000:1064]
    step, usual = (y.diff(dim=-1)[..., 31].square().mean() for y in (ends, whole))
    assert step > 2 * usual


def test_rows_detectors_streams_steps_and_seeds_are_independent() -> None:
    x = noise(range(12))
    flat = x.reshape(36, -1)
    pairs = correlation(flat[:, None], flat[None]) - torch.eye(36)
    assert pairs.abs().max() < 5 * ERROR
    for other in (
        noise(range(12), seed=1),
        noise(range(12), step=1),
        noise(range(12), stream="second"),
        noise(range(12, 24)),
    ):
        assert correlation(flat[:, None], other.reshape(36, -1)[None]).abs().max() < 5 * ERROR


def test_no_window_is_another_one_shifted() -> None:
    """Correlations at every lag: none stands out of the 8,191 x 36 x 35 / 2 that there are."""
    x = noise(range(12)).reshape(36, -1)
    spectrum = torch.fft.rfft(x, n=8192)
    for i in range(1, 36):
        lagged = torch.fft.irfft(spectrum[:i] * spectrum[i].conj(), n=8192) / 4096
        assert lagged.abs().max() < 7 * ERROR


def test_rows_are_the_same_however_they_are_split() -> None:
    whole = noise(range(10))
    assert torch.equal(torch.cat([noise(range(3)), noise(range(3, 4)), noise(range(4, 10))]), whole)
    assert torch.equal(noise([9, 2]), whole[[9, 2]])
    assert torch.equal(noise(range(10)), whole)


def test_1024_hz_is_every_second_sample_of_2048_hz() -> None:
    fine, coarse = noise(range(5)), noise(range(5), rate=1024.0)
    torch.testing.assert_close(coarse, fine[..., ::2], rtol=0, atol=1e-5)


def test_other_lengths() -> None:
    for window in (1.0, 4.0, 2.5):
        x = noise(range(60), window=window)
        assert x.shape[-1] == round(2048 * window)
        assert x.var().item() == pytest.approx(1.0, abs=0.03)
