"""What a detector could reach at best on the same rows: the known signal, and a matched-filter bank.

Whitened noise has one-sided PSD 1 / (f_high - f_low), so the optimal SNR of a whitened signal s sampled at ``rate`` is
sqrt(2 (f_high - f_low) / rate * sum s^2).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from gwtwins.strain.bank import AFTER_MERGER, BEFORE_MERGER, BUFFER, BankRecipe, WaveformBank
from gwtwins.strain.batch import Batch
from gwtwins.strain.detectors import light_travel_time
from gwtwins.strain.simulated import SimulatedSource

_TEMPLATE_SEED = 2  # of the bank: neither the training's waveforms nor the evaluation's
_SPAN = 3.0  # seconds of the zero-padded correlation: nothing wraps onto the merger's range
_BEFORE, _AFTER = 1.93, 0.06  # seconds of a template around its merger
_TEMPLATES_AT_ONCE = 25


def known_signal(snr: np.ndarray, false_alarm: tuple[float, ...] = (0.1, 0.01, 0.001)) -> dict[str, object]:
    """AUC and efficiency if everything about each signal were known.

    The matched filter's output is then N(rho, 1) against N(0, 1): the detected fraction at false-alarm probability p is
    the mean of Phi(rho - Phi^-1(1 - p)), the AUC the mean of Phi(rho / sqrt 2).

    Args:
        snr: (N,) optimal network SNR of each signal inside its window.
    """
    return {
        "auc": float(norm.cdf(snr / np.sqrt(2)).mean()),
        "efficiency": {f"{p:g}": float(norm.cdf(snr - norm.isf(p)).mean()) for p in false_alarm},
    }


def snr_in_window(signal: Tensor, f_low: float, f_high: float, rate: float) -> Tensor:
    """Optimal network SNR (B,) of whitened signals (B, D, T) as far as they lie inside the window."""
    return torch.sqrt(2 * (f_high - f_low) / rate * signal.double().square().sum(dim=(1, 2)))


class MatchedFilterBank:
    """A bank of templates from the population itself, filtered with every detector and combined over them.

    For each template and time the squared SNRs of the detectors are combined within the light travel time from the
    first; ``maximum`` is the largest sum over templates and times, ``marginalised`` the logarithm of the mean of
    exp(rho^2 / 2): an approximate likelihood ratio with delays, templates and times averaged over. Both are
    incoherent: they do not ask the detectors' amplitudes and phases to fit one sky position. SNRs are
    sampled as sparsely as the band allows, every 2 ms for 480 Hz, which costs 1% of them on average: the true limit,
    `gwtwins.probes.optimal`, lies higher.

    Args:
        source: whose population, PSDs and window are searched.
        count: templates, drawn from the population with a seed of their own.
        bank: the templates, if not these: for instance those of `gwtwins.strain.template_bank.search_bank`.
    """

    def __init__(
        self, source: SimulatedSource, count: int = 250, progress: bool = False, bank: WaveformBank | None = None
    ) -> None:
        self.rate, self.device = source.rate, source.device
        psd_names = tuple(psd.name for psd in source.psds.values())
        recipe = BankRecipe(source.population, count, _TEMPLATE_SEED, psd_names)
        bank = bank or WaveformBank.obtain(recipe, progress=progress)
        self.n_span = round(_SPAN * self.rate)
        # Complex samples hold a band as wide as their rate: 512 a second for 480 Hz.
        self.snr_rate = 2.0 ** np.ceil(np.log2(source.f_high - source.f_low))
        self.n_snr = round(_SPAN * self.snr_rate)
        self.low, self.high = int(np.ceil(source.f_low * _SPAN)), int(np.ceil(source.f_high * _SPAN))
        travel = [light_travel_time(source.detectors[0], name) for name in source.detectors]
        self.reach = [int(np.ceil(t * self.snr_rate)) for t in travel]  # samples either way from the first detector
        earth = 0.0213
        merger = source.population.merger
        self.first = int((merger.low - earth) * self.snr_rate)
        self.last = int((merger.high + earth) * self.snr_rate) + 1
        templates = [self._template(bank, source, name) for name in source.detectors]
        self.template = torch.stack([t for t, _ in templates], 1).to(self.device)  # (N, D, K) complex64
        self.weight = torch.stack([w for _, w in templates], 1).to(self.device)  # (N, D, times) 1 / norm

    def _template(self, bank: WaveformBank, source: SimulatedSource, detector: str) -> tuple[Tensor, Tensor]:
        """Conjugated templates (N, K) and one over the norm that is in the window at each merger time (N, times)."""
        k_low, k_high = int(np.ceil(source.f_low * BUFFER)), int(np.ceil(source.f_high * BUFFER))
        first = k_low - bank.k_low
        held = torch.view_as_complex(bank.waveform[:, first : first + k_high - k_low].float().contiguous())
        frequency = np.arange(k_low, k_high) / BUFFER
        whitened = held / torch.from_numpy(np.sqrt(source.psds[detector].at(frequency) * 1e46)).float()
        n_buffer = round(BUFFER * self.rate)
        spectrum = torch.zeros(len(held), n_buffer, dtype=torch.complex64)
        spectrum[:, k_low:k_high] = whitened
        analytic = torch.fft.ifft(spectrum)  # (N, n_buffer), merger at 0
        assert _BEFORE < BEFORE_MERGER and _AFTER < AFTER_MERGER
        before, after = round(_BEFORE * self.rate), round(_AFTER * self.rate)
        cut = torch.zeros(len(held), self.n_span, dtype=torch.complex64)
        cut[:, :after], cut[:, -before:] = analytic[:, :after], analytic[:, -before:]
        energy = torch.cat([cut[:, -before:], cut[:, :after]], 1).abs().double().square()
        running = torch.nn.functional.pad(energy.cumsum(1), (1, 0))  # up to each sample of the template
        merger = torch.arange(self.first, self.last) * self.rate / self.snr_rate
        start = (before - merger).clamp(min=0).long()  # what came before the window is not seen
        window = round(source.window * self.rate)
        end = (before - merger + window).clamp(max=before + after).long()
        inside = running[:, end] - running[:, start]
        # The variance a sample would have if the band's noise level went up to the Nyquist frequency: the noise of z is
        # that times the energy of the analytic template, half of it in each quadrature, each of which shall be 1.
        noise = self.rate / (2 * (source.f_high - source.f_low))
        weight = torch.sqrt(2.0 / (noise * inside))
        return torch.fft.fft(cut)[:, self.low : self.high].conj(), weight.float()

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """``maximum`` and ``marginalised`` statistics (B,) float64 of a batch."""
        spectrum = torch.fft.rfft(batch.strain, n=self.n_span)[..., self.low : self.high]  # (B, D, K)
        best = torch.full((len(batch),), -torch.inf, device=self.device)
        total = torch.full((len(batch),), -torch.inf, dtype=torch.float64, device=self.device)
        for i in range(0, len(self.template), _TEMPLATES_AT_ONCE):
            chunk = slice(i, i + _TEMPLATES_AT_ONCE)
            squared = self._squared_snr(spectrum, chunk)  # (B, N', D, times)
            each = enumerate(self.reach)
            largest = torch.stack([_within(squared[:, :, d], reach) for d, reach in each]).sum(0)
            best = torch.maximum(best, largest.amax(dim=(1, 2)))
            each = enumerate(self.reach)
            ratio = torch.stack([_log_mean_exp(0.5 * squared[:, :, d], reach) for d, reach in each]).sum(0)
            total = torch.logaddexp(total, torch.logsumexp(ratio.double(), dim=(1, 2)))
        return {"maximum": best.double(), "marginalised": total - np.log(ratio.shape[2] * len(self.template))}

    def _squared_snr(self, spectrum: Tensor, chunk: slice) -> Tensor:
        """|z|^2 at each merger time: (B, N', D, times) float32; 2 on average for noise."""
        product = spectrum[:, None] * self.template[chunk]
        # Taking the band down to zero frequency turns the phase of z, not its size, and needs half of the samples.
        series = torch.fft.ifft(product, n=self.n_snr)[..., self.first : self.last]
        size = torch.view_as_real(series).square().sum(-1)
        scale = self.n_snr / self.n_span  # ifft divides by n_snr where the correlation's sum has n_span
        return size * (scale * self.weight[chunk]).square()


def _within(x: Tensor, reach: int) -> Tensor:
    """The largest of (B, N, T) within ``reach`` samples either way."""
    return torch.nn.functional.max_pool1d(x, 2 * reach + 1, 1, reach) if reach else x


def _log_mean_exp(x: Tensor, reach: int) -> Tensor:
    """The logarithm of the mean of exp(x) within ``reach`` samples either way, (B, N, T)."""
    if not reach:
        return x
    top = x.amax(dim=(1, 2), keepdim=True)
    mean = torch.nn.functional.avg_pool1d(torch.exp(x - top), 2 * reach + 1, 1, reach)
    return torch.log(mean.clamp_min(1e-37)) + top
