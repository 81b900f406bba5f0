"""The packed window store: all windows of a recorded set in one HDF5 file, read in any order at disk speed.

    attributes        format "gwtwins-windows-1", detectors, rate (Hz), origin (the folder it was packed from), and
                      versions (JSON) of what laid the file out; older stores have none
    strain            (N, D, T) float32, raw strain / scale
    scale             (D,) float64, a power of two near each detector's RMS: dividing by it rounds nothing
    id                (N,) ASCII, ascending
    label             (N,) int8: 1 signal, 0 noise, -1 unknown
    gps               (N,) float64, GPS seconds of the first sample, NaN unknown
    pretrain_only     (N,) uint8: 1 for windows published without labels
    state             (N,) uint8: 1 packed, 2 skipped because its file was bad (the row is zero, never given)
    psd_frequency     (F,) float64, Hz
    psd               (D, F) float64, 1/Hz, median over many windows
    complete          (1,) uint8: 1 when everything above is there

Every dataset is contiguous. So a row is one read at a known offset (finding a chunk costs more than reading
48 KB), and the packer's processes write rows in place without touching HDF5's own structures: killing them
cannot damage the file. Attributes are of fixed length. The split into training and test rows is a function of
the id, :func:`gwtwins.strain.splits.is_test`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gwtwins.strain.errors import InputError
from gwtwins.strain.psd import PSD
from gwtwins.strain.scattered_reads import read_pieces
from gwtwins.strain.versions import versions

FORMAT = "gwtwins-windows-1"
PENDING, PACKED, SKIPPED = 0, 1, 2  # values of `state`

_STORE = "a window store written by gwtwins.strain.pack"
_DETECTOR = re.compile(r"[A-Z][0-9]")
_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
_LAYOUT = {  # dataset: (axes, type; any ASCII length for S)
    "strain": ("NDT", "f4"),
    "scale": ("D", "f8"),
    "id": ("N", "S"),
    "label": ("N", "i1"),
    "gps": ("N", "f8"),
    "pretrain_only": ("N", "u1"),
    "state": ("N", "u1"),
    "psd_frequency": ("F", "f8"),
    "psd": ("DF", "f8"),
    "complete": ("1", "u1"),
}


def is_window_store(path: str | Path) -> bool:
    """Whether ``path`` is a file that says it is a window store; no promise that it is whole."""
    try:
        with open(path, "rb") as file:
            # The attributes are written first: so a truncated store is still told from other HDF5 files.
            head = file.read(65536)
    except OSError:
        return False
    return head.startswith(b"\x89HDF") and b"gwtwins-windows-" in head


class WindowStore:
    """A packed window store, opened for reading. Skipped rows are left out: N counts those that are there.

    May be copied into other processes: each opens the file for itself.

    Raises:
        InputError: no such file, truncated, not a store, half packed, or contradicting the layout.
    """

    def __init__(self, path: str | Path, finished: bool = True) -> None:
        self.where = str(path)
        self._file: h5py.File | None = None
        self._process = 0
        self._opened: tuple[int, int] | None = None
        file = self._open()
        try:
            self._load(file, finished)
        except InputError:
            raise
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            raise InputError(self.where, "truncated or damaged HDF5", _STORE) from error

    def _load(self, file: h5py.File, finished: bool) -> None:
        shape = _checked_layout(self.where, file)
        self._strain_at = file["strain"].id.get_offset()
        self.detectors: tuple[str, ...] = _detectors(self.where, file)
        self.rate = float(_attribute(self.where, file, "rate", "f", ()))
        """Samples per second."""
        self.samples = shape["T"]
        self.origin = _text(_attribute(self.where, file, "origin", "S", ()))
        """Name of the folder it was packed from."""
        if len(self.detectors) != shape["D"]:
            self._fault(f"{len(self.detectors)} detectors and strain of {shape['D']}", "one name for each detector")
        if not (np.isfinite(self.rate) and 0 < self.rate <= 65536):
            self._fault(f"rate {self.rate:g}", "samples per second")

        state = file["state"][()]
        if (state > SKIPPED).any():
            self._fault("a state other than 0, 1 or 2", _STORE)
        if finished and (file["complete"][0] != 1 or (state == PENDING).any()):
            missing = np.count_nonzero(state == PENDING)
            self._fault(f"packing was not finished, {missing} of {len(state)} windows are missing", _STORE)
        self.rows = np.flatnonzero(state == PACKED)
        if finished and not len(self.rows):
            self._fault("no windows", _STORE)
        every_id = _ids(self.where, file)
        self.ids: list[str] = [every_id[row] for row in self.rows]
        """N ids, ascending."""
        self.skipped: list[str] = [every_id[row] for row in np.flatnonzero(state == SKIPPED)]
        """Ids whose files were bad when the store was packed."""
        self.label = file["label"][()][self.rows]
        self.gps = file["gps"][()][self.rows]
        self.pretrain_only = file["pretrain_only"][()][self.rows] == 1
        if not np.isin(self.label, (-1, 0, 1)).all():
            self._fault("a label other than 1, 0 and -1", _STORE)
        if np.isinf(self.gps).any():
            self._fault("an infinite GPS time", "seconds, or NaN where unknown")

        self.scale = file["scale"][()]
        if not (np.isfinite(self.scale).all() and (self.scale > 0).all()):
            self._fault("a scale is not finite and positive", _STORE)
        self.psds: dict[str, PSD] = {}
        """Per detector; empty before packing has measured it."""
        if finished:
            frequency, value = file["psd_frequency"][()], file["psd"][()]
            name = Path(self.where).name
            for d, detector in enumerate(self.detectors):
                self.psds[detector] = PSD(frequency, value[d], f"{name} {detector}")

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """(B, D, T) float32: strain / ``scale`` of some rows, in their order.

        Raises:
            InputError: the file cannot be read there, or a sample is NaN or infinite.
        """
        rows = np.asarray(rows, dtype=np.int64)
        out = np.empty((len(rows), len(self.detectors), self.samples), np.float32)
        samples = len(self.detectors) * self.samples
        try:
            # HDF5 itself takes three times as long over a row as the copy of it.
            offsets = self._strain_at + out.itemsize * samples * self.rows[rows]
            read_pieces(self._open().id.get_vfd_handle(), offsets.tolist(), out)
        except (OSError, RuntimeError) as error:
            raise InputError(self.where, "cannot be read: damaged or gone", _STORE) from error
        with np.errstate(
            all="ignore"
        ):  # a sum of the samples is finite if they are; three times as fast as each of them
            bad = ~np.isfinite(out.reshape(len(rows), samples) @ np.ones(samples, np.float32))
        if bad.any():
            id = self.ids[rows[int(np.argmax(bad))]]
            raise InputError(self.where, f"window {id} has a sample that is NaN or infinite", "finite strain")
        return out

    def close(self) -> None:
        """Close the file; reading opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> h5py.File:
        if self._file is None or self._process != os.getpid():  # a forked child must not share the parent's handle
            if not os.path.exists(self.where):
                raise InputError(self.where, "no such file", _STORE)
            try:
                self._file = h5py.File(self.where, "r", locking=False)
            except (OSError, RuntimeError) as error:
                fault = "truncated HDF5" if "truncated" in str(error) else "not a readable HDF5 file"
                raise InputError(self.where, fault, _STORE) from error
            self._process = os.getpid()
            status = os.fstat(self._file.id.get_vfd_handle())
            now = (status.st_size, status.st_mtime_ns)
            if self._opened not in (None, now):  # ids and offsets are those of the file as it was
                self.close()
                self._fault("has changed since it was opened", "the same file until the end")
            self._opened = now
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_process": 0}

    def _fault(self, fault: str, expected: str) -> None:
        raise InputError(self.where, fault, expected)


