"""One detector's strain in blocks of GPS time: read, judged second by second, brought to one rate.

Everything about block k is a function of the files and of k alone, computed from whole blocks around it and kept for as
long as it is needed: a stream that starts in the middle gives the same numbers as one from the beginning.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.fft import irfft, rfft, rfftfreq

from gwtwins.strain.errors import InputError
from gwtwins.strain.recording import gaps, second_levels, usual_level
from gwtwins.strain.strain_file import StrainFile, StrainReader
from gwtwins.strain.strain_index import StrainIndex
from gwtwins.strain.whitening_filter import low_pass

SCALE = 1e-21  # strain is kept in units of this
NO_FILE = "no strain file"
NO_DATA = "no data"

_PAD = 1  # s read on each side of a block
_STEP = 4  # s that one Fourier transform of the resampling gives, from half a second more on each side
_OPEN_FILES = 4
_SAME_GRID = 0.01  # samples


def working_rate(f_high: float) -> int:
    """The lowest rate, 1024 Hz times a power of two, that holds the band: conditioning takes place at it."""
    rate = 1024
    while f_high >= 0.495 * rate:
        rate *= 2
    return rate


@dataclass(frozen=True)
class _Grid:
    """Where a file's samples lie: files that share it can be joined."""

    rate: int
    shift: float
    """Of the first sample at or after a whole second, in samples."""
    segment: str = ""
    """Where a layout says that stretches do not belong together even if they touch: which."""


def _grid(file: StrainFile) -> _Grid:
    shift = (file.start % 1.0) * file.rate % 1.0
    # MLGWSC-1 lays independent pieces of noise side by side.
    segment = file.place if file.layout == "mlgwsc" else ""
    return _Grid(file.rate, 0.0 if min(shift, 1 - shift) < _SAME_GRID else round(shift, 2), segment)


