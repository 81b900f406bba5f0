"""Simulated glitches: loud transients of one detector alone, in whitened, band-limited strain.

Every kind is exp(-t^2 / tau^2) cos(phase(t)) about its centre, made as it looks after whitening:

``blip``           half a cycle to two, broadband, about 10 ms long (Cabero et al. 2019, arXiv:1901.05093)
``sine-Gaussian``  many cycles of one frequency (blips excepted, most burst-like classes of Gravity Spy: Zevin et
                   al. 2017, arXiv:1611.04596)
``chirplet``       a sine-Gaussian whose frequency runs up or down (Chassande-Mottin et al. 2010, CQG 27 194017):
                   what looks most like a merger without being one
``scattering``     light back from a mirror that swings as sin(pi r t): a fringe of frequency f_max |cos(pi r t)|,
                   r arches a second, for seconds (Accadia et al. 2010, CQG 27 194011; slow ones of the microseism
                   and fast ones of about 4 arches a second: Soni et al. 2021, arXiv:2007.14876)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gwtwins.strain import draws
from gwtwins.strain.conditioning import band_bins
from gwtwins.strain.errors import InputError
from gwtwins.strain.population import Distribution

KINDS = ("blip", "sine-Gaussian", "chirplet", "scattering")
_SHARE = (0.4, 0.2, 0.2, 0.2)  # of the kinds; blips are what searches suffer from most
# Log-uniform ranges of each kind: peak frequency in Hz, and Q = sqrt(2) pi f tau; for scattering, tau in seconds.
# A blip has 0.45 Q cycles above 1/e of its peak.
_FREQUENCY = ((50.0, 400.0), (30.0, 450.0), (40.0, 300.0), (25.0, 120.0))
_WIDTH = ((1.0, 4.0), (3.0, 60.0), (4.0, 20.0), (0.5, 2.5))
_SWEEP = 0.6  # a chirplet's frequency changes by up to this fraction of itself in tau
_ARCHES = (0.3, 4.0)  # per second, log-uniform
_CHIRPLET, _SCATTERING = KINDS.index("chirplet"), KINDS.index("scattering")
PARAMETERS = 8  # uniforms that make a glitch

# Made at one rate whatever the window's, so that all rates see the same; above 1024 Hz even a blip has under 2%.
_RATE = 2048.0  # Hz
_PAD = 0.5  # s on each side of the window, where what the band-limiting would wrap around fades out


@dataclass
class Glitches:
    """What makes N glitches; all (N,) float64 but `kind`."""

    kind: Tensor
    """(N,) int64 into `KINDS`."""
    snr: Tensor
    """Optimal SNR, in the one detector, of what lies in the window."""
    time: Tensor
    """Centre, seconds from the window's start."""
    frequency: Tensor
    """At the centre, Hz; of scattering: at the top of its arches."""
    tau: Tensor
    """Seconds from the centre to 1/e."""
    phase: Tensor
    """At the centre, radians."""
    sweep: Tensor
    """Change of frequency, Hz/s; zero but for chirplets."""
    arches: Tensor
    """Per second; of scattering only."""
    swing: Tensor
    """Where in its swing the mirror is at the centre, radians; of scattering only."""

    def __len__(self) -> int:
        return self.kind.shape[0]


def snr_range(option: str, text: str) -> Distribution:
    """Log-uniform between two numbers joined by a comma, such as "8,100".

    Raises:
        InputError: it is not that; ``option`` is named.
    """
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 0.0
    if not 0 < low < high < float("inf"):
        raise InputError(option, text, "two numbers above 0, the lower first, joined by a comma")
    return Distribution(low, high, exponent=-1.0)


def draw_glitches(u: Tensor, snr: Distribution, seconds: float) -> Glitches:
    """Glitches from uniforms ``u`` (N, 8), centred anywhere in a window of ``seconds``."""
    border = torch.tensor(_SHARE, dtype=u.dtype, device=u.device).cumsum(0)
    kind = torch.searchsorted(border, u[:, 0].contiguous(), right=True).clamp_max(len(KINDS) - 1)

    def log_uniform(ranges: tuple[tuple[float, float], ...], u: Tensor) -> Tensor:
        low, high = torch.tensor(ranges, dtype=u.dtype, device=u.device)[kind].unbind(1)
        return low * (high / low) ** u

    frequency, width = log_uniform(_FREQUENCY, u[:, 3]), log_uniform(_WIDTH, u[:, 4])
    tau = torch.where(kind == _SCATTERING, width, width / (np.sqrt(2) * np.pi * frequency))
    sweep = _SWEEP * (2 * u[:, 6] - 1) * frequency / tau
    return Glitches(
        kind=kind,
        snr=snr.quantile(u[:, 1]),
        time=seconds * u[:, 2],
        frequency=frequency,
        tau=tau,
        phase=2 * np.pi * u[:, 5],
        sweep=torch.where(kind == _CHIRPLET, sweep, torch.zeros_like(sweep)),
        arches=_ARCHES[0] * (_ARCHES[1] / _ARCHES[0]) ** u[:, 6],
        swing=2 * np.pi * u[:, 7],
    )


