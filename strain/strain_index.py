"""What strain there is: files, folders and series of any length, indexed by their headers alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gwtwins.strain.coverage import Span, merged
from gwtwins.strain.detectors import DETECTORS
from gwtwins.strain.errors import InputError, shown
from gwtwins.strain.gwosc import GwoscReader, index_gwosc
from gwtwins.strain.hdf5_file import open_hdf5
from gwtwins.strain.mlgwsc import MlgwscReader, index_mlgwsc, looks_like_mlgwsc
from gwtwins.strain.strain_file import MAX_RATE, SeriesReader, StrainFile, StrainReader

ENDINGS = (".hdf5", ".h5", ".hdf", ".gwf")
_LAYOUTS = "a GWOSC HDF5 file, a GWF frame file or an MLGWSC-1 HDF5 file"
_SAME_TIME = 1e-6  # s; GPS times of 1e9 s in float64 are multiples of 1e-7 s


@dataclass(frozen=True)
class StrainIndex:
    """The files of a search, those of one detector apart in time."""

    files: tuple[StrainFile, ...]
    """By detector and time; what another file holds already is taken out."""
    required_flags: tuple[str, ...] | None = None
    """Data quality that a second must pass; None for the defaults."""
    channel: str | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Sentences on files that overlap, and on frames without data quality."""

    @property
    def detectors(self) -> tuple[str, ...]:
        """Those there is strain of."""
        held = {file.detector for file in self.files}
        return tuple(name for name in DETECTORS if name in held)

    @property
    def spans(self) -> list[Span]:
        """GPS spans that the files of at least one detector cover."""
        return merged([Span(file.start, file.end) for file in self.files])

    def of(self, detector: str) -> list[StrainFile]:
        """The files of one detector, in the order of time."""
        return [file for file in self.files if file.detector == detector]

    def open(self, file: StrainFile) -> StrainReader:
        """Open one of the files.

        Raises:
            InputError: it is no longer what it was.
        """
        if file.layout == "memory":
            return SeriesReader(file)
        path = Path(file.path)
        if not path.is_file() or path.stat().st_size != file.size:
            raise InputError(path, "has changed since it was indexed", f"the file of {file.size} bytes")
        if file.layout == "gwosc":
            return GwoscReader(path, self.required_flags)
        if file.layout == "mlgwsc":
            return MlgwscReader(path, file.place)
        from gwtwins.strain.gwf_process import GwfReader  # lalframe is loaded only where there are frames

        return GwfReader(path, file, self.required_flags)


def index_strain(
    paths: Iterable[str | Path] | Mapping[str, Any],
    required_flags: Sequence[str] | None = None,
    detectors: Sequence[str] | None = None,
    channel: str | None = None,
) -> StrainIndex:
    """Index strain files by their headers: no strain is read.

    Where files of one detector overlap, the first (by start, then by name) holds the overlap.

    Args:
        paths: GWOSC HDF5, GWF and MLGWSC-1 files, and folders of them (searched to any depth); or a mapping as for
            :func:`from_series`.
        required_flags: data quality a second must pass, by GWOSC's short names. By default DATA, CBC_CAT1 and
            CBC_CAT2, as far as a file has them; names given here must be in every file but MLGWSC-1's.
        detectors: those that may occur; by default any that gwtwins knows.
        channel: of frame files, with or without the detector's prefix; by default the only channel of strain.

    Raises:
        InputError: nothing there, or a file is empty, truncated, of no known layout, of another detector, or lacks
            a required flag; the message names it.
    """
    if isinstance(paths, Mapping):
        return from_series(paths, detectors)
    required = None if required_flags is None else tuple(required_flags)
    found: list[StrainFile] = []
    for path in strain_paths(paths):
        for file in _index_file(path, required, channel):
            _allowed(file.detector, detectors, path)
            found.append(file)
    return _index(found, required, channel)


def from_series(series: Mapping[str, Any], detectors: Sequence[str] | None = None) -> StrainIndex:
    """Index strain in memory.

    Args:
        series: a pycbc or gwpy TimeSeries of each detector, {"H1": series}, or a list of such.
        detectors: those that may occur.

    Raises:
        InputError: an unknown detector, or something that is no evenly sampled series.
    """
    found = []
    for detector, given in series.items():
        _allowed(detector, detectors, "series")
        for one in given if isinstance(given, list | tuple) else [given]:
            found.append(_memory(detector, one))
    return _index(found, None, None)


