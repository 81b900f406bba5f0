"""Augmentations of whitened windows: what may differ between two views of one detector's moment.

Every draw is a function of (seed, stream, step, global row): how a batch is split over calls or processes
changes nothing. Nothing wraps around: what leaves a window at one end does not come in at the other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor, nn

from gwtwins.encoders.registry import bounded
from gwtwins.strain import draws
from gwtwins.strain.conditioning import band_bins, check_band
from gwtwins.strain.errors import InputError
from gwtwins.strain.psd import PSD

SHIFT_TAPER = 1 / 32  # seconds: a bare step of one standard deviation would be a click in every band
MASK_TAPER = 1 / 64  # seconds
BAND_FLANK = 4.0  # Hz: such a filter rings for about 1 / 4 s, well inside SPILL
SPILL = 0.5  # seconds of zeros beside a window while it is filtered, for the ringing to run out into


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to a window, how strongly and how often; a probability of 0 switches one off."""

    aug_time_shift_probability: float = bounded(1.0, 0.0, 1.0)
    """Probability of moving a window in time."""
    aug_time_shift: float = bounded(0.05, 0.0, 1.0)
    """Largest shift either way, seconds; light takes 0.027 from Hanford to Virgo."""
    aug_sign_probability: float = bounded(0.5, 0.0, 1.0)
    """Probability of flipping the sign."""
    aug_noise_probability: float = bounded(0.5, 0.0, 1.0)
    """Probability of adding Gaussian noise of another detector's colour."""
    aug_noise_low: float = bounded(0.1, 0.0, 10.0)
    """Least standard deviation of the added noise, in units of the window's own noise."""
    aug_noise_high: float = bounded(0.7, 0.0, 10.0)
    """Largest standard deviation of the added noise; it is uniform between the two."""
    # Whitened by an O3 PSD, half of their power lies below 228, 292, 51 and 33 Hz: four different colours.
    aug_noise_psds: tuple[str, ...] = (
        "aLIGOZeroDetHighPower",
        "KAGRA",
        "aLIGOEarlyLowSensitivityP1200087",
        "TAMA",
    )
    """PSDs of the added noise, pycbc names or ASD files; each row takes one of them."""
    aug_burst_probability: float = bounded(0.2, 0.0, 1.0)
    """Probability of adding a glitch-like sine-Gaussian burst."""
    aug_burst_snr_low: float = bounded(4.0, 0.01, 1000.0)
    """Least matched-filter SNR of a burst."""
    aug_burst_snr_high: float = bounded(20.0, 0.01, 1000.0)
    """Largest matched-filter SNR of a burst; it is log-uniform between the two."""
    aug_burst_q_low: float = bounded(2.0, 1.0, 100.0)
    """Least quality factor of a burst: a few cycles, like a blip glitch."""
    aug_burst_q_high: float = bounded(20.0, 1.0, 100.0)
    """Largest quality factor of a burst; it is log-uniform between the two."""
    aug_band_mask_probability: float = bounded(0.3, 0.0, 1.0)
    """Probability of removing a band of frequencies."""
    aug_band_mask_octaves: float = bounded(1.0, 0.01, 10.0)
    """Largest width of the removed band, octaves."""
    aug_time_mask_probability: float = bounded(0.3, 0.0, 1.0)
    """Probability of blanking stretches of time."""
    aug_time_mask_count: int = bounded(2, 1, 16)
    """Largest number of blanked stretches; 1 to this many, each as likely."""
    aug_time_mask_seconds: float = bounded(0.2, 0.001, 2.0)
    """Largest length of one blanked stretch, seconds."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, bounds = getattr(self, field.name), field.metadata
            if bounds and not bounds["low"] <= value <= bounds["high"]:
                raise InputError(field.name, f"{value!r}", f"{bounds['low']} to {bounds['high']}")
        for name in ("aug_noise", "aug_burst_snr", "aug_burst_q"):
            low, high = getattr(self, f"{name}_low"), getattr(self, f"{name}_high")
            if low > high:
                raise InputError(f"{name}_low", f"{low:g} above {name}_high {high:g}", "low <= high")


# Each class below is one kind of change. It is called with only the rows that it falls on, x (B, T), and
# their uniform numbers in [0, 1), u (B, `uniforms`) float64, and returns changed copies.


@dataclass(frozen=True)
class TimeShift:
    """Move by a whole number of samples, uniform in [-seconds, seconds]."""

    seconds: float
    rate: float
    uniforms: ClassVar[int] = 1

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        return self.move(x, torch.round((2 * u[:, 0] - 1) * self.seconds * self.rate).long())

    def move(self, x: Tensor, samples: Tensor) -> Tensor:
        """Rows of ``x`` later by ``samples`` (B,) long; negative is earlier, and 0 leaves a row alone.

        What was outside the window is not known: it is zero, and the data beside it rise over 1/32 s with a
        cosine.
        """
        n, later = x.shape[-1], samples[:, None] > 0
        source = torch.arange(n, device=x.device) - samples[:, None]  # (B, T)
        from_edge = torch.where(later, source, n - 1 - source)  # samples from the end that moved inward
        weight = _cosine((from_edge.to(x.dtype) + 0.5) / max(round(SHIFT_TAPER * self.rate), 1))
        weight = torch.where(samples[:, None] == 0, 1.0, weight)
        return x.gather(1, source.clamp(0, n - 1)) * weight


@dataclass(frozen=True)
class SignFlip:
    """Minus the window: noise as likely, and a quadrupole wave whose orbit is a quarter turn further on."""

    uniforms: ClassVar[int] = 0

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        return -x


@dataclass(frozen=True)
class Burst:
    """Add a sine-Gaussian: f0 log-uniform over the band, Q and SNR log-uniform, time and phase uniform."""

    snr: tuple[float, float]
    q: tuple[float, float]
    rate: float
    f_low: float
    f_high: float
    uniforms: ClassVar[int] = 5

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        f0 = _log_uniform(u[:, 0], self.f_low, self.f_high)
        q, snr = _log_uniform(u[:, 1], *self.q), _log_uniform(u[:, 2], *self.snr)
        t0, phase = u[:, 3] * x.shape[-1] / self.rate, u[:, 4] * 2 * math.pi
        return x + self.wave(f0, q, t0, phase, snr, x.shape[-1]).to(x.dtype)

    def wave(self, f0: Tensor, q: Tensor, t0: Tensor, phase: Tensor, snr: Tensor, n: int) -> Tensor:
        """Whitened bursts exp(-(t - t0)^2 / tau^2) cos(2 pi f0 (t - t0) + phase), (B, n) float64.

        With tau = q / (sqrt(2) pi f0), the Q of LIGO's burst searches (Chatterji et al. 2004, gr-qc/0412119),
        the spectrum is a Gaussian of standard deviation f0 / q. Only what lies in the band is kept, as in the
        data. The scale is set by the matched-filter SNR of what is inside the window,
        rho^2 = 4 (f_high - f_low) sum |h(f)|^2 df: whitened noise of variance 1 has the one-sided PSD
        1 / (f_high - f_low).

        Args:
            f0, q, t0, phase, snr: (B,) float64: Hz, 1, seconds from the window's start, radians, 1.
            n: samples.
        """
        padded = _padded(n, self.rate)
        low, high = band_bins(padded, self.rate, self.f_low, self.f_high)
        frequency = torch.arange(low, high, device=f0.device, dtype=f0.dtype) * (self.rate / padded)
        magnitude = torch.exp(-0.5 * (q[:, None] * (frequency / f0[:, None] - 1)) ** 2)
        spectrum = torch.zeros(len(f0), padded // 2 + 1, dtype=torch.complex128, device=f0.device)
        angle = phase[:, None] - 2 * math.pi * frequency * t0[:, None]
        spectrum[:, low:high] = torch.polar(magnitude, angle)
        burst = torch.fft.irfft(spectrum, padded)[:, :n]
        low, high = band_bins(n, self.rate, self.f_low, self.f_high)
        energy = torch.fft.rfft(burst)[:, low:high].abs().square().sum(dim=1)
        rho = torch.sqrt(4 * (high - low) / n**2 * energy)  # |h| is |H| / rate, df and a bin are rate / n
        return burst * (snr / rho.clamp(min=1e-30))[:, None]


@dataclass(frozen=True)
class BandMask:
    """Remove a band: its width uniform up to ``octaves``, its place log-uniform inside [f_low, f_high]."""

    octaves: float
    rate: float
    f_low: float
    f_high: float
    uniforms: ClassVar[int] = 2

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        width = u[:, 0] * self.octaves
        low = self.f_low * 2 ** (u[:, 1] * (math.log2(self.f_high / self.f_low) - width))
        return self.remove(x, low, low * 2**width)

    def remove(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """``x`` without [low, high] Hz, each (B,), by a zero-phase filter.

        Cosine flanks of 4 Hz lie outside. The rest is not scaled up: the noise is left with a smaller
        variance.
        """
        n = _padded(x.shape[-1], self.rate)
        frequency = torch.arange(n // 2 + 1, device=x.device) * (self.rate / n)
        outside = torch.maximum(low[:, None] - frequency, frequency - high[:, None])  # (B, F) Hz
        gain = _cosine(outside / BAND_FLANK).to(x.dtype)
        return torch.fft.irfft(torch.fft.rfft(x, n) * gain, n)[:, : x.shape[-1]]


@dataclass(frozen=True)
class TimeMask:
    """Blank 1 to ``count`` stretches, each up to ``seconds`` long and inside the window; they may overlap."""

    count: int
    seconds: float
    rate: float

    @property
    def uniforms(self) -> int:
        return 1 + 2 * self.count

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        number = 1 + torch.floor(u[:, :1] * self.count)  # (B, 1)
        length = u[:, 1 : 1 + self.count] * self.seconds
        start = u[:, 1 + self.count :] * (x.shape[-1] / self.rate - length).clamp(min=0.0)
        unused = torch.arange(self.count, device=x.device) >= number
        return self.blank(x, start.masked_fill(unused, math.inf), length)

    def blank(self, x: Tensor, start: Tensor, length: Tensor) -> Tensor:
        """``x`` with zeros from ``start`` for ``length``, each (B, M) seconds; a start of infinity is none.

        Cosine flanks of 1/64 s lie outside.
        """
        time = torch.arange(x.shape[-1], device=x.device) / self.rate  # (T,)
        for begin, span in zip(start.T, length.T, strict=True):
            outside = torch.maximum(begin[:, None] - time, time - (begin + span)[:, None])  # (B, T) seconds
            x = x * _cosine(outside.to(x.dtype) / MASK_TAPER)
        return x


Change = TimeShift | SignFlip | Burst | BandMask | TimeMask


class ExtraNoise(nn.Module):
    """Add Gaussian noise of another PSD, as it looks after whitening by the detector's own.

    In the band its amplitude spectrum goes as sqrt(S_extra / S_detector), scaled to variance 1 and multiplied
    by an amplitude uniform in [low, high]: the standard deviation of what is added, the window's own being 1.

    Args:
        detectors: D PSDs that the windows were whitened by.
        extra: P PSDs to take the noise from.
        amplitude: (low, high).
        rate, f_low, f_high: of the windows, Hz.
        samples: T, samples of a window.
    """

    uniforms = 2

    def __init__(
        self,
        detectors: Sequence[PSD],
        extra: Sequence[PSD],
        amplitude: tuple[float, float],
        rate: float,
        f_low: float,
        f_high: float,
        samples: int,
    ) -> None:
        super().__init__()
        # Filtered noise of exactly T samples would be periodic, its two ends alike: make more and cut.
        self.normals = _padded(samples, rate)
        self.low, self.high = band_bins(self.normals, rate, f_low, f_high)
        self.amplitude = amplitude
        frequency = np.arange(self.low, self.high) * rate / self.normals
        for psd in (*detectors, *extra):
            if not psd.covers(frequency[0], frequency[-1]):
                reach = f"{psd.frequency[0]:g}-{psd.frequency[-1]:g} Hz"
                raise InputError(psd.name, f"PSD reaches over {reach}", f"all of {f_low:g}-{f_high:g} Hz")
        power = np.stack([[e.at(frequency) / d.at(frequency) for e in extra] for d in detectors])  # (D, P, K)
        # A gain g on white noise of variance 1 leaves the variance 2 sum(g^2) / N.
        power *= self.normals / (2 * power.sum(axis=-1, keepdims=True))
        self.register_buffer("gain", torch.from_numpy(np.sqrt(power)).float(), persistent=False)
        self.gain: Tensor

    def forward(self, x: Tensor, u: Tensor, normal: Tensor, detector: Tensor) -> Tensor:
        """``x`` with noise made of ``normal`` (B, normals) for the ``detector`` (B,) long of each row."""
        least, most = self.amplitude
        amplitude = least + (most - least) * u[:, :1]  # (B, 1)
        which = (u[:, 1] * self.gain.shape[1]).long()
        white = torch.fft.rfft(normal)
        spectrum = torch.zeros_like(white)
        spectrum[:, self.low : self.high] = white[:, self.low : self.high] * self.gain[detector, which]
        noise = torch.fft.irfft(spectrum, self.normals)[:, : x.shape[-1]]
        return x + (amplitude * noise).to(x.dtype)


class Augmenter(nn.Module):
    """All augmentations of a configuration in turn: time shift, sign, noise, burst, band mask, time masks.

    >>> augmenter = Augmenter(AugmentConfig(aug_noise_probability=0.0), 2048.0, f_low=20.0, f_high=500.0)
    >>> x = torch.randn(4, 4096)
    >>> first = augmenter(x, seed=0, step=7, rows=range(4), stream="augment/first")
    >>> second = augmenter(x, seed=0, step=7, rows=range(4), stream="augment/second")

    Args:
        config: what, how strongly, how often.
        rate: samples per second of the windows.
        f_low, f_high: band in Hz that the windows were whitened in.
        detector_psds: D PSDs that the windows were whitened by; only needed where noise is added.
        extra_psds: P PSDs to take that noise from, those of ``config.aug_noise_psds``.
        window: seconds.

    Raises:
        InputError: the band does not hold what is asked for, or PSDs are missing.
    """

    def __init__(
        self,
        config: AugmentConfig,
        rate: float,
        f_low: float,
        f_high: float,
        detector_psds: Sequence[PSD] = (),
        extra_psds: Sequence[PSD] = (),
        window: float = 2.0,
    ) -> None:
        super().__init__()
        check_band(f_low, f_high, rate, "augmentation")
        c, band, octaves = config, (rate, f_low, f_high), math.log2(f_high / f_low)
        self.samples = round(window * rate)
        if c.aug_band_mask_probability > 0 and c.aug_band_mask_octaves > octaves:
            fault = f"{c.aug_band_mask_octaves:g} in a band of {f_low:g}-{f_high:g} Hz"
            raise InputError("aug_band_mask_octaves", fault, f"at most {octaves:.2f}")
        self.noise = None
        if c.aug_noise_probability > 0:
            if not detector_psds or not extra_psds:
                raise InputError("aug_noise_probability", "no PSDs were given", "PSDs, or a probability of 0")
            amplitude = (c.aug_noise_low, c.aug_noise_high)
            self.noise = ExtraNoise(detector_psds, extra_psds, amplitude, *band, self.samples)
        snr, q = (c.aug_burst_snr_low, c.aug_burst_snr_high), (c.aug_burst_q_low, c.aug_burst_q_high)
        # A row's uniform numbers are dealt out in this order, to those switched off as well, so that
        # switching one off leaves the others' draws alone; the time masks, whose need varies, come last.
        self.chain: tuple[tuple[float, Change | ExtraNoise | None], ...] = (
            (c.aug_time_shift_probability, TimeShift(c.aug_time_shift, rate)),
            (c.aug_sign_probability, SignFlip()),
            (c.aug_noise_probability, self.noise),
            (c.aug_burst_probability, Burst(snr, q, *band)),
            (c.aug_band_mask_probability, BandMask(c.aug_band_mask_octaves, *band)),
            (c.aug_time_mask_probability, TimeMask(c.aug_time_mask_count, c.aug_time_mask_seconds, rate)),
        )

    def forward(
        self,
        x: Tensor,
        seed: int,
        step: int,
        rows: Iterable[int],
        stream: str = "augment",
        detector: Tensor | None = None,
    ) -> Tensor:
        """Augmented copies of ``x`` (B, T); ``x`` itself is not changed.

        Args:
            x: (B, T) float32 whitened windows.
            seed, step: of the run.
            rows: the B global row numbers within the step.
            stream: names the view, so that two views of a row differ.
            detector: (B,) long, which of ``detector_psds`` whitened each row; the first if not given.
        """
        rows = list(rows)
        if x.shape != (len(rows), self.samples):
            raise InputError("windows", f"shape {tuple(x.shape)}", f"({len(rows)}, {self.samples})")
        needs = [ExtraNoise.uniforms if change is None else change.uniforms for _, change in self.chain]
        u = draws.uniform(seed, stream, step, rows, len(needs) + sum(needs))
        at = 0
        for (probability, change), need in zip(self.chain, needs, strict=True):
            hit = torch.nonzero(u[:, at] < probability)[:, 0]  # on the CPU: the device is not waited for
            numbers = u[hit, at + 1 : at + 1 + need].to(x.device)
            at += 1 + need
            if change is None or len(hit) == 0:
                continue
            index = hit.to(x.device)
            noise: tuple[Any, ...] = ()
            if isinstance(change, ExtraNoise):
                chosen = [rows[i] for i in hit.tolist()]
                normal = draws.normal(seed, f"{stream}/noise", step, chosen, change.normals).to(x.device)
                which = torch.zeros_like(index) if detector is None else detector.to(x.device)[index]
                noise = (normal, which)
            x = x.index_copy(0, index, change(x[index], numbers, *noise))
        return x


def _cosine(rise: Tensor) -> Tensor:
    """Half a cosine from 0 at ``rise`` 0 and below to 1 at 1 and above."""
    return 0.5 - 0.5 * torch.cos(math.pi * rise.clamp(0.0, 1.0))


def _log_uniform(u: Tensor, low: float, high: float) -> Tensor:
    return low * (high / low) ** u


def _padded(n: int, rate: float) -> int:
    """An even length, fast to transform, of ``n`` samples and at least SPILL seconds more."""
    return 2 * next_fast_len(math.ceil((n + SPILL * rate) / 2), real=True)
