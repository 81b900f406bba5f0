"""Triggers: the peaks of a scan's statistic, when each one's merger was, and the files they are written to."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.special import expit

from gwtwins.probes.false_alarm_rate import Rate
from gwtwins.probes.sliding import loudest_within
from gwtwins.strain.command import write_text

Array = NDArray[np.float64]

StrainBetween = Callable[[str, float, float], tuple[Array, float]]
"""(detector, low, high) -> whitened strain (T,) between two GPS times, NaN where there is none, and its rate in Hz."""

MOST_TRIGGERS = 10_000
"""Of a scan whose threshold is left to it: strain of a month would give a hundred thousand of no interest."""

_FRAMES_ERROR = 0.15  # s, of the frames' time: at network SNR 8 to 12; it is 0.06 s from 12 on
_REFINED = 0.5  # s around it within which the strain decides
_MARGIN = 0.1  # s more of strain on each side, for the filters
_LOUD_BELOW = 250.0  # Hz: above it heavy binaries have little power and the noise has half of its own
_POWER_SECONDS = 0.025  # s, standard deviation of the Gaussian over which power is averaged
_POWER_TO_MERGER = 0.013  # s from the power's peak to the merger, the median over the standard population
TIME_TOLERANCE = 0.05
"""Seconds. Of 272 simulated signals of network SNR 8 to 30 that were triggers, half were timed to 12 ms, 95% to 29 ms
and 97.4% to this (three detectors, Gaussian noise, coherent features). Of SNR 5 to 8: 70%."""


@dataclass
class Series:
    """The statistic of N windows in the order of time."""

    tick: NDArray[np.int64]
    """(N,) at which frame each window starts: its GPS time is this times `hop`."""
    stat: NDArray[np.float32]
    """(N,) the probe's logit."""
    network: NDArray[np.uint8]
    """(N,) the detectors it was looked at in, bit d for detector d."""
    base: float
    """The mean statistic of Gaussian noise, in any network."""
    detectors: tuple[str, ...]
    """The encoder's D."""
    frames: int
    """Of a window."""
    hop: float
    """Seconds between frames."""
    step: int
    """Frames between the starts of windows that follow on each other."""

    def __len__(self) -> int:
        return self.tick.size

    @property
    def start(self) -> Array:
        """(N,) GPS time of each window's first sample."""
        return self.tick.astype(np.float64) * self.hop

    @property
    def window(self) -> float:
        """Seconds of a window: the strain that its frames stand for, without what gives them context."""
        return self.frames * self.hop

    @property
    def stride(self) -> float:
        """Seconds between windows."""
        return self.step * self.hop

    @property
    def present(self) -> NDArray[np.bool_]:
        """(N, D): which detectors the window was looked at in."""
        return (self.network[:, None] >> np.arange(len(self.detectors), dtype=np.uint8) & 1).astype(bool)

    @cached_property
    def median(self) -> float:
        """Of the statistic: that of noise, where signals are few."""
        return float(np.median(self.stat))

    def names(self, network: int) -> tuple[str, ...]:
        """The detectors of a set."""
        return tuple(name for d, name in enumerate(self.detectors) if network >> d & 1)

    def windows_by_network(self) -> dict[str, int]:
        """How many windows were looked at with which detectors, such as {"H1 L1": 290}."""
        count = np.bincount(self.network, minlength=256)
        return {" ".join(self.names(i)): int(count[i]) for i in np.flatnonzero(count).tolist()}


@dataclass(frozen=True)
class Trigger:
    """A moment that looks like a merger."""

    time: float
    """Merger at the geocentre, GPS seconds."""
    stat: float
    """The loudest window's logit: unbounded, the one number to rank by."""
    part: dict[str, float]
    """For each detector that was present, by how much the logit is above what it would be had that one heard noise."""
    start: float
    """GPS time at which that window starts."""
    var: float
    """Seconds by which `time` may be off."""
    far: Rate | None = None
    """False-alarm rate by slides without the candidate's own seconds; None where one detector was on, or no slides."""
    far_inclusive: Rate | None = None
    """The same with these seconds among the background."""

    @property
    def p(self) -> float:
        """Probability of a signal in the window, at the odds of the probe's labelled rows, far better than nature's."""
        return float(expit(self.stat))


def usual_threshold(series: Series) -> float:
    """Two robust standard deviations above the median: where peaks of ordinary noise begin, some in a minute.

    Neither moves for a loud event in a short file, as a high quantile would.
    """
    return series.median + 2.0 * float(np.median(np.abs(series.stat - np.float32(series.median)))) / 0.6745


def reach_of(apart: float, step: int, hop: float) -> int:
    """Windows on each side of a trigger that are less than ``apart`` seconds away."""
    return max(int(np.ceil(apart / (step * hop) - 1e-9)) - 1, 0)


