"""Windows cut from recorded strain, the detectors at the same moments: ``--data`` with strain files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gwtwins.strain import draws
from gwtwins.strain.batch import Batch
from gwtwins.strain.detectors import DETECTORS
from gwtwins.strain.errors import InputError
from gwtwins.strain.psd import PSD
from gwtwins.strain.recording import Conditioned, condition_recording
from gwtwins.strain.sources import Source, Window
from gwtwins.strain.whole_files import read_recordings, strain_files

STRIDE = 0.125  # seconds between the moments at which windows may start


class RecordedStrainSource(Source):
    """Unlabelled windows of coincident strain; almost none of them holds a signal.

    A moment counts where at least two detectors were recording well (one, if there is only one); the others are not
    present. Pretraining draws moments at random; ``batches`` gives back-to-back windows in the order of time.

    Args:
        spec: strain files, or folders of them, joined by commas.
        window: what the encoder wants.
        device: where batches are made.

    Raises:
        InputError: a file is at fault, or no moment is left.
    """

    fresh_noise = False

    def __init__(self, spec: str, window: Window, device: str = "cpu") -> None:
        self.spec, self.device = spec, device
        self.rate, self.window, self.f_low, self.f_high = window.rate, window.seconds, window.f_low, window.f_high
        self.samples = window.samples
        pieces: list[Conditioned] = []
        for path in strain_files(spec):
            for recording in read_recordings(path):
                pieces += condition_recording(recording, window.rate, window.f_low, window.f_high)
        self.pieces = pieces
        held = {piece.detector for piece in pieces}
        self.detectors = tuple(name for name in DETECTORS if name in held)
        if not pieces:
            raise InputError(spec, "no stretch of strain is long and good enough", "9 s or more that pass the vetoes")
        self.psds: dict[str, PSD] = {piece.detector: piece.psd for piece in pieces}
        self.gps, self.piece = self._moments()
        enough = (self.piece >= 0).sum(1) >= min(2, len(self.detectors))
        self.gps, self.piece = self.gps[enough], self.piece[enough]
        if not len(self.gps):
            raise InputError(spec, "no moment has two detectors", f"{self.window:g} s in which two were recording")

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        """GPS starts (M,) on the grid of STRIDE, and the piece that holds each detector's window, or -1 (M, D)."""
        first = np.ceil([piece.gps_start / STRIDE for piece in self.pieces]).astype(int)
        last = np.floor([(piece.gps_end - self.window) / STRIDE for piece in self.pieces]).astype(int)
        ticks = np.unique(np.concatenate([np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]))
        where = np.full((len(ticks), len(self.detectors)), -1)
        for i, piece in enumerate(self.pieces):
            tick = np.arange(first[i], last[i] + 1)
            for low, high in piece.gates:  # filled holes: quieter than any noise
                tick = tick[(tick * STRIDE + self.window <= low) | (tick * STRIDE >= high)]
            where[np.searchsorted(ticks, tick), self.detectors.index(piece.detector)] = i
        return ticks * STRIDE, where

    def _cut(self, moments: np.ndarray) -> Batch:
        strain = np.zeros((len(moments), len(self.detectors), self.samples), np.float32)
        for row, moment in enumerate(moments):
            for d, i in enumerate(self.piece[moment]):
                if i >= 0:
                    start = round((self.gps[moment] - self.pieces[i].gps_start) * self.rate)
                    strain[row, d] = self.pieces[i].strain[start : start + self.samples]
        return Batch(
            strain=torch.from_numpy(strain).to(self.device),
            present=torch.from_numpy(self.piece[moments] >= 0).to(self.device),
            gps=torch.from_numpy(self.gps[moments]).to(self.device),
            label=None,
            id=[f"{gps:.3f}" for gps in self.gps[moments]],
        )

    def train_batch(self, seed: int, step: int, rows: range, progress: float = 0.0, batch: int | None = None) -> Batch:
        u = draws.uniform(seed, "moments", step, rows, 1)[:, 0].numpy()
        return self._cut((u * len(self.gps)).astype(int))

    def _in_order(self) -> np.ndarray:
        chosen, free = [], -np.inf
        for i, gps in enumerate(self.gps):
            if gps >= free:
                chosen.append(i)
                free = gps + self.window
        return np.array(chosen)

    def count(self, split: str) -> int:
        return len(self._in_order()) if split in ("unlabelled", "all") else 0

    def batches(self, split: str, batch_size: int = 512) -> Iterator[Batch]:
        order = self._in_order() if self.count(split) else np.zeros(0, int)
        for start in range(0, len(order), batch_size):
            yield self._cut(order[start : start + batch_size])

    def describe(self) -> dict[str, Any]:
        """Detectors, seconds of each, and the files."""
        seconds = {d: sum(p.strain.size for p in self.pieces if p.detector == d) / self.rate for d in self.detectors}
        files = sorted(Path(source).name for source in {piece.source for piece in self.pieces})  # wherever they lie
        return {"source": "recorded strain", "seconds": seconds, "moments": len(self.gps), "files": files}
