"""Simulated glitches: as loud as asked, where they should be in time and frequency, in one detector only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom, chisquare, kstest

from gwtwins.strain.errors import InputError
from gwtwins.strain.glitches import (
    KINDS,
    PARAMETERS,
    Glitches,
    add_glitches,
    draw_glitches,
    snr_range,
    whitened_glitches,
)
from gwtwins.strain.population import Distribution

RATE, SECONDS, F_LOW, F_HIGH = 2048.0, 2.0, 20.0, 500.0
SNR = Distribution(8.0, 100.0, -1.0)


def drawn(n: int, seed: int = 0) -> Glitches:
    u = torch.rand(n, PARAMETERS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return draw_glitches(u, SNR, SECONDS)


def made(glitches: Glitches, rate: float = RATE) -> torch.Tensor:
    return whitened_glitches(glitches, rate, SECONDS, F_LOW, F_HIGH)


def of_kind(kind: str, n: int = 8, **changes: float) -> Glitches:
    """Glitches in mid-window, SNR 20, phases all round; of parameters that are the same but for these."""
    fixed = {"snr": 20.0, "time": 1.0, "frequency": 100.0, "tau": 0.02, "sweep": 0.0, "arches": 1.0, "swing": 0.0}
    values = {key: torch.full((n,), value, dtype=torch.float64) for key, value in (fixed | changes).items()}
    phase = 2 * np.pi * torch.arange(n, dtype=torch.float64) / n
    return Glitches(kind=torch.full((n,), KINDS.index(kind)), phase=phase, **values)


def spectrum(wave: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (F,) and powers (N, F), of sum 1."""
    power = torch.fft.rfft(wave.double()).abs().square()
    return np.fft.rfftfreq(wave.shape[-1], 1 / RATE), (power / power.sum(-1, keepdim=True)).numpy()


def test_snr_in_whitened_noise_is_as_asked() -> None:
    """By the matched filter's definition: the template's mean response in noise, in units of the noise's."""
    glitches = drawn(400)
    wave = made(glitches)
    assert wave.shape == (400, 4096) and wave.dtype == torch.float32 and wave.isfinite().all()
    # 4 integral |s(f)|^2 / S(f) df of one-sided S = 1 / (f_high - f_low).
    transform = torch.fft.rfft(wave.double()) / RATE
    transform[:, [0, -1]] /= np.sqrt(2)
    snr = (4 * (F_HIGH - F_LOW) * transform.abs().square().sum(1) / SECONDS).sqrt()
    torch.testing.assert_close(snr, glitches.snr, rtol=1e-3, atol=0)


def test_draws_are_of_the_shares_and_ranges_that_are_stated() -> None:
    glitches = drawn(20_000)
    count = np.bincount(glitches.kind.numpy(), minlength=len(KINDS))
    assert chisquare(count, 20_000 * np.array([0.4, 0.2, 0.2, 0.2])).pvalue > 1e-3
    assert kstest(glitches.snr.log().numpy(), "uniform", args=(np.log(8), np.log(100 / 8))).pvalue > 1e-3
    assert kstest(glitches.time.numpy(), "uniform", args=(0, 2)).pvalue > 1e-3
    cycles = (np.sqrt(2) * np.pi * glitches.frequency * glitches.tau).numpy()
    ranges = {"blip": (50, 400, 1, 4), "sine-Gaussian": (30, 450, 3, 60), "chirplet": (40, 300, 4, 20)}
    for kind, (f_low, f_high, q_low, q_high) in ranges.items():
        mine = (glitches.kind == KINDS.index(kind)).numpy()
        log_f, log_q = np.log(glitches.frequency.numpy()[mine]), np.log(cycles[mine])
        assert kstest(log_f, "uniform", args=(np.log(f_low), np.log(f_high / f_low))).pvalue > 1e-3
        assert kstest(log_q, "uniform", args=(np.log(q_low), np.log(q_high / q_low))).pvalue > 1e-3
    moving = glitches.kind == KINDS.index("chirplet")
    assert (glitches.sweep[~moving] == 0).all()
    assert (glitches.sweep[moving] > 0).double().mean() == pytest.approx(0.5, abs=0.03)


