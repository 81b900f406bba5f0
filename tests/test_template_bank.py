"""Template banks: matches are pycbc's, and a bank covers what it says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from pycbc.filter import match as pycbc_match
from pycbc.types import FrequencySeries

import gwtwins.strain.template_bank as template_bank
from gwtwins.strain.bank import BUFFER, BankRecipe, WaveformBank
from gwtwins.strain.errors import InputError
from gwtwins.strain.population import Distribution, Population
from gwtwins.strain.psd import DEFAULT_PSDS, PSD
from gwtwins.strain.template_bank import TemplateBank, match, nearest, search_bank, subset, whitened_segments

if TYPE_CHECKING:
    from pathlib import Path

HANFORD = DEFAULT_PSDS["H1"]
STANDARD = Population.load("standard")
HEAVY = replace(STANDARD, mass1=Distribution(35.0, 70.0), mass2=Distribution(35.0, 70.0))


@pytest.fixture(scope="module")
def pool(cache: Path) -> WaveformBank:
    return WaveformBank.obtain(BankRecipe(HEAVY, 400, 11, (HANFORD,)), progress=False)


@pytest.fixture(scope="module")
def psd(pool: WaveformBank) -> PSD:
    return pool.psds[HANFORD]


def series(bank: WaveformBank, row: int) -> FrequencySeries:
    whole = np.zeros(2**14 + 1, complex)  # to 4096 Hz: pycbc's lags are 0.12 ms apart
    whole[bank.k_low : bank.k_low + bank.waveform.shape[1]] = bank.waveform[row].double().numpy() @ [1, 1j]
    return FrequencySeries(whole, delta_f=1 / BUFFER)


def test_matches_are_those_of_pycbc(pool: WaveformBank, psd: PSD) -> None:
    noise = FrequencySeries(psd.at(np.arange(2**14 + 1) / BUFFER) * 1e46, delta_f=1 / BUFFER)
    segments = whitened_segments(pool, psd, 20.0, 500.0)
    good = 0
    for a in range(5):
        found, _ = match(segments[:, a : a + 1], segments[:, 5:15])
        for b, value in enumerate(found.tolist(), 5):
            theirs, _ = pycbc_match(
                series(pool, a), series(pool, b), noise, low_frequency_cutoff=20.0, high_frequency_cutoff=500.0
            )
            assert value == pytest.approx(theirs, abs=0.002 if theirs > 0.9 else 0.02)
            good += theirs > 0.9
    assert good > 10


def test_a_lag_is_the_delay_of_the_second(pool: WaveformBank, psd: PSD) -> None:
    segments = whitened_segments(pool, psd, 20.0, 500.0)
    frequency = np.arange(segments.shape[0] * segments.shape[2]) / BUFFER
    turn = torch.from_numpy(np.exp(-2j * np.pi * frequency * 0.003)).to(torch.complex64)
    late = segments * turn.view(segments.shape[0], 1, segments.shape[2])
    value, lag = match(late[:, :20], segments[:, :20])
    assert lag.numpy() == pytest.approx(0.003, abs=2e-5)
    assert value.min() > 0.999


def test_nearest_is_the_best_of_all_matches(pool: WaveformBank, psd: PSD) -> None:
    segments = whitened_segments(pool, psd, 20.0, 500.0)
    index, value, lag = nearest(segments[:, :30], segments[:, 100:])
    every, lags = match(segments[:, :30, None], segments[:, None, 100:])
    assert (every.amax(1) - value).abs().max() < 1e-4
    assert (every.gather(1, index[:, None])[:, 0] - value).abs().max() < 1e-5
    assert (lags.gather(1, index[:, None])[:, 0] - lag).abs().max() < 1e-6


def test_every_draw_has_a_template_and_no_template_is_idle(pool: WaveformBank, psd: PSD) -> None:
    placed = TemplateBank.place(pool, psd, 20.0, 500.0, 0.95)
    assert placed.match.min() >= 0.95
    assert len(placed) < 100
    assert torch.equal(placed.nearest[placed.chosen], torch.arange(len(placed)))
    segments = whitened_segments(subset(pool, placed.chosen), psd, 20.0, 500.0)
    among, _ = match(segments[:, :, None], segments[:, None])
    among.fill_diagonal_(0.0)
    assert among.max() < 0.951  # templates resemble one another less than the minimal match
    assert len(TemplateBank.place(pool, psd, 20.0, 500.0, 0.98)) > 1.5 * len(placed)


def test_a_bank_is_placed_once(pool: WaveformBank, psd: PSD, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = BankRecipe(HEAVY, 400, 11, (HANFORD,))
    first = TemplateBank.obtain(recipe, pool, psd, 20.0, 500.0, 0.9, progress=False)
    monkeypatch.setattr(template_bank, "nearest", None)
    again = TemplateBank.obtain(recipe, pool, psd, 20.0, 500.0, 0.9, progress=False)
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in ("chosen", "nearest", "lag"))


@pytest.mark.parametrize("content", [None, b"", b"not HDF5"])
def test_a_file_that_is_no_bank_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "templates.hdf5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="templates.hdf5"):
        TemplateBank.load(path)


def coverage(population: Population, templates: WaveformBank, draws: int) -> float:
    """Part of the population's fresh draws whose best match is at least 0.97."""
    fresh = WaveformBank.obtain(BankRecipe(population, draws, 12, (HANFORD,)), progress=False)
    psd = fresh.psds[HANFORD]
    _, value, _ = nearest(*(whitened_segments(bank, psd, 20.0, 500.0) for bank in (fresh, templates)))
    return float((value >= 0.97).float().mean())


def test_fresh_draws_are_covered(cache: Path) -> None:
    assert coverage(HEAVY, search_bank(HEAVY, (HANFORD,), 20.0, 500.0, draws=800, progress=False), 300) > 0.97


@pytest.mark.slow
def test_the_standard_population_is_covered(cache: Path) -> None:
    """0.98 of 2,048 draws, whose standard error is 0.003."""
    assert coverage(STANDARD, search_bank(STANDARD, (HANFORD,), 20.0, 500.0, progress=False), 1000) > 0.97