class StrainBlocks:
    """The blocks of one detector; block k covers GPS seconds [k seconds, (k + 1) seconds).

    Args:
        index: the files.
        detector: whose.
        f_low, f_high: band in Hz.
        seconds: of a block, a multiple of 4.

    Raises:
        InputError: a file's rate does not hold the band.
    """

    def __init__(self, index: StrainIndex, detector: str, f_low: float, f_high: float, seconds: int) -> None:
        self.index, self.detector, self.seconds = index, detector, seconds
        self.f_low, self.f_high, self.rate = f_low, f_high, working_rate(f_high)
        self.files = index.of(detector)
        for file in self.files:
            if file.rate % 2 or file.rate < self.rate:
                expected = f"an even number of them, at least {self.rate} for strain up to {f_high:g} Hz"
                raise InputError(file.path, f"{file.rate} samples a second", expected)
        self._grids = [_grid(file) for file in self.files]
        self._number = {grid: i for i, grid in enumerate(dict.fromkeys(self._grids))}
        self._starts = [file.start for file in self.files]
        self._readers: dict[StrainFile, StrainReader] = {}
        self._kept: dict[tuple[str, int], Any] = {}
        self._response: dict[tuple[int, float], np.ndarray] = {}

    def numbers(self) -> set[int]:
        """The blocks that a file reaches into."""
        found: set[int] = set()
        for file in self.files:
            found.update(range(int(file.start // self.seconds), int(np.ceil(file.end / self.seconds))))
        return found

    def forget(self, before: int) -> None:
        """Let go of blocks below ``before``."""
        for key in [key for key in self._kept if key[1] < before]:
            del self._kept[key]

    def close(self) -> None:
        """Close the files."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def kept(self, what: str, k: int, compute: Callable[[int], Any]) -> Any:
        """``compute(k)``, from memory where it was asked for before."""
        key = (what, k)
        if key not in self._kept:
            self._kept[key] = compute(k)
        return self._kept[key]

    def reasons(self, k: int) -> np.ndarray:
        """(S,) object: why each second of the block cannot be used, "" where it can."""
        return self.kept("reasons", k, self._reasons)

    def grid(self, k: int) -> np.ndarray:
        """(S,) which sampling each second has, as a number; seconds of two samplings cannot be joined."""
        return self.kept("levels", k, self._levels)[2]

    def usable(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Of blocks ``first`` to ``last``: (S,) bool, which seconds can be used, and (S,) their sampling."""
        blocks = range(first, last + 1)
        use = np.concatenate([self.reasons(k) == "" for k in blocks])
        return use, np.concatenate([self.grid(k) for k in blocks])

    def strain(self, k: int) -> np.ndarray:
        """(S rate,) float64 strain in units of SCALE at the working rate; what cannot be used counted as zero."""
        return self.kept("strain", k, self._strain)

    # ---- reading

    def _files_in(self, low: float, high: float) -> list[int]:
        i = max(bisect_right(self._starts, low) - 1, 0)
        found = []
        while i < len(self.files) and self.files[i].start < high:
            if self.files[i].end > low:
                found.append(i)
            i += 1
        return found

    def _reader(self, file: StrainFile) -> StrainReader:
        if file not in self._readers:
            while len(self._readers) >= _OPEN_FILES:
                self._readers.pop(next(iter(self._readers))).close()
            self._readers[file] = self.index.open(file)
        return self._readers[file]

    def _raw(self, k: int) -> dict[_Grid, np.ndarray]:
        """The samples of the block and of a second on each side, by sampling; NaN where there is none."""
        low, high = k * self.seconds - _PAD, (k + 1) * self.seconds + _PAD
        found: dict[_Grid, np.ndarray] = {}
        for i in self._files_in(low, high):
            file, grid = self.files[i], self._grids[i]
            if grid not in found:
                found[grid] = np.full((high - low) * grid.rate, np.nan)
            # The first sample of the file, counted from the first of this region.
            first = round((file.start - low) * grid.rate - grid.shift)
            begin, stop = max(first, 0), min(first + file.samples, found[grid].size)
            if stop > begin:
                found[grid][begin:stop] = self._reader(file).read(
                    file.offset + begin - first, file.offset + stop - first
                )
        return found

    def raw(self, k: int) -> dict[_Grid, np.ndarray]:
        """As read."""
        return self.kept("raw", k, self._raw)

    # ---- judging

    def _levels(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(S,) level, (S,) bool missing, (S,) number of the sampling."""
        level, missing = np.zeros(self.seconds), np.ones(self.seconds, bool)
        number = np.full(self.seconds, -1)
        for grid, strain in self.raw(k).items():
            own, gone = second_levels(strain, grid.rate, self.f_low, self.f_high)
            there = ~gone[_PAD:-_PAD]
            level[there], missing[there] = own[_PAD:-_PAD][there], False
            number[there] = self._number[grid]
        return level, missing, number

    def _reasons(self, k: int) -> np.ndarray:
        reasons = self._covered(k)
        if (reasons == NO_FILE).all():
            return reasons
        around = [self.kept("levels", j, self._levels) for j in (k - 1, k, k + 1)]
        level, missing = np.concatenate([a[0] for a in around]), np.concatenate([a[1] for a in around])
        gap = gaps(level, missing, usual_level(level, missing))[self.seconds : 2 * self.seconds]
        reasons[gap & (reasons != NO_FILE)] = NO_DATA
        return reasons

    def _covered(self, k: int) -> np.ndarray:
        """(S,) object: NO_FILE, what data quality says against the second, or ""."""
        low = k * self.seconds
        second = low + np.arange(self.seconds)
        reasons = np.full(self.seconds, NO_FILE, object)
        for i in self._files_in(low, low + self.seconds):
            file = self.files[i]
            there = np.flatnonzero((second + 1 > file.start) & (second < file.end))
            faults = self._reader(file).faults
            if faults is None:
                reasons[there] = ""
                continue
            since = second[there] - (file.start - file.offset / file.rate)
            for at in (np.floor(since + 1e-6), np.ceil(since - 1e-6)):  # two where the file starts inside a second
                fault = faults[at.astype(int).clip(0, faults.size - 1)]
                worse = (fault != "") | (reasons[there] == NO_FILE)
                reasons[there[worse]] = fault[worse]
        return reasons

    # ---- resampling

    def _strain(self, k: int) -> np.ndarray:
        out = np.zeros(self.seconds * self.rate)
        raw = self.raw(k)
        if not raw:
            return out
        use, number = self.usable(k - 1, k + 1)
        near = slice(self.seconds - _PAD, 2 * self.seconds + _PAD)
        for grid, strain in raw.items():
            own = use[near] & (number[near] == self._number[grid])
            if own.any():
                out += self._resampled(strain, own, grid)
        self._kept.pop(("raw", k))  # judged and resampled: the largest part of the memory is free again
        return out

    def _resampled(self, strain: np.ndarray, use: np.ndarray, grid: _Grid) -> np.ndarray:
        rows = strain.reshape(-1, grid.rate) / SCALE
        rows[~use] = 0.0
        clean = rows.reshape(-1)
        if grid.rate == self.rate and grid.shift == 0.0:
            return clean[_PAD * self.rate : -_PAD * self.rate]
        half = grid.rate // 2
        size = _STEP * grid.rate + 2 * half
        windows = np.lib.stride_tricks.sliding_window_view(clean[half:], size)[:: _STEP * grid.rate]
        n = (_STEP + 1) * self.rate
        spectrum = rfft(windows)
        spectrum *= self._low_pass(grid, size)
        kept = spectrum[:, : n // 2 + 1]
        folded = spectrum[
            :, n // 2 : n + 1
        ]  # from half the new rate to the filter's stop band: aliases, as in decimation
        if grid.rate > self.rate:
            kept[:, n // 2 + 1 - folded.shape[1] :] += folded[:, ::-1].conj()
        fine = irfft(kept, n) * (self.rate / grid.rate)
        return fine[:, self.rate // 2 : -self.rate // 2].reshape(-1)

    def _low_pass(self, grid: _Grid, size: int) -> np.ndarray:
        """The filter's gain at each bin of a transform of ``size``, and the shift to whole samples of GPS time."""
        key = grid.rate, grid.shift
        if key not in self._response:
            gain = np.ones(size // 2 + 1, complex)
            if grid.rate > self.rate:
                taps = low_pass(grid.rate, self.f_high, self.rate - self.f_high)
                gain = rfft(np.roll(np.pad(taps, (0, size - taps.size)), -(taps.size // 2)))
                gain[self.rate * size // grid.rate + 1 :] = 0.0
            self._response[key] = gain * np.exp(-2j * np.pi * rfftfreq(size) * grid.shift)
        return self._response[key]
