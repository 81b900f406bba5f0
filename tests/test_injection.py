"""Signals: the same as pycbc's own projection of the same binary, and as loud as they are said to be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycbc.filter import matched_filter, sigma
from pycbc.psd import from_string
from scipy.stats import kstest

from gwtwins.strain import draws
from gwtwins.strain.bank import BankRecipe, WaveformBank
from gwtwins.strain.batch import Batch
from gwtwins.strain.conditioning import Conditioner
from gwtwins.strain.detectors import antenna_patterns, sidereal_time
from gwtwins.strain.errors import InputError
from gwtwins.strain.injection import Extrinsic, Injector, draw_extrinsic
from gwtwins.strain.population import Distribution, Population
from gwtwins.strain.psd import DEFAULT_PSDS
from gwtwins.strain.simulated import SimulatedSource, SimulationConfig
from gwtwins.strain.sources import Window
from pycbc_reference import F_MAX, FREQUENCY, SPAN, N, merger_offset, reference, series, whitened

NETWORK = ("H1", "L1", "V1", "K1")
NAMES = [DEFAULT_PSDS[name] for name in NETWORK]
STANDARD = Population.load("standard")
RATE, WINDOW, F_LOW, F_HIGH = 2048.0, 2.0, 20.0, 500.0
ROWS = 10


@pytest.fixture(scope="module")
def bank(cache: Path) -> WaveformBank:
    return WaveformBank.obtain(BankRecipe(STANDARD, 48, 7, tuple(NAMES)), progress=False)


def injector(bank: WaveformBank, merger: Distribution = STANDARD.merger, **changes: Any) -> Injector:
    options = {"rate": RATE, "window": WINDOW, "f_low": F_LOW, "f_high": F_HIGH} | changes
    return Injector(bank, NETWORK, [bank.psds[name] for name in NAMES], merger=merger, **options)


def drawn(bank: WaveformBank, rows: int, seed: int = 0) -> Extrinsic:
    u = draws.uniform(seed, "test", 0, range(rows), 8)
    gps = 1.26e9 + 86164 * u[:, 7]
    return draw_extrinsic(u, torch.arange(rows) % len(bank), STANDARD.merger, STANDARD.snr, gps)


def table(rows: int) -> torch.Tensor:
    return torch.arange(len(NETWORK)).expand(rows, len(NETWORK))


@pytest.fixture(scope="module")
def expected(bank: WaveformBank) -> dict[str, np.ndarray]:
    """pycbc's signals of `drawn`: whitened (B, D, T), SNR (B, D), raw spectra (B, D, N), delay (B, D)."""
    draw = drawn(bank, ROWS)
    made: dict[str, list] = {"white": [], "snr": [], "raw": [], "delay": []}
    curves = [from_string(name, N + 1, 1 / SPAN, 10.0) for name in NAMES]
    for b in range(ROWS):
        row = int(draw.index[b])
        sky = [float(x[b]) for x in (draw.ra, draw.dec, draw.psi, draw.gps)]
        binary = reference(bank.parameters[row], float(torch.acos(draw.cos_inclination[b])), float(draw.phase[b]))
        raw, delay = zip(*(binary.projected(name, *sky) for name in NETWORK))
        snr = np.array([sigma(series(h), psd=curve, low_frequency_cutoff=F_LOW) for h, curve in zip(raw, curves)])
        distance = np.sqrt(np.sum(snr**2)) / float(draw.snr[b])
        merger = float(draw.merger[b]) + merger_offset(bank, row)
        raw = [h / distance * np.exp(-2j * np.pi * FREQUENCY * (merger + tau)) for h, tau in zip(raw, delay)]
        white = [whitened(h, bank.psds[name], RATE, round(WINDOW * RATE), F_LOW, F_HIGH) for h, name in zip(raw, NAMES)]
        for key, value in (("white", white), ("snr", snr / distance), ("raw", raw), ("delay", delay)):
            made[key].append(value)
    return {key: np.array(value) for key, value in made.items()}


def test_signals_are_pycbcs_projection(bank: WaveformBank, expected: dict[str, np.ndarray]) -> None:
    """Shape, sign, phase, amplitude and delay in each detector to 1%; only the merger's place is the bank's own.

    A delay that is off by 10 microseconds, 1/50 of a sample, would show as 1%. What there is (0.7%) is the O3 curve
    of LIGO, whose lines are narrower than the 1/4 Hz of the bank's 4 s buffer; with Virgo's and KAGRA's it is 0.4%.
    """
    ours, _ = injector(bank)(drawn(bank, ROWS), table(ROWS))
    assert ours.shape == (ROWS, 4, 4096) and ours.dtype == torch.float32
    theirs = expected["white"]
    error = np.linalg.norm(ours.numpy() - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)
    assert error.max() < 0.01
    assert error[:, 2:].max() < 0.005
    assert max(abs(merger_offset(bank, row)) for row in range(len(bank))) < 1e-3  # what a merger's time means


