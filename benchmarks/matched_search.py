"""A search with pycbc's matched filter and a small bank, as a yardstick: SNRs, coincidences and their time slides.

Each detector's strain is filtered with every template (`pycbc.filter.matched_filter_core`); what exceeds an SNR of 3.5
is a trigger, a template's triggers are clustered over 0.1 s. Triggers of one template in two detectors within the light
travel time and 5 ms of each other are a coincidence (`pycbc.events.coinc`), ranked by the quadrature sum of their SNRs;
to one of the first two detectors that of a coincident trigger in the third is added. No chi-squared test takes part: in
Gaussian noise it has nothing to reject. The background is made by shifting the detectors by multiples of 3 s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from gwtwins.strain.bank import BankRecipe, WaveformBank
from gwtwins.strain.detectors import light_travel_time
from gwtwins.strain.errors import InputError
from gwtwins.strain.population import Population
from gwtwins.strain.progress import progress_bar
from gwtwins.strain.psd import DEFAULT_PSDS
from gwtwins.strain.template_bank import match, whitened_segments

Array = NDArray[np.float64]

RATE = 1024
"""Samples per second at which strain is filtered."""
THRESHOLD = 3.5
"""SNR of a trigger in one detector."""
SLOP = 0.005
"""Seconds beyond the light travel time within which triggers coincide: their own errors of time."""
SLIDE = 3.0
"""Seconds between two time slides."""
APART = 2.0
"""Seconds within which the loudest coincidence stands for all."""

_F_LOW, _F_HIGH = 20.0, 500.0  # Hz, the scan's band
_CHUNK, _PAD = 512, 16  # s filtered at a time, and of them at each end thrown away
_PSD_SEGMENT = 4  # s
_CLUSTER = round(0.1 * RATE)  # samples
_STRAIN_SCALE = 1e21  # single precision holds no squares of strain
_DRAWS = 512  # of the population, to place the bank
_LEAST = 6.0  # of coincidences that are kept from the slides: a false alarm in some minutes


@dataclass(frozen=True)
class SmallBank:
    """A bank too small to cover the population, placed where it covers most of it."""

    parameters: Array
    """(N, 4): masses in solar masses, aligned spins."""
    approximant: str
    recovered: float
    """Mean of the cubed match over the population: the fraction of the volume that a full bank would reach."""

    @classmethod
    def of(cls, population: Population, count: int) -> SmallBank:
        """The ``count`` of 512 draws that, one after the other, add most to the mean cubed match with the others."""
        psd_name = DEFAULT_PSDS["H1"]
        pool = WaveformBank.obtain(BankRecipe(population, _DRAWS, 11, (psd_name,)), workers=1, progress=False)
        segments = whitened_segments(pool, pool.psds[psd_name], _F_LOW, _F_HIGH)
        cubed = np.stack(
            [match(segments[:, i : i + 1], segments)[0].numpy().astype(float) ** 3 for i in range(len(pool))]
        )
        best = np.zeros(len(pool))
        chosen: list[int] = []
        for _ in range(min(count, len(pool))):
            chosen.append(int(np.argmax(np.maximum(cubed, best).sum(axis=1))))
            best = np.maximum(best, cubed[chosen[-1]])
        others = np.delete(best, chosen)
        return cls(pool.parameters[chosen], population.approximant, float(others.mean() if others.size else 1.0))


@dataclass(frozen=True)
class Single:
    """Triggers of one detector and one template."""

    time: Array
    """(N,) seconds from the strain's start, ascending."""
    snr: Array
    """(N,)"""


@dataclass(frozen=True)
class Coincidences:
    """What one ranking of coincidences found."""

    time: Array
    """(N,) seconds from the strain's start; of slid ones, in the first detector's strain."""
    stat: Array
    """(N,)"""


