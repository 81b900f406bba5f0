"""Signals from a waveform bank: sky, orientation, time and loudness drawn per row, projected and whitened in torch.

For an aligned-spin dominant-mode waveform h(f), face on, detector d measures

    s_d(f) = h(f) exp(2 i phase) [F+ (1 + cos^2 i) / 2 - i Fx cos i] exp(-2 pi i f (t + tau_d)) / distance

(Finn & Chernoff 1993 for the amplitudes). A whole draw, which has tilted spins or higher modes, has its own inclination
and phase, and gives F+ h+ + Fx hx instead of what is in front of the delay. Distance follows from the network SNR,
counted over the whole signal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gwtwins.strain.bank import AFTER_MERGER, BEFORE_MERGER, BUFFER, F_KEEP, START_TAPER, WaveformBank
from gwtwins.strain.detectors import antenna_patterns, delays_from_geocentre, sidereal_time
from gwtwins.strain.errors import InputError
from gwtwins.strain.population import Distribution
from gwtwins.strain.psd import PSD

_EARTH_CROSSING = 0.0213  # seconds from the Earth's centre to its surface
_RINGING = 0.25  # seconds that the tapered start of a cut waveform stays away from the window


@dataclass
class Extrinsic:
    """What turns B bank waveforms into signals; all (B,) float64 but `index`."""

    index: Tensor
    """(B,) int64 rows of the bank."""
    snr: Tensor
    """Optimal network SNR of the whole signal."""
    merger: Tensor
    """Seconds from the window's start to the merger at the geocentre."""
    ra: Tensor
    dec: Tensor
    psi: Tensor
    cos_inclination: Tensor
    phase: Tensor
    gps: Tensor
    """GPS time of the window's first sample."""


def draw_extrinsic(
    u: Tensor, index: Tensor, merger: Distribution, snr: Distribution, gps: Tensor, snr_high: float | None = None
) -> Extrinsic:
    """Isotropic sky and orientation, and the population's loudness and time, from uniforms ``u`` (B, 7)."""
    return Extrinsic(
        index=index,
        snr=snr.quantile(u[:, 0], snr_high),
        merger=merger.quantile(u[:, 1]),
        ra=2 * np.pi * u[:, 2],
        dec=torch.asin(2 * u[:, 3] - 1),
        psi=np.pi * u[:, 4],
        cos_inclination=2 * u[:, 5] - 1,
        phase=2 * np.pi * u[:, 6],
        gps=gps,
    )


