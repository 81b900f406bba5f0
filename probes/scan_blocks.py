"""Long strain as an encoder's convolutions see it, in blocks of GPS time that are computed once and kept in files.

Windows, which overlap, share these frames (`gwtwins.probes.scan_windows`).

Block k covers the frames from k times `Grid.block` on, whatever the files of strain. What it holds is a function of the
strain, the encoder and k alone: blocks can be computed in any order, in several processes, and again after an
interruption, with the same result.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from gwtwins.encoders.paired import PairedEncoder
from gwtwins.strain.coverage import Span, merged
from gwtwins.strain.errors import InputError
from gwtwins.strain.noise import gaussian_noise
from gwtwins.strain.strain_index import StrainIndex
from gwtwins.strain.streaming import Chunk, stream_conditioned

Array = NDArray[np.float64]

BLOCK_SECONDS = 512.0
"""Roughly: a whole number of rows. What a killed process has to do again is at most this."""
ROW_SECONDS = 16.0
"""Roughly: strain that goes through the encoder in one piece."""
_NEARBY = 2048.0  # s: files further from a block cannot matter for its noise, its gaps or its outliers


@dataclass(frozen=True)
class Grid:
    """How frames are laid out in time: frame l covers GPS ``[l, l + 1) * hop``."""

    hop: float
    """Seconds."""
    rate: float
    """Samples per second of the whitened strain."""
    row: int
    """Frames that go through the encoder in one piece."""
    block: int
    """Frames of a block, a multiple of `row`."""
    context: int
    """Frames on either side of a row that are computed and thrown away: those of the row do not feel its ends."""

    @classmethod
    def of(cls, encoder: PairedEncoder) -> Grid:
        """The grid for this encoder."""
        row = max(1, round(ROW_SECONDS / encoder.hop))
        block = row * max(1, round(BLOCK_SECONDS / ROW_SECONDS))
        return cls(encoder.hop, encoder.rate, row, block, _reach(encoder))

    @property
    def samples(self) -> int:
        """Samples of a frame."""
        return round(self.hop * self.rate)

    def blocks_of(self, spans: Sequence[Span]) -> list[int]:
        """The blocks that ``spans`` of GPS time touch, ascending."""
        seconds = self.block * self.hop
        found: set[int] = set()
        for span in spans:
            found.update(range(int(np.floor(span.start / seconds)), int(np.ceil(span.end / seconds))))
        return sorted(found)


@dataclass
class Block:
    """K detectors, F frames of C channels."""

    number: int
    frames: NDArray[np.float16]
    """(K, F, C) local frames; NaN where none were computed, far from any that are good."""
    good: NDArray[np.bool_]
    """(K, F): every sample of the frame was recorded well."""
    strain: NDArray[np.float16]
    """(K, T) whitened; NaN where it was not recorded well."""
    left_out: list[tuple[str, Span]]
    """(detector, GPS span with its reason) for all that is not good strain."""


class BlockStore:
    """The blocks of one scan in a folder."""

    def __init__(self, folder: Path, grid: Grid, detectors: Sequence[str]) -> None:
        self.folder, self.grid, self.detectors = Path(folder), grid, tuple(detectors)

    def path(self, number: int) -> Path:
        """The file of a block."""
        return self.folder / f"block-{number}.hdf5"

    def has(self, number: int) -> bool:
        """Whether the block was computed: its file appears whole or not at all."""
        return self.path(number).exists()

    def write(self, block: Block) -> None:
        """Keep a block."""
        with written(self.path(block.number)) as file:
            file["frames"], file["good"], file["strain"] = block.frames, block.good, block.strain
            file.attrs["left_out"] = json.dumps([[name, s.start, s.end, s.why] for name, s in block.left_out])

    def left_out(self, number: int) -> list[tuple[str, Span]]:
        """Of a block: (detector, GPS span with its reason)."""
        with h5py.File(self.path(number)) as file:
            rows = json.loads(file.attrs["left_out"])
        return [(name, Span(start, end, why)) for name, start, end, why in rows]

    def good(self, number: int) -> NDArray[np.bool_]:
        """(K, F) of a block."""
        with h5py.File(self.path(number)) as file:
            return file["good"][()]

    def frames(self, first: int, stop: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Frames ``first`` to ``stop``, (K, L, C) float32, and which are good (K, L); NaN where none were computed."""
        out: NDArray[np.float32] | None = None
        good = np.zeros((len(self.detectors), stop - first), bool)
        for number, a, b in self._parts(first, stop, self.grid.block):
            with h5py.File(self.path(number)) as file:
                origin = number * self.grid.block
                held = file["frames"][:, a - origin : b - origin]
                if out is None:
                    out = np.full((*good.shape, held.shape[2]), np.nan, np.float32)
                out[:, a - first : b - first] = held
                good[:, a - first : b - first] = file["good"][:, a - origin : b - origin]
        if out is None:
            raise ValueError(f"no block holds any of the frames {first} to {stop}")
        return out, good

    def strain(self, detector: str, low: float, high: float) -> tuple[Array, float]:
        """The detector's whitened strain (T,) from GPS ``low`` to ``high``, NaN where there is none, and its rate."""
        rate, size = self.grid.rate, self.grid.block * self.grid.samples
        first = round(low * rate)
        stop = first + round((high - low) * rate)
        out = np.full(stop - first, np.nan)
        if detector in self.detectors:
            row = self.detectors.index(detector)
            for number, a, b in self._parts(first, stop, size):
                with h5py.File(self.path(number)) as file:
                    out[a - first : b - first] = file["strain"][row, a - number * size : b - number * size]
        return out, rate

    def _parts(self, first: int, stop: int, size: int) -> Iterator[tuple[int, int, int]]:
        """(block, first, stop) of what there are files for; frames or samples, ``size`` a block."""
        for number in range(first // size, -(-stop // size)):
            if self.has(number):
                yield number, max(first, number * size), min(stop, (number + 1) * size)


def _reach(encoder: PairedEncoder) -> int:
    """How many local frames at an end of a row feel what lies beyond it: tried, with one sample changed."""
    samples = round(ROW_SECONDS * encoder.rate)
    x = gaussian_noise(0, "reach of a frame", 0, range(1), 1, encoder.rate, ROW_SECONDS, encoder.f_low, encoder.f_high)
    x = x[0].expand(3, samples).clone()
    x[1, 0] += 1e3
    x[2, -1] += 1e3
    device, count = next(encoder.parameters()).device, len(encoder.detectors)
    with torch.inference_mode():
        which = torch.arange(count, device=device).repeat_interleave(3)
        local = encoder.local(x.repeat(count, 1).to(device), which).cpu().unflatten(0, (count, 3))
    felt = (local[:, 1:] != local[:, :1]).any(dim=3).any(dim=0).numpy()
    return max(int(np.flatnonzero(felt[0]).max()) + 1, felt.shape[1] - int(np.flatnonzero(felt[1]).min()))


class written:
    """An HDF5 file that appears whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path, self._partial = path, path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> h5py.File:
        self._file = h5py.File(self._partial, "w")
        return self._file

    def __exit__(self, kind: object, *_: object) -> None:
        self._file.close()
        if kind is None:
            os.replace(self._partial, self._path)
        else:
            self._partial.unlink(missing_ok=True)


def compute_blocks(
    index: StrainIndex, encoder: PairedEncoder, store: BlockStore, numbers: Sequence[int], batch: int
) -> Iterator[int]:
    """Compute and keep blocks that follow on each other; gives each one's number when it is done.

    Args:
        index: the strain.
        encoder: frozen, in eval mode, on the device to compute on.
        store: where the blocks go; its detectors are those of the strain.
        numbers: of the blocks, without a break.
        batch: rows at a time.
    """
    grid = store.grid
    margin = grid.context * grid.samples
    size = grid.block * grid.samples
    low, high = numbers[0] * size - margin, (numbers[-1] + 1) * size + margin
    gps = low / grid.rate, high / grid.rate
    near = tuple(f for f in index.files if f.end > gps[0] - _NEARBY and f.start < gps[1] + _NEARBY)
    chunks = stream_conditioned(
        replace(index, files=near),
        grid.rate,
        encoder.f_low,
        encoder.f_high,
        detectors=store.detectors,
        start=gps[0],
        stop=gps[1],
    )
    held: deque[Chunk] = deque()
    for number in numbers:
        first, stop = number * size - margin, (number + 1) * size + margin
        while held and round(held[0].gps_end * grid.rate) <= first:
            held.popleft()
        while not held or round(held[-1].gps_end * grid.rate) < stop:
            chunk = next(chunks, None)
            if chunk is None:
                break
            held.append(chunk)
        store.write(_block(number, list(held), first, stop, encoder, store, batch))
        yield number


def _block(
    number: int, chunks: list[Chunk], first: int, stop: int, encoder: PairedEncoder, store: BlockStore, batch: int
) -> Block:
    """The block, from chunks that cover the samples ``first`` to ``stop``, context included."""
    grid, names = store.grid, store.detectors
    strain = np.zeros((len(names), stop - first), np.float32)
    valid = np.zeros(strain.shape, bool)
    left_out: list[tuple[str, Span]] = []
    margin = grid.context * grid.samples
    start, end = (first + margin) / grid.rate, (stop - margin) / grid.rate
    for chunk in chunks:
        at = round(chunk.gps_start * grid.rate)
        a, b = max(at, first), min(at + chunk.strain.shape[1], stop)
        if a < b:
            strain[:, a - first : b - first] = chunk.strain[:, a - at : b - at]
            valid[:, a - first : b - first] = chunk.valid[:, a - at : b - at]
        for name, span in chunk.left_out:
            if span.start < end and span.end > start:
                left_out.append((name, Span(max(span.start, start), min(span.end, end), span.why)))
    for row, recorded, name in zip(strain, valid, names, strict=True):
        if not recorded.all() and recorded.any():
            # Frames beside a gap are to see noise there, as they do everywhere else, and not the end of all noise.
            band = grid.rate, len(row) / grid.rate, encoder.f_low, encoder.f_high
            row[~recorded] = gaussian_noise(0, f"gaps of {name}", number, range(1), 1, *band)[0, 0].numpy()[~recorded]
    inner = slice(margin, strain.shape[1] - margin)
    good = np.all(valid[:, inner].reshape(len(names), grid.block, grid.samples), axis=2)
    frames = _encode(strain, good, encoder, store, batch)
    kept = np.where(valid[:, inner], strain[:, inner], np.nan).astype(np.float16)
    tidy = [(name, span) for name in names for span in merged([s for n, s in left_out if n == name])]
    return Block(number, frames, good, kept, tidy)


def _encode(
    strain: NDArray[np.float32], good: NDArray[np.bool_], encoder: PairedEncoder, store: BlockStore, batch: int
) -> NDArray[np.float16]:
    """Frames (K, F, C) of a block's strain with its context (K, T); rows without a good frame are not computed."""
    grid = store.grid
    device = next(encoder.parameters()).device
    length = (grid.row + 2 * grid.context) * grid.samples
    rows = np.lib.stride_tricks.sliding_window_view(strain, length, axis=1)[:, :: grid.row * grid.samples]
    wanted: NDArray[np.bool_] = np.any(good.reshape(len(good), -1, grid.row), axis=2)  # (K, rows)
    for _ in range(int(np.ceil(encoder.pool_start / grid.row))):
        wanted[:, :-1] |= wanted[:, 1:]  # the context of the first windows of a row
    which = np.array([encoder.detectors.index(name) for name in store.detectors])
    out: NDArray[np.float16] | None = None
    detector, row = np.nonzero(wanted)
    for a in range(0, max(detector.size, 1), batch):
        k, r = detector[a : a + batch], row[a : a + batch]
        x = torch.from_numpy(rows[k, r] if k.size else np.zeros((1, length), np.float32))
        index = torch.from_numpy(which[k] if k.size else which[:1])
        with torch.inference_mode():
            sequence = encoder.local(x.to(device), index.to(device)).float().cpu().numpy()
        if not np.isfinite(sequence).all():
            raise InputError("encoder", "gives frames that are not finite", "finite weights")
        if out is None:
            out = np.full((len(good), wanted.shape[1], grid.row, sequence.shape[2]), np.nan, np.float16)
        if k.size:
            out[k, r] = sequence[:, grid.context : grid.context + grid.row]
    assert out is not None
    return out.reshape(len(good), grid.block, -1)
