"""The optimum: closed forms where there are any, a plain average over injections, and its own calibration."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import i0e

from gwtwins.probes.limits import MatchedFilterBank
from gwtwins.probes.loudness import LoudnessMarginal, density, log_ratio
from gwtwins.probes.metrics import auc_difference
from gwtwins.probes.optimal import LikelihoodRatio, calibration_line
from gwtwins.probes.sky_cells import SkyCells
from gwtwins.strain.detectors import antenna_patterns, delays_from_geocentre
from gwtwins.strain.injection import draw_extrinsic
from gwtwins.strain.population import Distribution
from gwtwins.strain.simulated import SimulatedSource, SimulationConfig
from gwtwins.strain.sources import Window

if TYPE_CHECKING:
    from pathlib import Path

# Little to be averaged over, so that a plain average over some thousand draws converges.
NARROW = """
name: narrow
approximant: IMRPhenomXAS
f_lower: 20
mass1: {uniform: [30, 34]}
mass2: {uniform: [28, 30]}
spin1z: {uniform: [-0.1, 0.1]}
spin2z: {uniform: [-0.1, 0.1]}
merger: {uniform: [1.5, 1.51]}
snr: {uniform: [2, 4]}
signal_fraction: 0.5
"""


def narrow_source(folder: Path, detectors: str, rows: int) -> SimulatedSource:
    population = folder / "narrow.yaml"
    population.write_text(NARROW)
    config = SimulationConfig(detectors, str(population), bank_size=64, n_labelled=2, n_test=rows)
    return SimulatedSource(config, Window(), progress=False)


def plain_average(source: SimulatedSource, strain: torch.Tensor, draws: int) -> tuple[torch.Tensor, torch.Tensor]:
    """log of the mean over the injector's own signals of exp(<x, s> - <s, s> / 2), and its standard error."""
    generator = torch.Generator().manual_seed(5)
    scale = 2 * (source.f_high - source.f_low) / source.rate
    terms = []
    for _ in range(draws // 500):
        u = torch.rand(500, 7, dtype=torch.float64, generator=generator)
        index = torch.randint(len(source.bank("train")), (500,), generator=generator)
        gps = 1.26e9 + 86164.0 * torch.rand(500, dtype=torch.float64, generator=generator)
        draw = draw_extrinsic(u, index, source.population.merger, source.population.snr, gps)
        psds = torch.arange(len(source.detectors)).expand(500, -1)
        signal = source.injector("train")(draw, psds)[0].flatten(1)
        terms.append(scale * (strain.flatten(1) @ signal.T - 0.5 * signal.square().sum(1)))
    log_terms = torch.cat(terms, 1).double()
    total = torch.logsumexp(log_terms, 1)
    effective = torch.exp(2 * total - torch.logsumexp(2 * log_terms, 1))
    return total - np.log(log_terms.shape[1]), effective**-0.5


def test_phase_and_loudness_are_averaged_as_in_the_closed_forms() -> None:
    u, nu = np.array([0.0, 0.5, 3.0, 7.0, 15.0, 22.0]), np.array([1.0, 0.6, 0.9, 0.8, 1.0, 0.95])
    known = Distribution(8.0, 8.0)
    # I0(rho |u|) exp(-rho^2 nu^2 / 2) for a known SNR rho.
    expected = np.log(i0e(8 * u)) + 8 * u - 0.5 * (8 * nu) ** 2
    assert log_ratio(u / nu, nu, known) + 0.5 * (u / nu) ** 2 == pytest.approx(expected, abs=1e-9)
    for snr in (Distribution(4.0, 16.0), Distribution(4.0, 40.0, -4.0)):
        for one, part in zip(u, nu):
            y = one / part

            def integrand(rho: float, y: float = y, part: float = part, snr: Distribution = snr) -> float:
                weight = float(density(snr, torch.tensor(rho, dtype=torch.float64)))
                return weight * np.exp(-0.5 * (rho * part - y) ** 2) * i0e(rho * part * y)

            value = quad(integrand, snr.low, snr.high, epsabs=0, epsrel=1e-11, limit=200, points=[max(snr.low, y)])[0]
            assert log_ratio(np.array([y]), np.array([part]), snr)[0] == pytest.approx(np.log(value), abs=1e-8)


def test_the_table_of_loudness_is_that_of_the_quadrature() -> None:
    rng = np.random.default_rng(0)
    snr = Distribution(4.0, 16.0)
    nu = rng.uniform(0.4, 1.0, 500)
    y = rng.uniform(0.0, 1.0, 500) * 16.0 * nu
    found = LoudnessMarginal(snr)(*(torch.from_numpy(v).float() for v in (y, nu))).numpy()
    assert found == pytest.approx(log_ratio(y, nu, snr) + 0.5 * y**2, abs=3e-3)


@pytest.mark.parametrize("snr", [Distribution(4.0, 16.0), Distribution(4.0, 40.0, -4.0), Distribution(1.0, 9.0, -1.0)])
def test_densities_are_those_of_the_quantiles(snr: Distribution) -> None:
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    slope = (snr.quantile(u + 1e-6) - snr.quantile(u - 1e-6)) / 2e-6
    assert (density(snr, snr.quantile(u)) * slope).numpy() == pytest.approx(1.0, rel=1e-6)
    assert density(snr, torch.tensor([0.5, 50.0])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("detectors", [("H1",), ("H1", "L1"), ("H1", "L1", "V1"), ("H1", "L1", "V1", "K1")])
def test_sky_cells_are_an_isotropic_sky_sorted_by_delay(detectors: tuple[str, ...]) -> None:
    sky = SkyCells(detectors, 1024.0, positions=4096)
    assert float(sky.cell_share.sum()) == pytest.approx(1.0, abs=1e-6)
    for cell in range(0, len(sky.cell_share), 97):
        rows = slice(int(sky.cell_start[cell]), int(sky.cell_start[cell] + sky.cell_count[cell]))
        late = (sky.delay[rows] - sky.delay[rows, :1]) * 1024.0
        assert (late - sky.cell_delay[cell]).abs().max() <= 0.5 + 1e-9
    # Against random positions, polarisations and inclinations: the mean response, its square, and the mean delay.
    u = torch.rand(100_000, 4, dtype=torch.float64)
    ra, dec, psi = 2 * np.pi * u[:, 0], torch.asin(2 * u[:, 1] - 1), np.pi * u[:, 2]
    pattern = antenna_patterns(detectors, ra, dec, psi, torch.zeros_like(ra))
    cosine = (2 * u[:, 3] - 1)[:, None]
    power = (pattern[..., 0] * (1 + cosine**2) / 2) ** 2 + (pattern[..., 1] * cosine) ** 2
    found = sky.response.abs().square().double().mean((0, 1))
    assert (found / power.mean(0)).numpy() == pytest.approx(1.0, abs=0.02)
    size = delays_from_geocentre(detectors, ra, dec, torch.zeros_like(ra)).abs().mean(0)
    assert (sky.delay.abs().mean(0) / size).numpy() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("detectors", ["H1", "L1,V1", "H1,L1,V1"])
def test_is_the_plain_average_over_the_injectors_signals(detectors: str, tmp_path: Path, cache: Path) -> None:
    """No code in common: whole signals in time, drawn from the population, against the rows themselves."""
    source = narrow_source(tmp_path, detectors, 24)
    batch = next(iter(source.batches("test", 24)))
    found = LikelihoodRatio(source, samples=512, draws=128)(batch)
    plain, error = plain_average(source, batch.strain, 4000)
    pull = (found.value - plain) / torch.sqrt(error**2 + 1.0 / found.effective + 0.05**2)
    assert error.median() < 0.2  # otherwise this says little
    # Errors of a plain average with heavy tails are larger than they seem, and rows share its draws.
    assert pull.abs().median() < 1.5
    assert pull.abs().max() < 6.0
    assert (found.value - plain).median().abs() < 0.1


def test_samples_change_nothing_but_the_error(tmp_path: Path, cache: Path) -> None:
    source = narrow_source(tmp_path, "H1,L1,V1", 16)
    batch = next(iter(source.batches("test", 16)))
    few, many = (LikelihoodRatio(source, samples=n, draws=128)(batch) for n in (256, 1024))
    assert many.effective.median() > 2 * few.effective.median()
    pull = (few.value - many.value) / torch.sqrt(1 / few.effective + 1 / many.effective)
    assert pull.abs().max() < 4.5
    # One row alone gives what it gives among others.
    alone = LikelihoodRatio(source, samples=256, draws=128)(replace(batch, strain=batch.strain[3:4]))
    assert alone.value.item() == pytest.approx(few.value[3].item(), abs=1e-3)


def test_the_calibration_line_finds_a_scale_and_an_offset() -> None:
    rng = np.random.default_rng(1)
    label = np.repeat([0.0, 1.0], 20_000)
    x = rng.standard_normal(40_000) + 2 * label - 1  # its log likelihood ratio is 2 x
    line = calibration_line(label, 2 * x)
    assert abs(line["slope"] - 1) < 4 * line["slope_se"]
    assert abs(line["intercept"]) < 4 * line["intercept_se"]
    assert calibration_line(label, x + 1)["slope"] == pytest.approx(2.0, abs=0.1)
    assert calibration_line(label, x + 1)["intercept"] == pytest.approx(-2.0, abs=0.1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_is_a_likelihood_ratio_and_better_than_a_bank_on_the_standard_population(cache: Path) -> None:
    """Rows of log likelihood ratio x are signals in 1 / (1 + exp(-x)) of the cases: nothing else ranks better."""
    config = SimulationConfig(n_test=1000, n_labelled=2, bank_size=2)
    source = SimulatedSource(config, Window(), progress=False)
    optimum, bank = LikelihoodRatio(source, samples=256, draws=2048), MatchedFilterBank(source, 250)
    label, ratio, other = [], [], []
    for batch in source.batches("test", 50):
        label.append(batch.label.numpy())
        ratio.append(optimum(batch).value.numpy())
        other.append(bank(batch)["marginalised"].numpy())
    y, x = np.concatenate(label), np.concatenate(ratio)
    line = calibration_line(y, x)
    assert abs(line["slope"] - 1) < 3 * line["slope_se"]
    assert abs(line["intercept"]) < 3 * line["intercept_se"]
    for c in (1.0, 3.0, 10.0):  # Markov: the mean of the ratio over noise is 1
        assert np.mean(np.exp(x[y == 0]) > c) <= 1 / c
    better = auc_difference(y, x, np.concatenate(other))
    assert better["value"] > -2 * better["se"]
