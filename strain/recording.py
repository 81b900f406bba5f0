"""One detector's strain as it was recorded, the seconds of it that can be used, and its conditioning.

A stretch is whitened as a whole, so that windows cut from it have no edges of their own: see
:mod:`gwtwins.strain.whitening_filter`. The half second that the filters spoil at each end of a
stretch is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.fft import rfft

from gwtwins.strain.conditioning import F_HIGH, F_LOW, RATE
from gwtwins.strain.errors import InputError
from gwtwins.strain.gating import HALF_WIDTH, ROUNDS, holes_around, inpaint, loud_stretches, reaching_ends
from gwtwins.strain.psd import PSD, welch_median
from gwtwins.strain.whitening_filter import WhiteningFilter, design_whitening, resample

EDGE = 0.5  # s cut off at each end of a stretch: all that the resampling and whitening filters spoil there
MIN_SECONDS = 9.0  # s: the edges and 8 s more; a PSD from less whitens the very noise it was measured on
PSD_SECONDS = 256.0  # s; detectors drift over minutes: each part of about this length gets its own PSD

# A second is a gap where its power in the band lies this far below the usual amplitude: quiet and noisy
# seconds of one detector differ by a factor of 5, a filled gap by 1e6 and more.
_GAP_LEVEL = 1e-3
# Amplitude of 1e-27 per sqrt(Hz), in units of `second_levels`: no detector built or planned is as quiet.
_LEAST_LEVEL = 0.433e-6
# Copies of strain fade in and out of a gap; beside one, a second counts again once it is at this level, ...
_RECOVERED_LEVEL = 0.9
_LONGEST_FADE = 10  # ... s, or this many later: by then it is the noise itself that has changed.
_CONSTANT_RUN = 1 / 16  # s of equal samples, zeros or not, are not a measurement


@dataclass
class Recording:
    """Strain of one detector over whole seconds, S of them, with its data quality."""

    detector: str
    gps_start: float
    """GPS time of the first sample, s."""
    rate: float
    """Samples per second."""
    strain: np.ndarray
    """(T,) float64, T = S rate; NaN where data are missing."""
    good: np.ndarray
    """(S,) bool: passes the data quality tests that were required."""
    flags: dict[str, np.ndarray] = field(default_factory=dict)
    """Every data quality flag by its short name, (S,) bool, True where the test is passed."""
    injection_free: np.ndarray = field(default_factory=lambda: np.ones(0, bool))
    """(S,) bool: no transient hardware injection; every second if not given."""
    source: str = "recording"
    """The file, for messages."""

    def __post_init__(self) -> None:
        seconds = self.good.shape[0]
        if self.strain.ndim != 1 or self.strain.size != round(seconds * self.rate):
            shapes = f"{self.strain.shape} samples at {self.rate:g} Hz for {seconds} s"
            raise InputError(self.source, shapes, "seconds x rate samples")
        if self.injection_free.size == 0:
            self.injection_free = np.ones(seconds, bool)

    @property
    def seconds(self) -> int:
        """Length in seconds."""
        return self.good.shape[0]

    @property
    def gps_end(self) -> float:
        """GPS time just after the last sample, s."""
        return self.gps_start + self.seconds


@dataclass
class Conditioned:
    """A stretch of whitened strain: variance 1, band-limited, no edges left in it."""

    detector: str
    gps_start: float
    """GPS time of the first sample, s."""
    rate: float
    """Samples per second."""
    strain: np.ndarray
    """(T,) float32, in standard deviations of the noise."""
    psd: PSD
    """The PSD by which signals must be whitened to look as they would in this strain."""
    gates: list[tuple[float, float]] = field(default_factory=list)
    """Stretches that were too loud and hold next to nothing now: GPS (start, end)."""
    source: str = "recording"

    @property
    def gps_end(self) -> float:
        """GPS time just after the last sample, s."""
        return self.gps_start + self.strain.size / self.rate


def gap_seconds(strain: np.ndarray, rate: float, f_low: float = F_LOW, f_high: float = F_HIGH) -> np.ndarray:
    """Which seconds of ``strain`` (T,) hold no measurement: NaN, constant, almost nothing, fading to that.

    Returns (S,) bool. The level of a second is its Hann-windowed amplitude in [f_low, f_high] Hz, and is
    compared with the median level of the seconds that are not gaps, even where those are few (at least a
    tenth of all).
    """
    level, missing = second_levels(strain, rate, f_low, f_high)
    return gaps(level, missing, usual_level(level, missing))


def second_levels(
    strain: np.ndarray, rate: float, f_low: float = F_LOW, f_high: float = F_HIGH
) -> tuple[np.ndarray, np.ndarray]:
    """Each second's level (S,), see :func:`gap_seconds`, and whether it is missing (S,): NaN, or constant in parts.

    The level does not depend on the rate; white noise of amplitude a per sqrt(Hz) has 0.433 a / 1e-21.
    """
    per_second = round(rate)
    rows = strain.reshape(-1, per_second)
    missing = ~np.isfinite(rows).all(axis=1) | _constant_run(strain, rate)
    level = np.zeros(len(rows))
    window = np.hanning(per_second) / 1e-21
    low, high = int(f_low), int(min(f_high, rate / 2))
    there = np.flatnonzero(~missing)
    for some in np.split(there, range(16, there.size, 16)):  # a few at a time: memory stays flat for files of hours
        spectrum = rfft((rows[some] - rows[some].mean(axis=1, keepdims=True)) * window)[:, low:high]
        level[some] = np.sqrt(np.mean(spectrum.real**2 + spectrum.imag**2, axis=1)) / rate
    return level, missing


def usual_level(level: np.ndarray, missing: np.ndarray) -> float:
    """The median level of the seconds that are no gaps; 0 where there is none."""
    there = level[~missing]
    if not (there > _LEAST_LEVEL).any():
        return 0.0
    return float(np.median(there[there > max(_LEAST_LEVEL, _GAP_LEVEL * np.quantile(there, 0.9))]))


def gaps(level: np.ndarray, missing: np.ndarray, usual: float) -> np.ndarray:
    """(S,) bool: the seconds that hold no measurement, where the others have the level ``usual``."""
    if usual == 0.0:
        return np.ones(level.size, bool)
    empty = ~missing & (level < _GAP_LEVEL * usual)
    fading = empty.copy()
    forward = range(level.size)
    for order in (forward, reversed(forward)):  # fading in after a gap, fading out before one
        left = 0
        for i in order:
            if empty[i]:
                left = _LONGEST_FADE
            elif left and level[i] < _RECOVERED_LEVEL * usual:
                fading[i] = True
                left -= 1
            else:
                left = 0
    return missing | fading


def _constant_run(strain: np.ndarray, rate: float) -> np.ndarray:
    """(S,) bool: the second holds a run of equal samples."""
    per_second, run = round(rate), max(2, round(_CONSTANT_RUN * rate))
    equal = strain[1:] == strain[:-1]
    out = np.zeros(strain.size // per_second, bool)
    if np.count_nonzero(equal) < run - 1:
        return out
    same = np.concatenate([[0], np.cumsum(equal)])  # equal neighbours before each sample
    start = np.flatnonzero(same[run - 1 :] - same[: -(run - 1)] == run - 1)  # where such a run begins
    out[start // per_second] = True
    out[(start + run - 1) // per_second] = True
    return out


def good_segments(recording: Recording, min_seconds: float = MIN_SECONDS) -> list[tuple[float, float]]:
    """The stretches, GPS (start, end), in which every second can be used, of at least ``min_seconds`` each.

    A second is used if it passes its quality tests, holds no transient hardware injection, and is no gap.
    """
    use = recording.good & recording.injection_free & ~gap_seconds(recording.strain, recording.rate)
    change = np.flatnonzero(np.diff(np.concatenate([[False], use, [False]]).astype(int)))
    return [
        (recording.gps_start + float(start), recording.gps_start + float(end))
        for start, end in zip(change[::2], change[1::2], strict=True)
        if end - start >= min_seconds
    ]


def condition_recording(
    recording: Recording,
    rate_out: float = RATE,
    f_low: float = F_LOW,
    f_high: float = F_HIGH,
    gated: bool = True,
    psd_seconds: float = PSD_SECONDS,
) -> list[Conditioned]:
    """The whitened stretches of ``recording``, shorter by half a second at each end than its good segments.

    A segment longer than 1.5 ``psd_seconds`` comes in parts that follow on each other without a break, each
    with a PSD of its own. With ``gated``, outliers beyond 50 standard deviations are taken out beforehand.

    Raises:
        InputError: the recording's rate or ``rate_out`` does not hold the band; ``psd_seconds`` is below 8.
    """
    if psd_seconds < MIN_SECONDS - 2 * EDGE:
        raise InputError("psd_seconds", f"{psd_seconds:g} s", f"at least {MIN_SECONDS - 2 * EDGE:g} s")
    pieces = []
    for start, end in good_segments(recording):
        first = round((start - recording.gps_start) * recording.rate)
        inner = end - start - 2 * EDGE
        parts = max(1, round(inner / psd_seconds))
        cuts = np.round(np.linspace(0, inner, parts + 1))
        for left, right in zip(cuts[:-1], cuts[1:], strict=True):
            begin = first + round(left * recording.rate)
            stop = first + round((right + 2 * EDGE) * recording.rate)
            where = f"{Path(recording.source).name} from {start + left:.0f}"
            white, psd, gates = _condition(
                recording.strain[begin:stop], recording.rate, rate_out, f_low, f_high, gated, where
            )
            gps = start + float(left) + EDGE
            at = [(gps + a, gps + b) for a, b in gates]
            pieces.append(Conditioned(recording.detector, gps, rate_out, white, psd, at, recording.source))
    return pieces


def _condition(
    raw: np.ndarray, rate_in: float, rate: float, f_low: float, f_high: float, gated: bool, where: str
) -> tuple[np.ndarray, PSD, list[tuple[float, float]]]:
    """Whitened float32 strain, its effective PSD, and gated stretches in seconds from its first sample."""
    changed, spoilt = resample(raw, rate_in, rate, f_high)
    x = changed[spoilt : changed.size - spoilt]
    half_seconds = EDGE - spoilt / rate  # the rest of the edge is the whitening filter's

    whitening = _measured_whitening(x, rate, f_low, f_high, half_seconds, where)
    loud: list[tuple[int, int]] = []
    holes: list[tuple[int, int]] = []
    filled = x
    width = round(HALF_WIDTH * rate)
    for _ in range(ROUNDS if gated else 0):
        new = loud_stretches(np.pad(whitening(filled), whitening.half), rate)
        if not new:
            break
        loud += reaching_ends(new, x.size, whitening.half + width)
        holes = holes_around(loud, x.size, width, whitening.taps.size)
        filled = inpaint(x, holes, whitening.taps)
        whitening = _measured_whitening(filled, rate, f_low, f_high, half_seconds, where)
        filled = inpaint(x, holes, whitening.taps)
    white = whitening(filled)

    # The PSD's own estimate leaves a percent or two; the median of |x| is blind to glitches and signals.
    recorded = np.ones(white.size, bool)
    gates = []
    for start, stop in holes:
        start, stop = np.clip([start - whitening.half, stop - whitening.half], 0, white.size)
        recorded[start:stop] = False
        if stop > start:
            gates.append((float(start / rate), float(stop / rate)))
    sigma = np.median(np.abs(white[recorded] if recorded.any() else white)) / 0.6745
    return (white / sigma).astype(np.float32), whitening.scaled(1.0 / sigma).psd, gates


def _measured_whitening(
    x: np.ndarray, rate: float, f_low: float, f_high: float, half_seconds: float, where: str
) -> WhiteningFilter:
    return design_whitening(welch_median(x, rate, name=where), rate, f_low, f_high, half_seconds)
