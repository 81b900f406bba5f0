"""Augmentations as physical statements: what is moved, removed and added, how much, and how often."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gwtwins.ssl.augment import AugmentConfig, Augmenter, BandMask, Burst, ExtraNoise, TimeMask, TimeShift
from gwtwins.strain.conditioning import band_bins
from gwtwins.strain.errors import InputError
from gwtwins.strain.psd import PSD

RATE, T, F_LOW, F_HIGH = 2048.0, 4096, 20.0, 500.0
BAND = (RATE, F_LOW, F_HIGH)
PROBABILITIES = [f.name for f in dataclasses.fields(AugmentConfig) if f.name.endswith("_probability")]
FREQUENCY = np.arange(0.0, 1025.0, 0.25)
DETECTOR = PSD(FREQUENCY[40:], np.ones(len(FREQUENCY) - 40), "flat")
SECOND = PSD(FREQUENCY[40:], (FREQUENCY[40:] / 100.0) ** 2, "blue")
EXTRA = PSD(FREQUENCY[40:], 1.0 + (100.0 / FREQUENCY[40:]) ** 4, "red")


def only(name: str | None = None, **changes: object) -> AugmentConfig:
    """A configuration with one augmentation always on, or the one given, and the others off."""
    off = dict.fromkeys(PROBABILITIES, 0.0)
    if name:
        off[f"aug_{name}_probability"] = 1.0
    return AugmentConfig(**(off | changes))


def augmenter(config: AugmentConfig, rate: float = RATE) -> Augmenter:
    return Augmenter(config, rate, F_LOW, F_HIGH, [DETECTOR, SECOND], [EXTRA, DETECTOR])


def band_noise(rows: int, seed: int = 0, samples: int = T) -> Tensor:
    """Whitened noise: flat in [F_LOW, F_HIGH), nothing outside, variance 1."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.fft.rfft(torch.randn(rows, samples, generator=generator))
    low, high = band_bins(samples, RATE, F_LOW, F_HIGH)
    spectrum[:, :low] = 0
    spectrum[:, high:] = 0
    return torch.fft.irfft(spectrum, samples) * math.sqrt(samples / (2 * (high - low)))


def hann_power(x: Tensor) -> np.ndarray:
    """Mean periodogram (F,) with a Hann window, which keeps a line's power within two bins."""
    window = torch.hann_window(x.shape[-1], periodic=True)
    return torch.fft.rfft(x * window).abs().square().mean(0).double().numpy()


def matched_filter_snr(burst: Tensor) -> Tensor:
    """rho^2 = 4 int |h(f)|^2 / S(f) df, with S the one-sided PSD of whitened noise of variance 1."""
    spectrum = torch.fft.rfft(burst.double()) / RATE
    frequency = torch.fft.rfftfreq(burst.shape[-1], 1 / RATE)
    inside = (frequency >= F_LOW) & (frequency < F_HIGH)
    power = spectrum[:, inside].abs().square().sum(1) * (RATE / burst.shape[-1])
    return torch.sqrt(4 * (F_HIGH - F_LOW) * power)


# The whole


def test_everything_off_is_the_identity() -> None:
    x = band_noise(8)
    assert torch.equal(augmenter(only())(x, 1, 2, range(8)), x)


def test_a_row_depends_on_seed_step_and_row_and_not_on_the_split() -> None:
    augment = augmenter(AugmentConfig())
    x, detector = band_noise(24), torch.arange(24) % 2
    whole = augment(x, 3, 5, range(100, 124), detector=detector)
    parts = [
        augment(x[a:b], 3, 5, range(100 + a, 100 + b), detector=detector[a:b])
        for a, b in ((0, 1), (1, 9), (9, 24))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=2e-5)  # rounding of batched transforms
    for other in (
        augment(x, 4, 5, range(100, 124), detector=detector),
        augment(x, 3, 6, range(100, 124), detector=detector),
        augment(x, 3, 5, range(124, 148), detector=detector),
        augment(x, 3, 5, range(100, 124), stream="second view", detector=detector),
    ):
        changed = ((other - whole).abs().amax(1) > 1e-3).float().mean()
        assert changed > 0.9


