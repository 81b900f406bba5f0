"""Evidence for mergers: what the kernels are, what they say of signals and of noise, and where it goes from there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

from gwtwins.encoders import registry
from gwtwins.encoders.cnn_gru import CnnGru
from gwtwins.encoders.evidence import (
    AFTER_MERGER,
    AROUND,
    BURST_ODDS,
    FAR,
    LEFT,
    MERGER_ODDS,
    MOST,
    NEAR,
    MergerEvidence,
    Site,
    network_evidence,
)
from gwtwins.encoders.paired import PairedEncoder
from gwtwins.encoders.stem import sine_gaussian_pairs
from gwtwins.encoders.weights import load_encoder, save_encoder
from gwtwins.probes.evaluate import fit_probe
from gwtwins.probes.features import EVIDENCE_SCALES, FeatureMap, embed
from gwtwins.probes.frame_statistic import FrameStatistic
from gwtwins.probes.scan_windows import recurred
from gwtwins.strain import mergers
from gwtwins.strain.bank import BUFFER, BankRecipe, WaveformBank
from gwtwins.strain.errors import InputError
from gwtwins.strain.mergers import merger_kernels, mergers_of
from gwtwins.strain.noise import gaussian_noise
from gwtwins.strain.population import Population
from gwtwins.strain.psd import PSD
from gwtwins.strain.simulated import SimulatedSource
from toy_source import ToySource

RATE, F_LOW, F_HIGH = 1024.0, 20.0, 500.0
KERNEL, AFTER, STRIDE, FRAME = 256, 46, 4, 16
UNIT = RATE / (2 * (F_HIGH - F_LOW))  # sum of the squares of a signal of SNR 1, where noise has variance 1
SMALL = {"width": 8, "hidden": 8, "embedding": 16, "mergers": 5}
BAND = RATE, F_LOW, F_HIGH


@pytest.fixture(scope="module")
def bank(small_source: SimulatedSource) -> WaveformBank:
    return small_source.bank("train")


@pytest.fixture(scope="module")
def psd(small_source: SimulatedSource) -> PSD:
    return small_source.psds["H1"]


@pytest.fixture(scope="module")
def kernels(bank: WaveformBank, psd: PSD) -> Tensor:
    return merger_kernels(bank, psd, 16, KERNEL, AFTER, STRIDE, *BAND)


@pytest.fixture(scope="module")
def signals(bank: WaveformBank, psd: PSD) -> np.ndarray:
    return whitened(bank, psd, slice(None))


@pytest.fixture(scope="module")
def large_bank(cache: Path, psd: PSD) -> WaveformBank:
    """900 signals of the population."""
    return WaveformBank.obtain(BankRecipe(Population.load("standard"), 900, 11, (psd.name,)), progress=False)


def whitened(bank: WaveformBank, psd: PSD, rows: slice) -> np.ndarray:
    """Signals of a bank, whitened, of unit energy and whole: (N, 4096), merger at sample 2048; in plain numpy."""
    n = round(BUFFER * RATE)
    frequency = np.arange(n // 2 + 1) / BUFFER
    held = torch.view_as_complex(bank.waveform[rows].float()).numpy()
    spectrum = np.zeros((len(held), n // 2 + 1), complex)
    inside = np.flatnonzero((frequency >= F_LOW) & (frequency < F_HIGH))
    spectrum[:, inside] = held[:, inside - bank.k_low] / np.sqrt(psd.at(frequency[inside]))
    x = np.roll(np.fft.irfft(spectrum, n), n // 2, axis=1)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def shares(x: np.ndarray, kernels: Tensor) -> np.ndarray:
    """(N, K) of the energy of signals x (N, T), how much quadrature pairs hold at the best moment."""
    spectrum, n = np.fft.rfft(x), x.shape[1]
    held = []
    for pair in kernels.numpy().astype(complex):
        parts = [p / np.linalg.norm(p) for p in (pair.real, pair.imag)]
        a, b = (np.fft.irfft(spectrum * np.fft.rfft(p, n).conj(), n) for p in parts)
        held.append((a**2 + b**2).max(axis=1))
    return np.stack(held, axis=1) / np.square(x).sum(axis=1, keepdims=True)


def outputs(x: np.ndarray, kernels: Tensor) -> np.ndarray:
    """(N, K, 4096) sizes of what signals x (N, 4096) give, by how far a kernel is moved, in a ring."""
    padded = np.zeros((len(kernels), 4096), complex)
    padded[:, 2048 - KERNEL + AFTER : 2048 + AFTER] = kernels.numpy()
    return np.abs(np.fft.ifft(np.fft.fft(x)[:, None] * np.fft.fft(padded).conj()))


def layer(kernels: Tensor, stride: int = STRIDE, frame: int = FRAME, bursts: int = 0) -> MergerEvidence:
    made = MergerEvidence(len(kernels), kernels.shape[1], stride, frame, 25.0, 480.0, RATE, bursts)
    made.start_from(kernels, F_LOW, F_HIGH)
    return made


def near(made: MergerEvidence, x: Tensor, frames: int = 128) -> Tensor:
    """Evidence of rows (N, T) that come from Hanford or Livingston."""
    return made(x, torch.zeros(len(x), dtype=torch.bool), 0, frames)


def natural(compressed: Tensor) -> Tensor:
    """e of tanh(e / 15)."""
    return MOST * torch.atanh(compressed.double())


def noise(rows: int, seconds: float = 2.0, seed: int = 21) -> Tensor:
    """Whitened noise (N, T) of variance 1."""
    return gaussian_noise(seed, "evidence", 0, range(rows), 1, RATE, seconds, F_LOW, F_HIGH)[:, 0]


# The kernels


def test_kernels_have_unit_energy_and_are_in_quadrature(kernels: Tensor) -> None:
    assert kernels.shape == (16, KERNEL) and kernels.dtype == torch.complex64
    assert torch.linalg.vector_norm(kernels, dim=1).numpy() == pytest.approx(1.0, abs=1e-5)
    assert kernels.real.square().sum(dim=1).numpy() == pytest.approx(0.5, abs=0.01)
    assert (kernels.real * kernels.imag).sum(dim=1).abs().max() < 0.01
    pairs = layer(3.0 * kernels).weight  # of any size
    assert pairs.square().sum(dim=1).numpy() == pytest.approx(1.0 / UNIT, abs=1e-5)


def test_the_best_moment_of_a_signal_is_its_merger(kernels: Tensor, signals: np.ndarray) -> None:
    """46 samples before a kernel's end, to 10 ms, and to 2 ms for most signals."""
    assert layer(kernels).after == AFTER == round(AFTER_MERGER * RATE)
    size = outputs(signals, kernels)
    moment = size.max(axis=1).argmax(axis=1)
    away = np.abs((moment + 2048) % 4096 - 2048)
    assert np.median(away) <= 2 and np.mean(away <= 10) > 0.95


