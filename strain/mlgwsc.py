"""Strain in the layout of MLGWSC-1, the first machine-learning search mock data challenge (arXiv:2209.11146).

A group for each detector ("H1", "L1"), in it a dataset for each segment, named by its GPS start, with attributes
``delta_t`` (s) and ``start_time`` (GPS s). No data quality: what is there is to be analysed.
"""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np

from gwtwins.strain.detectors import DETECTORS
from gwtwins.strain.errors import InputError
from gwtwins.strain.hdf5_file import Hdf5Reader, attribute, open_hdf5, stored_dataset, stored_member
from gwtwins.strain.strain_file import MAX_RATE, StrainFile

_LAYOUT = "the MLGWSC-1 layout: a group for each detector, a dataset for each segment"
_LONGEST = 10 * 366 * 86400  # s
_MOST = _LONGEST * MAX_RATE  # samples


def looks_like_mlgwsc(file: h5py.File) -> bool:
    """Whether the file's groups are named like detectors."""
    return any(re.fullmatch(r"[A-Z][0-9]", name) for name in file)


def index_mlgwsc(path: Path) -> list[StrainFile]:
    """The segments that the file holds, without their strain.

    Raises:
        InputError: not readable, no segment, a group that is no detector, a dataset of a wrong shape or sampling.
    """
    with open_hdf5(path, _LAYOUT) as file:
        found = []
        for detector in file:
            if detector not in DETECTORS:
                expected = "groups named " + ", ".join(DETECTORS)
                raise InputError(path, f"unknown detector {detector[:20]!r}", expected)
            group = stored_member(file, detector, path, _LAYOUT)
            if not isinstance(group, h5py.Group):
                raise InputError(path, f"{detector} is not a group", _LAYOUT)
            for name in group:
                found.append(_segment(group, detector, name, path))
    if not found:
        raise InputError(path, "no segment of strain", _LAYOUT)
    return found


class MlgwscReader(Hdf5Reader):
    """One segment, read a slice at a time."""

    def __init__(self, path: Path, place: str) -> None:
        self._place = place
        super().__init__(path, _LAYOUT)

    def _find(self) -> h5py.Dataset:
        return _row(self._file, self._place, self._place, self.path)


def _row(group: h5py.Group, name: str, where: str, path: Path) -> h5py.Dataset:
    dataset = stored_dataset(group, name, path, _LAYOUT, _MOST)
    if dataset.ndim != 1 or dataset.dtype.kind != "f" or not dataset.size:
        raise InputError(path, f"{where} is not a row of floating-point samples", _LAYOUT)
    return dataset


def _segment(group: h5py.Group, detector: str, name: str, path: Path) -> StrainFile:
    where = f"{detector}/{name[:30]}"
    dataset = _row(group, name, where, path)
    spacing = _number(dataset, "delta_t", where, path)
    rate = round(1.0 / spacing) if spacing > 0 else 0
    if not 1 <= rate <= MAX_RATE or abs(spacing * rate - 1.0) > 1e-6:
        raise InputError(path, f"{where} has samples {spacing:g} s apart", "a whole number of them a second")
    start = _number(dataset, "start_time", where, path)
    if not 0 <= start < 1e10 or dataset.size / rate > _LONGEST:
        raise InputError(path, f"{where} starts at GPS {start:g}, {dataset.size} samples", "GPS seconds")
    return StrainFile.of(path, "mlgwsc", detector, start, dataset.size, rate, f"{detector}/{name}", False)


def _number(dataset: h5py.Dataset, name: str, where: str, path: Path) -> float:
    value = np.asarray(attribute(dataset, name, "iuf"))
    if value.size != 1 or value.dtype.kind not in "iuf" or not np.isfinite(value).all():
        raise InputError(path, f"{where} has no attribute {name} that is a number", _LAYOUT)
    return float(value.reshape(()))