class Injector:
    """Makes whitened signals in D detectors from a bank.

    Args:
        bank: the waveforms.
        detectors: D names.
        psds: table of PSDs; each row and detector of a batch names one of them.
        rate: samples per second of the window.
        window: seconds.
        f_low, f_high: whitened band in Hz.
        merger: range of merger times that will be asked for; checked against what the bank's buffer holds.

    Raises:
        InputError: the band reaches beyond the bank or a PSD, or the merger times beyond what the bank holds.
    """

    def __init__(
        self,
        bank: WaveformBank,
        detectors: tuple[str, ...],
        psds: list[PSD],
        rate: float,
        window: float,
        f_low: float,
        f_high: float,
        merger: Distribution,
        device: str = "cpu",
    ) -> None:
        if f_high > min(F_KEEP, rate / 2):
            raise InputError("f_high", f"{f_high:g} Hz", f"at most {min(F_KEEP, rate / 2):g} Hz")
        for psd in psds:
            psd.require(f_low, f_high)
        earliest = BEFORE_MERGER + window - BUFFER + _EARTH_CROSSING
        latest = min(BEFORE_MERGER - START_TAPER - _RINGING, BUFFER - AFTER_MERGER) - _EARTH_CROSSING
        if not earliest <= merger.low <= merger.high <= latest:
            asked = f"{merger.low:g}-{merger.high:g} s"
            raise InputError("merger times", f"{asked} into a {window:g} s window", f"{earliest:.2f}-{latest:.2f} s")
        self.bank, self.detectors, self.rate, self.device = bank, detectors, rate, device
        self.n_window, self.n_buffer = round(window * rate), round(BUFFER * rate)
        self.k_low = max(bank.k_low, int(np.ceil(f_low * BUFFER)))
        self.k_high = int(np.ceil(f_high * BUFFER))
        frequency = np.arange(self.k_low, self.k_high) / BUFFER
        # Whitened noise of variance 1 has the one-sided PSD 1 / (f_high - f_low); rate turns the continuous
        # transform into the discrete one that irfft inverts.
        gain = [rate / np.sqrt((f_high - f_low) * psd.at(frequency)) for psd in psds]
        scale = float(np.median([g.mean() for g in gain]))  # keeps the float32 table near 1
        self.gain = torch.tensor(np.stack(gain) / scale, dtype=torch.float32, device=device)  # (P, K)
        self.sigma = torch.stack([bank.sigma(psd) for psd in psds]).to(device)  # (P, N) SNR at 1 Mpc
        self.amplitude = (bank.scale * scale).to(device)  # (N,)
        first = self.k_low - bank.k_low
        here = slice(first, first + self.k_high - self.k_low)
        self.waveform = bank.waveform[:, here].to(device)  # (N, K, 2)
        self.cross = None if bank.cross is None else bank.cross[:, here].to(device)  # (N, K, 2)
        if self.cross is not None:
            self.products = torch.stack([bank.products(psd) for psd in psds]).to(device)  # (P, N, 3)

    def __call__(self, draw: Extrinsic, psd_index: Tensor, which: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Whitened signals (B, D, T) float32 and each detector's optimal SNR (B, D) float64.

        Args:
            draw: B draws.
            psd_index: (B, D) int64, which PSD whitens each row and detector.
            which: (B, V) int64, the detectors that are wanted of each row; the others are not made, and the results
                are (B, V, T) and (B, V). All by default.
        """
        gmst = sidereal_time(draw.gps)
        pattern = antenna_patterns(self.detectors, draw.ra, draw.dec, draw.psi, gmst)  # (B, D, 2)
        delay = delays_from_geocentre(self.detectors, draw.ra, draw.dec, gmst)  # (B, D)
        response, snr = self._response(draw, pattern, psd_index)  # (B, D), at 1 Mpc
        inverse_distance = draw.snr[:, None] / torch.linalg.vector_norm(snr, dim=1, keepdim=True)
        factor = response * inverse_distance * self.amplitude[draw.index][:, None]
        snr = snr * inverse_distance
        if which is not None:
            factor, delay, snr = factor.gather(1, which), delay.gather(1, which), snr.gather(1, which)
            psd_index = psd_index.gather(1, which)
            pattern = pattern.gather(1, which[..., None].expand(-1, -1, 2))

        held = torch.view_as_complex(self.waveform[draw.index].to(torch.float32))[:, None]  # (B, 1, K)
        if self.cross is not None:
            other = torch.view_as_complex(self.cross[draw.index].to(torch.float32))[:, None]
            plus, cross = pattern.to(torch.float32).unbind(-1)
            held = plus[..., None] * held + cross[..., None] * other  # (B, D, K)
        spectrum = held * self.gain[psd_index]  # (B, D, K)
        spectrum = spectrum * self._shift(factor, draw.merger[:, None] + delay)
        whole = torch.zeros(*spectrum.shape[:2], self.n_buffer // 2 + 1, dtype=torch.complex64, device=self.device)
        whole[..., self.k_low : self.k_high] = spectrum
        signal = torch.fft.irfft(whole, n=self.n_buffer)[..., : self.n_window]
        return signal.contiguous(), snr

    def _response(self, draw: Extrinsic, pattern: Tensor, psd_index: Tensor) -> tuple[Tensor, Tensor]:
        """What multiplies the waveform, (B, D) complex, and its SNR in each detector at 1 Mpc, (B, D)."""
        index = draw.index[:, None]
        if self.cross is not None:
            plus, cross = pattern.unbind(-1)
            pp, cc, pc = self.products[psd_index, index].unbind(-1)
            squared = plus**2 * pp + cross**2 * cc + 2 * plus * cross * pc
            return torch.ones_like(squared, dtype=torch.complex128), squared.clamp_min(0).sqrt()
        cosine = draw.cos_inclination[:, None]
        response = torch.complex(pattern[..., 0] * (1 + cosine**2) / 2, -pattern[..., 1] * cosine)
        response = response * torch.exp(2j * draw.phase)[:, None]
        return response, response.abs() * self.sigma[psd_index, index]

    def _shift(self, factor: Tensor, seconds: Tensor) -> Tensor:
        """``factor * exp(-2 pi i f seconds)`` (B, D, K) complex64, from two short tables whose product it is."""
        n, step = self.k_high - self.k_low, 64
        turn = -2j * np.pi * seconds[..., None] / BUFFER
        fine = torch.exp(turn * torch.arange(step, device=self.device))
        coarse = torch.exp(turn * (self.k_low + step * torch.arange((n + step - 1) // step, device=self.device)))
        coarse = (coarse * factor[..., None]).to(torch.complex64)
        product = coarse[..., None] * fine.to(torch.complex64)[..., None, :]
        return product.flatten(-2)[..., :n]
