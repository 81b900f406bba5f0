"""Complex matched-filter outputs of thousands of templates at any time, from a reduced basis.

Waveforms of one population that fit into a 2 s window span a space of a hundred dimensions or so (Cannon et al. 2010,
PRD 82, 044025): the data are correlated with a basis of it, and each template's output is a sum over the basis.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gwtwins.strain.bank import BUFFER, WaveformBank
from gwtwins.strain.psd import PSD

RATE = 1024.0  # of the outputs, Hz, and of the templates, whose complex samples then hold 1024 Hz of band
BEFORE, AFTER = 1.93, 0.06  # seconds of a template around its merger
_SPAN = 3.0  # seconds of the zero-padded correlation
_RANK = 120
_FOR_BASIS = 2048  # templates from which the basis is made
_ITERATIONS, _BASIS_SEED = 4, 8  # of the search for it
_CHUNK = 1024
_TAPS = 6  # Lagrange interpolation: 0.03% off at 100 Hz from the carrier


class TemplateSeries:
    """N templates in D detectors: their SNRs, how much of each lies in the window, and their outputs.

    Args:
        bank: the templates.
        psds: D PSDs.
        rate, window, f_low, f_high: of the strain (Hz, seconds, Hz, Hz).
        first, last: merger times from the window's start that are asked for, in seconds.

    Attributes:
        sigma: (N, D) float32, each whole template's SNR, as a multiple of that in the first detector.
        coefficient: (D, N, r) complex64, what multiplies the basis' outputs.
        residual: (N, D) float32, part of each template's power that the basis leaves out.
    """

    def __init__(
        self,
        bank: WaveformBank,
        psds: list[PSD],
        rate: float,
        window: float,
        f_low: float,
        f_high: float,
        first: float,
        last: float,
        device: str = "cpu",
    ) -> None:
        self.rate, self.n_in, self.device = rate, round(_SPAN * rate), device
        self.low, self.high = int(np.ceil(f_low * _SPAN)), int(np.ceil(f_high * _SPAN))
        self.first = int(first * RATE) - _TAPS
        self.times = int(last * RATE) + _TAPS + 1 - self.first
        self._merger = np.linspace(first, last, 48)
        made = {psd.name: self._one(bank, psd, f_low, f_high, window) for psd in psds}
        basis, coefficient, inside, residual, spectrum = zip(*(made[psd.name] for psd in psds), strict=True)
        self.basis = torch.stack(basis).conj().resolve_conj().to(device)  # (D, r, K)
        self.coefficient = torch.stack(coefficient).conj().resolve_conj().to(device)
        self.inside = torch.stack(inside, 1).to(device)  # (N, D, 48)
        self.residual = torch.stack(residual, 1)
        sigma = torch.stack([bank.sigma(psd) for psd in psds], 1)
        self.sigma = (sigma / sigma[:, :1]).float().to(device)
        # Outputs are slowest about the frequency where templates are loudest: they are held with that taken off.
        power = torch.stack(spectrum).sum(0)
        self.carrier = self.low + round(float((power * torch.arange(len(power))).sum() / power.sum()))
        self.carrier_frequency = self.carrier / _SPAN
        node = torch.arange(_TAPS, dtype=torch.float64)
        others = [torch.cat([node[:i], node[i + 1 :]]) for i in range(_TAPS)]
        self._others = torch.stack(others).to(device)  # (taps, taps - 1)
        self._scale = 1.0 / (node[:, None] - torch.stack(others)).prod(1).to(device)

    def _one(self, bank: WaveformBank, psd: PSD, f_low: float, f_high: float, window: float) -> tuple[Tensor, ...]:
        """Basis (r, K), coefficients (N, r), part inside (N, 48), residual (N,), mean power (K,) for one PSD."""
        k_low, k_high = max(bank.k_low, int(np.ceil(f_low * BUFFER))), int(np.ceil(f_high * BUFFER))
        n_buffer, n_span = round(BUFFER * RATE), round(_SPAN * RATE)
        before, after = round(BEFORE * RATE), round(AFTER * RATE)
        # The whitened signal is the real part of this analytic one, 2 h / sqrt((f_high - f_low) S), for unit SNR.
        white = 2.0 / np.sqrt((f_high - f_low) * psd.at(np.arange(k_low, k_high) / BUFFER))
        unit = (bank.scale / bank.sigma(psd)).numpy()
        spectra, inside = [], []
        for rows in torch.arange(len(bank)).split(_CHUNK):
            held = bank.waveform[rows, k_low - bank.k_low : k_high - bank.k_low].float().contiguous()
            gain = torch.from_numpy((unit[rows][:, None] * white).astype(np.float32))
            whole = torch.zeros(len(rows), n_buffer, dtype=torch.complex64)
            whole[:, k_low:k_high] = torch.view_as_complex(held) * gain
            series = torch.fft.ifft(whole) * RATE
            cut = torch.zeros(len(rows), n_span, dtype=torch.complex64)
            cut[:, :after], cut[:, -before:] = series[:, :after], series[:, -before:]
            spectra.append(torch.fft.fft(cut)[:, self.low : self.high] / RATE)
            energy = torch.cat([cut[:, -before:], cut[:, :after]], 1).abs().double().square()
            running = torch.nn.functional.pad(energy.cumsum(1), (1, 0)) * (f_high - f_low) / RATE
            starts = torch.from_numpy(np.round((BEFORE - self._merger) * RATE)).long().clamp(min=0)
            ends = torch.from_numpy(np.round((BEFORE - self._merger + window) * RATE)).long()
            inside.append((running[:, ends.clamp(max=before + after)] - running[:, starts]).float())
        spectrum = torch.cat(spectra)
        basis, power = _principal(spectrum[:_FOR_BASIS].to(torch.complex128), _RANK)
        basis = basis.to(torch.complex64)  # (r, K)
        coefficient = spectrum @ basis.conj().T
        kept = coefficient.abs().square().sum(1) / spectrum.abs().square().sum(1)
        # Of Z = 2 (f_high - f_low) integral x(f) H*(f) df with the sum over bins 1 / _SPAN apart.
        factor = 2.0 * (f_high - f_low) / _SPAN
        return basis, coefficient * factor, torch.cat(inside), 1.0 - kept, power

    def correlate(self, strain: Tensor) -> Tensor:
        """The basis' outputs (B, D, times, r) complex64 for strain (B, D, T), the carrier taken off."""
        spectrum = torch.fft.rfft(strain, n=self.n_in)[..., self.low : self.high] / self.rate
        n = round(_SPAN * RATE)
        product = torch.zeros(*strain.shape[:2], self.basis.shape[1], n, dtype=torch.complex64, device=self.device)
        k = self.carrier - self.low
        whole = spectrum[:, :, None] * self.basis
        product[..., : whole.shape[-1] - k] = whole[..., k:]
        product[..., n - k :] = whole[..., :k]
        series = torch.fft.ifft(product)[..., self.first : self.first + self.times] * n
        return series.transpose(2, 3).contiguous()

    def output(self, series: Tensor, template: Tensor, seconds: Tensor) -> Tensor:
        """Outputs (S, D) complex64 of one template each, merger at ``seconds`` (S, D) float64, of one row's series.

        In units in which noise has variance 1 in each quadrature of a template that is whole inside the window.
        """
        position = seconds * RATE - self.first
        start = (position.floor().long() - (_TAPS // 2 - 1)).clamp(0, self.times - _TAPS)
        # Lagrange's weights of samples 0 to 5 at the place of each, mostly between 2 and 3.
        place = (position - start).clamp(0, _TAPS - 1)
        weight = (place[..., None, None] - self._others).prod(-1) * self._scale  # (S, D, taps)
        tap = start[..., None] + torch.arange(_TAPS, device=self.device)
        detector = torch.arange(series.shape[0], device=self.device)[:, None]
        near = series[detector, tap]  # (S, D, taps, r)
        coefficient = self.coefficient[detector[:, 0], template[:, None]]  # (S, D, r)
        value = torch.einsum("sdkr,sdr->sdk", near, coefficient)
        value = (value * weight.float()).sum(-1)
        return value * self._carrier(seconds)

    def rough_output(self, series: Tensor, template: Tensor, seconds: Tensor) -> Tensor:
        """`output` for templates (S, K) at ``seconds`` (S, K, D), its size taken at the nearest sample."""
        detector = torch.arange(series.shape[0], device=self.device)
        at = (seconds * RATE - self.first).round().long().clamp_(0, self.times - 1)
        value = (series[detector, at] * self.coefficient[detector, template[..., None]]).sum(-1)
        return value * self._carrier(seconds)

    def _carrier(self, seconds: Tensor) -> Tensor:
        turns = (seconds * self.carrier_frequency) % 1.0
        return torch.exp(2j * np.pi * turns).to(torch.complex64)

    def part_inside(self, template: Tensor, seconds: Tensor) -> Tensor:
        """Part (S, D) of each template's squared SNR that is in the window, merger at ``seconds`` (S, D)."""
        n = self.inside.shape[-1]
        place = (seconds - self._merger[0]) / (self._merger[-1] - self._merger[0]) * (n - 1)
        i = place.long().clamp(0, n - 2)
        detector = torch.arange(self.inside.shape[1], device=self.device)
        left, right = (self.inside[template[:, None], detector, i + k] for k in (0, 1))
        return torch.lerp(left, right, (place - i).float().clamp(0, 1))


def _principal(spectrum: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Orthonormal rows (r, K) that span most of the spectra (N, K) of any size, and these' mean power (K,)."""
    unit = spectrum / torch.linalg.vector_norm(spectrum, dim=1, keepdim=True)
    start = torch.Generator().manual_seed(_BASIS_SEED)
    q = torch.randn(unit.shape[1], min(rank, len(unit)), dtype=unit.dtype, generator=start)
    for _ in range(_ITERATIONS):  # subspace iteration (Halko, Martinsson & Tropp 2011, algorithm 4.4)
        q, _ = torch.linalg.qr(unit.conj().T @ (unit @ q))
    return q.conj().T.resolve_conj().contiguous(), unit.abs().square().mean(0)