def _checked_layout(where: str, file: h5py.File) -> dict[str, int]:
    """The length of each axis, once every dataset's kind, type, shape and place in the file are checked."""
    format = _text(_attribute(where, file, "format", "S", ()))
    if format != FORMAT:
        raise InputError(where, f"format {format!r}", f"{FORMAT!r}, {_STORE}")
    size = os.path.getsize(where)
    axes = {"1": 1}
    for name, (dims, type) in _LAYOUT.items():
        # A link to another file could make this process read what its user never named.
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise InputError(where, f"no dataset {name} of its own", _STORE)
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external or dataset.chunks:
            raise InputError(where, f"{name} is not a contiguous dataset", _STORE)
        if dataset.dtype.kind != type[0] if type == "S" else dataset.dtype != np.dtype(type):
            raise InputError(where, f"{name} is of type {dataset.dtype}", _STORE)
        if len(dataset.shape) != len(dims):
            raise InputError(where, f"{name} has shape {dataset.shape}", f"axes {', '.join(dims)}")
        for axis, length in zip(dims, dataset.shape, strict=True):
            if axes.setdefault(axis, length) != length or length < 1:
                raise InputError(where, f"{name} has shape {dataset.shape}", f"{axes[axis]} along {axis}")
        start = dataset.id.get_offset()
        if start is None or start + dataset.nbytes > size:
            raise InputError(where, f"truncated: {name} reaches beyond the file's end", _STORE)
    return axes


