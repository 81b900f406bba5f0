"""Noise as detectors recorded it: whitened windows drawn from strain files, away from known signals.

Each detector's moment is drawn independently of the others' (time slides), so nothing that reached several
detectors stays coincident: what is coincident in a drawn row is coincident by chance. With M usable seconds
of a detector in common with another, their windows of 2 s overlap in real time in about 4 / M of the rows;
known events are left out. Rows of different use can draw from different seconds (:mod:`gwtwins.strain.noise_roles`).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gwtwins.strain.conditioning import F_HIGH, F_LOW, RATE
from gwtwins.strain.draws import uniform
from gwtwins.strain.errors import InputError
from gwtwins.strain.events import EVENTS
from gwtwins.strain.noise_roles import stretches
from gwtwins.strain.psd import PSD
from gwtwins.strain.recording import Conditioned, condition_recording
from gwtwins.strain.small_file import read_text
from gwtwins.strain.whole_files import read_recordings, strain_files

_MAX_LIST_BYTES = 1 << 20  # fifty thousand GPS times

BEFORE = 8.0  # s ahead of a merger: a 10+10 Msun inspiral spends that long above 20 Hz
AFTER = 2.0  # s after it: ringdown, and the error of the stated time


@dataclass
class _Strip:
    """All strain of one detector end to end, and where windows may start in it."""

    strain: np.ndarray  # (T,) float32, the pieces one after the other
    first: np.ndarray  # (P,) sample at which each piece begins
    gps: np.ndarray  # (P,) GPS time of that sample
    psd: np.ndarray  # (P,) its PSD's place in the table
    spans: np.ndarray  # (K, 2) usable sample ranges, half-open; none crosses a piece's end


class RealNoise:
    """Whitened noise windows from conditioned recordings.

    Args:
        pieces: of any detectors, all at one rate, from :func:`gwtwins.strain.recording.condition_recording`.
        exclude: GPS times of mergers (all of :data:`gwtwins.strain.events.EVENTS` by default).
        before, after: seconds kept away from each of them.
        exclude_spans: further GPS (start, end) stretches to keep away from, in every detector.

    Raises:
        InputError: no pieces, or pieces at different rates.
    """

    def __init__(
        self,
        pieces: Sequence[Conditioned],
        exclude: Iterable[float] | None = None,
        before: float = BEFORE,
        after: float = AFTER,
        exclude_spans: Iterable[tuple[float, float]] = (),
    ) -> None:
        rates = sorted({piece.rate for piece in pieces})
        if len(rates) != 1:
            listed = ", ".join(f"{rate:g}" for rate in rates)
            fault = f"pieces at {listed} Hz" if rates else "no usable strain"
            raise InputError("real noise", fault, "whitened strain at one rate, at least one stretch of it")
        self.rate = rates[0]
        times = [event.gps for event in EVENTS] if exclude is None else list(exclude)
        self._excluded = [(t - before, t + after) for t in times] + list(exclude_spans)
        self._name = "real noise"
        self._psds: list[PSD] = []
        self._strips: dict[str, _Strip] = {}
        for detector in sorted({piece.detector for piece in pieces}):
            mine = [piece for piece in pieces if piece.detector == detector]
            self._strips[detector] = self._strip(sorted(mine, key=lambda piece: piece.gps_start))

    @classmethod
    def from_files(
        cls,
        files: Sequence[str | Path],
        exclude: Iterable[float] | None = None,
        exclude_files: Sequence[str | Path] = (),
        leave_out: Sequence[float] = (),
        rate: float = RATE,
        f_low: float = F_LOW,
        f_high: float = F_HIGH,
        before: float = BEFORE,
        after: float = AFTER,
        required: Sequence[str] | None = None,
    ) -> RealNoise:
        """From strain files, without the seconds that a file left out covers, in whichever file they are.

        Args:
            exclude, before, after: as for the class.
            exclude_files: files left out.
            leave_out: GPS times whose files are left out.
            rate, f_low, f_high: of the whitened strain.
            required: data quality flags, as for :func:`gwtwins.strain.gwosc.read_gwosc`.

        Raises:
            InputError: a file is at fault, no file holds a time of ``leave_out``, or nothing usable is left.
        """
        without = {Path(path).resolve() for path in exclude_files}
        covered: list[tuple[float, float]] = []
        pieces: list[Conditioned] = []
        for path in dict.fromkeys([*without, *(Path(path).resolve() for path in files)]):
            for recording in read_recordings(path, required):
                start, end = recording.gps_start, recording.gps_end
                if path in without or any(start <= gps < end for gps in leave_out):
                    covered.append((start, end))
                else:
                    pieces += condition_recording(recording, rate, f_low, f_high)
        for gps in leave_out:
            if not any(start <= gps < end for start, end in covered):
                fault = f"no file holds GPS {gps:.1f}"
                raise InputError("real noise", fault, "times whose files are to be left out")
        return cls(pieces, exclude, before, after, covered)

    @classmethod
    def from_spec(
        cls,
        spec: str,
        leave_out: Sequence[float] = (),
        rate: float = RATE,
        f_low: float = F_LOW,
        f_high: float = F_HIGH,
        avoid: Sequence[float] = (),
    ) -> RealNoise:
        """From ``spec`` (see :func:`strain_files`), away from the known mergers and from the GPS times ``avoid``."""
        times = [*(event.gps for event in EVENTS), *avoid]
        return cls.from_files(strain_files(spec), times, leave_out=leave_out, rate=rate, f_low=f_low, f_high=f_high)

    def _strip(self, pieces: list[Conditioned]) -> _Strip:
        first = np.concatenate([[0], np.cumsum([piece.strain.size for piece in pieces])]).astype(np.int64)
        spans = []
        excluded = np.array(self._excluded, float).reshape(-1, 2)
        for piece, offset in zip(pieces, first, strict=False):
            usable = np.ones(piece.strain.size, bool)
            near = excluded[(excluded[:, 1] > piece.gps_start) & (excluded[:, 0] < piece.gps_end)]
            for start, end in [*near, *piece.gates]:
                inside = (np.array([start, end]) - piece.gps_start) * self.rate
                low, high = np.clip([np.floor(inside[0]), np.ceil(inside[1])], 0, usable.size).astype(int)
                usable[low:high] = False
            change = np.flatnonzero(np.diff(np.concatenate([[False], usable, [False]]).astype(int)))
            spans.append(change.reshape(-1, 2) + offset)
        indices = np.arange(len(self._psds), len(self._psds) + len(pieces))
        self._psds += [piece.psd for piece in pieces]
        return _Strip(
            np.concatenate([piece.strain for piece in pieces]),
            first[:-1],
            np.array([piece.gps_start for piece in pieces]),
            indices,
            np.concatenate(spans),
        )

    def only(self, role: str) -> RealNoise:
        """The part of it that is for "train", "labelled" or "test" rows, with the same table of PSDs."""
        part = copy.copy(self)
        part._name = f"real noise for {role} rows (--noise-split)"
        part._strips = {name: replace(strip, spans=self._within(strip, role)) for name, strip in self._strips.items()}
        return part

    def _within(self, strip: _Strip, role: str) -> np.ndarray:
        """(K, 2) the strip's usable sample ranges as far as they are for that role."""
        spans = []
        for start, stop in strip.spans:
            piece = np.searchsorted(strip.first, start, side="right") - 1
            first, gps = strip.first[piece], strip.gps[piece]
            seconds = gps + (np.array([start, stop]) - first) / self.rate
            for stretch in stretches(role, *seconds):
                # The first sample at or after each border; GPS times in float64 hold a thousandth of a sample.
                low, high = first + np.ceil((np.array(stretch) - gps) * self.rate - 1e-2).astype(np.int64)
                spans.append((max(low, start), min(high, stop)))
        return np.array(spans, np.int64).reshape(-1, 2)

    @property
    def detectors(self) -> tuple[str, ...]:
        """The detectors there is strain of."""
        return tuple(self._strips)

    def typical_psd(self, detector: str) -> PSD:
        """The PSD of the detector's longest stretch."""
        strip = self._of(detector)
        lengths = np.diff(np.append(strip.first, strip.strain.size))
        return self._psds[int(strip.psd[np.argmax(lengths)])]

    def psd_table(self) -> list[PSD]:
        """The PSDs that :meth:`draw`'s ``psd_index`` points into: signals are whitened by the same ones."""
        return list(self._psds)

    def starts(self, detector: str, samples: int) -> int:
        """In how many places a window of ``samples`` can start."""
        return int(self._room(detector, samples)[-1])

    def seconds(self, detector: str) -> float:
        """Usable strain in seconds."""
        return float(np.diff(self._of(detector).spans, axis=1).sum() / self.rate)

    def _of(self, detector: str) -> _Strip:
        if detector not in self._strips:
            raise InputError("real noise", f"no strain of {detector}", "files of " + ", ".join(self._strips))
        return self._strips[detector]

    def _room(self, detector: str, samples: int) -> np.ndarray:
        """(K + 1,) running count of window starts over the usable spans."""
        spans = self._of(detector).spans
        room = np.concatenate([[0], np.cumsum(np.maximum(spans[:, 1] - spans[:, 0] - samples + 1, 0))])
        if room[-1] == 0:
            fault = f"no usable stretch of {detector} is {samples / self.rate:g} s long"
            raise InputError(self._name, fault, "more strain, or fewer exclusions")
        return room

    def draw(
        self, detectors: Sequence[str], seed: int, stream: str, step: int, rows: Iterable[int], samples: int
    ) -> tuple[Tensor, Tensor]:
        """Noise windows for the global ``rows`` of a step: a function of (seed, stream, step, row, detector).

        Returns:
            strain (B, D, samples) float32, and psd_index (B, D) int64 into :meth:`psd_table`.

        Raises:
            InputError: a detector has no strain, or no stretch of it is long enough.
        """
        where = uniform(seed, stream, step, rows, len(detectors))
        strain, index, _ = self.at(detectors, where, samples)
        return strain, index

    def at(self, detectors: Sequence[str], where: Tensor, samples: int) -> tuple[Tensor, Tensor, Tensor]:
        """The windows at ``where`` (B, D) in [0, 1): each detector's window starts, evenly from 0 to 1.

        Returns:
            strain (B, D, samples) float32, psd_index (B, D) int64, and GPS start times (B, D) float64.
        """
        position = where.numpy()
        strain = np.empty((*position.shape, samples), np.float32)  # (B, D, T)
        psd = np.empty(position.shape, np.int64)
        gps = np.empty(position.shape)
        for d, detector in enumerate(detectors):
            strip, room = self._of(detector), self._room(detector, samples)
            place = np.minimum((position[:, d] * room[-1]).astype(np.int64), room[-1] - 1)
            span = np.searchsorted(room, place, side="right") - 1
            start = strip.spans[span, 0] + place - room[span]
            strain[:, d] = np.lib.stride_tricks.sliding_window_view(strip.strain, samples)[start]
            piece = np.searchsorted(strip.first, start, side="right") - 1
            psd[:, d] = strip.psd[piece]
            gps[:, d] = strip.gps[piece] + (start - strip.first[piece]) / self.rate
        return torch.from_numpy(strain), torch.from_numpy(psd), torch.from_numpy(gps)

    def describe(self) -> dict[str, Any]:
        """What the noise is made of, JSON-able."""
        return {
            "rate": self.rate,
            "usable_seconds": {name: self.seconds(name) for name in self._strips},
            "psds": [psd.name for psd in self._psds],
            "excluded_gps": [list(span) for span in self._excluded],
        }


def gps_times(option: str, text: str) -> list[float]:
    """GPS times joined by commas, or those of a text file that holds one on each line.

    Raises:
        InputError: neither; it names ``option``.
    """
    expected = "GPS times joined by commas, or a text file of one on each line"
    listed = text
    if os.path.exists(text):
        try:
            listed = read_text(text, _MAX_LIST_BYTES, expected).replace("\n", ",")
        except InputError as error:
            raise InputError(option, str(error)) from error
    try:
        times = [float(part) for part in listed.split(",") if part.strip()]
    except ValueError:
        times = [np.nan]
    if not np.isfinite(times).all():
        raise InputError(option, text, expected)
    return times
