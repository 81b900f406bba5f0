"""Where windows come from: one interface, and the registry behind ``--data``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gwtwins.strain.batch import Batch
from gwtwins.strain.conditioning import F_HIGH, F_LOW, RATE, WINDOW
from gwtwins.strain.errors import InputError
from gwtwins.strain.psd import PSD

Choose = Callable[[Tensor], Tensor]


@dataclass
class Window:
    """What an encoder wants to be given; sources make their windows to it."""

    rate: float = RATE
    """Samples per second."""
    seconds: float = WINDOW
    """Length."""
    f_low: float = F_LOW
    """Lower end of the whitened band, Hz."""
    f_high: float = F_HIGH
    """Upper end of the whitened band, Hz."""

    @property
    def samples(self) -> int:
        """Samples per window."""
        return round(self.rate * self.seconds)


class Source:
    """Windows for pretraining (`train_batch`) and for probing (`count`, `batches`).

    ``train_batch`` is a pure function of its arguments, so that resuming, worker counts and several processes
    change nothing; ``batches`` gives a split's rows in a fixed order.
    """

    spec: str = ""
    detectors: tuple[str, ...] = ()
    rate: float = RATE
    window: float = WINDOW
    f_low: float = F_LOW
    f_high: float = F_HIGH
    psds: dict[str, PSD]
    fresh_noise: bool = False
    """Whether the same signal can be given in two noise draws (only a simulation can)."""

    def train_batch(self, seed: int, step: int, rows: range, progress: float = 0.0, batch: int | None = None) -> Batch:
        """Unlabelled rows for pretraining.

        Args:
            seed: of the run.
            step: of the optimiser.
            rows: which rows of the step's global batch (a process of several makes only its own).
            progress: fraction of the run that is over, in [0, 1]; an SNR curriculum depends on it.
            batch: rows of the step's global batch, ``len(rows)`` if not given.
        """
        raise NotImplementedError

    def train_chosen(
        self, seed: int, step: int, rows: range, progress: float, batch: int, choose: Choose
    ) -> tuple[Batch, Tensor]:
        """As `train_batch`, with the strain of some detectors of each row alone: (B, V, T), and which they are (B, V).

        ``choose`` takes the detectors that each row has, (B, D) bool, and gives those wanted, (B, V) int64. A
        source that makes its data need not make the others.
        """
        whole = self.train_batch(seed, step, rows, progress, batch)
        which = choose(whole.present)
        row = torch.arange(len(whole), device=which.device)[:, None]
        return replace(whole, strain=whole.strain[row, which], present=whole.present[row, which], truth={}), which

    def train_pair(
        self, seed: int, step: int, rows: range, progress: float = 0.0, batch: int | None = None
    ) -> tuple[Batch, Batch]:
        """The same signals in two independent noise draws."""
        raise InputError(
            f"--views noise with {self.spec}",
            "a recorded signal comes with one noise only",
            "--data simulated, or --views detector, pairs or augment",
        )

    def count(self, split: str) -> int:
        """Rows in ``split``: "labelled", "test" or "unlabelled"."""
        raise NotImplementedError

    def prepare(self, split: str) -> None:
        """Do beforehand what the first of ``batches`` would otherwise wait for."""

    def batches(self, split: str, batch_size: int = 512) -> Iterator[Batch]:
        """The rows of ``split`` in their fixed order, with labels where known."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """A JSON-able fingerprint of the data, saved beside every result."""
        raise NotImplementedError


def open_source(
    spec: str, window: Window | None = None, device: str = "cpu", options: dict[str, Any] | None = None
) -> Source:
    """The source that ``--data SPEC`` names.

    ``simulated``; a packed window store (``*.hdf5``); a folder in the G2Net layout; strain files (GWOSC HDF5 or GWF; a
    folder, a file, or several joined by commas).

    Raises:
        InputError: nothing is there, or it is none of these.
    """
    window = window or Window()
    for matches, make in _sources():
        if matches(spec):
            return make(spec, window, device, options or {})
    missing = next((part for part in spec.split(",") if not Path(part).exists()), None)
    if missing is not None:
        raise InputError(
            f"--data {missing}", "no such file or folder", "simulated, a packed HDF5 file, or a folder of data"
        )
    raise InputError(
        f"--data {spec}",
        "not a kind of data that is known",
        "a file from gwtwins.strain.pack, a G2Net folder, or strain files (GWOSC HDF5, GWF)",
    )


Maker = Callable[[str, Window, str, dict[str, Any]], Source]


def _sources() -> list[tuple[Callable[[str], bool], Maker]]:
    """The registry: how a spec is recognised, and what opens it. Imports wait until a source is asked for."""

    def simulated(spec: str, window: Window, device: str, options: dict[str, Any]) -> Source:
        from gwtwins.strain.simulated import SimulatedSource, SimulationConfig

        return SimulatedSource(SimulationConfig(**options), window, device)

    def packed(spec: str, window: Window, device: str, options: dict[str, Any]) -> Source:
        from gwtwins.strain.recorded_windows import WindowStoreSource

        return WindowStoreSource(spec, window, device)

    def g2net(spec: str, window: Window, device: str, options: dict[str, Any]) -> Source:
        from gwtwins.strain.recorded_windows import G2NetSource

        return G2NetSource(spec, window, device)

    def recorded(spec: str, window: Window, device: str, options: dict[str, Any]) -> Source:
        from gwtwins.strain.recorded_strain import RecordedStrainSource

        return RecordedStrainSource(spec, window, device)

    from gwtwins.strain.g2net import is_g2net_folder
    from gwtwins.strain.window_store import is_window_store

    return [
        (lambda spec: spec == "simulated", simulated),
        (is_window_store, packed),
        (is_g2net_folder, g2net),
        (_is_strain, recorded),
    ]


def _is_strain(spec: str) -> bool:
    """Strain files that are not window stores, or folders holding some."""
    from gwtwins.strain.strain_index import ENDINGS, strain_inside

    parts = [Path(part) for part in spec.split(",") if part]
    return bool(parts) and all(
        any(strain_inside(path)) if path.is_dir() else path.suffix in ENDINGS and path.is_file() for path in parts
    )