def test_snr_is_pycbcs_sigma(bank: WaveformBank, expected: dict[str, np.ndarray]) -> None:
    draw = drawn(bank, ROWS)
    _, snr = injector(bank)(draw, table(ROWS))
    assert snr.shape == (ROWS, 4) and snr.dtype == torch.float64
    torch.testing.assert_close(snr.square().sum(1).sqrt(), draw.snr, rtol=1e-6, atol=0)
    np.testing.assert_allclose(snr, expected["snr"], rtol=0.01)


def test_snr_is_what_pycbcs_matched_filter_finds(bank: WaveformBank, expected: dict[str, np.ndarray]) -> None:
    """The whole signal, filtered with the face-on waveform: its peak is the stated SNR, at merger plus delay."""
    draw = drawn(bank, ROWS)
    _, snr = injector(bank)(draw, table(ROWS))
    for b in range(4):
        row = int(draw.index[b])
        template = series(reference(bank.parameters[row]).plus)
        for d, name in enumerate(NAMES):
            curve = from_string(name, N + 1, 1 / SPAN, 10.0)
            found = matched_filter(template, series(expected["raw"][b, d]), psd=curve, low_frequency_cutoff=F_LOW)
            peak = int(np.argmax(np.abs(found.numpy())))
            assert abs(found[peak]) == pytest.approx(float(snr[b, d]), rel=0.01)
            arrival = float(draw.merger[b]) + expected["delay"][b, d]
            assert peak / (2 * F_MAX) == pytest.approx(arrival, abs=1e-3)


def test_the_window_holds_the_snr_of_short_signals(bank: WaveformBank) -> None:
    """In whitened noise of variance 1 in a band of 480 Hz, SNR^2 is 2 * 480 Hz times the integral of s^2."""
    draw = drawn(bank, 48)
    signal, snr = injector(bank)(draw, table(48))
    inside = (signal.double().square().sum(-1) * 2 * (F_HIGH - F_LOW) / RATE).sqrt()
    total = bank.parameters[:48, :2].sum(1)
    ratio = (inside / snr).numpy()
    np.testing.assert_allclose(ratio[total > 60], 1.0, atol=0.01)
    assert ((0.9 < ratio) & (ratio < 1.01)).all()  # light binaries begin before the window


