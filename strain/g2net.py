"""The layout of the G2Net 2021 data: a folder of .npy windows, with or without labels.

ROOT/training_labels.csv              id,target      (may be absent: then nothing is labelled)
ROOT/train/a/b/c/abcXXXXXXX.npy       (3, 4096) float64 or float32: H1, L1, V1; 2 s of raw strain at 2048 Hz
ROOT/test/a/b/c/abcXXXXXXX.npy        the same; never labelled, and open to pretraining
"""

from __future__ import annotations

import csv
import os
import re
import struct
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from io import BytesIO, TextIOWrapper
from pathlib import Path

import numpy as np

from gwtwins.strain.errors import InputError
from gwtwins.strain.small_file import open_plain

DETECTORS = ("H1", "L1", "V1")
RATE = 2048.0  # Hz
SAMPLES = 4096
LABELS = "training_labels.csv"
FOLDERS = ("train", "test")

_SHAPE = (len(DETECTORS), SAMPLES)
_EXPECTED = "a (3, 4096) array of float64 or float32"
_ID = re.compile(r"[0-9A-Za-z_-]{3,64}")
_MAX_HEADER = 4096  # bytes; a plain array's header has 118
_MAX_LABELS = 64 << 20  # bytes: four million lines; the 2021 data have 560,000
_MAX_BYTES = _MAX_HEADER + _SHAPE[0] * _SHAPE[1] * 8


def is_g2net_folder(path: str | Path) -> bool:
    """Whether ``path`` is a folder that holds labels, train/ or test/."""
    root = Path(path)
    return root.is_dir() and any((root / name).exists() for name in (LABELS, *FOLDERS))


def window_path(root: str | Path, folder: str, id: str) -> Path:
    """Where the window of an id lies: its first three characters name three nested folders."""
    return Path(root, folder, *id[:3], f"{id}.npy")


class G2NetFolder:
    """The windows under one root, in the order of their ids.

    Args:
        root: the folder that holds train/, test/ or both.

    Raises:
        InputError: no windows; an id of odd characters, given twice or lying in the wrong folder; labels that
            are not 0 or 1; a labelled id without a file; where there are labels, a train/ file without one.
    """

    detectors: tuple[str, ...] = DETECTORS
    rate: float = RATE
    samples: int = SAMPLES
    scale = np.ones(len(DETECTORS))
    """(D,) :meth:`read` gives strain itself."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.where = str(root)
        if not self.root.is_dir():
            raise InputError(root, "no such folder", "a folder in the G2Net layout")
        found = {folder: _list_ids(self.root / folder) for folder in FOLDERS}
        both = found["train"].intersection(found["test"])
        if both:
            raise InputError(root, f"id {min(both)} is in train/ and in test/", "each id once")
        self.ids: list[str] = sorted(found["train"] | found["test"])
        """N ids, ascending."""
        targets = self._labels(found["train"])
        if not self.ids:
            raise InputError(root, "no windows", "train/a/b/c/abcXXXXXXX.npy or test/a/b/c/abcXXXXXXX.npy")
        n = len(self.ids)
        self.label = np.fromiter((targets.get(id, -1) for id in self.ids), np.int8, n)
        """(N,) int8: 1 signal, 0 noise, -1 unknown."""
        self.pretrain_only = np.fromiter((id in found["test"] for id in self.ids), bool, n)
        """(N,) bool: windows of test/, which have no labels and all of which pretraining may see."""
        self.gps = np.full(n, np.nan)
        """(N,) float64: the layout does not say when a window was recorded."""

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, row: int) -> Path:
        """The file of one row."""
        return window_path(self.root, FOLDERS[int(self.pretrain_only[row])], self.ids[row])

    def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Raw strain (B, D, T) float64 of some rows, every file checked; see :func:`read_window`."""
        return np.stack([read_window(self.path(int(row))) for row in rows])

    def _labels(self, train: set[str]) -> dict[str, int]:
        path = self.root / LABELS
        if not path.exists():
            return {}
        targets = _read_labels(path)
        absent = sorted(targets.keys() - train)
        if absent:
            fault = f"{len(absent)} of {len(targets)} labelled ids have no file, the first is {absent[0]}"
            raise InputError(path, fault, f"{window_path(self.root, 'train', absent[0])}")
        unlabelled = sorted(train - targets.keys())
        if unlabelled:
            fault = f"{len(unlabelled)} of {len(train)} windows in train/ have no label"
            raise InputError(path, f"{fault}, the first is {unlabelled[0]}", "a line for each")
        return targets


def _list_ids(folder: Path) -> set[str]:
    """The ids of the windows under train/ or test/; empty where there is no such folder."""
    ids = set()
    for path in _npy_files(folder, len(folder.parts)):
        id = path.stem
        if not _ID.fullmatch(id):
            raise InputError(path, "an id of other characters", "3 to 64 of 0-9, A-Z, a-z, _ and -")
        if path != window_path(folder.parent, folder.name, id):
            raise InputError(path, "lies in the wrong folder", f"{window_path('', folder.name, id)}")
        ids.add(id)
    return ids


