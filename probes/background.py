"""The background of a scan: how often noise alone gives as loud a trigger.

The windows of one detector are moved against those of another by more than their length, in a ring around a stretch
of strain: what then lights up in both is no signal. Nothing goes through the encoder anew. The moved strain is searched
as the true one was, and triggers are clustered in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np
from numpy.typing import NDArray

from gwtwins.probes.false_alarm_rate import Rate, rate
from gwtwins.probes.frame_statistic import FrameStatistic
from gwtwins.probes.scan_blocks import written
from gwtwins.probes.scan_windows import Frames, Windows
from gwtwins.probes.sliding import loudest_within

Array = NDArray[np.float64]

RING_SECONDS = 1024.0
"""Strain that is moved in one ring at most: the frames of its windows in three detectors take 100 MB."""
BRIDGED_SECONDS = 64.0
"""A ring goes on across such a time without two detectors, in which there are no coincident windows."""
REMOVED_SECONDS = 2.0
"""On each side of a candidate: strain that is taken out of the background the candidate is measured by.

A merger in a window's context alone moves the window's statistic too: by 1.0 at a network SNR of 10 to 16 and by 2.0 at
20 to 40 on average, 0.75 s after it; by 0.04 and 0.2, 1 s after it; and by nothing from 1.25 s on (120 each)."""
AFTER_CONTEXT_SECONDS = 0.5
"""That a merger lies before a window's context when it does not matter to it any more."""


@dataclass(frozen=True)
class Ring:
    """A stretch of frames around which detectors are moved."""

    first: int
    """Number of its first frame."""
    stop: int
    shifts: NDArray[np.int64]
    """(slides, K) frames by which each detector is moved."""

    @property
    def frames(self) -> int:
        """L."""
        return self.stop - self.first


@dataclass(frozen=True)
class SlideSettings:
    """How a background is made."""

    slides: int
    """At most so many, for each ring."""
    slide: float
    """Seconds between two of a ring's moves."""
    threshold: float
    """Lowest statistic of a trigger."""
    reach: int
    """Windows on each side that a trigger must be the loudest of."""
    step: int
    """Frames between windows."""


@dataclass
class SlidRing:
    """What the slides of a ring gave: M triggers."""

    ring: Ring
    stat: NDArray[np.float32]
    """(M,) falling."""
    network: NDArray[np.uint8]
    """(M,) the set of detectors, bit d for the encoder's detector d."""
    slide: NDArray[np.int32]
    """(M,) which slide."""
    window: NDArray[np.int32]
    """(M,) frame of the ring at which the window starts, before the detectors are moved."""
    ok: NDArray[np.bool_]
    """(K, L): the detector was recording well during the window that starts there."""
    windows: NDArray[np.int64]
    """(256,) slid windows with each set of detectors."""


def slide_shifts(frames: int, slide: int, most: int, detectors: int) -> NDArray[np.int64]:
    """(slides, K) frames by which K detectors are moved in a ring; every pair is apart by ``slide`` or more in each.

    Detector k moves by k steps for each step of detector 1. The ring's places are taken to be of a number that no k
    divides, so that no two slides of any pair are the same.
    """
    places = frames // slide
    while places > 1 and any(math.gcd(places, k) > 1 for k in range(2, detectors)):
        places -= 1
    count = max(min(places - 1, most), 0)
    step = np.arange(1, count + 1)[:, None] * np.arange(detectors)[None]
    return (step % max(places, 1)) * slide


