"""Strain in frame files (GWF), read by lalframe a frame at a time.

The detector is told by the channel's prefix ("H1:"). GWOSC's own frames carry their data quality beside the strain, in
channels that end in DQMASK and INJMASK; in other frames every second counts as good.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lal
import lalframe
import numpy as np

from gwtwins.strain.errors import InputError
from gwtwins.strain.gwosc import DEFAULT_REQUIRED, TRANSIENT_INJECTIONS
from gwtwins.strain.strain_file import MAX_RATE, StrainFile, check_strain

# Bits of the masks in frames called GWOSC, from O1 on (gwosc.org/archive/dataset/O1); a frame does not name them.
FLAGS = ("DATA", "CBC_CAT1", "CBC_CAT2", "CBC_CAT3", "BURST_CAT1", "BURST_CAT2", "BURST_CAT3")
INJECTIONS = ("NO_CBC_HW_INJ", "NO_BURST_HW_INJ", "NO_DETCHAR_HW_INJ", "NO_CW_HW_INJ", "NO_STOCH_HW_INJ")

_LAYOUT = "a complete frame file"
_READ = {
    lal.S_TYPE_CODE: lalframe.FrFileReadREAL4TimeSeries,
    lal.D_TYPE_CODE: lalframe.FrFileReadREAL8TimeSeries,
    lal.I4_TYPE_CODE: lalframe.FrFileReadINT4TimeSeries,
    lal.U4_TYPE_CODE: lalframe.FrFileReadUINT4TimeSeries,
}
_STRAIN_TYPES = (lal.S_TYPE_CODE, lal.D_TYPE_CODE)


def index_gwf(path: Path, channel: str | None = None, required: Sequence[str] | None = None) -> list[StrainFile]:
    """The stretches of strain that a frame file holds: one, unless frames are missing inside.

    Args:
        path: the file.
        channel: with or without the detector's prefix; by default the only one of strain that a
            detector has.
        required: data quality flags that must be known.

    Raises:
        InputError: not readable, truncated, no such channel or several, frames that contradict each other, flags
            required of a file without any.
    """
    found: list[StrainFile] = []
    with _faults(path):
        file = _open(path)
        for name in _strain_channels(path, channel):
            quality, _, _ = _masks(path, name, required)
            frames = _Frames(file, name, path)
            for start, seconds in frames.spans():
                samples = round(seconds * frames.rate)
                where = name, quality is not None
                found.append(StrainFile.of(path, "gwf", name[:2], start, samples, frames.rate, *where))
    return found


class GwfReader:
    """One stretch of a frame file, read a slice at a time; the frame last read is kept."""

    def __init__(self, path: Path, file: StrainFile, required: Sequence[str] | None = None) -> None:
        self.path = path
        self._start = file.start - file.offset / file.rate
        with _faults(path):
            self._frames = _Frames(_open(path), file.place, path)
            self.faults: np.ndarray | None = self._quality(file, required)

    def read(self, first: int, stop: int) -> np.ndarray:
        """Samples ``first`` to ``stop`` as float64."""
        with _faults(self.path):
            strain = self._frames.read(self._start, first, stop)
        check_strain(strain, self.path)
        return strain

    def close(self) -> None:
        """Let go of the file."""
        del self._frames

    def _quality(self, file: StrainFile, required: Sequence[str] | None) -> np.ndarray | None:
        quality, injections, wanted = _masks(self.path, file.place, required)
        if quality is None:
            return None
        seconds = file.offset / file.rate + file.samples / file.rate
        words = self._mask(quality, seconds)
        reasons = np.full(words.size, "", object)
        if injections is not None:
            clean = self._mask(injections, seconds)
            for bit, flag in enumerate(INJECTIONS):
                if flag in TRANSIENT_INJECTIONS:
                    reasons[(clean >> bit) & 1 == 0] = "hardware injection"
        passed = {flag: (words >> FLAGS.index(flag)) & 1 == 1 for flag in wanted}
        for second in np.flatnonzero(~np.all([np.ones(words.size, bool), *passed.values()], axis=0)):
            reasons[second] = "fails " + " and ".join(flag for flag in wanted if not passed[flag][second])
        return reasons

    def _mask(self, channel: str, seconds: float) -> np.ndarray:
        frames = _Frames(self._frames.file, channel, self.path)
        if frames.rate != 1:
            raise InputError(self.path, f"{channel} at {frames.rate} Hz", "one word a second")
        return frames.read(self._start, 0, int(np.ceil(seconds))).astype(np.int64)


class _Frames:
    """One channel of a file's frames."""

    def __init__(self, file: Any, channel: str, path: Path) -> None:
        self.file, self.channel, self.path = file, channel, path
        count = lalframe.FrFileQueryNFrame(file)
        self._start = [float(lalframe.FrFileQueryGTime(lal.LIGOTimeGPS(), file, i)) for i in range(count)]
        self._seconds = [float(lalframe.FrFileQueryDt(file, i)) for i in range(count)]
        samples = lalframe.FrFileQueryChanVectorLength(file, channel, 0)
        self.rate = round(samples / self._seconds[0])
        if not 1 <= self.rate <= MAX_RATE or samples != round(self.rate * self._seconds[0]):
            fault = f"{channel} has {samples} samples in {self._seconds[0]:g} s"
            raise InputError(path, fault, "a whole number of them a second")
        self._read = _READ.get(lalframe.FrFileQueryChanType(file, channel, 0))
        if self._read is None:
            raise InputError(path, f"{channel} holds no real numbers", "strain as floating-point numbers")
        self._kept: tuple[int, np.ndarray] | None = None

    def spans(self) -> list[tuple[float, float]]:
        """(GPS start, seconds) of frames that follow on each other."""
        found: list[tuple[float, float]] = []
        for start, seconds in sorted(zip(self._start, self._seconds, strict=True)):
            if found and abs(sum(found[-1]) - start) < 0.5 / self.rate:
                found[-1] = (found[-1][0], start + seconds - found[-1][0])
            else:
                found.append((start, seconds))
        return found

    def read(self, origin: float, first: int, stop: int) -> np.ndarray:
        """Samples ``first`` to ``stop`` from GPS ``origin`` on, as float64; NaN where no frame holds them."""
        out = np.full(stop - first, np.nan)
        for i, (start, seconds) in enumerate(zip(self._start, self._seconds, strict=True)):
            begin = round((start - origin) * self.rate) - first
            low, high = max(begin, 0), min(begin + round(seconds * self.rate), out.size)
            if high > low:
                out[low:high] = self._frame(i, round(seconds * self.rate))[low - begin : high - begin]
        return out

    def _frame(self, i: int, samples: int) -> np.ndarray:
        if self._kept is None or self._kept[0] != i:
            self._kept = None  # before the next is read: never two at a time
            assert self._read is not None
            series = self._read(self.file, self.channel, i)  # owns the samples
            values = np.array(series.data.data)
            if values.size != samples:
                fault = f"frame {i} has {values.size} samples of {self.channel}"
                raise InputError(self.path, fault, f"{samples}, as its length says")
            self._kept = i, values
        return self._kept[1]


