"""The limits beside a probe: what they claim to be, they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from scipy.stats import norm

from gwtwins.probes.limits import MatchedFilterBank, known_signal, snr_in_window
from gwtwins.probes.metrics import auc, efficiency
from gwtwins.strain.simulated import SimulatedSource, SimulationConfig
from gwtwins.strain.sources import Window

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module", params=[(1024.0, 500.0), (2048.0, 600.0)], ids=["1024 Hz", "600 Hz band"])
def source(request: pytest.FixtureRequest, cache: Path) -> SimulatedSource:
    rate, f_high = request.param
    config = SimulationConfig(bank_size=16, n_labelled=16, n_test=200)
    return SimulatedSource(config, Window(rate=rate, f_high=f_high), progress=False)


def test_the_known_signals_figures_are_those_of_a_unit_normal_that_is_moved() -> None:
    rng = np.random.default_rng(0)
    snr = rng.uniform(1, 6, 20_000)
    label = np.repeat([1, 0], 20_000)
    score = rng.standard_normal(40_000) + np.concatenate([snr, np.zeros(20_000)])
    known = known_signal(snr)
    # Standard errors of 20,000 rows a class: 0.002 for the AUC, 0.005 for an efficiency.
    assert known["auc"] == pytest.approx(auc(label, score)["value"], abs=0.006)
    for p in (0.1, 0.01):
        assert known["efficiency"][f"{p:g}"] == pytest.approx(efficiency(label, score, p)["value"], abs=0.015)
    assert known_signal(np.zeros(3))["efficiency"]["0.1"] == pytest.approx(0.1)
    assert known_signal(np.array([2.0]))["auc"] == pytest.approx(norm.cdf(2.0 / np.sqrt(2)))


def test_noise_has_a_squared_snr_of_two_on_average_in_every_template_and_detector(source: SimulatedSource) -> None:
    bank = MatchedFilterBank(source, count=6)
    strain = torch.cat([batch.strain[batch.label == 0] for batch in source.batches("test")])
    spectrum = torch.fft.rfft(strain, n=bank.n_span)[..., bank.low : bank.high]
    squared = bank._squared_snr(spectrum, slice(None))  # (100, 6, 3, times)
    # 100 windows of some 0.75 s: a hundred independent values each, so 5% for a template, 3% over all.
    assert squared.mean().item() == pytest.approx(2.0, rel=0.05)
    assert (squared.mean(dim=(0, 3)) / 2.0 - 1.0).abs().max() < 0.25


def test_a_template_finds_its_own_signal_with_its_snr(source: SimulatedSource) -> None:
    """The bank of one template, filtered with that very waveform alone, without noise."""
    batch = next(iter(source.batches("test", 200, signal=True)))
    signal = batch.truth["signal"]
    expected = snr_in_window(signal, source.f_low, source.f_high, source.rate)[batch.label == 1]
    bank = MatchedFilterBank(source, count=6)
    # The evaluation's own waveforms as templates: the best of them for each signal is the signal's own.
    own = source.bank("test")
    parts = [bank._template(own, source, name) for name in source.detectors]
    bank.template, bank.weight = torch.stack([t for t, _ in parts], 1), torch.stack([w for _, w in parts], 1)
    batch.strain = signal
    found = bank(batch)["maximum"][batch.label == 1].sqrt()
    # Up to 2 ms between SNR samples cost 1% on average, and up to 7% of one signal.
    ratio = found / expected
    assert ratio.median() > 0.985
    assert ratio.min() > 0.92
    assert ratio.max() < 1.01


def test_the_bank_ranks_signals_above_noise_and_no_better_than_knowing_them(source: SimulatedSource) -> None:
    bank = MatchedFilterBank(source, count=40)
    batches = [(bank(b), b) for b in source.batches("test", 50)]
    label = torch.cat([b.label for _, b in batches]).numpy()
    for name in ("maximum", "marginalised"):
        score = torch.cat([s[name] for s, _ in batches]).numpy()
        value = auc(label, score)["value"]
        assert 0.88 < value < 0.999  # 0.95 with 250 templates on 6,000 rows; the error here is 0.02