def rings_of(
    good: Sequence[tuple[int, NDArray[np.bool_]]], frames: int, hop: float, settings: SlideSettings
) -> list[Ring]:
    """The rings of a scan: stretches in which at least two detectors were on, cut to pieces of about equal length.

    Args:
        good: for each block, ascending, the number of its first frame and (K, F) bool which frames are good.
        frames: of a window.
        hop: seconds between frames.
        settings: of the slides.
    """
    stretches: list[list[int]] = []
    bridged = round(BRIDGED_SECONDS / hop)
    for first, rows in good:
        on = np.concatenate([[False], rows.sum(axis=0) >= 2, [False]])
        edge = np.flatnonzero(on[1:] != on[:-1]) + first
        for a, b in zip(edge[::2].tolist(), edge[1::2].tolist(), strict=True):
            if stretches and a - stretches[-1][1] <= bridged:
                stretches[-1][1] = b
            else:
                stretches.append([a, b])
    detectors = len(good[0][1]) if good else 0
    rings = []
    for a, b in stretches:
        parts = max(1, math.ceil((b - a) * hop / RING_SECONDS))
        cuts = [a + (b - a) * i // parts for i in range(parts + 1)]
        for low, high in zip(cuts[:-1], cuts[1:], strict=True):
            shifts = slide_shifts(high - low, round(settings.slide / hop), settings.slides, detectors)
            if len(shifts) and high - low > frames:
                rings.append(Ring(low, high, shifts))
    return rings


def slide_ring(windows: Windows, statistic: FrameStatistic, ring: Ring, settings: SlideSettings, path: Path) -> Path:
    """Search a ring in all its slides and write the triggers to ``path``, a file that appears whole or not at all."""
    frames, ok = windows.of(ring.first, ring.stop)
    which = [statistic.detectors.index(name) for name in windows.store.detectors]
    ok[:, ring.frames - statistic.frames + 1 :] = False  # those would reach beyond the ring
    own = own_statistics(statistic, frames, ok, which)
    found: list[tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.int64]]] = []
    slide: list[NDArray[np.int64]] = []
    count = np.zeros(256, np.int64)
    for i, shift in enumerate(ring.shifts):
        stat, network = statistic.combined(frames, own, ok, which, shift.tolist(), at_least=2)
        stat, network = stat[:: settings.step], network[:: settings.step]
        count += np.bincount(network[np.isfinite(stat)], minlength=256)
        at = np.flatnonzero(loudest_within(stat, settings.reach) & (stat >= settings.threshold))
        found.append((stat[at], network[at], at * settings.step))
        slide.append(np.full(at.size, i))
    stat, network, window = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(-stat, kind="stable")
    with written(path) as file:
        file["stat"], file["network"], file["windows"] = stat[order], network[order], count
        file["slide"] = np.concatenate(slide)[order].astype(np.int32)
        file["window"], file["ok"] = window[order].astype(np.int32), ok
    return path


def own_statistics(
    statistic: FrameStatistic, frames: Sequence[Frames], ok: NDArray[np.bool_], which: Sequence[int]
) -> NDArray[np.float32]:
    """What each detector adds by itself to its W windows, (K, W), of K detectors; 0 where it is not ok."""
    own = np.zeros(ok.shape, np.float32)
    for row, windows, here, d in zip(own, frames, ok, which, strict=True):
        if here.any():
            row[here] = statistic.own(windows, d)[here]
    return own


def read_slid(path: Path, ring: Ring) -> SlidRing:
    """What `slide_ring` wrote."""
    with h5py.File(path) as file:
        names = ("stat", "network", "slide", "window", "ok", "windows")
        return SlidRing(ring, *(file[name][()] for name in names))


