"""Sources of recorded windows: a packed store, or a folder in the G2Net layout, behind the one interface."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gwtwins.strain.batch import Batch
from gwtwins.strain.conditioning import Conditioner
from gwtwins.strain.draws import row_generator
from gwtwins.strain.errors import InputError
from gwtwins.strain.g2net import G2NetFolder
from gwtwins.strain.psd import PSD
from gwtwins.strain.sources import Source, Window
from gwtwins.strain.splits import held_out
from gwtwins.strain.window_psd import WindowSet, measure_psds, pretraining_rows
from gwtwins.strain.window_store import WindowStore

SPLITS = ("labelled", "test", "unlabelled", "all", "submission")
_SLICE = 16  # windows conditioned at once on a CPU: they stay in its cache, three times as fast as 256 at once
_FOLDER_PSD_WINDOWS = 512  # read at every start: more cost seconds, fewer make the PSD noisier than 5% a bin


class RecordedWindowSource(Source):
    """Windows of a fixed set, whitened with the PSDs measured from the set itself.

    Splits, by a fixed hash of the id: "labelled" and "test" are the rows with a known label outside and
    inside the test share; "unlabelled" is everything pretraining may see, all rows outside the test share
    (whether they have a label is not looked at) and every row published without labels; "all" is every row.
    Each is in the order of the ids.

    Args:
        spec: what ``--data`` said.
        windows: the set.
        psds: per detector, for whitening.
        window: what the encoder wants; its length must be the set's.
        device: where batches are made.
    """

    fresh_noise = False

    def __init__(
        self, spec: str, windows: WindowSet, psds: dict[str, PSD], window: Window, device: torch.device | str
    ) -> None:
        seconds = windows.samples / windows.rate
        if abs(seconds - window.seconds) > 0.5 / windows.rate:
            raise InputError(windows.where, f"windows of {seconds:g} s", f"{window.seconds:g} s, as the encoder takes")
        self.spec, self.windows, self.psds = spec, windows, psds
        self.detectors, self.rate, self.window = tuple(windows.detectors), window.rate, window.seconds
        self.f_low, self.f_high = window.f_low, window.f_high
        self.device = torch.device(device)
        # The PSD of strain / scale: windows then go to the device as they are stored, in float32.
        scaled = [
            PSD(psds[name].frequency, psds[name].value / scale**2, psds[name].name)
            for name, scale in zip(self.detectors, windows.scale, strict=True)
        ]
        self.conditioner = Conditioner(
            scaled, windows.rate, window.seconds, window.rate, window.f_low, window.f_high, margin=0.0
        ).to(self.device)
        known, test = windows.label >= 0, held_out(windows.ids)
        self._rows = {
            "labelled": np.flatnonzero(known & ~test),
            "test": np.flatnonzero(known & test),
            "unlabelled": pretraining_rows(windows),
            "all": np.arange(len(windows.ids)),
            "submission": np.flatnonzero(~known),
        }

    def train_batch(self, seed: int, step: int, rows: range, progress: float = 0.0, batch: int | None = None) -> Batch:
        """Rows of the pretraining set: each once an epoch, in an order that (seed, epoch) decides.

        Args:
            seed, step, rows, batch: as in :class:`Source`. Where ``rows`` are not the whole step, ``batch``
                is needed: without it the next step would give some of them again.
            progress: without influence on a recording.
        """
        batch = len(rows) if batch is None else batch
        if len(rows) and not 0 <= min(rows) <= max(rows) < batch:
            raise ValueError(f"rows {rows} are not among the step's {batch}: pass the size of the global batch")
        pool = self._rows["unlabelled"]
        if not len(pool):
            raise InputError(self.windows.where, "no window outside the test share", "windows to pretrain on")
        epochs, places = np.divmod(step * batch + np.asarray(rows, dtype=np.int64), len(pool))
        chosen = np.empty(len(rows), dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            chosen[here] = pool[_row_order(seed, int(epoch), len(pool))[places[here]]]
        return self._batch(chosen, labels=False)

    def count(self, split: str) -> int:
        """Rows in "labelled", "test", "unlabelled" or "all"."""
        return len(self._split(split))

    def batches(self, split: str, batch_size: int = 512) -> Iterator[Batch]:
        """A split in the order of the ids; with labels if every row of it has one, but never "unlabelled"."""
        rows = self._split(split)
        labels = split != "unlabelled" and bool((self.windows.label[rows] >= 0).all())
        for start in range(0, len(rows), batch_size):
            yield self._batch(rows[start : start + batch_size], labels)

    def describe(self) -> dict[str, Any]:
        """Counts, detectors, and a digest over ids, labels and PSDs."""
        digest = hashlib.sha256("\n".join(self.windows.ids).encode())
        digest.update(self.windows.label.astype(np.int8).tobytes())
        for name in self.detectors:
            digest.update(self.psds[name].value.tobytes())
        return {
            "kind": type(self).__name__,
            "spec": self.spec,
            "windows": len(self.windows.ids),
            **{split: self.count(split) for split in SPLITS[:3]},
            "detectors": list(self.detectors),
            "rate": self.rate,
            "source_rate": self.windows.rate,
            "window": self.window,
            "sha256": digest.hexdigest(),
        }

    def _split(self, split: str) -> np.ndarray:
        if split not in self._rows:
            raise InputError(f"split {split}", "unknown", ", ".join(SPLITS))
        return self._rows[split]

    def _batch(self, rows: np.ndarray, labels: bool) -> Batch:
        raw = torch.from_numpy(self.windows.read(rows)).to(self.device)  # (B, D, T_in)
        pieces = raw.split(_SLICE if self.device.type == "cpu" else max(len(raw), 1))
        label = torch.from_numpy(self.windows.label[rows].astype(np.float32)) if labels else None
        return Batch(
            strain=torch.cat([self.conditioner(piece) for piece in pieces]),
            present=torch.ones(len(rows), len(self.detectors), dtype=torch.bool, device=self.device),
            gps=torch.from_numpy(self.windows.gps[rows]).to(self.device),
            label=None if label is None else label.to(self.device),
            id=[self.windows.ids[row] for row in rows],
        )


class WindowStoreSource(RecordedWindowSource):
    """A packed store (:mod:`gwtwins.strain.pack`): ``--data windows.hdf5``."""

    def __init__(self, spec: str, window: Window | None = None, device: torch.device | str = "cpu") -> None:
        store = WindowStore(spec)
        super().__init__(spec, store, store.psds, window or Window(), device)


class G2NetSource(RecordedWindowSource):
    """A folder in the G2Net layout, read file by file: ``--data folder``. For long runs, pack it first."""

    def __init__(self, spec: str, window: Window | None = None, device: torch.device | str = "cpu") -> None:
        folder = G2NetFolder(spec)
        psds = measure_psds(folder, pretraining_rows(folder), _FOLDER_PSD_WINDOWS)
        name = Path(spec).name
        psds = {detector: PSD(psd.frequency, psd.value, f"{name} {detector}") for detector, psd in psds.items()}
        super().__init__(spec, folder, psds, window or Window(), device)


@lru_cache(maxsize=2)  # a batch may lie across two epochs; a million rows take 8 MB
def _row_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """A permutation of n rows, a pure function of its arguments."""
    return row_generator(seed, "row order", epoch, 0).permutation(n)