def _open(path: Path) -> Any:
    return lalframe.FrFileOpenURL(str(path))


def _channels(path: Path) -> list[str]:
    # Only after FrFileOpenURL has found the table of contents: this way to it takes no missing one.
    file = lalframe.FrameUFrFileOpen(str(path), "r")  # owns what the table points to
    table = lalframe.FrameUFrTOCRead(file)
    names = []
    for count, name in (
        (lalframe.FrameUFrTOCQueryAdcN, lalframe.FrameUFrTOCQueryAdcName),
        (lalframe.FrameUFrTOCQueryProcN, lalframe.FrameUFrTOCQueryProcName),
        (lalframe.FrameUFrTOCQuerySimN, lalframe.FrameUFrTOCQuerySimName),
    ):
        names += [name(table, i) for i in range(count(table))]
    del table, file
    return sorted(names)


def _strain_channels(path: Path, channel: str | None) -> list[str]:
    """One of each detector."""
    held = [name for name in _channels(path) if re.match(r"[A-Z][0-9]:", name)]
    if channel is not None:
        wanted = re.sub(r"^[A-Z][0-9]:", "", channel)
        found = [name for name in held if name[3:] == wanted]
    else:
        found = [name for name in held if not name.endswith("MASK")]
        if len({name[:2] for name in found}) < len(found):
            found = [name for name in found if name.endswith("STRAIN")] or found
    if not found or len({name[:2] for name in found}) < len(found):
        fault = f"no channel {channel}" if channel is not None else f"{len(found)} channels of strain"
        listed = ", ".join(held[:8]) + (", ..." if len(held) > 8 else "")
        raise InputError(path, fault, f"the name of one of its channels: {listed or 'it has none'}")
    return found


def _masks(path: Path, channel: str, required: Sequence[str] | None) -> tuple[str | None, str | None, list[str]]:
    """The channels of data quality and of injections, where there are any, and the flags to look at."""
    held = _channels(path)
    stem = channel.removesuffix("STRAIN")
    known = stem != channel and channel[3:].startswith("GWOSC-") and stem + "DQMASK" in held
    if not known:
        if required:
            raise InputError(path, "a frame file without data quality flags", "GWOSC's frames, or no flags required")
        return None, None, []
    for flag in required or ():
        if flag not in FLAGS:
            raise InputError(path, f"no data quality flag {flag}", "one of " + ", ".join(sorted(FLAGS)))
    injections = stem + "INJMASK"
    return stem + "DQMASK", injections if injections in held else None, list(required or DEFAULT_REQUIRED)


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """LAL prints what is wrong, in many lines, and raises RuntimeError."""
    if path.stat().st_size == 0:
        raise InputError(path, "the file is empty", _LAYOUT)
    level = lal.GetDebugLevel()
    lal.ClobberDebugLevel(level & ~(lal.LALERRORBIT | lal.LALWARNINGBIT))
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, MemoryError, ValueError, TypeError) as error:
        raise InputError(path, f"truncated, or not a readable frame file ({error})", _LAYOUT) from error
    finally:
        lal.ClobberDebugLevel(level)