@dataclass
class Background:
    """The slides of all rings added up, as far as a set of N candidates needs them."""

    hop: float
    step: int
    window: float
    """Seconds that are pooled."""
    context: float
    """Seconds before them that a window looks at too."""
    time: Array
    """(N,) GPS time of each candidate."""
    stat: Array
    """(N,)"""
    network: NDArray[np.uint8]
    """(N,) the set of detectors it was seen in."""
    slides: int = 0
    """In all rings."""
    rings: int = 0
    """Stretches of strain that were slid by themselves."""
    windows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    """(256,) slid windows with each set of detectors."""
    triggers: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    """(256,) slid triggers with each set of detectors."""
    loudest: dict[int, float] = field(default_factory=dict)
    """The loudest slid trigger of each set of detectors."""
    histogram: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    """For each set of detectors, slid triggers in bins of `BIN` in the statistic from `histogram_low` on."""
    histogram_low: float = 0.0

    BIN: ClassVar[float] = 0.1

    def __post_init__(self) -> None:
        n = self.time.size
        self.count, self.removed_count = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.removed_windows = np.zeros(n, np.int64)

    def add(self, slid: SlidRing, which: Sequence[int]) -> None:
        """Count the slides of one more ring; ``which`` are the encoder's numbers of its K detectors."""
        self.slides += len(slid.ring.shifts)
        self.rings += 1
        self.windows += slid.windows
        self.triggers += np.bincount(slid.network, minlength=256)
        for network in np.unique(slid.network).tolist():
            falling = slid.stat[slid.network == network]
            self.loudest[network] = max(self.loudest.get(network, -math.inf), float(falling[0]))
            self._add_to_histogram(network, falling)
            mine = self.network == network
            self.count[mine] += np.searchsorted(-falling, -self.stat[mine], side="right")
        low = slid.ring.first * self.hop - self._after
        high = slid.ring.stop * self.hop + REMOVED_SECONDS
        for i in np.flatnonzero((self.time > low) & (self.time < high)):
            self._remove(int(i), slid, which)

    @property
    def _after(self) -> float:
        """Seconds after a candidate from which windows hold nothing of it."""
        return max(REMOVED_SECONDS, self.context + AFTER_CONTEXT_SECONDS)

    def _add_to_histogram(self, network: int, falling: NDArray[np.float32]) -> None:
        place = np.maximum((falling - self.histogram_low) / self.BIN, 0).astype(np.int64)
        more = np.bincount(place)
        held = self.histogram.get(network, np.zeros(0, np.int64))
        total = np.zeros(max(more.size, held.size), np.int64)
        total[: held.size] += held
        total[: more.size] += more
        self.histogram[network] = total

    def _remove(self, i: int, slid: SlidRing, which: Sequence[int]) -> None:
        """Find the slid windows that pool any detector's strain within REMOVED_SECONDS of candidate ``i``.

        Also those with the candidate in their context, where that is longer.
        """
        length, shifts = slid.ring.frames, slid.ring.shifts
        # A window that starts at frame p holds [p, p + n) * hop.
        low = math.floor((self.time[i] - REMOVED_SECONDS - self.window) / self.hop) + 1 - slid.ring.first
        high = math.ceil((self.time[i] + self._after) / self.hop) - slid.ring.first
        low, high = max(low, 0), min(high, length)
        if low >= high:
            return
        bits = [1 << d for d in which]
        louder = int(np.searchsorted(-slid.stat, -self.stat[i], side="right"))
        if louder:
            at = slid.window[:louder, None] + shifts[slid.slide[:louder]]
            at %= length
            held = (slid.network[:louder, None] & np.array(bits)) > 0
            touched = (held & (at >= low) & (at < high)).any(axis=1) & (slid.network[:louder] == self.network[i])
            self.removed_count[i] += np.count_nonzero(touched)
        for k, bit in enumerate(bits):  # windows that detector k brings the candidate's strain into
            if not self.network[i] & bit:
                continue
            window = (np.arange(low, high)[None] - shifts[:, k, None]) % length  # (slides, windows)
            counted = window % self.step == 0
            for j, other in enumerate(bits):
                place = (window + shifts[:, j, None]) % length
                ok = slid.ok[j][place]
                counted &= ok == bool(self.network[i] & other)
                if j < k:  # not those that detector j has brought it into already
                    counted &= ~(ok & (place >= low) & (place < high))
            self.removed_windows[i] += np.count_nonzero(counted)

    def rates(self, i: int) -> tuple[Rate | None, Rate | None]:
        """The rate of candidate ``i`` without its own seconds in the background, and with them.

        Its seconds are those within REMOVED_SECONDS. (A slid trigger that a window with such seconds hid stays hidden:
        some seconds of each slide, which matter in rings of less than a few minutes only.)
        """
        spacing = self.hop * self.step
        windows = int(self.windows[self.network[i]])
        clean = rate(int(self.count[i] - self.removed_count[i]), (windows - int(self.removed_windows[i])) * spacing)
        return clean, rate(int(self.count[i]), windows * spacing)