def single_triggers(path: Path, detectors: Sequence[str], bank: SmallBank) -> list[dict[str, Single]]:
    """Triggers of each template in each detector, from strain in the MLGWSC-1 layout, one segment a detector."""
    from pycbc.waveform import get_fd_waveform

    with h5py.File(path) as file:
        seconds = round(min(dataset.size * dataset.attrs["delta_t"] for dataset in map(_segment, _groups(file))))
    length = min(_CHUNK, seconds)
    if length < 4 * _PAD:
        raise InputError(path, f"{seconds} s", f"{4 * _PAD} s or more of strain")
    templates = []
    for mass1, mass2, spin1z, spin2z in bank.parameters:
        one, _ = get_fd_waveform(
            approximant=bank.approximant,
            mass1=mass1,
            mass2=mass2,
            spin1z=spin1z,
            spin2z=spin2z,
            f_lower=_F_LOW,
            f_final=RATE / 2,
            delta_f=1 / length,
        )
        one.resize(length * RATE // 2 + 1)
        templates.append((one * _STRAIN_SCALE).astype(np.complex64))
    starts = [*range(0, seconds - length, length - 2 * _PAD), seconds - length]
    found: list[dict[str, tuple[list[Array], list[Array]]]] = [{d: ([], []) for d in detectors} for _ in templates]
    with progress_bar(len(starts) * len(detectors), "matched filter", "piece") as bar:
        for detector in detectors:
            done = _PAD
            for start in starts:
                low, done = done, start + length - _PAD
                for held, (at, snr) in zip(found, _filtered(path, detector, start, length, templates), strict=True):
                    kept = (at >= (low - start) * RATE) & (at < (done - start) * RATE)
                    held[detector][0].append(start + at[kept] / RATE)
                    held[detector][1].append(snr[kept])
                bar.update()
    return [
        {name: Single(np.concatenate(time), np.concatenate(snr)) for name, (time, snr) in held.items()}
        for held in found
    ]


def _groups(file: h5py.File) -> list[h5py.Group]:
    return [file[name] for name in file]


def _segment(group: h5py.Group) -> h5py.Dataset:
    (dataset,) = group.values()
    return dataset


def _filtered(
    path: Path, detector: str, start: int, length: int, templates: Sequence[object]
) -> Iterator[tuple[NDArray[np.int32], Array]]:
    """For each template the samples of its triggers in ``length`` seconds from ``start`` on, and their SNR."""
    from pycbc.events import findchirp_cluster_over_window
    from pycbc.filter import highpass, matched_filter_core, resample_to_delta_t, sigmasq
    from pycbc.psd import interpolate, inverse_spectrum_truncation, welch
    from pycbc.types import TimeSeries, zeros

    with h5py.File(path) as file:
        dataset = _segment(file[detector])
        rate = round(1 / dataset.attrs["delta_t"])
        strain = dataset[start * rate : (start + length) * rate].astype(np.float64)
    series = TimeSeries(strain * _STRAIN_SCALE, 1 / rate)
    series = highpass(resample_to_delta_t(series, 1 / RATE), 15.0)
    psd = welch(series, seg_len=_PSD_SEGMENT * RATE, seg_stride=_PSD_SEGMENT * RATE // 2, avg_method="median-mean")
    psd = interpolate(psd, 1 / length)
    psd = inverse_spectrum_truncation(psd, _PSD_SEGMENT * RATE, low_frequency_cutoff=15.0)
    spectrum = series.to_frequencyseries()
    spectrum.data[:] = np.where(psd.numpy() > 0, spectrum.numpy() / np.where(psd.numpy() > 0, psd.numpy(), 1), 0)
    spectrum, weight = spectrum.astype(np.complex64), psd.astype(np.float32)
    out, work = zeros(length * RATE, np.complex64), zeros(length * RATE, np.complex64)
    for template in templates:
        norm = sigmasq(template, weight, _F_LOW, _F_HIGH)
        snr, _, scale = matched_filter_core(
            template, spectrum, None, _F_LOW, _F_HIGH, h_norm=norm, out=out, corr_out=work
        )
        loud = np.abs(snr.numpy()) * scale
        at = np.flatnonzero(loud > THRESHOLD).astype(np.int32)
        at = at[findchirp_cluster_over_window(at, loud[at], _CLUSTER)] if at.size else at
        yield at, loud[at].astype(np.float64)


def coincidences(triggers: Sequence[dict[str, Single]]) -> Coincidences:
    """The coincidences of the strain as it was recorded, the loudest within 2 s each."""
    time, stat = [], []
    for held in triggers:
        for first, second in combinations(held, 2):
            a, b, _ = _pairs(held, first, second, 0.0)
            time.append(0.5 * (held[first].time[a] + held[second].time[b]))
            stat.append(_ranked(held, (first, second), a, b))
    return _clustered(np.concatenate(time), np.concatenate(stat))


def background(triggers: Sequence[dict[str, Single]], seconds: float) -> tuple[list[Array], float]:
    """Coincidences of time slides, with each pair of detectors falling statistics of clusters, and live time in s.

    The pairs are slid apart from each other, and their rates add. All slides of ``seconds`` of strain by multiples of
    3 s are taken, seconds^2 / 3 s in all; statistics below 6 are left out.
    """
    found = []
    for first, second in combinations(triggers[0], 2):
        time, stat = [], []
        for held in triggers:
            a, b, slide = _pairs(held, first, second, SLIDE)
            moved = slide != 0
            a, b, slide = a[moved], b[moved], slide[moved]
            rank = _ranked(held, (first, second), a, b, slide, seconds)
            loud = rank >= _LEAST
            time.append(held[first].time[a[loud]] + 2 * (seconds + APART) * slide[loud])  # every slide by itself
            stat.append(rank[loud])
        found.append(np.sort(_clustered(np.concatenate(time), np.concatenate(stat)).stat)[::-1])
    return found, seconds**2 / SLIDE - seconds


def _pairs(
    held: dict[str, Single], first: str, second: str, step: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """Which triggers of two detectors coincide, and in which slide: its number times ``step`` s is their distance."""
    from pycbc.events.coinc import time_coincidence

    one, other = held[first].time, held[second].time
    if not (one.size and other.size):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    a, b, slide = time_coincidence(one, other, light_travel_time(first, second) + SLOP, step)
    return a.astype(np.int64), b.astype(np.int64), slide.astype(np.float64)


def _ranked(
    held: dict[str, Single],
    pair: tuple[str, str],
    a: NDArray[np.int64],
    b: NDArray[np.int64],
    slide: Array | None = None,
    seconds: float = 0.0,
) -> Array:
    """Quadrature sums of the pairs of triggers ``a``, ``b``; with others' if the pair is that of the first two.

    Other detectors are moved against the second as far as it is against the first, in a ring of ``seconds``.
    """
    first, second = pair
    squared = held[first].snr[a] ** 2 + held[second].snr[b] ** 2
    if pair != tuple(held)[:2]:  # a coincidence of three counts once
        return np.sqrt(squared)
    place = held[second].time[b]
    if slide is not None:
        place = (place - SLIDE * slide) % seconds
    for name, other in list(held.items())[2:]:
        window = light_travel_time(name, second) + SLOP
        low, high = np.searchsorted(other.time, [place - window, place + window])
        # Triggers are 0.1 s apart and the windows shorter: one at most.
        there = high > low
        squared[there] += other.snr[low[there]] ** 2
    return np.sqrt(squared)


def _clustered(time: Array, stat: Array) -> Coincidences:
    from pycbc.events.coinc import cluster_over_time

    if not stat.size:
        return Coincidences(time, stat)
    kept = cluster_over_time(stat, time, APART, method="cython")
    return Coincidences(time[kept], stat[kept])


def threshold_at(falling: Sequence[Array], seconds: float, rate: float) -> float | None:
    """The statistic that slid coincidences reach ``rate`` times a second, added over pairs; None if it is not known."""
    together = np.sort(np.concatenate(falling))[::-1]
    count = rate * seconds
    if not 1 <= count < together.size:
        return None
    return float(together[int(count)])