def test_mergers_hold_more_of_the_squared_snr_than_any_burst_and_the_more_the_better(
    kernels: Tensor, signals: np.ndarray
) -> None:
    """What the module says of itself: three tenths in the best sine-Gaussian, three quarters in sixteen mergers."""
    held = shares(signals, kernels)
    of_best = [held[:, :count].max(axis=1).mean() for count in (1, 2, 4, 8, 16)]
    assert np.all(np.diff(of_best) > 0.02) and of_best[-1] > 0.75
    frequency = torch.logspace(math.log10(25.0), math.log10(480.0), 24, dtype=torch.float64)
    a, b = sine_gaussian_pairs(frequency, torch.full_like(frequency, 5.0), KERNEL, RATE).chunk(2)
    burst = shares(signals, torch.complex(a, b)).max(axis=1).mean()
    assert burst < 0.35 and of_best[0] > 1.3 * burst and of_best[-1] > 2.4 * burst


def cut_out(x: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """What a kernel sees of signals (N, 4096) with its merger at some samples (N,): (N, KERNEL), complex."""
    spectrum = np.fft.fft(x)
    spectrum[:, 1:2048] *= 2.0
    spectrum[:, 2049:] = 0.0  # the analytic signal
    at = (moment[:, None] + np.arange(AFTER - KERNEL, AFTER)) % x.shape[1]
    return np.take_along_axis(np.fft.ifft(spectrum), at, axis=1)


def best_of(x: np.ndarray, kernels: Tensor) -> float:
    return float(shares(x, kernels).max(axis=1).mean())


def test_kernels_hold_more_than_the_best_choice_of_signals(bank: WaveformBank, psd: PSD, signals: np.ndarray) -> None:
    """Chosen one after the other by shares counted plainly, which is where kernels begin; asked at every sample."""
    every = torch.from_numpy(cut_out(signals, np.full(len(signals), 2048)))
    held = shares(signals, every)
    best, chosen = np.zeros(len(held)), []
    for _ in range(8):
        chosen.append(int(np.maximum(held, best[:, None]).mean(axis=0).argmax()))
        best = np.maximum(best, held[:, chosen[-1]])
    assert best_of(signals, merger_kernels(bank, psd, 8, KERNEL, AFTER, 1, *BAND)) > best.mean() + 0.02


def test_no_other_shape_holds_more_of_the_signals_that_a_kernel_is_best_for(
    bank: WaveformBank, psd: PSD, signals: np.ndarray
) -> None:
    """Each holds what the first singular vector of what it sees of them holds, to 1%."""
    kernels = merger_kernels(bank, psd, 8, KERNEL, AFTER, 1, *BAND)
    size = outputs(signals, kernels)
    which, moment = size.max(axis=2).argmax(axis=1), (size.max(axis=1).argmax(axis=1) + 2048) % 4096
    seen = cut_out(signals, moment)
    for k in range(len(kernels)):
        mine = seen[which == k]
        held = np.square(np.abs(mine @ kernels[k].numpy().conj())).sum()
        assert 0.99 * np.linalg.norm(mine, 2) ** 2 < held < 1.0001 * np.linalg.norm(mine, 2) ** 2


def test_kernels_are_as_good_for_signals_they_were_not_made_of(psd: PSD, large_bank: WaveformBank) -> None:
    """600 signals determine sixteen shapes: of others they hold as much, to 0.02."""
    made = merger_kernels(large_bank, psd, 16, KERNEL, AFTER, STRIDE, *BAND)
    one, other = (whitened(large_bank, psd, rows) for rows in (slice(0, 600), slice(600, 900)))
    assert best_of(other, made) == pytest.approx(best_of(one, made), abs=0.02)
    assert best_of(other, made) > 0.8


# What they say of signals and noise


def injected(signals: np.ndarray, snr: float, merger: int) -> Tensor:
    """The signals (N, 2048), each of the given SNR, in no noise."""
    return torch.from_numpy(signals[:, 2048 - merger : 4096 - merger] * snr * math.sqrt(UNIT)).float()


LOOKED_AT = FRAME + 2 * 4  # samples, of a NEAR frame: 4 ms on either side


def test_a_signal_gives_its_share_of_half_its_squared_snr_at_its_merger_and_nowhere_else(
    kernels: Tensor, signals: np.ndarray
) -> None:
    """Asked at every sample, and but for the logarithm of the 24 moments looked at, of which the loudest is one."""
    snr, merger = 11.5, 1288  # the middle of a frame, 16 ms long
    found = natural(near(layer(kernels, 1), injected(signals, snr, merger))).amax(dim=2).numpy()  # (N, frames)
    wanted = 0.85 * shares(signals, kernels).max(axis=1) * snr**2 / 2
    peak = found.max(axis=1)
    np.testing.assert_array_equal(found.argmax(axis=1), merger // FRAME)
    assert np.all(peak < wanted) and peak + math.log(LOOKED_AT) == pytest.approx(wanted, rel=0.04)
    away = np.abs(np.arange(128) - merger // FRAME) > 16  # a quarter of a second
    assert np.all(found[:, away] < 0.1 * peak[:, None])


@pytest.mark.parametrize(("stride", "most"), [(2, 0.05), (4, 0.13)])
def test_what_falls_between_the_moments_is_little(
    kernels: Tensor, signals: np.ndarray, stride: int, most: float
) -> None:
    """On average over signals and over where they lie between two moments."""
    wanted = 0.85 * shares(signals, kernels).max(axis=1) * 60.5 - math.log(LOOKED_AT / stride)
    made = layer(kernels, stride)
    lost = []
    for merger in range(1286, 1286 + stride):
        found = natural(near(made, injected(signals, 11.0, merger))).amax(dim=(1, 2)).numpy()
        lost.append(1.0 - found / wanted)
    assert 0.0 < np.mean(lost) < most


def test_evidence_grows_with_the_square_of_the_snr(kernels: Tensor, signals: np.ndarray) -> None:
    at = {}
    for snr in (8.5, 11.9):
        found = near(layer(kernels, 1), injected(signals, snr, 1288))
        at[snr] = natural(found).amax(dim=(1, 2)).numpy() + math.log(LOOKED_AT)
    # The frame's other moments lower it: one that is as loud adds log 2 to both.
    assert at[11.9] / at[8.5] == pytest.approx(1.94, rel=0.05)


def test_noise_has_the_power_that_its_band_has(kernels: Tensor) -> None:
    """Noise of variance 1 between 20 and 500 Hz has variance 1 in each direction, times what of a kernel is in it.

    With one moment a frame, evidence is 0.85 of the power itself.
    """
    power = natural(near(layer(kernels, 32, 32), noise(256), 64))[:, 7:-2] / 0.85
    spectrum = torch.fft.fft(kernels.to(torch.complex128), 2048).abs().square()
    frequency = np.abs(np.fft.fftfreq(2048, 1 / RATE))
    share = spectrum[:, (frequency >= F_LOW) & (frequency < F_HIGH)].sum(dim=1) / spectrum.sum(dim=1)
    assert share.min() > 0.9
    # 14,000 moments, which are nearly independent: 0.8% each.
    assert power.mean(dim=(0, 1)).numpy() == pytest.approx(share.numpy(), rel=0.04)
    assert float(power.mean()) == pytest.approx(float(share.mean()), rel=0.015)


def test_arrivals_a_light_travel_time_apart_share_a_frame(kernels: Tensor, signals: np.ndarray) -> None:
    """Hanford's and Virgo's are up to 27 ms apart: in some frame both are seen wherever the first one lies, as they
    are at once, to what frames and moments round off. Of two detectors at the other's site some would share none."""
    made, sizes = layer(kernels, 1), []
    for lag in (-27, 0, 27):
        best = []
        for merger in range(1280, 1296, 3):
            h, v = (injected(signals[:8], 8.0, m) for m in (merger, merger + lag))
            seen = made(torch.cat([h, v]), torch.arange(16) >= 8, 0, 128)
            best.append((seen[:8] + seen[8:]).amax(dim=(1, 2)))
        sizes.append(torch.stack(best).mean(dim=1))
    assert torch.all((sizes[0] / sizes[1] - 1).abs() < 0.1) and torch.all((sizes[2] / sizes[1] - 1).abs() < 0.1)
    h, v = injected(signals[:8], 8.0, 1288), injected(signals[:8], 8.0, 1315)
    apart = (near(made, h) + near(made, v)).amax(dim=(1, 2))
    assert apart.mean() < 0.75 * 2 * near(made, h).amax(dim=(1, 2)).mean()


# The formula


def plainly(module: MergerEvidence, site: Site, x: Tensor, first: int, frames: int) -> np.ndarray:
    """(N, frames, K) by loops over moments, float64."""
    pairs, length = module.weight.double().numpy(), module.weight.shape[1]
    k, stride, frame = module.count, module.stride, module.frame
    beyond = round(site.beyond * module.rate / stride) * stride
    more = 2 * length + beyond + frame + 512
    rows = np.pad(x.double().numpy(), ((0, 0), (more, more + frames * frame)))

    def powers(pairs: np.ndarray, begin: int) -> np.ndarray:
        pair = rows[:, begin + more : begin + more + pairs.shape[1]] @ pairs.T
        half = len(pairs) // 2
        return (pair[:, :half] ** 2 + pair[:, half:] ** 2) / 2

    def against_noise(f: int) -> np.ndarray:
        moments = range(f * frame - beyond + stride // 2, (f + 1) * frame + beyond, stride)
        power = [site.share * powers(pairs, moment - (length - module.after)) for moment in moments]
        return np.maximum(logsumexp(power, axis=0) - math.log(len(power)), 0.0)

    def glitch(f: int) -> np.ndarray:
        bursts = module.burst.double().numpy() * np.linalg.norm(pairs[0])
        count = max(1, round(frame / (0.008 * module.rate)))
        step = frame // count
        begins = [f * frame + i * step + step // 2 - bursts.shape[1] // 2 for i in range(count)]
        burst = np.max([powers(bursts, begin).max(axis=1) for begin in begins], axis=0)
        return np.maximum(site.share * burst - BURST_ODDS, against_noise(f).max(axis=1) - MERGER_ODDS)

    around = round(AROUND * module.rate / frame)
    there = range(-(-x.shape[1] // frame))
    out = np.zeros((len(x), frames, k))
    for n in range(frames):
        out[:, n] = e = against_noise(first + n)
        if module.burst.numel():
            near_by = [glitch(f) for f in range(first + n - around, first + n + around + 1) if f in there]
            out[:, n] = np.maximum(e - np.logaddexp(0.0, np.max(near_by, axis=0))[:, None], np.minimum(e, LEFT))
    return np.tanh(out / 15.0)


@pytest.mark.parametrize(
    ("kernel", "stride", "frame", "samples", "first", "frames", "bursts"),
    [
        (256, 4, 16, 2048, 0, 128, 0),
        (256, 4, 16, 2048, 72, 56, 0),
        (256, 4, 32, 1792, 0, 56, 0),
        (384, 2, 16, 2048, 0, 128, 0),
        (97, 1, 8, 500, 3, 50, 0),
        (64, 64, 64, 640, 0, 9, 0),
        (256, 4, 16, 1024, 0, 64, 3),
        (256, 4, 16, 2048, 100, 28, 2),
        (97, 1, 8, 500, 3, 50, 3),
        (64, 64, 64, 640, 0, 9, 1),
    ],
)
def test_evidence_is_its_formula(
    bank: WaveformBank,
    psd: PSD,
    kernel: int,
    stride: int,
    frame: int,
    samples: int,
    first: int,
    frames: int,
    bursts: int,
) -> None:
    """But for what is beyond 60 against noise, where tanh(60 / 15) is 0.9993."""
    made = MergerEvidence(3, kernel, stride, frame, 25.0, 480.0, RATE, bursts)
    made.start_from(merger_kernels(bank, psd, 3, kernel, made.after, stride, *BAND), F_LOW, F_HIGH)
    loud = 2 if not bursts else 0.6  # as loud as glitches are, or not beyond 60
    x = noise(6)[:, :samples] * torch.logspace(0, loud, 6)[:, None]
    far = torch.tensor([False, True, True, False, True, False])
    found = made(x, far, first, frames)
    assert found.shape == (6, frames, 3) and found.dtype == torch.float32
    for rows, site in ((~far, NEAR), (far, FAR)):
        wanted = plainly(made, site, x[rows], first, frames)
        quiet = wanted < 0.9985
        np.testing.assert_allclose(found[rows].numpy()[quiet], wanted[quiet], atol=1e-5)
        assert np.all(found[rows].numpy()[~quiet] > 0.998)
        assert not bursts or wanted.max() > 0.1  # something is left to compare


@pytest.mark.parametrize("bursts", [0, 12])
def test_evidence_of_a_row_is_the_same_in_any_company(kernels: Tensor, bursts: int) -> None:
    made, x, far = layer(kernels, bursts=bursts), noise(150), torch.arange(150) % 3 == 2
    together = made(x, far, 0, 128)
    for rows in (slice(0, 1), slice(60, 70), slice(149, 150)):
        assert torch.allclose(made(x[rows], far[rows], 0, 128), together[rows], atol=1e-6)


def test_evidence_lies_between_0_and_1(kernels: Tensor) -> None:
    made = layer(kernels)
    for size in (0.0, 1e-3, 1.0, 1e3, 1e6):
        found = near(made, size * noise(4))
        assert found.min() >= 0.0 and found.max() <= 1.0
    assert near(made, torch.zeros(1, 2048)).max() < 1e-6 and found.max() > 0.999


def test_a_stretch_has_the_evidence_of_its_windows_away_from_their_ends(kernels: Tensor) -> None:
    """A frame sees 210 samples before its moments and 46 after them, and 24 more: 15 frames and 5."""
    made, x, far = layer(kernels), noise(3, 8.0), torch.tensor([True, False, True])
    whole = made(x, far, 0, 512)
    for first in (5, 200, 384):
        alone = made(x[:, first * FRAME : first * FRAME + 2048], far, 0, 128)
        inside = whole[:, first : first + 128]
        assert torch.allclose(alone[:, 15:-5], inside[:, 15:-5], atol=1e-6)
        assert not torch.allclose(alone[:, :15], inside[:, :15], atol=1e-3)


# Glitches


def bursts_at(snr: float, at: int) -> Tensor:
    """Sine-Gaussians (N, 2048) of frequencies and Qs between those that the layer has, in no noise."""
    frequency, q = torch.tensor([40.0, 70.0, 120.0, 200.0, 330.0]).double(), torch.tensor([2.5, 5.0, 12.0]).double()
    f, q = (grid.flatten() for grid in torch.meshgrid(frequency, q, indexing="ij"))
    x = torch.zeros(len(f), 2048)
    x[:, at - 128 : at + 128] = sine_gaussian_pairs(f, q, 256, RATE)[: len(f)] * snr * math.sqrt(UNIT)
    return x


def loudest(made: MergerEvidence, x: Tensor) -> np.ndarray:
    return near(made, x).amax(dim=(1, 2)).numpy() * MOST


def test_a_burst_is_no_evidence_and_a_signal_is(kernels: Tensor, signals: np.ndarray) -> None:
    """A burst of SNR 20 and more is worth `LEFT`, at most; without glitches as much as a signal of SNR 7. One of SNR 10
    is little more on average, and a signal of SNR 7 hardly less than without."""
    knows, knows_not = layer(kernels, bursts=12), layer(kernels)
    left = MOST * math.tanh(LEFT / MOST)
    for snr, most in ((10.0, 1.2 * left), (20.0, left + 1e-3), (100.0, left + 1e-3)):
        before, after = (loudest(made, bursts_at(snr, 1288)) for made in (knows_not, knows))
        assert after.mean() < most < before.mean()
    assert loudest(knows_not, bursts_at(20.0, 1288)).mean() > loudest(knows_not, injected(signals, 7.0, 1288)).mean()
    before, after = (loudest(made, injected(signals, 7.0, 1288)) for made in (knows_not, knows))
    assert after.mean() > 0.9 * before.mean() and np.all(after <= before + 1e-4)


def test_no_glitch_in_one_detector_outweighs_a_faint_signal_in_two(kernels: Tensor, signals: np.ndarray) -> None:
    """Not even one that looks like a merger: alone it is worth 10.8 at most."""
    made = layer(kernels, bursts=12)
    alone = max(loudest(made, injected(signals, snr, 1288)).max() for snr in (8.0, 12.0, 30.0, 200.0))
    assert alone <= MOST * math.tanh(MERGER_ODDS / MOST) + 1e-3
    two = 2 * loudest(made, injected(signals, 7.5, 1288))
    assert np.mean(two > alone) > 0.9


def test_loud_signals_are_not_taken_for_glitches(kernels: Tensor, signals: np.ndarray) -> None:
    made = layer(kernels, bursts=12)
    kept = [np.median(loudest(made, injected(signals, snr, 1288))) for snr in (7.0, 10.0, 20.0, 50.0, 200.0)]
    assert np.all(np.diff(kept) > -0.1) and kept[-1] > 10.0


def test_a_glitch_takes_the_evidence_of_its_neighbourhood_alone(kernels: Tensor, signals: np.ndarray) -> None:
    made, x = layer(kernels, bursts=12), injected(signals[:15], 7.0, 1288)
    untouched = near(made, x)
    for apart, gone in ((0.2, True), (0.5, False)):
        found = near(made, x + bursts_at(30.0, 1288 - round(apart * RATE)))
        here = slice(1288 // FRAME - 1, 1288 // FRAME + 2)
        left = (found[:, here].amax(dim=(1, 2)) / untouched[:, here].amax(dim=(1, 2))).median()
        assert (left < 0.45) if gone else (left > 0.95)


def test_noise_hardly_ever_has_a_glitch(kernels: Tensor) -> None:
    """What is taken from noise is small everywhere."""
    x = noise(64)
    taken = natural(near(layer(kernels), x)) - natural(near(layer(kernels, bursts=12), x))
    assert 0.0 <= taken.min() + 1e-6 and taken.mean() < 0.01 and taken.max() < 1.0


def test_a_stretch_with_glitches_has_the_evidence_of_its_windows_away_from_their_ends(kernels: Tensor) -> None:
    """A quarter of a second more on either side."""
    made, x, far = layer(kernels, bursts=12), 1.5 * noise(3, 8.0), torch.tensor([True, False, True])
    whole = made(x, far, 0, 512)
    for first in (40, 200, 340):
        alone = made(x[:, first * FRAME : first * FRAME + 2048], far, 0, 128)
        assert torch.allclose(alone[:, 31:-21], whole[:, first + 31 : first + 107], atol=1e-5)
        part = made(x[:, first * FRAME : first * FRAME + 2048], far, 72, 56)  # made alone, as embeddings are
        assert torch.allclose(part, alone[:, 72:], atol=1e-6)


def test_the_evidence_of_a_network_is_each_mergers_and_that_of_all() -> None:
    e = torch.tensor([[0.5, 2.0, 1.0], [30.0, 3.0, 300.0]], dtype=torch.float64)
    found = network_evidence(torch.tanh(e / MOST))
    counted = MOST * np.tanh(e.numpy() / MOST)  # small evidence for what it is, large for less
    np.testing.assert_allclose(found[:, :3], counted)
    np.testing.assert_allclose(found[:, 3], np.log(np.exp(counted).sum(axis=1)))
    assert counted[0] == pytest.approx(e[0].numpy(), rel=0.05)


# In the encoder


def test_mergers_are_whitened_as_their_branch_hears_them(small_source: SimulatedSource) -> None:
    def kernels_for(name: str) -> Tensor:
        made = merger_kernels(small_source.bank("train"), small_source.psds[name], 5, KERNEL, AFTER, STRIDE, *BAND)
        return layer(made).weight

    own = {name: kernels_for(name) for name in small_source.detectors}
    assert not torch.allclose(own["H1"], own["V1"], atol=1e-3)
    apart = PairedEncoder("cnn_gru", SMALL, shared=False, psds=small_source.psds)
    apart.start_from_mergers(mergers_of(small_source, "neutron_star"))  # the source's own, whatever is named
    assert torch.equal(apart.hl.evidence.weight, own["H1"]) and torch.equal(apart.v.evidence.weight, own["V1"])
    for present, first in ((("H1", "L1", "V1"), "H1"), (("L1", "V1"), "L1"), (("V1",), "V1")):
        shared = PairedEncoder("cnn_gru", SMALL, psds={name: small_source.psds[name] for name in present})
        shared.start_from_mergers(mergers_of(small_source, "standard"))
        assert torch.equal(shared.hl.evidence.weight, own[first])


def test_an_encoder_without_psds_keeps_its_bursts_and_one_without_frames_has_none(
    small_source: SimulatedSource,
) -> None:
    bare, frameless = PairedEncoder("cnn_gru", SMALL), PairedEncoder("cnn_gru_2021", {"width": 4, "embedding": 16})
    before = bare.hl.evidence.weight.clone()
    for encoder in (bare, frameless):
        encoder.start_from_mergers(mergers_of(small_source, "standard"))
    assert torch.equal(bare.hl.evidence.weight, before) and (bare.evidence, frameless.evidence) == (6, 0)


def test_what_absent_detectors_show_follows_the_mergers(small_source: SimulatedSource) -> None:
    encoder = PairedEncoder("cnn_gru", SMALL, psds=small_source.psds).eval()
    before = encoder.noise_reference().together
    encoder.start_from_mergers(mergers_of(small_source, "standard"))
    after = encoder.noise_reference().together
    assert before is not None and after is not None
    assert torch.equal(before[:, :-6], after[:, :-6])
    assert (before[1:, -6:] - after[1:, -6:]).abs().mean() > 0.3


def test_recorded_data_have_the_mergers_of_the_named_population(
    cache: Path, psd: PSD, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mergers, "SIGNALS", 12)
    args = psd, 4, KERNEL, AFTER, STRIDE, *BAND
    heavy, light = (mergers_of(ToySource(), name) for name in ("high_mass", "low_mass"))
    a, b = heavy(*args), light(*args)
    assert a.shape == b.shape == (4, KERNEL)
    # A heavy binary's merger is short: most of what there is of it lies in the last tenth of a second of the kernel.
    late = [k[:, -102:].abs().square().sum(dim=1).mean() for k in (a, b)]
    assert late[0] > 0.8 and late[0] > late[1] + 0.1
    assert torch.equal(mergers_of(ToySource(), "high_mass")(*args), a)


def test_fewer_waveforms_than_kernels_are_repeated(bank: WaveformBank, psd: PSD) -> None:
    made = merger_kernels(bank, psd, 70, KERNEL, AFTER, STRIDE, *BAND)
    assert made.shape == (70, KERNEL) and torch.isfinite(torch.view_as_real(made)).all()
    assert torch.linalg.vector_norm(made, dim=1).numpy() == pytest.approx(1.0, abs=1e-5)


def test_an_encoder_is_saved_with_its_mergers(small_source: SimulatedSource, tmp_path: Path) -> None:
    torch.manual_seed(1)
    encoder = PairedEncoder("cnn_gru", SMALL, psds=small_source.psds).eval()
    encoder.start_from_mergers(mergers_of(small_source, "standard"))
    save_encoder(encoder, tmp_path, {})
    again, x = load_encoder(tmp_path), noise(4)
    which = torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        assert torch.equal(encoder.sequence(x, which), again.sequence(x, which))
    assert again.evidence == 6 and not any("evidence" in name for name, _ in again.named_parameters())


def test_an_encoder_from_before_there_were_glitches_knows_of_none(
    small_source: SimulatedSource, tmp_path: Path
) -> None:
    encoder = PairedEncoder("cnn_gru", SMALL | {"glitch_bursts": 0}, psds=small_source.psds).eval()
    save_encoder(encoder, tmp_path, {})
    node = json.loads((tmp_path / "encoder.json").read_text())
    assert node["encoder"]["args"].pop("glitch_bursts") == 0
    (tmp_path / "encoder.json").write_text(json.dumps(node))
    again, x = load_encoder(tmp_path), noise(4)
    assert again.args["glitch_bursts"] == 0
    which = torch.zeros(4, dtype=torch.long)
    with torch.no_grad():
        assert torch.equal(encoder.sequence(x, which), again.sequence(x, which))


def test_an_encoder_without_mergers_has_no_evidence(tmp_path: Path) -> None:
    encoder = PairedEncoder("cnn_gru", SMALL | {"mergers": 0}).eval()
    save_encoder(encoder, tmp_path, {})
    again, x = load_encoder(tmp_path), noise(4)
    again.start_from_mergers(lambda *_: pytest.fail("there are none to be had"))
    which = torch.zeros(4, dtype=torch.long)
    with torch.no_grad():
        frames = again.sequence(x, which)
        together = again.network(x[:, None].expand(4, 3, 2048))[1]
        assert torch.equal(frames, encoder.sequence(x, which))
    assert again.evidence == 0 and frames.shape == (4, 16, 16)
    assert together is not None and together.shape == (4, 32)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"merger_frames": 3}, "merger_frames 3, .*expected merger_frames parts of a frame's 128 samples"),
        ({"merger_stride": 5}, "merger_stride 5, .*expected merger_frames parts of a frame's 128 samples"),
        ({"merger_frames": 64}, "merger_frames 64, merger_stride 4"),
        ({"merger_kernel": 2049}, "kernel 2049; .*kernels within the window"),
        ({"mergers": -1}, "mergers"),
        ({"mergers": 257}, "0 to 256"),
        ({"merger_kernel": 4}, "8 to 4096"),
        ({"glitch_bursts": 65}, "0 to 64"),
    ],
)
def test_mergers_that_do_not_fit_are_refused(args: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        registry.build("cnn_gru", args)
    if "mergers" not in args and "out of bounds" not in says and "8 to" not in says and "0 to" not in says:
        assert isinstance(registry.build("cnn_gru", args | {"mergers": 0}), CnnGru)  # no matter where there are none


# In the probe


def test_features_beside_evidence_are_small() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(3000, 2, 4)).astype(np.float32)
    y = (rng.normal(size=(3000, 9)) * np.linspace(0.8, 1.2, 9)).astype(np.float32)
    features = FeatureMap("coherent").fit(x, together=y, evidence=3)
    spread = features.transform(x, together=y).std(axis=0)
    every, each, others = EVIDENCE_SCALES
    assert every > each > others
    assert spread == pytest.approx(np.array([others] * 14 + [each] * 2 + [every]), rel=0.01)
    plain = FeatureMap("concat").fit(x, evidence=3).transform(x)
    np.testing.assert_array_equal(plain, FeatureMap("concat").fit(x).transform(x))


def test_the_statistic_of_a_window_is_the_probes_decision_with_evidence(small_source: SimulatedSource) -> None:
    """In every network, up to a constant of each: frames are rounded to 1/8191, evidence to 0.002."""
    torch.manual_seed(3)
    encoder = PairedEncoder("cnn_gru", SMALL, psds=small_source.psds).eval().requires_grad_(False)
    encoder.start_from_mergers(mergers_of(small_source, "standard"))
    train = embed(encoder, small_source, "labelled", progress=False)
    assert train.evidence == 6 and train.together is not None
    probe = fit_probe(train, np.arange(64), "coherent", 0)
    statistic = FrameStatistic.of(encoder, probe)
    assert statistic.evidence.all() and len(statistic.evidence) == 6
    strain = encoder.decimate(next(iter(small_source.batches("test", 64))).strain)
    frames = [recurred(encoder, encoder.local(strain[:, d], torch.full((64,), d)).numpy(), d) for d in range(3)]
    for network in range(1, 8):
        here = [d for d in range(3) if network >> d & 1]
        present = torch.tensor([d in here for d in range(3)]).expand(64, 3)
        embedding, together = encoder.network(strain, present)
        assert together is not None
        decision = probe.decision(embedding.numpy(), present.numpy(), together.numpy())
        found = statistic.of_versions({d: frames[d] for d in here})
        assert found[7] == pytest.approx(statistic.of_window({d: frames[d].part(7, 8) for d in here}), abs=1e-5)
        assert np.ptp(found - decision) < 0.05 * np.std(decision) + 0.01
