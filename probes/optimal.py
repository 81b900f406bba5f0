"""The best possible statistic: the likelihood ratio averaged over the population (Neyman & Pearson 1933).

Of all functions of a window, none detects more signals of the population at a given false-alarm probability than

    L = mean over the population of p(strain | signal) / p(strain | noise).

In whitened Gaussian noise one signal a_d H_d(t - t_d) in D detectors has

    log p(strain | signal) / p(strain | noise) = Re sum_d conj(a_d) Z_d(t_d) - 1/2 sum_d |a_d|^2 E_d(t_d)

with Z_d the complex matched-filter output and E_d the template's squared SNR inside the window (Finn 1992). Phase and
loudness are averaged by `loudness`; everything else (masses, spins, time, sky, polarisation, inclination) by
importance sampling, whose proposal is the product of the detectors' own likelihoods (as in Roulet et al. 2024, PRD 110,
044010): templates and times first, then delays that fit. The estimate is unbiased for L at any number of samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from gwtwins.probes.loudness import LoudnessMarginal, average_over_snrs, density
from gwtwins.probes.sky_cells import SkyCells
from gwtwins.probes.template_series import RATE, TemplateSeries
from gwtwins.strain.bank import BankRecipe, WaveformBank
from gwtwins.strain.batch import Batch
from gwtwins.strain.detectors import light_travel_time
from gwtwins.strain.simulated import SimulatedSource
from gwtwins.strain.template_bank import TemplateBank

_DRAWS = 8192  # templates: the prior's masses and spins
_DRAW_SEED = 5  # of the templates: neither the training's waveforms nor the evaluation's nor a search bank's
_CELL_MATCH = 0.95  # of the templates in a cell of the proposal with the cell's own
_LAG = 0.012  # seconds within a cell that mergers are shifted by at most
_DEFENSIVE = 0.1  # part of each proposal that is the prior: no weight exceeds 10 of either
_STEP = 0.1  # of the proposal's tables over |z|^2
_TABLE = 6000
_SOBOL_SEED = 7
_ROWS = 8
_EVERY = 2  # samples of the series from one to the next of the proposal's times
_CANDIDATES = 8  # templates, positions and times within the cells of a sample, one of which is taken
_LATTICE = (1, 3, 5)  # generating vector of these, of a rank-1 lattice shifted at random


@dataclass
class LogRatio:
    """What `LikelihoodRatio` says of B rows."""

    value: Tensor
    """(B,) float64, log of the likelihood ratio of a signal of the population against noise."""
    effective: Tensor
    """(B,) float64, effective number of samples (Kish): the relative error of L is about its -1/2 power."""


class LikelihoodRatio:
    """The likelihood ratio of a population's signals in Gaussian noise, averaged over all they may be.

    Args:
        source: whose population, detectors, PSDs and window (2 s) the rows have.
        samples: a power of two, S; each stands for 32 orientations.
        draws: templates drawn from the population.
    """

    def __init__(
        self, source: SimulatedSource, samples: int = 512, draws: int = _DRAWS, progress: bool = False
    ) -> None:
        self.device, population = source.device, source.population
        psds = [source.psds[name] for name in source.detectors]
        recipe = BankRecipe(population, draws, _DRAW_SEED, tuple(psd.name for psd in psds))
        pool = WaveformBank.obtain(recipe, progress=progress)
        band = (source.f_low, source.f_high)
        cells = TemplateBank.obtain(recipe, pool, psds[0], *band, _CELL_MATCH, progress)
        self.sky = SkyCells(source.detectors, RATE, device=self.device)
        self.snr = population.snr
        self.merger, reach = population.merger, float(self.sky.delay.abs().max()) + 0.001
        earliest, latest = self.merger.low - reach - _LAG, self.merger.high + reach + _LAG
        self.series = TemplateSeries(
            pool, psds, source.rate, source.window, *band, earliest, latest, device=self.device
        )
        self.loudness = LoudnessMarginal(population.snr, self.device)
        order = torch.argsort(cells.nearest, stable=True)
        count = torch.bincount(cells.nearest, minlength=len(cells))
        self.member, self.member_count = order.to(self.device), count.to(self.device)
        self.member_start = (count.cumsum(0) - count).to(self.device)
        self.lag = cells.lag.double().clamp(-_LAG, _LAG).to(self.device)
        self.coarse = self.series.coefficient[:, cells.chosen.to(self.device)]  # (D, C, r)
        self.share = (count / draws).to(self.device)  # (C,) of the prior
        travel = [light_travel_time(source.detectors[0], name) for name in source.detectors]
        self.reach = [int(np.ceil(seconds * RATE / _EVERY)) for seconds in travel]
        self.table = self._tables(source).to(self.device)  # (D, |z|^2)
        self._prepare_fit()
        u = torch.quasirandom.SobolEngine(5, scramble=True, seed=_SOBOL_SEED).draw(samples, dtype=torch.float64)
        self.u = u.T.contiguous().to(self.device)
        self.even = (torch.arange(samples, dtype=torch.float64, device=self.device) + 0.5) / samples

    def _tables(self, source: SimulatedSource) -> Tensor:
        """log likelihood ratio of one detector's |z|^2, for the SNRs that the population has there, (D, 6000)."""
        rng = np.random.default_rng(_SOBOL_SEED)
        response = self.sky.response.abs().cpu().numpy().reshape(-1, len(source.detectors))
        response = rng.choice(response, 500) * self.series.sigma.median(0).values.cpu().numpy()
        share = response / np.linalg.norm(response, axis=1, keepdims=True)
        snr = source.population.snr.quantile(torch.from_numpy(rng.random(len(share)))).numpy()[:, None] * share
        squared = np.arange(_TABLE) * _STEP
        table = [average_over_snrs(squared, one) for one in snr.T]
        return torch.tensor(np.stack(table), dtype=torch.float32)

    def _prepare_fit(self) -> None:
        """What `_coherent_fit` needs of the delay cells: shifts, phases, and the quadratic form in the outputs."""
        delay = self.sky.cell_delay  # (C', D)
        self.cell_shift = torch.round(delay / _EVERY).long()
        self.cell_phase = torch.exp(2j * np.pi * self.series.carrier_frequency / RATE * delay).to(torch.complex64)
        response = self.sky.response.to(torch.complex128) * self.series.sigma.double().median(0).values
        response = response / torch.linalg.vector_norm(response, dim=-1, keepdim=True)
        each = torch.einsum("mqd,mqe->mde", response, response.conj()).real / response.shape[1]
        square = torch.stack([m.mean(0) for m in each.split(self.sky.cell_count.tolist())])  # (C', D, D)
        u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
        covariance = self.snr.quantile(u).square().mean() * square
        identity = torch.eye(delay.shape[1], dtype=torch.float64, device=self.device)
        # Outputs have variance 2 (1 in each quadrature) in noise, and this more in signals.
        quadratic = 0.5 * identity - torch.linalg.inv(2.0 * identity + covariance)
        self.quadratic = quadratic.permute(1, 2, 0).float()  # (D, D, C')
        self.log_share = torch.log(self.sky.cell_share) - torch.logdet(identity + 0.5 * covariance).float()

    def __call__(self, batch: Batch) -> LogRatio:
        """The log likelihood ratio of each row of a batch."""
        value, effective = [], []
        for strain in batch.strain.split(_ROWS):
            for row in self.series.correlate(strain):
                one, samples = self._row(row)
                value.append(one)
                effective.append(samples)
        return LogRatio(torch.stack(value), torch.stack(effective))

    def _row(self, series: Tensor) -> tuple[Tensor, Tensor]:
        """log of the likelihood ratio, and effective samples, for one row's (D, T, r)."""
        z = torch.bmm(self.coarse, series[:, ::_EVERY].transpose(1, 2))  # (D, C, T')
        cell, n, multiple, log_first = self._templates_and_times(z)
        fit = self._coherent_fit(z, cell, n) + log_first[:, None]  # (S', C'), C' delay cells
        which, delay_cell, log_second = self._delays(fit, log_first)
        template, sky, seconds, log_third = self._within_cells(series, cell[which], n[which], delay_cell)
        log_weight = self._log_ratio(series, template, sky, seconds) + log_second + log_third  # (S,)
        total = torch.logsumexp(log_weight, 0)
        second = _kish(log_weight, torch.zeros_like(log_weight))
        first = _kish(torch.logsumexp(fit, 1), torch.log(multiple))
        return total - np.log(len(log_weight)), 1.0 / (1.0 / first + 1.0 / second)

    def _within_cells(
        self, series: Tensor, cell: Tensor, n: Tensor, delay_cell: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One template, sky position and times of arrival (S, D) for each sample, log of the prior over the proposal.

        Of a few drawn from the prior within the cells one is taken, with the chance of its rough likelihood ratio.
        """
        lattice = torch.tensor(_LATTICE, dtype=torch.float64, device=self.device)[:, None, None] / _CANDIDATES
        u = self.u[1:4, :, None] + lattice * torch.arange(_CANDIDATES, device=self.device)
        u = u % 1.0  # (3, S, K), each candidate uniform
        template = self.member[self.member_start[cell][:, None] + (u[0] * self.member_count[cell][:, None]).long()]
        sky = self.sky.cell_start[delay_cell][:, None] + (u[1] * self.sky.cell_count[delay_cell][:, None]).long()
        # The sample n stands for the times half a sample about it.
        arrival = (_EVERY * (n[:, None] + u[2] - 0.5) + self.series.first) / RATE - self.lag[template]
        delay = self.sky.delay[sky]  # (S, K, D)
        prior = density(self.merger, arrival - delay[..., 0]) * (_EVERY / RATE)
        seconds = arrival[..., None] + (delay - delay[..., :1])
        z = self.series.rough_output(series, template, seconds)
        turned = torch.einsum("des,ske->skd", self.quadratic[:, :, delay_cell].to(z.dtype), z)
        fit = torch.log(prior) + (z.conj() * turned).real.sum(-1)  # (S, K)
        cumulative = torch.softmax(fit.nan_to_num(neginf=-1e30), 1).cumsum(1)
        drawn = torch.searchsorted(cumulative, (self.u[4] * cumulative[:, -1])[:, None]).clamp_(max=_CANDIDATES - 1)
        template, sky, one, prior = (x.gather(1, drawn)[:, 0] for x in (template, sky, fit, prior))
        seconds = seconds.gather(1, drawn[..., None].expand(-1, -1, seconds.shape[2]))[:, 0]
        log_weight = torch.logsumexp(fit, 1) - np.log(_CANDIDATES) - one + torch.log(prior)
        return template, sky, seconds, log_weight.nan_to_num(nan=-torch.inf)

    def _log_ratio(self, series: Tensor, template: Tensor, sky: Tensor, seconds: Tensor) -> Tensor:
        """log likelihood ratio (S,) float64 of templates at sky positions and times (S, D), orientation averaged."""
        z = self.series.output(series, template, seconds)  # (S, D)
        inside = self.series.part_inside(template, seconds)
        response = self.sky.response[sky] * self.series.sigma[template][:, None]  # (S, Q, D)
        power = response.real.square() + response.imag.square()
        total = power.sum(-1)
        u = (response.conj() * z[:, None]).sum(-1).abs() / total.sqrt()
        nu = ((power * inside[:, None]).sum(-1) / total).sqrt()
        ratio = self.loudness(u / nu, nu).double()
        return torch.logsumexp(ratio, 1) - np.log(ratio.shape[1])

    def _templates_and_times(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cells and times (S',) of the first detector, how often each was drawn, log of the prior over the proposal.

        From outputs (D, C, T'). The proposal is the product of the detectors' own likelihood ratios, each averaged
        within the light travel time.
        """
        index = (z.real.square().addcmul_(z.imag, z.imag) * (1.0 / _STEP)).int().clamp_(max=_TABLE - 1)
        proposal = self.share[:, None].expand(-1, z.shape[2])
        for table, i, reach in zip(self.table, index, self.reach):
            one = table[i]
            one = torch.exp(one.sub_(one.max()))  # what underflows is left to the defensive part
            proposal = proposal * (torch.nn.functional.avg_pool1d(one, 2 * reach + 1, 1, reach) if reach else one)
        times = proposal.shape[1]
        prior = self.share[:, None] / times
        proposal = proposal * ((1.0 - _DEFENSIVE) / proposal.sum()) + _DEFENSIVE * prior
        cumulative = proposal.flatten().cumsum(0, dtype=torch.float64)
        drawn = torch.searchsorted(cumulative, self.even * cumulative[-1]).clamp_(max=cumulative.numel() - 1)
        drawn, multiple = torch.unique_consecutive(drawn, return_counts=True)
        cell, n = drawn // times, drawn % times
        # The prior of a template of the cell is its share; that of the time is put in where the sky is known.
        weight = multiple * self.share[cell] / proposal.flatten()[drawn] / len(self.even)
        return cell, n, multiple, weight.double().log()

    def _coherent_fit(self, z: Tensor, cell: Tensor, n: Tensor) -> Tensor:
        """log likelihood ratio (S', C') float64 with the delays of each delay cell, less the prior of the cell.

        Of Gaussian amplitudes with the covariance that the cell's responses have: near enough for a proposal.
        """
        flat, times = z.reshape(len(z), -1), z.shape[2]
        aligned = [flat[0][cell * times + n][:, None].expand(-1, len(self.log_share))]
        for d in range(1, len(z)):
            at = (n[:, None] + self.cell_shift[:, d]).clamp_(0, times - 1).add_(cell[:, None] * times)
            aligned.append(flat[d][at] * self.cell_phase[:, d])
        fit = self.log_share.expand(len(n), -1)
        for d, one in enumerate(aligned):
            fit = fit + self.quadratic[d][d] * (one.real.square() + one.imag.square())
            for other, factor in zip(aligned[:d], self.quadratic[d]):
                fit = fit + 2.0 * factor * (one.real * other.real + one.imag * other.imag)
        return fit.double()

    def _delays(self, fit: Tensor, log_first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Samples (S,) of templates and times, and of delay cells, and log of their prior over the proposal."""
        prior = torch.exp(log_first)[:, None] * self.sky.cell_share
        proposal = torch.exp(fit - fit.max())
        proposal = proposal * ((1.0 - _DEFENSIVE) / proposal.sum()) + prior * (_DEFENSIVE / prior.sum())
        cumulative = proposal.flatten().cumsum(0)
        drawn = torch.searchsorted(cumulative, self.u[0] * cumulative[-1]).clamp_(max=cumulative.numel() - 1)
        log_weight = torch.log(prior.flatten()[drawn]) - torch.log(proposal.flatten()[drawn])
        return drawn // proposal.shape[1], drawn % proposal.shape[1], log_weight


def _kish(log_weight: Tensor, log_multiple: Tensor) -> Tensor:
    """Effective number of samples of which some, drawn several times over, have the sum of their weights."""
    total, squares = torch.logsumexp(log_weight, 0), torch.logsumexp(2 * log_weight - log_multiple, 0)
    return torch.exp(2 * total - squares)


def calibration_line(label: NDArray[np.floating], log_ratio: NDArray[np.floating]) -> dict[str, float]:
    """Whether a log likelihood ratio is one: the log odds of being a signal, fitted as a line in it.

    With half of the rows signals the true line has slope 1 and intercept 0. Maximum likelihood by Newton's method, with
    standard errors from the Fisher information.
    """
    x = np.stack([np.asarray(log_ratio, float), np.ones(len(log_ratio))], 1)
    line = np.array([1.0, 0.0])
    for _ in range(30):
        p = expit(x @ line)
        information = (x * (p * (1 - p))[:, None]).T @ x
        line = line + np.linalg.solve(information, x.T @ (np.asarray(label, float) - p))
    error = np.sqrt(np.diag(np.linalg.inv(information)))
    names = ("slope", "intercept", "slope_se", "intercept_se")
    return dict(zip(names, map(float, [*line, *error]), strict=True))