def test_the_input_is_left_alone() -> None:
    x = band_noise(16)
    before = x.clone()
    out = augmenter(AugmentConfig())(x, 1, 2, range(16))
    assert torch.equal(x, before)
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all()


def test_switching_one_off_leaves_the_draws_of_the_others_alone() -> None:
    x = band_noise(16)
    both = augmenter(only("sign", aug_time_shift_probability=1.0, aug_time_mask_count=5))
    alone = augmenter(only("time_shift"))
    assert torch.equal(both(x, 7, 0, range(16)), -alone(x, 7, 0, range(16)))


@pytest.mark.parametrize("name", [p.removeprefix("aug_").removesuffix("_probability") for p in PROBABILITIES])
def test_each_happens_as_often_as_it_says(name: str) -> None:
    rows = 1500
    config = only(**{f"aug_{name}_probability": 0.3})
    x = band_noise(1, samples=1024).expand(rows, -1)
    small = Augmenter(config, RATE, F_LOW, F_HIGH, [DETECTOR], [EXTRA], window=0.5)
    changed = (small(x, 11, 0, range(rows)) != x).any(1).double().mean().item()
    assert abs(changed - 0.3) < 4 * math.sqrt(0.3 * 0.7 / rows)


# Time shift


@pytest.mark.parametrize("rate", [2048.0, 1024.0])
def test_time_shift_moves_a_peak_by_what_was_drawn(rate: float) -> None:
    n = round(2 * rate)
    time = torch.arange(n) / rate
    x = torch.exp(-(((time - 1.0) / 0.004) ** 2)).expand(201, n)
    u = torch.linspace(0, 1, 201, dtype=torch.float64)[:, None]
    moved = TimeShift(0.1, rate)(x, u)
    seconds = moved.argmax(1) / rate - 1.0
    assert (seconds - (2 * u[:, 0] - 1) * 0.1).abs().max() <= 1 / rate
    torch.testing.assert_close(moved.amax(1), torch.ones(201))