def test_conditioning_the_raw_signal_gives_the_same(bank: WaveformBank, expected: dict[str, np.ndarray]) -> None:
    """What a recording of the signal goes through, from 4096 Hz, ends where the injection does."""
    margin, rate = 4.0, 4096
    spectrum = np.zeros((ROWS, 4, int(SPAN * rate) // 2 + 1), complex)
    spectrum[..., :N] = expected["raw"] * np.exp(-2j * np.pi * FREQUENCY * margin)
    raw = np.fft.irfft(spectrum)[..., : int((WINDOW + 2 * margin) * rate)] * rate
    assert 1e-25 < np.abs(raw).max() < 1e-20
    conditioner = Conditioner([bank.psds[n] for n in NAMES], rate, margin=margin)
    recorded = conditioner(torch.from_numpy(raw))
    ours, _ = injector(bank)(drawn(bank, ROWS), table(ROWS))
    error = (ours - recorded).norm(dim=-1) / recorded.norm(dim=-1)
    assert error.max() < 0.02


@pytest.mark.parametrize("samples", [1.0, 0.1, -0.37])
def test_a_later_merger_is_the_same_signal_later(bank: WaveformBank, samples: float) -> None:
    inject, draw = injector(bank), drawn(bank, ROWS)
    signal, _ = inject(draw, table(ROWS))
    draw.merger = draw.merger + samples / RATE
    shifted, _ = inject(draw, table(ROWS))
    # A bank's buffer is 4 s: the 2 s before and after the window are needed to shift it by another path.
    k = torch.arange(4096 // 2 + 1)
    fade = torch.ones(4096)
    fade[:512] = torch.sin(torch.linspace(0, torch.pi / 2, 512)) ** 2
    moved = torch.fft.irfft(torch.fft.rfft(signal * fade) * torch.exp(-2j * torch.pi * k * samples / 4096))
    error = (moved - shifted)[..., 640:-128].abs().amax(-1) / signal.abs().amax(-1)
    assert error.max() < 2e-3
    unmoved = (signal - shifted)[..., 640:-128].abs().amax(-1) / signal.abs().amax(-1)
    assert unmoved.min() > 0.01


def test_loudness_phase_and_polarisation_do_what_they_should(bank: WaveformBank) -> None:
    inject, draw = injector(bank), drawn(bank, ROWS)
    signal, snr = inject(draw, table(ROWS))

    def changed(**changes: torch.Tensor) -> torch.Tensor:
        return inject(Extrinsic(**{**vars(draw), **changes}), table(ROWS))[0]

    def same(one: torch.Tensor, other: torch.Tensor) -> bool:
        return bool(((one - other).abs().amax(-1) < 1e-4 * one.abs().amax(-1)).all())

    assert same(changed(snr=2 * draw.snr), 2 * signal)
    assert same(changed(phase=draw.phase + torch.pi / 2), -signal)  # a quadrupole: twice the orbital phase
    assert same(changed(psi=draw.psi + torch.pi / 2), -signal)
    assert same(changed(ra=draw.ra + 2 * torch.pi), signal)
    # Seen along its axis, turning the whole binary is turning its phase; edge on, the cross polarisation is gone.
    facing = torch.ones(ROWS, dtype=torch.float64)
    turned = changed(cos_inclination=facing, psi=draw.psi + 0.3)
    assert same(turned, changed(cos_inclination=facing, phase=draw.phase + 0.3))
    turned = changed(cos_inclination=-facing, psi=draw.psi + 0.3)
    assert same(turned, changed(cos_inclination=-facing, phase=draw.phase - 0.3))
    blind = changed(cos_inclination=0 * facing)
    ratio = blind[:, 0].norm(dim=-1) / blind[:, 1].norm(dim=-1)
    pattern = antenna_patterns(NETWORK, draw.ra, draw.dec, draw.psi, sidereal_time(draw.gps))[..., 0].abs()
    torch.testing.assert_close(ratio.double(), pattern[:, 0] / pattern[:, 1], rtol=0.01, atol=0)


def test_rows_and_detectors_do_not_depend_on_each_other(bank: WaveformBank) -> None:
    inject, draw = injector(bank), drawn(bank, ROWS)
    signal, _ = inject(draw, table(ROWS))
    some = torch.tensor([7, 2])
    part, _ = inject(Extrinsic(**{key: value[some] for key, value in vars(draw).items()}), table(2))
    torch.testing.assert_close(part, signal[some], rtol=0, atol=1e-5)


@pytest.mark.parametrize("wanted", [(0,), (2, 0), (3, 2, 1, 0), (1, 1)])
def test_the_detectors_that_are_wanted_have_the_signals_of_the_whole_network(
    bank: WaveformBank, wanted: tuple[int, ...]
) -> None:
    """The SNR stays that of the network, whichever of it are made; each row may want others, in any order."""
    inject, draw, index = injector(bank), drawn(bank, ROWS), table(ROWS).clone()
    index[::3] = index[::3].flip(1)  # rows whose detectors have other PSDs
    signal, snr = inject(draw, index)
    which = (torch.tensor(wanted) + torch.arange(ROWS)[:, None]) % len(NETWORK)
    part, part_snr = inject(draw, index, which)
    assert part.shape == (ROWS, len(wanted), 4096) and part.dtype == torch.float32
    rows = torch.arange(ROWS)[:, None]
    torch.testing.assert_close(part, signal[rows, which], rtol=0, atol=1e-6)
    torch.testing.assert_close(part_snr, snr[rows, which], rtol=1e-12, atol=0)


def test_each_row_and_detector_has_the_psd_it_names(bank: WaveformBank) -> None:
    """Row 1's H1 with Virgo's curve: fainter whitened signal in it, the network's SNR unchanged."""
    inject, draw = injector(bank), drawn(bank, 2)
    index = table(2).clone()
    index[1, 0] = 2
    before, _ = inject(draw, table(2))
    after, snr = inject(draw, index)
    torch.testing.assert_close(after[0], before[0])
    torch.testing.assert_close(snr[1].norm(), draw.snr[1])
    virgo = bank.sigma(bank.psds[NAMES[2]]) / bank.sigma(bank.psds[NAMES[0]])
    _, usual = inject(draw, table(2))
    ratio = (snr[1, 0] / snr[1, 1]) / (usual[1, 0] / usual[1, 1])
    assert float(ratio) == pytest.approx(float(virgo[draw.index[1]]), rel=1e-6)
    assert not torch.allclose(after[1, 0] / after[1, 0].norm(), before[1, 0] / before[1, 0].norm(), atol=1e-3)


def test_1024_hz_is_every_second_sample_of_2048_hz(bank: WaveformBank) -> None:
    draw = drawn(bank, ROWS)
    fine, _ = injector(bank)(draw, table(ROWS))
    coarse, _ = injector(bank, rate=1024.0)(draw, table(ROWS))
    torch.testing.assert_close(coarse, fine[..., ::2], rtol=0, atol=1e-5)


def test_another_band_keeps_the_snr_and_bounds_the_signal(bank: WaveformBank) -> None:
    draw = drawn(bank, ROWS)
    signal, snr = injector(bank, f_low=40.0, f_high=300.0)(draw, table(ROWS))
    torch.testing.assert_close(snr.norm(dim=1), draw.snr)
    power = torch.fft.rfft(signal.double() * torch.hann_window(4096)).abs().square().sum((0, 1))
    f = torch.arange(2049) / WINDOW
    assert power[(f < 38) | (f > 302)].sum() < 1e-3 * power.sum()


@pytest.mark.parametrize("exponent", [0.0, -4.0])
def test_extrinsic_parameters_are_isotropic_and_the_populations(exponent: float) -> None:
    n = 3000
    u = draws.uniform(0, "sky", 0, range(n), 7)
    snr = Distribution(4.0, 16.0, exponent)
    draw = draw_extrinsic(u, torch.zeros(n, dtype=torch.int64), STANDARD.merger, snr, torch.zeros(n))

    def follows(x: torch.Tensor, low: float, high: float) -> Iterator[float]:
        yield kstest(x.numpy(), "uniform", args=(low, high - low)).pvalue

    def share(x: np.ndarray) -> np.ndarray:
        m = exponent + 1
        return (x**m - 4.0**m) / (16.0**m - 4.0**m)

    p_values = [
        *follows(draw.ra, 0, 2 * np.pi),
        *follows(torch.sin(draw.dec), -1, 1),
        *follows(draw.psi, 0, np.pi),
        *follows(draw.cos_inclination, -1, 1),
        *follows(draw.phase, 0, 2 * np.pi),
        *follows(draw.merger, 1.2, 1.9),
        kstest(draw.snr.numpy(), share).pvalue,
    ]
    assert min(p_values) > 1e-3
    values = torch.stack([draw.ra, draw.dec, draw.psi, draw.cos_inclination, draw.phase, draw.merger, draw.snr])
    correlation = torch.corrcoef(values) - torch.eye(7)
    assert correlation.abs().max() < 0.08  # standard error 0.018
    raised = draw_extrinsic(u, draw.index, STANDARD.merger, snr, draw.gps, 50.0)
    assert raised.snr.max() > 16 or exponent < 0
    assert (raised.snr >= draw.snr).all() and raised.snr.max() <= 50


def test_bands_and_merger_times_beyond_the_bank_are_refused(bank: WaveformBank) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"f_high": 641.0}, "f_high: 641 Hz; expected at most 640 Hz"),
        ({"rate": 512.0, "f_high": 300.0}, "f_high: 300 Hz; expected at most 256 Hz"),
        ({"f_low": 5.0}, "PSD reaches over 10-2047.88 Hz; expected all of 5-500 Hz"),
        ({"merger": Distribution(0.9, 1.5)}, "0.9-1.5 s into a 2 s window; expected 1.02-2.48 s"),
        ({"merger": Distribution(1.2, 2.6)}, "1.2-2.6 s into a 2 s window"),
        ({"window": 3.0, "merger": Distribution(1.9, 2.3)}, "1.9-2.3 s into a 3 s window"),
    ]
    for options, fault in bad:
        with pytest.raises(InputError, match=fault):
            injector(bank, **options)


