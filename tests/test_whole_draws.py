"""Precessing binaries with higher modes: both polarisations of a whole draw, projected as pycbc projects them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pycbc.detector import Detector
from pycbc.filter import sigma
from pycbc.psd import from_string
from pycbc.types import FrequencySeries

from gwtwins.strain import draws
from gwtwins.strain.bank import F_NYQUIST, BankRecipe, WaveformBank, polarisations
from gwtwins.strain.errors import InputError
from gwtwins.strain.injection import Extrinsic, Injector, draw_extrinsic
from gwtwins.strain.population import POPULATIONS, Population
from gwtwins.strain.psd import DEFAULT_PSDS

NETWORK = ("H1", "L1", "V1")
NAMES = [DEFAULT_PSDS[name] for name in NETWORK]
PRECESSING = Population.load("precessing")
RATE, F_LOW, F_HIGH, ROWS = 2048, 20.0, 500.0, 6


@pytest.fixture(scope="module")
def bank(cache: Path) -> WaveformBank:
    return WaveformBank.obtain(BankRecipe(PRECESSING, ROWS, 7, tuple(NAMES)), progress=False)


@pytest.fixture(scope="module")
def injector(bank: WaveformBank) -> Injector:
    psds = [bank.psds[name] for name in NAMES]
    return Injector(bank, NETWORK, psds, RATE, 2.0, F_LOW, F_HIGH, PRECESSING.merger)


def drawn() -> Extrinsic:
    u = draws.uniform(0, "test", 0, range(ROWS), 8)
    gps = 1.26e9 + 86164 * u[:, 7]
    return draw_extrinsic(u, torch.arange(ROWS), PRECESSING.merger, PRECESSING.snr, gps)


def psd_index() -> torch.Tensor:
    return torch.arange(len(NETWORK)).expand(ROWS, len(NETWORK))


def measured(bank: WaveformBank, draw: Extrinsic, b: int) -> list[tuple[np.ndarray, float, float]]:
    """F+ h+ + Fx hx of each detector at 1 Mpc, whole, with its frequency step and its delay in seconds."""
    whole, df = polarisations(PRECESSING, bank.parameters[b])
    sky = [float(x[b]) for x in (draw.ra, draw.dec, draw.psi, draw.gps)]
    found = []
    for name in NETWORK:
        detector = Detector(name)
        plus, cross = detector.antenna_pattern(*sky)
        found.append((plus * whole[0] + cross * whole[1], df, detector.time_delay_from_earth_center(*sky[:2], sky[3])))
    return found


def test_whole_draws_are_spins_of_any_direction_seen_from_anywhere() -> None:
    parameters = PRECESSING.intrinsic(3, 4000)
    assert parameters.shape == (4000, 10)
    np.testing.assert_array_equal(PRECESSING.intrinsic(3, 10), parameters[:10])
    assert (parameters[:, 0] >= parameters[:, 1]).all()
    for spin in (parameters[:, 2:5], parameters[:, 5:8]):
        size = np.linalg.norm(spin, axis=1)
        assert size.max() < 0.95 and abs(size.mean() - 0.475) < 0.02  # standard error 0.004
        assert np.abs((spin / size[:, None]).mean(0)).max() < 0.04  # standard error 0.009
    assert abs(np.cos(parameters[:, 8]).mean()) < 0.04 and abs(parameters[:, 9].mean() - np.pi) < 0.12


def test_signals_are_both_polarisations_in_each_detector(bank: WaveformBank, injector: Injector) -> None:
    """As pycbc's waveform and antenna patterns give them, whitened at the bank's own merger; to 1.5%."""
    draw = drawn()
    ours, _ = injector(draw, psd_index())
    for b in range(ROWS):
        theirs = measured(bank, draw, b)
        curves = [from_string(name, int(F_NYQUIST * 64) + 1, 1 / 64, 10.0) for name in NAMES]
        for d, (spectrum, df, delay) in enumerate(theirs):
            frequency = np.arange(spectrum.size) * df
            band = (frequency >= F_LOW) & (frequency < F_HIGH)
            white = np.where(band, spectrum / np.sqrt(bank.psds[NAMES[d]].at(frequency) * (F_HIGH - F_LOW)), 0.0)
            white = white * np.exp(-2j * np.pi * frequency * (float(draw.merger[b]) + delay))
            series = np.fft.irfft(np.append(white, 0.0), round(RATE / df))[: 2 * RATE] * RATE
            x, y = ours[b, d].numpy(), series
            assert x @ y > 0.9998 * np.linalg.norm(x) * np.linalg.norm(y)
        # One distance for the network: its SNR is what was drawn.
        squares = [
            sigma(FrequencySeries(np.append(h, 0.0), delta_f=df), psd=_at(curve, df), low_frequency_cutoff=F_LOW) ** 2
            for (h, df, _), curve in zip(theirs, curves)
        ]
        scale = float(draw.snr[b]) / np.sqrt(np.sum(squares))
        assert np.abs(ours[b, 0].numpy()).max() == pytest.approx(
            np.abs(np.fft.irfft(np.append(_white(bank, theirs[0], 0), 0.0), round(RATE / theirs[0][1])) * RATE).max()
            * scale,
            rel=0.02,
        )


def _white(bank: WaveformBank, measured_: tuple[np.ndarray, float, float], d: int) -> np.ndarray:
    spectrum, df, _ = measured_
    frequency = np.arange(spectrum.size) * df
    band = (frequency >= F_LOW) & (frequency < F_HIGH)
    return np.where(band, spectrum / np.sqrt(bank.psds[NAMES[d]].at(frequency) * (F_HIGH - F_LOW)), 0.0)


def _at(curve: FrequencySeries, df: float) -> FrequencySeries:
    step = round(df * 64)
    return FrequencySeries(curve.numpy()[::step], delta_f=df)


def test_snrs_add_up_and_chosen_detectors_are_those_of_all(injector: Injector) -> None:
    draw = drawn()
    whole, snr = injector(draw, psd_index())
    torch.testing.assert_close(snr.square().sum(1).sqrt(), draw.snr, rtol=1e-6, atol=0)
    which = torch.tensor([[2, 0]] * ROWS)
    some, some_snr = injector(draw, psd_index(), which)
    torch.testing.assert_close(some, whole[:, [2, 0]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(some_snr, snr[:, [2, 0]])


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"spin1": {"uniform": [-0.5, 0.5]}}, "magnitudes from 0"),
        ({"spin1": None, "spin1z": {"uniform": [0, 0.5]}}, "missing or unknown: .'spin1', 'spin1z'."),
        ({"approximant": "IMRPhenomXAS"}, "missing or unknown"),
    ],
)
def test_bad_whole_draws_are_refused(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    node = yaml.safe_load((POPULATIONS / "precessing.yaml").read_text()) | changes
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in node.items() if value is not None}))
    with pytest.raises(InputError, match=fault):
        Population.load(str(path))


@pytest.mark.parametrize("path", sorted(POPULATIONS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_population_that_comes_along_can_be_loaded(path: Path) -> None:
    assert Population.load(path.stem).name == path.stem
