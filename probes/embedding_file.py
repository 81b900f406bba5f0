"""embeddings.hdf5: what a frozen encoder made of N windows, written as it is made and read without trust.

    attributes   format "gwtwins-embeddings-1", encoder (fingerprint), weights, detectors, window (s), split, seed,
                 data and versions (JSON)
    id           (N,) UTF-8 of at most 64 bytes
    gps          (N,) float64, GPS seconds of the first sample, NaN unknown
    present      (N, D) bool, which detectors recorded the window
    embedding    (N, D, E) float32, zero where a detector is not present
    label        (N,) float64: 1 signal, 0 noise, NaN unknown
    snr          (N,) float64 network SNR, 0 for noise, NaN unknown

Chunked and not compressed: floats hardly compress, and what a file claims to hold can be weighed against its size.
Text is of fixed length, because that of variable length lies in a heap, in which a damaged file can send HDF5 round
in circles.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from gwtwins.strain.errors import InputError

FORMAT = "gwtwins-embeddings-1"
_FILE = "a file written by gwtwins.probes.embed"
_DETECTOR = re.compile(r"[A-Z][0-9]")
_ID_BYTES = 64  # a packed window's name is at most as long
_MAX_ATTRIBUTE = 60_000  # bytes; HDF5 holds 64 KiB of attribute beside an object
_CHUNK = 1 << 17  # elements of a chunk of embeddings: 512 KiB, half of HDF5's chunk cache
_BLOCK = 1 << 21  # elements read at a time: 8 MiB
_LAYOUT: dict[str, tuple[str, np.dtype[Any]]] = {
    "id": ("N", h5py.string_dtype("utf-8", _ID_BYTES)),
    "gps": ("N", np.dtype("<f8")),
    "present": ("ND", np.dtype(bool)),
    "embedding": ("NDE", np.dtype("<f4")),
    "label": ("N", np.dtype("<f8")),
    "snr": ("N", np.dtype("<f8")),
}


class EmbeddingWriter:
    """Writes embeddings.hdf5 batch by batch in constant memory; the file appears whole at the end or not at all.

        with EmbeddingWriter(path, ("H1", "L1"), 128, total, about) as out:
            out.add(ids, gps, present, embedding)

    Args:
        path: the file; it must not be there yet.
        detectors: names along axis D.
        embedding: E.
        total: rows that will come, for the room they take on the disk.
        about: attributes; texts, numbers, or what JSON holds.

    Raises:
        InputError: the file is there, cannot be written, or its disk is too full.
    """

    def __init__(self, path: Path, detectors: Sequence[str], embedding: int, total: int, about: dict[str, Any]) -> None:
        self.path, self.detectors, self.embedding, self.about = path, tuple(detectors), embedding, about
        self.rows = 0
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._chunk_rows = max(1, min(_CHUNK // (len(self.detectors) * embedding), total))
        refuse_existing(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(path.parent).free
        except OSError as error:
            raise InputError(path.parent, "may not be written to", "a folder for --out") from error
        need = total * (len(self.detectors) * (4 * embedding + 1) + _ID_BYTES + 24)
        if need > free:
            raise InputError(path, f"{free / 1e9:.2f} GB free on its disk", f"{need / 1e9:.2f} GB")

    def __enter__(self) -> EmbeddingWriter:
        try:
            self._file = h5py.File(self._partial, "w", locking=False)
        except OSError as error:
            raise InputError(self.path, "may not be written", "a file in a folder that may be") from error
        self._file.attrs["format"] = np.bytes_(FORMAT)
        self._file.attrs["detectors"] = np.array(self.detectors, dtype=bytes)
        for name, value in self.about.items():
            self._file.attrs[name] = value if isinstance(value, int | float) else _fixed(value)
        length = {"D": len(self.detectors), "E": self.embedding}
        for name, (axes, kind) in _LAYOUT.items():
            rest = tuple(length[axis] for axis in axes[1:])
            self._file.create_dataset(
                name, (0, *rest), kind, maxshape=(None, *rest), chunks=(self._chunk_rows, *rest), track_times=False
            )
        return self

    def add(
        self,
        id: Sequence[str],
        gps: ArrayLike,
        present: ArrayLike,
        embedding: ArrayLike,
        label: ArrayLike | None = None,
        snr: ArrayLike | None = None,
    ) -> None:
        """Append B rows: ``id``, ``gps``, ``label`` and ``snr`` (B,), ``present`` (B, D), ``embedding`` (B, D, E)."""
        names = [name.encode() for name in id]
        for name in names:
            if len(name) > _ID_BYTES:
                raise InputError(name.decode(), f"an id of {len(name)} bytes", f"at most {_ID_BYTES}")
        unknown = np.full(len(names), np.nan)
        values = {"id": names, "gps": gps, "present": present, "embedding": embedding, "label": label, "snr": snr}
        begin, self.rows = self.rows, self.rows + len(names)
        try:
            for key, value in values.items():
                self._file[key].resize(self.rows, axis=0)
                self._file[key][begin:] = np.asarray(unknown if value is None else value, _LAYOUT[key][1])
        except OSError as error:
            raise self._no_room() from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
            if kind is None:
                os.replace(self._partial, self.path)
        except (OSError, RuntimeError) as fault:
            if kind is None:  # else what ended the writing says more
                raise self._no_room() from fault
        finally:
            self._partial.unlink(missing_ok=True)

    def _no_room(self) -> InputError:
        return InputError(self.path, "cannot be written: its disk is full or gone", "room on the disk")


def refuse_existing(path: Path) -> None:
    """Raise InputError where a result is there already."""
    if os.path.lexists(path):
        raise InputError(path, "is there already", "another name for --out")


def _fixed(value: Any) -> np.bytes_:
    """Text, or JSON of anything else, as HDF5 text of fixed length; what is too long leaves its digest."""
    text = (value if isinstance(value, str) else json.dumps(value, default=str)).encode()
    if len(text) > _MAX_ATTRIBUTE:
        text = json.dumps({"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}).encode()
    return np.bytes_(text)


class EmbeddingFile:
    """An embeddings.hdf5 opened for reading; a context manager. The embeddings stay on the disk.

    Raises:
        InputError: no such file, truncated, of another layout, or holding values that cannot be.
    """

    def __init__(self, path: str | Path) -> None:
        self.where = str(path)
        if not os.path.isfile(path):
            raise InputError(self.where, "no such file", _FILE)
        try:
            self._file = h5py.File(path, "r", locking=False)
        except (OSError, RuntimeError) as error:
            raise InputError(self.where, "not a readable HDF5 file", _FILE) from error
        try:
            self._load()
        except InputError:
            self._file.close()
            raise
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            self._file.close()
            raise InputError(self.where, "truncated or damaged HDF5", _FILE) from error

    def _load(self) -> None:
        format = self._text("format")
        if format != FORMAT:
            raise InputError(self.where, f"format {format[:40]!r}", f"{FORMAT!r}, {_FILE}")
        axes = _checked_axes(self.where, self._file)
        names = tuple(bytes(name).decode("ascii", "replace") for name in self._attribute("detectors", "S", 1))
        if len(set(names)) != axes["D"] or len(names) != axes["D"] or not all(map(_DETECTOR.fullmatch, names)):
            raise InputError(self.where, f"detectors {names[:8]}", f"{axes['D']} distinct names such as H1")
        self.detectors: tuple[str, ...] = names
        """Names along axis D."""
        self.shape = axes["N"], axes["D"], axes["E"]
        """N, D, E."""
        self.encoder, self.weights, self.split = (self._text(name) for name in ("encoder", "weights", "split"))
        self.window = float(self._attribute("window", "f", 0))
        """Seconds."""
        if not 0 < self.window < np.inf:
            raise InputError(self.where, f"window {self.window}", "seconds")
        self.gps, self.label, self.snr = (self._file[name][()] for name in ("gps", "label", "snr"))
        for name, column in (("gps", self.gps), ("snr", self.snr)):
            if np.isinf(column).any():
                raise InputError(self.where, f"an infinite {name}", "a finite value, or NaN where unknown")
        if not np.isin(self.label[~np.isnan(self.label)], (0.0, 1.0)).all():
            raise InputError(self.where, "a label other than 0, 1 and NaN", _FILE)

    def __len__(self) -> int:
        return self.shape[0]

    def __enter__(self) -> EmbeddingFile:
        return self

    def __exit__(self, *what: object) -> None:
        self._file.close()

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.bool_]]]:
        """All rows in order: which they are, embedding (B, D, E) and present (B, D); some 8 MiB at a time."""
        step = max(1, _BLOCK // (self.shape[1] * self.shape[2]))
        for start in range(0, len(self), step):
            rows = slice(start, min(start + step, len(self)))
            yield rows, *self.read(rows)

    def read(self, rows: slice) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """embedding (B, D, E) and present (B, D) of a run of rows.

        Raises:
            InputError: damaged there, or an embedding that is not finite.
        """
        embedding = self._read("embedding", rows)
        present = self._read("present", rows).view(np.uint8) != 0  # a damaged bool need not be 0 or 1
        finite = np.isfinite(embedding).all(axis=(1, 2))
        if not finite.all():
            row = rows.start + int(np.argmin(finite))
            raise InputError(self.where, f"the embedding of {self.ids([row])[0]} is not finite", "finite embeddings")
        return embedding, present

    def ids(self, rows: Sequence[int] | NDArray[np.integer]) -> list[str]:
        """Names of some rows, in their order."""
        rows = np.asarray(rows, dtype=np.int64)
        names: list[str] = [""] * len(rows)
        step = 1 << 16
        for start in np.unique(rows // step) * step:
            held = self._read("id", slice(start, start + step))
            for i in np.flatnonzero((rows >= start) & (rows < start + step)):
                names[i] = held[rows[i] - start].decode("utf-8", "replace")
        return names

    def _read(self, name: str, rows: slice) -> NDArray[Any]:
        try:
            return self._file[name][rows]
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(self.where, "cannot be read: damaged or gone", _FILE) from error

    def _attribute(self, name: str, kind: str, dimensions: int) -> Any:
        if name not in self._file.attrs:
            raise InputError(self.where, f"no attribute {name}", _FILE)
        held = self._file.attrs.get_id(name)
        too_long = held.dtype.itemsize * int(np.prod(held.shape)) > 1 << 16
        if held.dtype.kind != kind or len(held.shape) != dimensions or too_long:
            raise InputError(self.where, f"attribute {name} is of type {held.dtype} {held.shape}", _FILE)
        return self._file.attrs[name]

    def _text(self, name: str) -> str:
        return bytes(self._attribute(name, "S", 0)).decode("utf-8", "replace")


def _checked_axes(where: str, file: h5py.File) -> dict[str, int]:
    """The length of each axis, once every dataset's kind, type, shape and size on the disk are checked."""
    size, axes = os.path.getsize(where), dict[str, int]()
    for name, (dims, kind) in _LAYOUT.items():
        # A link to another file could make this process read what its user never named.
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise InputError(where, f"no dataset {name} of its own", _FILE)
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
            raise InputError(where, f"{name} is not a dataset of its own", _FILE)
        if dataset.id.get_create_plist().get_nfilters():
            raise InputError(where, f"{name} is compressed", _FILE)
        if dataset.dtype != kind:
            raise InputError(where, f"{name} is of type {dataset.dtype}", f"{kind}, {_FILE}")
        if dataset.shape is None or len(dataset.shape) != len(dims):
            raise InputError(where, f"{name} has shape {dataset.shape}", f"axes {', '.join(dims)}")
        for axis, length in zip(dims, dataset.shape, strict=True):
            if axes.setdefault(axis, length) != length or length < 1:
                raise InputError(where, f"{name} has shape {dataset.shape}", f"{max(axes[axis], 1)} along {axis}")
        # Chunks that were never written take no room, and would be read as zeros without end.
        chunk = int(np.prod(dataset.chunks)) * kind.itemsize if dataset.chunks else 0
        if not dataset.nbytes <= dataset.id.get_storage_size() <= size or chunk > size:
            raise InputError(where, f"truncated: {name} is of {dataset.nbytes:,} bytes in a file of {size:,}", _FILE)
    return axes