def test_a_blip_is_short_and_broad() -> None:
    """Nine tenths of its power within 20 ms, spread over about the width that Q 1.5 has at 150 Hz."""
    glitches = of_kind("blip", frequency=150.0, tau=1.5 / (np.sqrt(2) * np.pi * 150))
    wave = made(glitches)
    power = wave.square()
    near = slice(round(0.99 * RATE), round(1.01 * RATE))
    assert (power[:, near].sum(1) / power.sum(1) > 0.9).all()
    frequency, share = spectrum(wave)
    mean = share @ frequency
    spread = np.sqrt(share @ frequency**2 - mean**2)
    assert ((mean > 100) & (mean < 200)).all()
    assert ((spread > 40) & (spread < 120)).all()


@pytest.mark.parametrize(("frequency", "q"), [(35.0, 20.0), (100.0, 8.0), (440.0, 60.0)])
def test_a_sine_gaussian_is_one_line_of_width_f_over_q(frequency: float, q: float) -> None:
    """|s(f)|^2 is a Gaussian about f of standard deviation f / (sqrt(2) Q), by Fourier transform."""
    tau = q / (np.sqrt(2) * np.pi * frequency)
    freq, share = spectrum(made(of_kind("sine-Gaussian", frequency=frequency, tau=tau)))
    mean = share @ freq
    spread = np.sqrt(share @ freq**2 - mean**2)
    np.testing.assert_allclose(mean, frequency, rtol=0.01)
    np.testing.assert_allclose(spread, frequency / (np.sqrt(2) * q), rtol=0.05)


def test_a_sine_gaussian_is_centred_at_its_time_with_the_envelope_asked_for() -> None:
    for time in (0.3, 1.0, 1.77):
        power = made(of_kind("sine-Gaussian", time=time, tau=0.03)).double().square()
        t = torch.arange(4096, dtype=torch.float64) / RATE
        centre = (power * t).sum(1) / power.sum(1)
        # exp(-2 t^2 / tau^2) is a Gaussian of standard deviation tau / 2.
        width = ((power * t**2).sum(1) / power.sum(1) - centre**2).sqrt()
        torch.testing.assert_close(centre, torch.full_like(centre, time), rtol=0, atol=1e-3)
        torch.testing.assert_close(width, torch.full_like(width, 0.015), rtol=0.02, atol=0)


@pytest.mark.parametrize("sweep", [-400.0, 400.0])
def test_a_chirplet_runs_through_the_frequencies_at_its_rate(sweep: float) -> None:
    """Between 1/10 s before and after its centre the frequency changes by 80 Hz."""
    wave = made(of_kind("chirplet", frequency=120.0, tau=0.15, sweep=sweep))
    half = round(0.05 * RATE)
    for offset in (-0.1, 0.0, 0.1):
        middle = round((1.0 + offset) * RATE)
        piece = torch.zeros_like(wave)
        piece[:, middle - half : middle + half] = wave[:, middle - half : middle + half] * torch.hann_window(2 * half)
        frequency, share = spectrum(piece)
        np.testing.assert_allclose(share @ frequency, 120 + sweep * offset, atol=6)


def test_scattering_makes_arches_of_their_height_and_rate() -> None:
    """Its frequency is f_max |cos(pi r t)|: at the top where the swing is 0, below the band half an arch later."""
    wave = made(of_kind("scattering", frequency=90.0, tau=2.0, arches=1.0))
    frequency, share = spectrum(wave)
    assert (share[:, frequency < 100].sum(1) > 0.98).all()
    assert (share[:, (frequency > 75) & (frequency < 95)].sum(1) > 0.4).all()  # turning round takes long
    half = round(0.04 * RATE)
    power = wave.square()
    for top, bottom in ((1.0, 0.5), (1.0, 1.5)):
        loud, quiet = (power[:, round(t * RATE) - half : round(t * RATE) + half].sum(1) for t in (top, bottom))
        assert (loud > 3 * quiet).all()
    # Half an arch on in its swing the window's middle is where the light's frequency passes through zero.
    shifted = made(of_kind("scattering", frequency=90.0, tau=2.0, arches=1.0, swing=np.pi / 2)).square()
    middle, side = (shifted[:, round(t * RATE) - half : round(t * RATE) + half].sum(1) for t in (1.0, 0.5))
    assert (side > 3 * middle).all()