def _npy_files(folder: Path, top: int) -> Iterator[Path]:
    if not folder.exists():
        return
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise InputError(folder, f"cannot be listed: {error.strerror}", "a folder of windows") from error
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith("."):
            continue  # what desktops and file servers leave behind
        if entry.is_dir():
            # Bounded, so that a link to a folder above cannot be followed round and round.
            if len(folder.parts) - top >= 3:
                raise InputError(path, "a folder below the third level", "windows in folders a/b/c/")
            yield from _npy_files(path, top)
        elif entry.name.endswith(".npy"):
            yield path


def _read_labels(path: Path) -> dict[str, int]:
    """id -> 0 or 1, from a file of the header ``id,target`` and one line for each id."""
    expected = "lines id,target with target 0 or 1"
    targets: dict[str, int] = {}
    try:
        with open_plain(path, _MAX_LABELS, expected) as file:
            lines = csv.reader(TextIOWrapper(file, "utf-8-sig", newline=""))
            header = next(lines, None)
            if header != ["id", "target"]:
                raise InputError(path, "the first line is not the header", "id,target")
            for line in lines:
                where = f"{path} line {lines.line_num}"
                if not line:
                    continue
                if len(line) != 2:
                    raise InputError(where, f"{len(line)} columns", expected)
                id, target = line
                if not _ID.fullmatch(id):
                    raise InputError(where, f"id {id[:80]!r}", "3 to 64 characters of 0-9, A-Z, a-z, _ and -")
                if target not in ("0", "1"):
                    raise InputError(where, f"target {target[:80]!r}", expected)
                if id in targets:
                    raise InputError(where, f"id {id} a second time", "each id once")
                targets[id] = int(target)
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}", expected) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(path, "is not a table in UTF-8", expected) from error
    return targets


def read_window(path: str | Path) -> np.ndarray:
    """One window: (3, 4096) float64 raw strain.

    The header is checked against the file's size before anything is allocated, and no pickle is ever loaded.

    Raises:
        InputError: no such file, not .npy, truncated, another shape or type, a pickle inside, NaN or infinite
            samples, or a detector that is constant (all zero).
    """
    blob, size = _first_bytes(path)
    shape, fortran, dtype, start = _checked_header(path, blob)
    if dtype.hasobject:
        raise InputError(path, "holds pickled Python objects", _EXPECTED)
    if dtype.kind != "f" or dtype.itemsize not in (4, 8):
        raise InputError(path, f"samples of type {dtype}", _EXPECTED)
    if shape != _SHAPE:
        raise InputError(path, f"shape {shape}", _EXPECTED)
    end = start + _SHAPE[0] * _SHAPE[1] * dtype.itemsize
    if len(blob) != end:
        raise InputError(path, f"{'truncated' if size < end else 'overlong'}, {size} bytes", f"{end} bytes")
    flat = np.frombuffer(blob, dtype, offset=start)
    window = (flat.reshape(SAMPLES, -1).T if fortran else flat.reshape(_SHAPE)).astype(np.float64, order="C")
    if not np.isfinite(window).all():
        raise InputError(path, "a sample is NaN or infinite", "finite strain")
    dead = window.min(axis=1) == window.max(axis=1)
    if dead.any():
        row = int(np.argmax(dead))
        fault = "all zero" if window[row, 0] == 0 else "constant"
        raise InputError(path, f"{DETECTORS[row]} is {fault}", "noise in every detector")
    return window


def _first_bytes(path: str | Path) -> tuple[bytes, int]:
    """As much of the file as a window can be, and the file's size."""
    try:
        with open_plain(path, sys.maxsize, _EXPECTED) as file:
            return file.read(_MAX_BYTES), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}", _EXPECTED) from error


def _checked_header(path: str | Path, blob: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    if blob[:6] != np.lib.format.MAGIC_PREFIX:
        raise InputError(path, "empty" if not blob else "not a .npy file", _EXPECTED)
    try:
        if blob[6] == 1:
            start = 10 + struct.unpack_from("<H", blob, 8)[0]
        else:
            start = 12 + struct.unpack_from("<I", blob, 8)[0]
        if start > min(len(blob), _MAX_HEADER):
            raise ValueError("header beyond the end")
        return *_parse_header(blob[:start]), start
    except Exception as error:  # numpy's parser of a forged header can raise nearly anything
        raise InputError(path, "a damaged or truncated .npy header", _EXPECTED) from error


@lru_cache(maxsize=16)  # half a million files share one header, and parsing it costs more than reading them
def _parse_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    file = BytesIO(header)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)
