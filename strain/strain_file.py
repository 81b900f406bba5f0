"""One detector's continuous strain in a file, and how it is read a slice at a time.

A file of any layout is described by one :class:`StrainFile` for each continuous stretch of samples that it holds,
made from its headers alone. A :class:`StrainReader` then reads slices of that stretch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from gwtwins.strain.errors import InputError

LARGEST_STRAIN = 1e-3  # far above any saturated interferometer; what is larger is not dimensionless strain
MAX_RATE = 65536  # Hz; the fastest channel of strain that is recorded


@dataclass(frozen=True)
class StrainFile:
    """Samples of one detector, evenly spaced and without a break, and where they are stored."""

    path: str
    """The file; a description of a series in memory."""
    layout: str
    """"gwosc", "mlgwsc", "gwf" or "memory"."""
    detector: str
    start: float
    """GPS time of the first sample that is used, s."""
    samples: int
    """How many are used."""
    rate: int
    """Samples per second."""
    place: str = ""
    """The dataset or channel inside the file."""
    offset: int = 0
    """Samples of the stored stretch before the first that is used: another file holds these."""
    size: int = 0
    """Bytes of the file."""
    modified_ns: int = 0
    """The file's time of modification, ns."""
    quality: bool = True
    """Whether it says which seconds are good."""
    values: np.ndarray | None = field(default=None, compare=False, repr=False)
    """(T,) the samples of a series in memory."""

    @classmethod
    def of(
        cls,
        path: Path,
        layout: str,
        detector: str,
        start: float,
        samples: int,
        rate: int,
        place: str = "",
        quality: bool = True,
    ) -> StrainFile:
        """Of a file on disk, whose size and time of modification are looked up."""
        stat = path.stat()
        size, modified = stat.st_size, stat.st_mtime_ns
        return cls(str(path), layout, detector, start, samples, rate, place, 0, size, modified, quality)

    @property
    def end(self) -> float:
        """GPS time just after the last sample that is used, s."""
        return self.start + self.samples / self.rate


class StrainReader(Protocol):
    """An open file."""

    faults: np.ndarray | None
    """(S,) object: for each second of the stored stretch, why it must not be used, "" where it may; None where the
    file has no data quality."""

    def read(self, first: int, stop: int) -> np.ndarray:
        """Stored samples ``first`` to ``stop``, (T,) float64, not finite where missing."""

    def close(self) -> None:
        """Close the file."""


class SeriesReader:
    """A series in memory."""

    faults: np.ndarray | None = None

    def __init__(self, file: StrainFile) -> None:
        assert file.values is not None
        self._values, self._name = file.values, file.path

    def read(self, first: int, stop: int) -> np.ndarray:
        """Samples ``first`` to ``stop`` as float64."""
        strain = np.asarray(self._values[first:stop], np.float64)
        check_strain(strain, self._name)
        return strain

    def close(self) -> None:
        """Nothing to close."""


def check_strain(strain: np.ndarray, where: object) -> None:
    """Raise InputError where a sample is no dimensionless strain."""
    largest = max(float(strain.max()), -float(strain.min())) if strain.size else 0.0
    if not np.isfinite(largest):  # a sample is missing
        largest = float(np.max(np.abs(strain), where=np.isfinite(strain), initial=0.0))
    if largest > LARGEST_STRAIN:
        raise InputError(where, f"a sample of {largest:.3g}", "dimensionless strain, about 1e-18 or less")