def test_at_the_ends_of_the_allowed_merger_times_nothing_wraps(bank: WaveformBank) -> None:
    """The signal is that of a merger in the middle, moved; and after it there is nothing."""
    draw = drawn(bank, 48)

    def at(samples: int) -> torch.Tensor:
        draw.merger = torch.full((48,), 1.5 + samples / RATE, dtype=torch.float64)
        return injector(bank, Distribution(1.1, 2.4))(draw, table(48))[0]

    middle, early, late = at(0), at(-975), at(1995)  # mergers at 1.50, 1.02 and 2.47 s
    loudest = middle.abs().amax(-1, keepdim=True)
    assert ((early[..., :-975] - middle[..., 975:]).abs() < 2e-3 * loudest).all()
    assert (early[..., -975:].abs() < 0.02 * loudest).all()
    assert ((late[..., 1995:] - middle[..., :-1995]).abs() < 2e-3 * loudest).all()


# The simulated source, where only some detectors of each row are made


def chosen(source: SimulatedSource, rows: range, which: torch.Tensor, seed: int = 2, step: int = 5) -> Batch:
    batch, found = source.train_chosen(seed, step, rows, 0.3, 64, lambda present: which)
    assert torch.equal(found, which)
    return batch


def pairs_of(rows: int) -> torch.Tensor:
    """(B, 2): two different ones of three detectors, other ones in each row."""
    row = torch.arange(rows)
    return torch.stack([row % 3, (row + 1 + row // 3 % 2) % 3], dim=1)


def test_chosen_detectors_come_with_the_truth_of_the_whole_network(small_source: SimulatedSource) -> None:
    rows, which = range(64), pairs_of(64)
    whole, some = small_source.train_batch(2, 5, rows, 0.3), chosen(small_source, rows, which)
    assert some.strain.shape == (64, 2, 4096) and some.present.all() and some.label is None
    assert some.id == whole.id and torch.equal(some.gps, whole.gps)
    at = torch.arange(64)[:, None]
    for key in ("snr", "merger", "bank_index"):
        assert torch.equal(some.truth[key].nan_to_num(-1.0), whole.truth[key].nan_to_num(-1.0))
    torch.testing.assert_close(some.truth["snr_detector"], whole.truth["snr_detector"][at, which], rtol=1e-9, atol=0)


def test_without_noise_chosen_signals_are_those_of_the_batch_to_a_millionth(
    small_source: SimulatedSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gwtwins.strain.simulated.gaussian_noise", silence)
    rows, which = range(64), pairs_of(64)
    whole, some = small_source.train_batch(2, 5, rows, 0.3).strain, chosen(small_source, rows, which).strain
    assert 1.0 < whole.abs().max() < 100.0
    torch.testing.assert_close(some, whole[torch.arange(64)[:, None], which], rtol=0, atol=1e-6)


def silence(seed: int, stream: str, step: int, rows: range, n: int, rate: float, window: float, *_: Any) -> Any:
    return torch.zeros(len(rows), n, round(rate * window))


def test_chosen_rows_are_a_function_of_seed_step_and_row(small_source: SimulatedSource) -> None:
    which = pairs_of(24)
    whole = chosen(small_source, range(24), which)
    parts = [chosen(small_source, rows, which[rows.start : rows.stop]) for rows in (range(5), range(5, 24))]
    torch.testing.assert_close(torch.cat([part.strain for part in parts]), whole.strain, rtol=0, atol=1e-5)
    for other in (chosen(small_source, range(24), which, seed=3), chosen(small_source, range(24), which, step=6)):
        assert (other.strain != whole.strain).all(dim=-1).any()


def test_chosen_windows_have_noise_of_their_own(small_source: SimulatedSource) -> None:
    """Independent between the views of a row, rows and steps, of variance 1."""
    made = [chosen(small_source, range(64), pairs_of(64), step=step) for step in (5, 6)]
    x = torch.cat([batch.strain[batch.truth["snr"] == 0] for batch in made]).flatten(0, 1).double()
    assert float(x.std()) == pytest.approx(1.0, abs=0.01)
    x = x / x.norm(dim=1, keepdim=True)
    off = (x @ x.T)[~torch.eye(len(x), dtype=torch.bool)]
    # Two windows of 2 s in a band of 480 Hz correlate by 1 / sqrt(1920).
    assert off.abs().max() < 5 * 1920**-0.5 and off.std() == pytest.approx(1920**-0.5, rel=0.1)


def test_absent_detectors_are_chosen_from_knowledge_and_are_silent(cache: Path) -> None:
    config = SimulationConfig(bank_size=64, n_labelled=64, n_test=64, absent=0.4, glitch_fraction=0.3)
    source, which, seen = SimulatedSource(config, Window(), progress=False), pairs_of(90), []
    some, _ = source.train_chosen(0, 1, range(90), 0.0, 90, lambda present: seen.append(present) or which)
    here = source.train_batch(0, 1, range(90)).present
    assert torch.equal(seen[0], here) and not here.all()
    assert torch.equal(some.present, here[torch.arange(90)[:, None], which])
    silent = some.strain.abs().amax(dim=-1) == 0
    assert torch.equal(silent, ~some.present)
    assert (some.truth["snr_detector"][~some.present] == 0).all() and (some.truth["glitch_snr"][silent] == 0).all()
    assert 0.15 < float((some.truth["glitch_snr"][some.present] > 0).double().mean()) < 0.45  # 0.3 +- 0.045