def strain_inside(folder: Path) -> Iterator[Path]:
    """The files of a folder, to any depth, that end as strain files do."""
    return (path for path in folder.rglob("*") if path.suffix in ENDINGS and path.is_file())


def strain_paths(paths: Iterable[str | Path]) -> list[Path]:
    """Files and, of folders, those that `strain_inside` finds; InputError where there are none."""
    files: list[Path] = []
    for given in [paths] if isinstance(paths, str | Path) else paths:
        path = Path(given)
        inside = [path]
        if path.is_dir():
            inside = sorted(strain_inside(path))
            if not inside:
                raise InputError(path, "no strain file in this folder", "files ending in " + ", ".join(ENDINGS))
        elif not path.is_file():
            raise InputError(path, "no such file", _LAYOUTS)
        files += [p.resolve() for p in inside]
    if not files:
        raise InputError("strain files", "none given", _LAYOUTS)
    return list(dict.fromkeys(files))


def _index_file(path: Path, required: tuple[str, ...] | None, channel: str | None) -> list[StrainFile]:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"IGWD" or path.suffix == ".gwf":
        from gwtwins.strain.gwf_process import index_gwf

        return index_gwf(path, channel, required)
    with open_hdf5(path, _LAYOUTS) as file:
        mlgwsc = "strain" not in file and looks_like_mlgwsc(file)
    return index_mlgwsc(path) if mlgwsc else index_gwosc(path, required)


def _allowed(detector: str, detectors: Sequence[str] | None, where: object) -> None:
    if detector not in DETECTORS:
        raise InputError(where, f"unknown detector {detector[:20]!r}", "one of " + ", ".join(DETECTORS))
    if detectors is not None and detector not in detectors:
        raise InputError(where, f"is of {detector}", "strain of " + ", ".join(detectors))


def _memory(detector: str, series: Any) -> StrainFile:
    """A pycbc series has ``start_time`` and ``delta_t``, a gwpy one ``t0`` and ``dt`` with units."""
    name = f"series of {detector}"
    try:
        if hasattr(series, "delta_t"):
            start, spacing, values = float(series.start_time), float(series.delta_t), series.numpy()
        else:
            start, spacing = float(series.t0.to_value("s")), float(series.dt.to_value("s"))
            values = series.value
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(name, f"a {type(series).__name__}", "a pycbc or gwpy TimeSeries") from error
    values = np.asarray(values)
    if values.ndim != 1 or values.dtype.kind != "f" or not values.size:
        raise InputError(name, f"{values.dtype} of shape {values.shape}", "a row of floating-point samples")
    rate = round(1.0 / spacing) if spacing > 0 else 0
    if not 1 <= rate <= MAX_RATE or abs(spacing * rate - 1.0) > 1e-6:
        raise InputError(name, f"samples {spacing:g} s apart", "a whole number of them a second")
    return StrainFile(name, "memory", detector, start, values.size, rate, quality=False, values=values)


def _index(found: list[StrainFile], required: tuple[str, ...] | None, channel: str | None) -> StrainIndex:
    kept: list[StrainFile] = []
    notes: list[str] = []
    for detector in dict.fromkeys(file.detector for file in found):
        last: StrainFile | None = None
        own = [file for file in found if file.detector == detector]
        for file in sorted(own, key=lambda f: (f.start, f.path, f.place)):
            if last is not None and file.start < last.end - _SAME_TIME:
                skipped = min(int(np.ceil((last.end - file.start) * file.rate - 1e-3)), file.samples)
                what = "is used from there on only" if skipped < file.samples else "is not used"
                overlap = f"GPS {file.start:.0f}-{min(last.end, file.end):.0f} is in {last.path}"
                notes.append(f"{file.path}: {detector} at {overlap} already; it {what}")
                start, left = file.start + skipped / file.rate, file.samples - skipped
                file = replace(file, start=start, samples=left, offset=skipped)
            if file.samples > 0:
                if file.layout == "gwf" and not file.quality:
                    notes.append(f"{file.path}: frames without data quality flags that are known; every second counts")
                kept.append(file)
                last = file
    order = {name: i for i, name in enumerate(DETECTORS)}
    kept.sort(key=lambda f: (order[f.detector], f.start))
    return StrainIndex(tuple(kept), required, channel, tuple(map(shown, notes)))