def whitened_glitches(glitches: Glitches, rate: float, seconds: float, f_low: float, f_high: float) -> Tensor:
    """The glitches in windows of ``seconds``, (N, T) float32, nothing outside [f_low, f_high) Hz.

    Each is scaled to its SNR: white noise of variance 1 in that band has the one-sided PSD 1 / (f_high - f_low), so
    that SNR^2 = 2 (f_high - f_low) / rate * sum of the squared samples.
    """
    period = seconds + 2 * _PAD
    n, n_out = round(period * _RATE), round(period * rate)
    device = glitches.time.device
    since_start = torch.arange(n, dtype=torch.float64, device=device) / _RATE - _PAD
    t = (since_start - glitches.time[:, None]).to(torch.float32)  # (N, n) seconds from the centre

    def of(name: str, rows: Tensor | slice = slice(None)) -> Tensor:
        return getattr(glitches, name)[rows, None].to(torch.float32)

    phase = 2 * np.pi * t * (of("frequency") + of("sweep") / 2 * t)
    arched = torch.nonzero(glitches.kind == _SCATTERING)[:, 0]
    arches = of("arches", arched)
    phase[arched] = 2 * of("frequency", arched) / arches * torch.sin(np.pi * arches * t[arched] + of("swing", arched))
    fade = ((since_start + _PAD).clamp_max(period - _PAD - since_start) / _PAD).clamp(0, 1)
    wave = torch.exp(-((t / of("tau")) ** 2)) * torch.cos(phase + of("phase"))
    wave = wave * torch.sin(np.pi / 2 * fade).square().to(torch.float32)

    low, high = band_bins(n, _RATE, f_low, f_high)
    spectrum = torch.zeros(len(glitches), n_out // 2 + 1, dtype=torch.complex64, device=device)
    spectrum[:, low:high] = torch.fft.rfft(wave)[:, low:high]
    first = round(_PAD * rate)
    wave = torch.fft.irfft(spectrum, n=n_out)[:, first : first + round(seconds * rate)]  # (N, T)
    snr = torch.linalg.vector_norm(wave, dim=1, dtype=torch.float64) * np.sqrt(2 * (f_high - f_low) / rate)
    return wave * (glitches.snr / snr).to(torch.float32)[:, None]


def add_glitches(
    strain: Tensor,
    present: Tensor,
    fraction: float,
    snr: Distribution,
    draw: tuple[int, str, int, Iterable[int]],
    rate: float,
    f_low: float,
    f_high: float,
) -> Tensor:
    """Add to ``strain`` (B, D, T), in place, a glitch in a ``fraction`` of the rows of each present detector.

    Detectors have theirs independently of each other: two at once are as rare as chance makes them.

    Args:
        strain: whitened to variance 1.
        present: (B, D) bool; what is absent gets none.
        fraction: probability of a glitch in a row and detector.
        snr: distribution of the SNR in the detector.
        draw: seed, stream, step and rows; the glitches are a function of these and of the detector's place.
        rate, f_low, f_high: of the strain, Hz.

    Returns:
        (B, D) float64: the SNR of each glitch, 0 where there is none.
    """
    n_rows, n_detectors, samples = strain.shape
    seconds = samples / rate
    u = draws.uniform(*draw, n_detectors * (1 + PARAMETERS)).view(n_rows, n_detectors, 1 + PARAMETERS)
    carries = (u[..., 0] < fraction) & present.cpu()  # (B, D)
    added = torch.zeros(n_rows, n_detectors, dtype=torch.float64)
    if carries.any():
        glitches = draw_glitches(u[carries][:, 1:].to(strain.device), snr, seconds)
        strain[carries.to(strain.device)] += whitened_glitches(glitches, rate, seconds, f_low, f_high)
        added[carries] = glitches.snr.cpu()
    return added
