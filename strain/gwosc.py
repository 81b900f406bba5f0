"""Strain files in the HDF5 layout of the Gravitational Wave Open Science Center (gwosc.org).

``strain/Strain`` with its sampling in attributes, ``quality/simple/DQmask`` at 1 Hz with a bit for each entry
of ``DQShortnames``, and ``quality/injections/Injmask`` likewise. Bits are looked up by short name, since
older files order them otherwise. Nothing is read before its size, type and storage have been checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from gwtwins.strain.errors import InputError
from gwtwins.strain.hdf5_file import Hdf5Reader, attribute, open_hdf5, short_texts, stored_dataset
from gwtwins.strain.recording import Recording
from gwtwins.strain.strain_file import StrainFile, check_strain

DETECTORS = ("H1", "L1", "V1", "K1")
RATES = (1024, 2048, 4096, 16384)  # Hz; 4096 and 16384 are published, the lower ones are resampled copies
MAX_SAMPLES = 16384 * 4096  # GWOSC's largest file: 4096 s at 16384 Hz, 512 MiB as float64
MAX_STREAMED = 1 << 38  # samples read in slices: half a year at 16384 Hz

DEFAULT_REQUIRED = ("DATA", "CBC_CAT1", "CBC_CAT2")
"""Flags a second must pass: data present, no severe fault, no noise of known instrumental origin."""

# A hardware injection is a signal pushed into the mirrors. Continuous-wave ones (NO_CW_HW_INJ) are left out:
# they ran through whole observing runs at an amplitude that seconds of data do not show.
TRANSIENT_INJECTIONS = ("NO_CBC_HW_INJ", "NO_BURST_HW_INJ", "NO_DETCHAR_HW_INJ", "NO_STOCH_HW_INJ")

_MAX_FLAGS = 32  # bits of a DQmask word
_LAYOUT = "a complete GWOSC HDF5 strain file"


def read_gwosc(path: str | Path, required: Sequence[str] | None = None) -> Recording:
    """One GWOSC HDF5 file as a :class:`Recording`.

    Args:
        path: the file.
        required: DQ short names a second must pass to be good. By default DATA, CBC_CAT1 and CBC_CAT2, as far
            as the file has them; names given here must all be there.

    Raises:
        InputError: no such file, not HDF5, truncated, a dataset missing or of a wrong shape or type, sampling
            that contradicts itself, an unknown detector, external or virtual storage, no finite sample.
    """
    path = Path(path)
    with open_hdf5(path, _LAYOUT) as file:
        held = _contents(file, path, required)
        strain = held.strain[()].astype(np.float64, copy=False)
        if not np.isfinite(strain).any():
            raise InputError(path, "no finite sample", "strain, with NaN only where data are missing")
        check_strain(strain, path)
    return Recording(held.detector, held.start, float(held.rate), strain, held.good, held.flags, held.clean, str(path))


def index_gwosc(path: Path, required: Sequence[str] | None = None) -> list[StrainFile]:
    """What a GWOSC file holds, without its strain; else as :func:`read_gwosc`."""
    with open_hdf5(path, _LAYOUT) as file:
        held = _contents(file, path, required, MAX_STREAMED)
        return [StrainFile.of(path, "gwosc", held.detector, held.start, held.strain.shape[0], held.rate)]


class GwoscReader(Hdf5Reader):
    """A GWOSC file that is read a slice at a time."""

    def __init__(self, path: Path, required: Sequence[str] | None = None) -> None:
        self._required = required
        super().__init__(path, _LAYOUT)

    def _find(self) -> h5py.Dataset:
        held = _contents(self._file, self.path, self._required, MAX_STREAMED)
        self.faults = _faults(held)
        return held.strain


@dataclass
class _Contents:
    """What a file holds: the strain still in the file, the flags of its S seconds in memory."""

    detector: str
    start: float
    rate: int
    strain: h5py.Dataset
    flags: dict[str, np.ndarray]
    required: list[str]
    good: np.ndarray
    clean: np.ndarray


def _contents(file: h5py.File, path: Path, required: Sequence[str] | None, most: int = MAX_SAMPLES) -> _Contents:
    detector = _text(file, "meta/Detector", path)
    if detector not in DETECTORS:
        raise InputError(path, f"unknown detector {detector[:20]!r}", "one of " + ", ".join(DETECTORS))

    dataset = _vector(file, "strain/Strain", path, most)
    if dataset.dtype.kind != "f":
        raise InputError(path, f"strain/Strain has dtype {dataset.dtype}", "floating-point strain")
    samples = dataset.shape[0]
    rate = _rate(dataset, path)
    declared = _number(attribute(dataset, "Npoints", "iuf"), "Npoints", path) if "Npoints" in dataset.attrs else samples
    if declared != samples:
        raise InputError(path, f"Npoints is {declared:g} but strain/Strain holds {samples}", "equal numbers")
    if samples == 0 or samples % rate:
        raise InputError(path, f"{samples} samples at {rate} Hz", "a whole number of seconds, at least one")
    seconds = samples // rate
    if "Duration" in file["meta"]:
        duration = _scalar(file, "meta/Duration", path)
        if duration != seconds:
            raise InputError(path, f"Duration is {duration:g} s but the strain lasts {seconds} s", "equal numbers")
    start = _start(file, dataset, path)

    flags = _flags(file, "quality/simple", "DQmask", "DQShortnames", seconds, path)
    good = np.ones(seconds, bool)
    wanted = [name for name in DEFAULT_REQUIRED if name in flags] if required is None else list(required)
    for name in wanted:
        if name not in flags:
            known = ", ".join(sorted(flags))
            raise InputError(path, f"no data quality flag {name}", f"one of {known}")
        good &= flags[name]

    clean = np.ones(seconds, bool)
    if file["quality"].get("injections", getlink=True) is not None:
        injections = _flags(file, "quality/injections", "Injmask", "InjShortnames", seconds, path)
        for name in TRANSIENT_INJECTIONS:
            clean &= injections.get(name, True)
    return _Contents(detector, start, rate, dataset, flags, wanted, good, clean)


def _faults(held: _Contents) -> np.ndarray:
    """(S,) why each second fails its tests, empty where it passes."""
    reasons = np.full(held.good.size, "", object)
    reasons[~held.clean] = "hardware injection"
    for second in np.flatnonzero(~held.good):
        failed = [name for name in held.required if not held.flags[name][second]]
        reasons[second] = "fails " + " and ".join(failed)
    return reasons


def _dataset(file: h5py.File, name: str, path: Path, most: int) -> h5py.Dataset:
    """The dataset ``name`` of at most one dimension and ``most`` entries."""
    dataset = stored_dataset(file, name, path, _LAYOUT, most)
    if dataset.ndim > 1:
        raise InputError(path, f"{name} has shape {dataset.shape}", "one dimension")
    return dataset


def _vector(file: h5py.File, name: str, path: Path, most: int) -> h5py.Dataset:
    dataset = _dataset(file, name, path, most)
    if dataset.ndim != 1:
        raise InputError(path, f"{name} has shape {dataset.shape}", "one dimension")
    return dataset


def _text(file: h5py.File, name: str, path: Path) -> str:
    texts = short_texts(_dataset(file, name, path, 1), path, "the GWOSC HDF5 layout")
    if len(texts) != 1:
        raise InputError(path, f"{name} is not text", "the GWOSC HDF5 layout")
    return texts[0]


def _number(value: object, what: str, path: Path) -> float:
    number = np.asarray(np.nan if value is None else value)
    if number.size != 1 or number.dtype.kind not in "iuf" or not np.isfinite(number).all():
        raise InputError(path, f"{what} is not a finite number", "the GWOSC HDF5 layout")
    return float(number.reshape(()))


def _scalar(file: h5py.File, name: str, path: Path) -> float:
    dataset = _dataset(file, name, path, 1)
    return _number(dataset[()] if dataset.dtype.kind in "iuf" else None, name, path)


def _rate(dataset: h5py.Dataset, path: Path) -> int:
    spacing = _number(attribute(dataset, "Xspacing", "iuf"), "Xspacing of strain/Strain", path)
    for rate in RATES:
        if abs(spacing * rate - 1.0) < 1e-6:
            return rate
    raise InputError(path, f"samples {spacing:g} s apart", "a rate of " + ", ".join(map(str, RATES)) + " Hz")


def _start(file: h5py.File, dataset: h5py.Dataset, path: Path) -> float:
    starts = []
    if "GPSstart" in file["meta"]:
        starts.append(_scalar(file, "meta/GPSstart", path))
    if "Xstart" in dataset.attrs:
        starts.append(_number(attribute(dataset, "Xstart", "iuf"), "Xstart", path))
    if not starts:
        raise InputError(path, "no GPS start", "meta/GPSstart or the attribute Xstart of strain/Strain")
    if max(starts) != min(starts):
        raise InputError(path, f"GPSstart {starts[0]:.3f} and Xstart {starts[1]:.3f}", "one GPS start")
    if not 0 < starts[0] < 1e10:
        raise InputError(path, f"GPS start {starts[0]:g}", "GPS seconds")
    return starts[0]


def _flags(
    file: h5py.File, group: str, mask_name: str, names_name: str, seconds: int, path: Path
) -> dict[str, np.ndarray]:
    """Each short name's (seconds,) bool: whether the second passes that test."""
    mask = _vector(file, f"{group}/{mask_name}", path, MAX_SAMPLES)
    names = _vector(file, f"{group}/{names_name}", path, _MAX_FLAGS)
    given = attribute(mask, "Xspacing", "iuf") if "Xspacing" in mask.attrs else 1.0
    spacing = _number(given, f"Xspacing of {mask_name}", path)
    if mask.dtype.kind not in "iu" or spacing != 1.0:
        raise InputError(path, f"{mask_name} of {mask.dtype} every {spacing:g} s", "integers every second")
    if mask.shape[0] != seconds:
        raise InputError(path, f"{mask_name} has {mask.shape[0]} entries for {seconds} s", "one a second")
    if names.dtype.kind not in "SO":
        raise InputError(path, f"{names_name} is not text", "short names of data quality flags")
    words = mask[()].astype(np.uint64)
    short = short_texts(names, path, "the GWOSC HDF5 layout")
    return {name: (words >> np.uint64(bit)) & np.uint64(1) == 1 for bit, name in enumerate(short)}
