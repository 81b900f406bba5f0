"""Whitening of raw strain: linear-phase, band-limited, and the same window from any source rate.

Inside [f_low, f_high] each detector's spectrum is divided by its ASD, outside it is zero, and the result is
scaled so that noise of that PSD has variance 1. The division is real and positive: no delay, no phase.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.signal.windows import tukey
from torch import Tensor, nn

from gwtwins.strain.errors import InputError
from gwtwins.strain.psd import PSD

WINDOW = 2.0  # seconds
RATE = 2048.0  # Hz
F_LOW = 20.0  # Hz
F_HIGH = 500.0  # Hz, below the Nyquist frequency of 1024 Hz sources
EDGE_TAPER = 0.062  # seconds a side for windows without margin: mergers may sit near the end


def band_bins(n: int, rate: float, f_low: float, f_high: float) -> tuple[int, int]:
    """First and one-past-last bin of an ``n``-point rfft at ``rate`` Hz inside [f_low, f_high)."""
    duration = n / rate
    return int(np.ceil(f_low * duration - 1e-9)), int(np.ceil(f_high * duration - 1e-9))


def check_band(f_low: float, f_high: float, rate: float, what: str) -> None:
    """Raise InputError unless 0 < f_low < f_high <= rate / 2."""
    if not 0 < f_low < f_high <= rate / 2:
        raise InputError(what, f"band {f_low:g}-{f_high:g} Hz at {rate:g} Hz", "0 < f_low < f_high <= rate / 2")


class Conditioner(nn.Module):
    """Raw strain of D detectors to whitened windows.

    Args:
        psds: D PSDs in the order of the strain's detector axis, estimated from more than the window itself.
        rate_in: samples per second of the input, at least ``2 * f_high``.
        window: seconds of the output.
        rate_out: samples per second of the output, at least ``2 * f_high``.
        f_low, f_high: band in Hz; everything outside is removed.
        margin: seconds of extra strain on each side, cropped together with the filter's ringing. With 0 the bare
            window is tapered over 62 ms a side instead, and nothing is cropped.

    Raises:
        InputError: a PSD does not cover the band, or a rate does not hold it.
    """

    def __init__(
        self,
        psds: list[PSD],
        rate_in: float,
        window: float = WINDOW,
        rate_out: float = RATE,
        f_low: float = F_LOW,
        f_high: float = F_HIGH,
        margin: float = 0.0,
    ) -> None:
        super().__init__()
        check_band(f_low, f_high, rate_in, "source rate")
        check_band(f_low, f_high, rate_out, "output rate")
        for psd in psds:
            psd.require(f_low, f_high)
        span = window + 2 * margin
        self.n_in, self.n_out = round(span * rate_in), round(span * rate_out)
        self.crop, self.n_window = round(margin * rate_out), round(window * rate_out)
        self.low, self.high = band_bins(self.n_in, rate_in, f_low, f_high)
        self.rate_in, self.rate_out, self.window, self.margin = rate_in, rate_out, window, margin
        self.f_low, self.f_high = f_low, f_high

        frequency = np.arange(self.low, self.high) / span
        # E|X_k|^2 = S(f) rate N / 2 for noise of one-sided PSD S; 2 K / N_out^2 is the variance that K bins of
        # unit power have after the inverse transform.
        noise_power = np.stack([psd.at(frequency) for psd in psds]) * rate_in * self.n_in / 2
        gain = self.n_out / np.sqrt(2 * len(frequency)) / np.sqrt(noise_power)
        # sym=False: it ends at the window's end, not at its last sample, whose time depends on the rate.
        fraction = 0.0 if margin > 0 else 2 * EDGE_TAPER / window
        taper = torch.from_numpy(tukey(self.n_in, fraction, sym=False))
        self.register_buffer("gain", torch.from_numpy(gain), persistent=False)  # (D, K)
        self.register_buffer("taper", taper, persistent=False)
        self.gain: Tensor
        self.taper: Tensor

    def forward(self, strain: Tensor) -> Tensor:
        """(B, D, T_in) raw strain to (B, D, T_out) float32 whitened windows.

        Computed in float64: strain of 1e-21 has squares of 1e-42, and seismic noise is a million times larger.
        """
        if strain.ndim != 3 or strain.shape[1:] != (self.gain.shape[0], self.n_in):
            expected = f"(B, {self.gain.shape[0]}, {self.n_in})"
            raise InputError("strain", f"shape {tuple(strain.shape)}", expected)
        x = strain.to(torch.float64)
        x = (x - x.mean(dim=-1, keepdim=True)) * self.taper
        spectrum = torch.fft.rfft(x)[..., self.low : self.high] * self.gain  # (B, D, K)
        whole = torch.zeros(*x.shape[:2], self.n_out // 2 + 1, dtype=spectrum.dtype, device=x.device)
        whole[..., self.low : self.high] = spectrum
        white = torch.fft.irfft(whole, n=self.n_out)  # (B, D, T_out + 2 crop)
        return white[..., self.crop : self.crop + self.n_window].to(torch.float32)
