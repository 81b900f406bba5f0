"""Whole recordings out of strain files, of any layout that a scan reads: what ``--data`` and ``--noise`` name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gwtwins.strain.errors import InputError
from gwtwins.strain.gwosc import MAX_SAMPLES, read_gwosc
from gwtwins.strain.recording import Recording
from gwtwins.strain.strain_file import StrainFile
from gwtwins.strain.strain_index import StrainIndex, index_strain, strain_paths


def strain_files(spec: str) -> list[Path]:
    """The strain files that ``spec`` names: files, and folders of them to any depth, joined by commas.

    Raises:
        InputError: a file that is not there, or a folder without any.
    """
    return strain_paths(part for part in spec.split(",") if part)


def read_recordings(path: Path, required: Sequence[str] | None = None) -> list[Recording]:
    """What a strain file holds, one recording for each detector and stretch.

    Args:
        path: a GWOSC HDF5, GWF or MLGWSC-1 file.
        required: data quality flags, as for :func:`gwtwins.strain.gwosc.read_gwosc`.

    Raises:
        InputError: as :func:`gwtwins.strain.strain_index.index_strain`, or a stretch too long to be held in memory.
    """
    index = index_strain([path], required)
    return [_recording(index, file) for file in index.files]


def _recording(index: StrainIndex, file: StrainFile) -> Recording:
    if file.layout == "gwosc":
        return read_gwosc(file.path, index.required_flags)
    if file.samples > MAX_SAMPLES:
        fault = f"{file.detector} for {file.samples / file.rate:.0f} s at {file.rate} Hz"
        raise InputError(file.path, fault, f"at most {MAX_SAMPLES} samples in one stretch")
    reader, seconds = index.open(file), file.samples // file.rate
    try:
        strain = reader.read(0, seconds * file.rate)
        faults = np.full(seconds, "", object) if reader.faults is None else reader.faults[:seconds]
    finally:
        reader.close()
    injected = faults == "hardware injection"
    good = (faults == "") | injected
    return Recording(file.detector, file.start, float(file.rate), strain, good, {}, ~injected, file.path)