def test_nothing_lies_outside_the_band() -> None:
    wave = made(drawn(200))
    inside = spectrum(wave * torch.hann_window(4096))
    frequency, share = inside
    assert share[:, (frequency < F_LOW - 2) | (frequency > F_HIGH + 2)].sum(1).max() < 1e-3


def test_1024_hz_is_every_second_sample_of_2048_hz() -> None:
    """But for a scale: where the window's end cuts through a glitch, the sum of fewer squares is another SNR."""
    glitches = drawn(100)
    coarse, fine = made(glitches, 1024.0), made(glitches)[:, ::2]
    scale = (coarse * fine).sum(1) / fine.square().sum(1)
    torch.testing.assert_close(coarse, fine * scale[:, None], rtol=1e-4, atol=1e-4)
    assert (scale - 1).abs().max() < 0.02 and (scale - 1).abs().median() < 1e-4


def test_what_is_beyond_the_window_does_not_come_in_at_its_other_end() -> None:
    wave = made(of_kind("sine-Gaussian", time=1.99, tau=0.01))
    assert wave[:, :1024].abs().max() < 0.02 * wave.abs().max()


def test_they_are_added_at_the_rate_asked_for_in_each_detector_apart() -> None:
    strain, present = torch.zeros(4000, 3, 64), torch.ones(4000, 3, dtype=torch.bool)
    added = add_glitches(strain, present, 0.2, SNR, (0, "glitches", 0, range(4000)), 32.0, 2.0, 16.0)
    carries = added > 0
    assert torch.equal(carries, (strain != 0).any(-1))
    for d in range(3):
        assert 1e-3 < binom.cdf(int(carries[:, d].sum()), 4000, 0.2) < 1 - 1e-3
    for a, b in ((0, 1), (0, 2), (1, 2)):
        both = int((carries[:, a] & carries[:, b]).sum())
        assert 1e-3 < binom.cdf(both, 4000, 0.04) < 1 - 1e-3
        assert not np.intersect1d(added[carries[:, a], a].numpy(), added[carries[:, b], b].numpy()).size
    assert ((added[carries] >= 8) & (added[carries] <= 100)).all()


def test_a_row_depends_on_its_name_alone() -> None:
    def of(rows: range, seed: int = 3, step: int = 5) -> torch.Tensor:
        strain = torch.zeros(len(rows), 2, 4096)
        present = torch.ones(len(rows), 2, dtype=torch.bool)
        add_glitches(strain, present, 0.5, SNR, (seed, "glitches", step, rows), RATE, F_LOW, F_HIGH)
        return strain

    whole = of(range(30))
    torch.testing.assert_close(torch.cat([of(range(11)), of(range(11, 30))]), whole, rtol=1e-4, atol=1e-4)
    for other in (of(range(30), seed=4), of(range(30), step=6), of(range(30, 60))):
        assert not torch.equal(other, whole)


def test_an_absent_detector_gets_none_and_changes_no_other() -> None:
    def of(present: torch.Tensor) -> torch.Tensor:
        strain = torch.zeros(20, 2, 4096)
        add_glitches(strain, present, 1.0, SNR, (0, "glitches", 0, range(20)), RATE, F_LOW, F_HIGH)
        return strain

    present = torch.ones(20, 2, dtype=torch.bool)
    whole = of(present)
    present[::2, 0] = False
    part = of(present)
    assert (part[::2, 0] == 0).all()
    torch.testing.assert_close(part[present], whole[present], rtol=1e-4, atol=1e-4)


def test_the_snr_scales_and_nothing_else_moves() -> None:
    glitches = drawn(50)
    louder = made(replace(glitches, snr=2 * glitches.snr))
    torch.testing.assert_close(louder, 2 * made(glitches), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", ["", "8", "8,8", "100,8", "0,8", "loud,louder", "8,inf", "nan,9", "8,9,10"])
def test_a_range_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--glitch_snr: .*; expected two numbers above 0"):
        snr_range("--glitch_snr", text)
    assert snr_range("--glitch_snr", "5, 50") == Distribution(5.0, 50.0, -1.0)
