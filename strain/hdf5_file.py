"""HDF5 files that others wrote: opened, and their datasets looked at, before anything of them is read.

What a header declares costs nothing to write: a file of 10 KB may hold 10^12 samples that were never stored, or 1 GB
that was packed into 1 MB. So a dataset must lie in the very file, and be no larger than what is stored of it allows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gwtwins.strain.errors import InputError
from gwtwins.strain.strain_file import check_strain

MAX_CHUNK = 1 << 24  # entries: a chunk is unpacked as a whole; 4096 s at 4096 Hz in a single one
CHUNK_CACHE = 4 << 20  # bytes; a chunk that does not fit (HDF5's own cache has 1 MiB) is unpacked again for every slice
_MAX_ATTRIBUTE = 1 << 16  # bytes
_MAX_TEXT = 256  # bytes of a text of variable length: names of detectors and flags
_MAX_HEAP = 1 << 16  # bytes of a heap of such texts that are looked at; HDF5 makes them of 4 KiB
_MOST_PACKED = 1100  # bytes that a stored one can stand for; gzip reaches 1032 on zeros


@contextmanager
def open_hdf5(path: Path, layout: str) -> Iterator[h5py.File]:
    """The HDF5 file at ``path``; what h5py cannot make sense of is an InputError that names ``layout``."""
    if not path.is_file():
        raise InputError(path, "no such file", layout)
    if path.stat().st_size == 0:
        raise InputError(path, "not a readable HDF5 file (it is empty)", layout)
    with hdf5_faults(path, layout), h5py.File(path, "r") as file:
        yield file


@contextmanager
def hdf5_faults(path: Path, layout: str) -> Iterator[None]:
    """Turns what h5py raises for a broken file into an InputError."""
    try:
        yield
    except InputError:
        raise
    # What h5py raises for a broken file depends on where it breaks; all of these have been seen.
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
        fault = "truncated" if "truncated" in str(error).lower() else "not a readable HDF5 file"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(path, f"{fault} ({reason})", layout) from error


def stored_member(group: h5py.Group, name: str, path: Path, layout: str) -> h5py.Group | h5py.Dataset:
    """A member of ``group`` that is stored there.

    Raises:
        InputError: there is none, or a link to another place, which could be a file that its user never named.
    """
    link = group.get(name, getlink=True)
    where = f"{group.name.rstrip('/')}/{name}".lstrip("/")
    if link is None:
        raise InputError(path, f"no {where}", layout)
    if not isinstance(link, h5py.HardLink):
        raise InputError(path, f"{where} is a link to another place", "data stored in the file itself")
    return group[name]


def stored_dataset(file: h5py.Group, name: str, path: Path, layout: str, most: int) -> h5py.Dataset:
    """The dataset ``name`` (with slashes) of at most ``most`` entries in all, stored inside this very file.

    Raises:
        InputError: absent, no dataset, a link, virtual or external, larger than ``most``, in chunks of more than
            `MAX_CHUNK` entries, or larger than what is stored of it can stand for.
    """
    node: Any = file
    for part in name.split("/"):
        if not isinstance(node, h5py.Group):
            raise InputError(path, f"no {name}", layout)
        node = stored_member(node, part, path, layout)
    if not isinstance(node, h5py.Dataset):
        raise InputError(path, f"{name} is not a dataset", layout)
    if node.is_virtual or node.external:
        raise InputError(path, f"{name} is stored in other files", "data stored in the file itself")
    if node.shape is None:
        raise InputError(path, f"{name} is empty", layout)
    if node.size > most:
        raise InputError(path, f"{name} declares {node.size} entries", f"at most {most}")
    chunk = int(np.prod(node.chunks, dtype=object)) if node.chunks else 0
    if chunk > MAX_CHUNK:
        raise InputError(path, f"{name} is stored in chunks of {chunk} entries", f"at most {MAX_CHUNK}")
    stored = node.id.get_storage_size()
    if node.nbytes > _MOST_PACKED * stored:
        raise InputError(path, f"{name} declares {node.nbytes} bytes, of which {stored} are stored", layout)
    return node


def plain_array(file: h5py.Group, name: str, path: Path, layout: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """The whole of a dataset of this type and shape, -1 where any length will do, that is stored in one piece.

    So it takes no more memory than the file takes room. Errors as :func:`stored_dataset`.
    """
    dataset = stored_dataset(file, name, path, layout, path.stat().st_size)
    held = dataset.shape
    alike = len(held) == len(shape) and all(wanted in (-1, is_) for wanted, is_ in zip(shape, held, strict=True))
    if dataset.dtype != np.dtype(dtype) or not alike or dataset.chunks:
        pieces = " in chunks" if dataset.chunks else ""
        fault = f"{name} is {dataset.dtype} of shape {held}{pieces}"
        raise InputError(path, fault, f"{np.dtype(dtype)} of shape {shape}, -1 for any; {layout}")
    start = dataset.id.get_offset()
    if dataset.nbytes and (start is None or start + dataset.nbytes > path.stat().st_size):
        raise InputError(path, f"truncated: {name} reaches beyond the file's end", layout)
    return dataset[()]


def attribute(node: h5py.Group | h5py.Dataset, name: str, kinds: str) -> Any:
    """An attribute of fixed length of these kinds of type ("iuf" numbers, "S" text); None where there is none such.

    Text of variable length lies in a heap, in which a damaged file sends HDF5 round in circles.
    """
    if name not in node.attrs:
        return None
    held = node.attrs.get_id(name)
    size = held.dtype.itemsize * int(np.prod(held.shape or (1,), dtype=object))
    return node.attrs[name] if held.dtype.kind in kinds and size <= _MAX_ATTRIBUTE else None


def short_texts(dataset: h5py.Dataset, path: Path, layout: str) -> list[str]:
    """The texts in a dataset, of fixed length or not; those in the heap are taken from there without HDF5's help.

    Raises:
        InputError: no text, or a heap that is damaged.
    """
    fault = InputError(path, f"{dataset.name} is not text", layout)
    if dataset.dtype.kind == "S":
        return [bytes(value).decode("ascii", "replace") for value in np.atleast_1d(dataset[()])]
    start, count = dataset.id.get_offset(), dataset.size
    if h5py.check_string_dtype(dataset.dtype) is None or start is None:
        raise fault
    with path.open("rb") as file:
        file.seek(start)
        references = file.read(16 * count)  # of 16 bytes each: length, address of its heap, number in it
        if len(references) < 16 * count:
            raise fault
        found = []
        for length, address, number in struct.iter_unpack("<IQI", references):
            if length > _MAX_TEXT or address > path.stat().st_size:
                raise fault
            file.seek(address)
            heap = file.read(_MAX_HEAP)
            text = _in_heap(heap, number)
            if text is None or length > len(text):
                raise fault
            found.append(text[:length].rstrip(b"\0").decode("ascii", "replace"))
    return found


def _in_heap(heap: bytes, number: int) -> bytes | None:
    """An object of a global heap collection (HDF5 file format 3.0, III.E)."""
    at = 16
    while heap[:8] == b"GCOL\1\0\0\0" and at + 16 <= min(len(heap), int.from_bytes(heap[8:16], "little")):
        index, size = int.from_bytes(heap[at : at + 2], "little"), int.from_bytes(heap[at + 8 : at + 16], "little")
        if index == 0 or at + 16 + size > len(heap):
            return None
        if index == number:
            return heap[at + 16 : at + 16 + size]
        at += 16 + -(-size // 8) * 8
    return None


class Hdf5Reader:
    """Strain in a dataset of an HDF5 file, read a slice at a time; subclasses say which, as ``_strain``."""

    faults: np.ndarray | None = None
    _strain: h5py.Dataset

    def __init__(self, path: Path, layout: str) -> None:
        self.path, self._layout = path, layout
        with hdf5_faults(path, layout):
            self._file = h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE)
            try:
                self._strain = self._find()
                chunk = int(np.prod(self._strain.chunks or ())) * self._strain.dtype.itemsize
                if chunk > CHUNK_CACHE:  # a larger cache cannot be had of a file that is open
                    self._file.close()
                    self._file = h5py.File(path, "r", rdcc_nbytes=chunk)
                    self._strain = self._find()
            except BaseException:
                self._file.close()
                raise

    def _find(self) -> h5py.Dataset:
        """The dataset of strain in ``_file``, looked at as :func:`stored_dataset` does."""
        raise NotImplementedError

    def read(self, first: int, stop: int) -> np.ndarray:
        """Samples ``first`` to ``stop`` as float64."""
        with hdf5_faults(self.path, self._layout):
            strain = self._strain[first:stop].astype(np.float64, copy=False)
        check_strain(strain, self.path)
        return strain

    def close(self) -> None:
        """Close the file."""
        self._file.close()