def peaks(series: Series, threshold: float, apart: float) -> NDArray[np.int64]:
    """The windows above ``threshold`` that are the loudest within ``apart`` seconds, the loudest first.

    A transient lights up every window it lies in, and two windows closer than their length share strain: of
    those the loudest stands for all.
    """
    reach = reach_of(apart, series.step, series.hop)
    place = series.tick // series.step
    found = []
    far = np.flatnonzero(np.diff(place) > reach) + 1
    for a, b in zip([0, *far.tolist()], [*far.tolist(), len(series)], strict=True):
        if a < b:
            row = np.full(place[b - 1] - place[a] + 1, -np.inf, np.float32)
            row[place[a:b] - place[a]] = series.stat[a:b]
            at = np.flatnonzero(loudest_within(row, reach) & (row >= threshold))
            found.append(np.searchsorted(place, at + place[a]))
    chosen = np.concatenate(found) if found else np.zeros(0, np.int64)
    return chosen[np.argsort(-series.stat[chosen], kind="stable")]


def merger_time(rough: float, detectors: Sequence[str], strain: StrainBetween, f_low: float, f_high: float) -> float:
    """Merger time: where, near ``rough`` (that of the frames), the detectors together have the most power.

    A whitened chirp is loudest at its end. Power below 250 Hz is averaged over 25 ms and summed over detectors,
    between which light takes up to 27 ms; half of its excess, in units of the noise, is a log-likelihood and is
    weighed against the distance from the frames' time.
    """
    low, high = rough - _REFINED - _MARGIN, rough + _REFINED + _MARGIN
    strips = [strain(name, low, high) for name in detectors]
    rate = strips[0][1]
    power = sum(_below(np.nan_to_num(strip), rate, _LOUD_BELOW) ** 2 for strip, _ in strips)
    samples = _POWER_SECONDS * rate
    # A Gaussian of width s weighs samples as one of length sqrt(4 pi) s does; white samples are 2 (f_high - f_low) a s.
    snr_squared = gaussian_filter1d(power, samples) * np.sqrt(4 * np.pi) * _POWER_SECONDS * 2 * (f_high - f_low)
    time = low + np.arange(snr_squared.size) / rate
    belief = 0.5 * snr_squared - 0.5 * ((time - rough) / _FRAMES_ERROR) ** 2
    belief[np.abs(time - rough) > _REFINED] = -np.inf
    return float(time[np.argmax(belief)] + _POWER_TO_MERGER)


def _below(strain: Array, rate: float, f_high: float) -> Array:
    """``strain`` (T,) without what lies above ``f_high`` Hz."""
    spectrum = np.fft.rfft(strain)
    spectrum[np.fft.rfftfreq(strain.size, 1 / rate) > f_high] = 0.0
    return np.fft.irfft(spectrum, strain.size)


def write_triggers(path: Path, triggers: Sequence[Trigger], detectors: Sequence[str]) -> None:
    """triggers.csv, a row for each trigger; times have milliseconds.

    ``stat_H1`` and so on are empty where the detector was absent. Rates are per year: ``far_per_year`` without the
    candidate's own seconds in the background, ``far_per_year_inclusive`` with them, each with the ends of its 68%
    interval; ``..._is_limit`` is 1 where no slid trigger is as loud, and the rate is one over the slid live time. They
    are empty where one detector alone was on, and where there was too little strain to slide.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    own = [f"stat_{name}" for name in detectors]
    rates = [f"{which}{end}" for which in ("far", "far_inclusive") for end in ("_low", "_high", "_is_limit")]
    head = ["time", "stat", "p", "far_per_year", *own, "window_start", "var", "network", "far_per_year_inclusive"]
    writer.writerow([*head, *rates])
    for t in triggers:
        parts = [f"{t.part[name]:.4f}" if name in t.part else "" for name in detectors]
        ends = [cell for far in (t.far, t.far_inclusive) for cell in _interval(far)]
        row = [f"{t.time:.3f}", f"{t.stat:.4f}", f"{t.p:.6g}", _per_year(t.far), *parts, f"{t.start:.4f}", f"{t.var:g}"]
        writer.writerow([*row, " ".join(t.part), _per_year(t.far_inclusive), *ends])
    write_text(path, text.getvalue())


def _per_year(far: Rate | None) -> str:
    return "" if far is None else f"{far.value:.6g}"


def _interval(far: Rate | None) -> list[str]:
    return ["", "", ""] if far is None else [f"{far.low:.6g}", f"{far.high:.6g}", str(int(far.is_limit))]


def write_events(path: Path, triggers: Sequence[Trigger]) -> None:
    """events.hdf5: ``time`` (GPS s), ``stat`` and ``var`` (s), float64, in the order of time.

    The layout that the evaluation of the MLGWSC-1 mock data challenge reads (arXiv:2209.11146).
    """
    rows = sorted(triggers, key=lambda t: t.time)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with h5py.File(partial, "w") as file:
        for name in ("time", "stat", "var"):
            file.create_dataset(name, data=np.array([getattr(t, name) for t in rows], dtype=np.float64))
    os.replace(partial, path)