def test_time_shifts_fill_the_range() -> None:
    x = torch.zeros(400, T)
    x[:, T // 2] = 1.0
    moved = augmenter(only("time_shift", aug_time_shift=0.05))(x, 1, 1, range(400))
    seconds = (moved.argmax(1) - T // 2) / RATE
    assert seconds.abs().max() <= 0.05 + 1 / RATE
    assert abs(seconds.mean()) < 4 * 0.05 / math.sqrt(3 * 400)
    assert seconds.max() > 0.045
    assert seconds.min() < -0.045


def test_time_shift_opens_with_zeros_and_a_taper_and_wraps_nothing() -> None:
    x = torch.ones(3, T)
    out = TimeShift(0.1, RATE).move(x, torch.tensor([100, -100, 0]))
    taper = round(RATE / 32)
    assert (out[0, :100] == 0).all()
    assert (out[1, -100:] == 0).all()
    assert (out[0, 100 + taper :] == 1).all()
    assert (out[1, : -100 - taper] == 1).all()
    assert out[0, 100 : 100 + taper].diff().min() > 0
    torch.testing.assert_close(out[0].flip(0), out[1])
    assert torch.equal(out[2], x[2])


# Sign


def test_sign_flip_keeps_the_power_and_happens_half_the_time() -> None:
    x = band_noise(1).expand(2000, -1)
    out = augmenter(only(aug_sign_probability=0.5))(x, 5, 0, range(2000))
    torch.testing.assert_close(out.square().sum(1), x.square().sum(1))
    sign = torch.sign((out * x).sum(1))
    assert torch.equal(out, x * sign[:, None])
    assert abs((sign < 0).double().mean() - 0.5) < 4 * 0.5 / math.sqrt(2000)


# Noise


@pytest.mark.parametrize(("detector", "psd"), [(0, DETECTOR), (1, SECOND)])
def test_added_noise_has_the_stated_variance_and_spectrum(detector: int, psd: PSD) -> None:
    rows = 400
    config = only("noise", aug_noise_low=0.6, aug_noise_high=0.6)
    augment = Augmenter(config, *BAND, [DETECTOR, SECOND], [EXTRA])
    which = torch.full((rows,), detector)
    noise = augment(torch.zeros(rows, T), 2, 0, range(rows), detector=which)
    # The red colour has some 50 effective degrees of freedom a row in the steepest case: 400 rows give 1%.
    assert noise.var().item() == pytest.approx(0.36, rel=0.03)
    frequency = np.arange(T // 2 + 1) * RATE / T
    inside = (frequency > F_LOW + 2) & (frequency < F_HIGH - 2)
    expected = EXTRA.at(frequency) / psd.at(frequency)
    ratio = hann_power(noise)[inside] / expected[inside]
    ratio = ratio / ratio.mean()
    assert np.abs(ratio - 1).max() < 6 / math.sqrt(rows)  # each bin is a mean of 400 exponentials
    assert np.abs(ratio[:950].reshape(-1, 19).mean(1) - 1).max() < 0.06  # and means over 9.5 Hz more exact
    outside = (frequency < F_LOW - 2) | (frequency > F_HIGH + 2)
    assert hann_power(noise)[outside].sum() < 1e-3 * hann_power(noise)[inside].sum()


def test_noise_amplitude_is_uniform_and_each_psd_is_used() -> None:
    rows = 600
    config = only("noise", aug_noise_low=0.2, aug_noise_high=1.0)
    noise = augmenter(config)(torch.zeros(rows, T), 3, 0, range(rows))
    std = noise.std(1)
    assert std.mean().item() == pytest.approx(0.6, abs=4 * 0.8 / math.sqrt(12 * rows) + 0.01)
    assert std.quantile(0.1).item() == pytest.approx(0.28, abs=0.06)
    assert std.quantile(0.9).item() == pytest.approx(0.92, abs=0.06)
    power = torch.fft.rfft(noise).abs().square()
    red = power[:, 40:100].sum(1) > power[:, 200:].sum(1)  # 20-50 Hz against all above 100 Hz
    assert abs(red.double().mean() - 0.5) < 4 * 0.5 / math.sqrt(rows)


def test_the_two_ends_of_added_noise_are_unrelated() -> None:
    rows = 400
    config = only("noise", aug_noise_low=1.0, aug_noise_high=1.0)
    noise = augmenter(config)(torch.zeros(rows, T), 4, 0, range(rows))
    neighbours = (noise[:, 1:-1:2] * noise[:, 2::2]).mean()  # half a millisecond apart
    ends = (noise[:, 0] * noise[:, -1]).mean()  # in cyclic noise these are neighbours too
    assert neighbours > 0.5
    assert abs(ends) < 5 / math.sqrt(rows)


# Bursts


def test_a_burst_has_its_matched_filter_snr() -> None:
    n = 64
    generator = torch.Generator().manual_seed(1)
    u = torch.rand(5, n, generator=generator, dtype=torch.float64)
    snr = 4 + 16 * u[0]
    f0, q = 25 * 18 ** u[1], 2 + 18 * u[2]
    maker = Burst((4.0, 20.0), (2.0, 20.0), *BAND)
    burst = maker.wave(f0, q, 2 * u[3], 6.28 * u[4], snr, T)
    torch.testing.assert_close(matched_filter_snr(burst), snr, rtol=0.01, atol=0)
    # The same by filtering noise: <n, h> / sqrt(<h, h>) has mean 0 and standard deviation 1, and with the
    # burst in the noise its mean is the SNR. Noise that is white in the band, with variance 1, has
    # <a, b> = 2 (f_high - f_low) / rate times the sum of a b over time.
    inner = 2 * (F_HIGH - F_LOW) / RATE
    noise = band_noise(2000, seed=2).double()
    for i in range(0, n, 16):
        norm = math.sqrt(inner * burst[i].square().sum())
        statistic = inner * ((noise + burst[i]) * burst[i]).sum(1) / norm
        assert statistic.std().item() == pytest.approx(1.0, abs=0.1)
        assert statistic.mean().item() == pytest.approx(snr[i].item(), abs=0.02 * snr[i].item() + 0.1)


def test_a_burst_is_a_sine_gaussian() -> None:
    time = np.arange(T) / RATE
    for f0, q, t0, phase in ((60.0, 8.0, 0.7, 0.3), (150.0, 12.0, 1.3, 2.0)):
        values = (torch.tensor([v], dtype=torch.float64) for v in (f0, q, t0, phase, 10.0))
        burst = Burst((1.0, 1.0), (1.0, 1.0), *BAND).wave(*values, T)[0].numpy()
        tau = q / (math.sqrt(2) * math.pi * f0)
        plain = np.exp(-(((time - t0) / tau) ** 2)) * np.cos(2 * math.pi * f0 * (time - t0) + phase)
        match = burst @ plain / math.sqrt((burst @ burst) * (plain @ plain))
        assert match > 0.9999


def test_bursts_cover_the_band_and_the_snr_range_and_stay_in_the_band() -> None:
    rows = 300
    config = only("burst", aug_burst_snr_low=4.0, aug_burst_snr_high=16.0)
    burst = augmenter(config)(torch.zeros(rows, T), 6, 0, range(rows))
    snr = matched_filter_snr(burst)
    assert snr.min() > 3.95
    assert snr.max() < 16.05
    assert snr.median().item() == pytest.approx(8.0, rel=0.15)  # log-uniform
    power = torch.fft.rfft(burst * torch.hann_window(T)).abs().square()
    frequency = torch.fft.rfftfreq(T, 1 / RATE)
    outside = (frequency < F_LOW - 3) | (frequency > F_HIGH + 3)
    assert power[:, outside].sum() < 0.01 * power.sum()
    time = burst.abs().argmax(1) / RATE  # uniform over the 2 s
    assert time.mean().item() == pytest.approx(1.0, abs=4 * 2 / math.sqrt(12 * rows))
    assert time.std().item() == pytest.approx(2 / math.sqrt(12), rel=0.1)
    peak = frequency[power.argmax(1)]
    assert peak.median().item() == pytest.approx(100.0, rel=0.3)  # the middle of 20-500 Hz in the logarithm


# Masks


@pytest.mark.parametrize(("low", "high"), [(30.0, 45.0), (100.0, 190.0), (300.0, 480.0), (20.0, 22.0)])
def test_band_mask_removes_its_band_and_nothing_else(low: float, high: float) -> None:
    x = band_noise(64)
    limits = (torch.tensor([v], dtype=torch.float64).expand(64) for v in (low, high))
    before, after = hann_power(x), hann_power(BandMask(1.0, *BAND).remove(x, *limits))
    frequency = np.arange(T // 2 + 1) * RATE / T
    inside = (frequency >= low) & (frequency <= high)
    outside = (frequency > F_LOW) & (frequency < F_HIGH) & ((frequency < low - 6) | (frequency > high + 6))
    assert after[inside].sum() < 1e-2 * before[inside].sum()  # 20 dB
    assert after[outside].sum() == pytest.approx(before[outside].sum(), rel=0.01)
    assert np.abs(after[outside] / before[outside] - 1).max() < 0.1


def test_band_mask_has_no_delay_and_does_not_wrap() -> None:
    time = torch.arange(T, dtype=torch.float64) / RATE
    x = torch.exp(-(((time - 1.95) / 0.01) ** 2)) * torch.cos(2 * math.pi * 200 * (time - 1.95))
    limits = (torch.tensor([30.0], dtype=torch.float64), torch.tensor([60.0], dtype=torch.float64))
    y = BandMask(1.0, *BAND).remove(x[None], *limits)[0]
    assert torch.dot(x, y) / (x.norm() * y.norm()) > 0.999
    step = torch.zeros(1, T, dtype=torch.float64)
    step[0, -5:] = 1.0  # all bands at the very end: a cyclic filter would ring at the beginning
    rung = BandMask(1.0, *BAND).remove(step, *limits)
    assert rung[0, :200].abs().max() < 1e-3 * rung[0, -200:].abs().max()


def test_band_masks_stay_in_the_band_up_to_their_width() -> None:
    rows = 200
    config = only("band_mask", aug_band_mask_octaves=1.0)
    x = torch.zeros(rows, T)
    x[:, T // 2] = 1.0
    gain = torch.fft.rfft(augmenter(config)(x, 8, 0, range(rows))).abs()
    frequency = torch.fft.rfftfreq(T, 1 / RATE)
    removed = gain < 0.5
    widths, centres = [], []
    for row in removed:
        inside = frequency[row]
        assert inside.min() > F_LOW - 3
        assert inside.max() < F_HIGH + 3
        widths.append(math.log2((inside.max() - 2) / (inside.min() + 2)))
        centres.append(math.log2(inside.mean() / F_LOW))
    assert max(widths) < 1.03
    assert np.mean(widths) == pytest.approx(0.5, abs=0.12)  # narrow ones are widened by their flanks
    assert np.mean(centres) == pytest.approx(math.log2(F_HIGH / F_LOW) / 2, abs=0.4)


def test_time_masks_blank_what_they_say() -> None:
    x = torch.ones(2, T)
    start = torch.tensor([[0.5, 1.5], [0.25, math.inf]], dtype=torch.float64)
    out = TimeMask(2, 0.2, RATE).blank(x, start, torch.tensor([[0.1, 0.2], [0.05, 0.2]], dtype=torch.float64))
    time = torch.arange(T) / RATE
    for row, stretches in enumerate([[(0.5, 0.6), (1.5, 1.7)], [(0.25, 0.3)]]):
        near = torch.zeros(T, dtype=torch.bool)
        for low, high in stretches:
            assert (out[row, (time >= low) & (time <= high)] == 0).all()
            near |= (time > low - 1 / 64) & (time < high + 1 / 64)
        assert (out[row, ~near] == 1).all()
    assert out.diff(dim=1).abs().max() < 0.06  # 32 samples from 1 to 0: no step


def test_time_masks_number_and_length() -> None:
    rows = 400
    config = only("time_mask", aug_time_mask_count=3, aug_time_mask_seconds=0.02)
    out = augmenter(config)(torch.ones(rows, T), 9, 0, range(rows))
    blank = (out == 0).double()
    longest = 3 * (0.02 + 1 / RATE)
    assert (blank.sum(1) / RATE).max() <= longest
    # On average two stretches of 10 ms; a few overlap or are shorter than a sample.
    assert (blank.sum(1) / RATE).mean().item() == pytest.approx(0.02, rel=0.1)
    dimmed = torch.nn.functional.pad((out < 0.5).int(), (1, 0))
    stretches = (dimmed.diff(dim=1) > 0).sum(1)
    share = [(stretches == n).double().mean().item() for n in (1, 2, 3)]
    assert sum(share) == pytest.approx(1.0)
    # A third each; two in some 3% of the rows run into one.
    assert share == pytest.approx([1 / 3] * 3, abs=4 * math.sqrt(2 / 9 / rows) + 0.03)


# Bad input


@pytest.mark.parametrize(
    "changes",
    [
        {"aug_sign_probability": 1.5},
        {"aug_sign_probability": math.nan},
        {"aug_time_shift": -0.1},
        {"aug_noise_low": 0.8, "aug_noise_high": 0.2},
        {"aug_time_mask_count": 0},
    ],
)
def test_a_senseless_configuration_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(changes))):
        AugmentConfig(**changes)


def test_what_does_not_fit_the_data_is_refused() -> None:
    with pytest.raises(InputError, match="no PSDs"):
        Augmenter(only("noise"), *BAND)
    with pytest.raises(InputError, match="aug_band_mask_octaves"):
        Augmenter(only("band_mask", aug_band_mask_octaves=6.0), *BAND)
    short = PSD(FREQUENCY[40:1200], np.ones(1160), "short")
    with pytest.raises(InputError, match=r"short.*20-500 Hz"):
        ExtraNoise([DETECTOR], [short], (0.1, 0.2), *BAND, T)
    with pytest.raises(InputError, match=r"\(3, 4096\)"):
        augmenter(only())(torch.zeros(2, T), 0, 0, range(3))
