"""The noise of a set of recorded windows, measured from the windows themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from gwtwins.strain.errors import InputError
from gwtwins.strain.psd import PSD, measured_from_windows
from gwtwins.strain.splits import held_out

_GROUP = 512  # windows held in float64 at once: 50 MB for three detectors


class WindowSet(Protocol):
    """Recorded windows of N moments, all of the same detectors, length and rate."""

    where: str
    """File or folder, for messages."""
    ids: list[str]
    """N unique ids, ascending."""
    label: np.ndarray
    """(N,) int8: 1 signal, 0 noise, -1 unknown."""
    gps: np.ndarray
    """(N,) float64, GPS seconds of the first sample; NaN where unknown."""
    pretrain_only: np.ndarray
    """(N,) bool: published without labels, so all of them are open to pretraining."""
    detectors: tuple[str, ...]
    rate: float
    """Samples per second."""
    samples: int
    """Samples per window."""
    scale: np.ndarray
    """(D,) float64: what :meth:`read` is in units of."""

    def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """(B, D, T) float32 or float64: strain divided by ``scale``, in the order of ``rows``."""
        ...


def pretraining_rows(windows: WindowSet) -> np.ndarray:
    """The rows open to pretraining, ascending: all but the test share. Labels are not looked at."""
    return np.flatnonzero(windows.pretrain_only | ~held_out(windows.ids))


def measure_psds(windows: WindowSet, rows: np.ndarray, most: int, seed: int = 0) -> dict[str, PSD]:
    """Each detector's median PSD over at most ``most`` of ``rows``, a seeded choice; no label is looked at.

    A median is hardly moved by faint signals, even in half of the windows, or by a few glitches. It is taken
    over groups of at most 512 windows and then averaged, so that memory does not grow with ``most``.

    Raises:
        InputError: fewer than 8 rows.
    """
    if len(rows) < 8:
        raise InputError(
            windows.where, f"{len(rows)} windows outside the test share", "at least 8 to measure a PSD"
        )
    choice = np.random.default_rng((seed, len(rows))).permutation(rows)[:most]
    groups = [np.sort(group) for group in np.array_split(choice, -(-len(choice) // _GROUP))]
    total: np.ndarray | None = None
    frequency = np.empty(0)
    for group in groups:
        strain = windows.read(group)
        psds = [
            measured_from_windows(strain[:, d].astype(np.float64) * windows.scale[d], windows.rate, detector)
            for d, detector in enumerate(windows.detectors)
        ]
        frequency, value = psds[0].frequency, np.stack([psd.value for psd in psds])  # (D, F)
        total = value if total is None else total + value
    assert total is not None
    return {
        detector: PSD(frequency, total[d] / len(groups), f"{detector}, median of {len(choice)} windows")
        for d, detector in enumerate(windows.detectors)
    }