def _attribute(where: str, file: h5py.File, name: str, kind: str, shape: tuple[int | None, ...]) -> Any:
    """An attribute of numbers ("f") or of text of fixed length ("S").

    Text of variable length lies in a heap, in which a damaged file can send HDF5 round in circles.
    """
    if name not in file.attrs:
        raise InputError(where, f"no attribute {name}", _STORE)
    attribute = file.attrs.get_id(name)
    if attribute.dtype.kind != kind or len(attribute.shape) != len(shape) or attribute.dtype.itemsize > 4096:
        raise InputError(where, f"attribute {name} is of type {attribute.dtype} {attribute.shape}", _STORE)
    return file.attrs[name]


def _text(value: bytes) -> str:
    return bytes(value)[:80].decode("ascii", "replace")


def _detectors(where: str, file: h5py.File) -> tuple[str, ...]:
    names = tuple(_text(name) for name in _attribute(where, file, "detectors", "S", (None,))[:16])
    if len(set(names)) != len(names) or not all(_DETECTOR.fullmatch(name) for name in names):
        raise InputError(where, f"detectors {names}", "distinct names such as H1")
    return names


def _ids(where: str, file: h5py.File) -> list[str]:
    ids = [id.decode("latin-1") for id in file["id"][()]]
    if not all(_ID.fullmatch(id) for id in ids):
        raise InputError(where, "an id of other characters", "1 to 64 of 0-9, A-Z, a-z, _ and -")
    if any(second <= first for first, second in zip(ids, ids[1:], strict=False)):
        raise InputError(where, "ids are not ascending, or one comes twice", _STORE)
    return ids


def create_store(
    path: str | Path,
    ids: Sequence[str],
    label: np.ndarray,
    gps: np.ndarray,
    pretrain_only: np.ndarray,
    scale: np.ndarray,
    detectors: tuple[str, ...],
    rate: float,
    samples: int,
    origin: str,
) -> None:
    """Lay out a store in which every row is still pending, with room for all of it, sparse until written."""
    n, d, bins = len(ids), len(detectors), samples // 2
    # Strain begins where a page does: 48 KB of a row are then 12 pages of the kernel's cache, not 13.
    with h5py.File(path, "w", locking=False, alignment_threshold=1 << 20, alignment_interval=4096) as file:
        file.attrs["format"] = np.bytes_(FORMAT)
        file.attrs["detectors"] = np.array(detectors, dtype=bytes)
        file.attrs["rate"] = float(rate)
        file.attrs["origin"] = np.bytes_(origin)
        file.attrs["versions"] = np.bytes_(json.dumps(versions()))
        file["scale"] = np.asarray(scale, np.float64)
        file["id"] = np.array(ids, dtype=bytes)
        file["label"] = np.asarray(label, np.int8)
        file["gps"] = np.asarray(gps, np.float64)
        file["pretrain_only"] = np.asarray(pretrain_only, np.uint8)
        file["state"] = np.full(n, PENDING, np.uint8)
        file["psd_frequency"] = np.full(bins, np.nan)
        file["psd"] = np.full((d, bins), np.nan)
        file["complete"] = np.zeros(1, np.uint8)
        # Space is set aside but not filled: h5py alone would write 4 N D T bytes of zeros first.
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_layout(h5py.h5d.CONTIGUOUS)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        plan.set_obj_track_times(False)  # the same windows make the same file
        space = h5py.h5s.create_simple((n, d, samples))
        h5py.h5d.create(file.id, b"strain", h5py.h5t.IEEE_F32LE, space, plan)


def read_columns(path: str | Path) -> dict[str, np.ndarray]:
    """All but strain and PSD of a store that need not be finished; InputError if it is not a sound one."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            _checked_layout(str(path), file)
            return {name: file[name][()] for name in ("id", "label", "pretrain_only", "scale", "state")}
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(path, "not a readable HDF5 file", _STORE) from error


def offsets(path: str | Path) -> dict[str, int]:
    """Where each dataset's first byte lies in the file."""
    with h5py.File(path, "r", locking=False) as file:
        return {name: file[name].id.get_offset() for name in _LAYOUT}
