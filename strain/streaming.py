"""Whitened strain of several detectors as a stream of chunks: any length of data in the same small memory.

Chunk k covers the GPS seconds from k times its length on, whatever the files. It is whitened by a filter of its own,
made from the noise in the minutes around it, on the true strain on both sides: chunks follow on each other without a
step, and only the ends of a stretch of good data cost time. A chunk is a function of the files and of its number
alone, so a stream that is started again in the middle goes on with the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from gwtwins.strain.conditioning import check_band
from gwtwins.strain.coverage import Span
from gwtwins.strain.detector_stream import DetectorStream
from gwtwins.strain.errors import InputError
from gwtwins.strain.psd import PSD
from gwtwins.strain.strain_index import StrainIndex

CHUNK = 64.0  # s


@dataclass
class Chunk:
    """Whitened strain of D detectors over the same n samples."""

    gps_start: float
    """GPS time of the first sample, s: a whole multiple of the chunk's length."""
    rate: float
    """Samples per second."""
    detectors: tuple[str, ...]
    strain: np.ndarray
    """(D, n) float32 in standard deviations of the noise; 0 where not valid."""
    valid: np.ndarray
    """(D, n) bool: recorded well, no edge, no gate."""
    psd: tuple[PSD | None, ...]
    """For each detector, the PSD by which signals must be whitened to look as they would in this strain."""
    left_out: list[tuple[str, Span]] = field(default_factory=list)
    """(detector, GPS span with its reason) for all of the chunk that is not valid."""

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.strain.shape[1] / self.rate

    @property
    def gps_end(self) -> float:
        """GPS time just after the last sample, s."""
        return self.gps_start + self.seconds


def stream_conditioned(
    index: StrainIndex,
    rate: float,
    f_low: float,
    f_high: float,
    chunk: float = CHUNK,
    detectors: Sequence[str] | None = None,
    start: float | None = None,
    stop: float | None = None,
    gated: bool = True,
) -> Iterator[Chunk]:
    """The chunks in which there is a file of at least one detector, in the order of time.

    Args:
        index: the strain, from :func:`gwtwins.strain.strain_index.index_strain`.
        rate: samples per second of the result; ``rate`` times 4 s must be whole.
        f_low, f_high: band in Hz.
        chunk: seconds, a multiple of 4, at least 16.
        detectors: the rows of a chunk; by default those of the index. One without files is never valid.
        start, stop: GPS times: only chunks that reach into [start, stop).
        gated: take out what is above 50 standard deviations, see :mod:`gwtwins.strain.gating`.

    Raises:
        InputError: a rate does not hold the band, ``chunk`` is no such length, a file is at fault.
    """
    check_band(f_low, f_high, rate, "rate of the chunks")
    if chunk < 16 or chunk % 4:
        raise InputError("chunk", f"{chunk:g} s", "a multiple of 4 s, at least 16 s")
    if (rate / 2) % 1:
        raise InputError("rate of the chunks", f"{rate:g} samples a second", "an even whole number")
    names = index.detectors if detectors is None else tuple(detectors)
    seconds = int(chunk)
    rows = [DetectorStream(index, name, round(rate), f_low, f_high, seconds, gated) for name in names]
    return _stream(rows, rate, seconds, start, stop)


def _stream(
    rows: list[DetectorStream], rate: float, seconds: int, start: float | None, stop: float | None
) -> Iterator[Chunk]:
    numbers = sorted(set().union(*(row.blocks.numbers() for row in rows)))
    try:
        for k in numbers:
            low, high = k * seconds, (k + 1) * seconds
            if (start is not None and high <= start) or (stop is not None and low >= stop):
                continue
            parts = [row.whitened(k) for row in rows]
            yield Chunk(
                float(low),
                float(rate),
                tuple(row.name for row in rows),
                np.stack([part.strain for part in parts]),
                np.stack([part.valid for part in parts]),
                tuple(part.psd for part in parts),
                [(row.name, span) for row, part in zip(rows, parts, strict=True) for span in part.left_out],
            )
            for row in rows:
                row.forget(k + 1)
    finally:
        for row in rows:
            row.blocks.close()
