"""Small files in the MLGWSC-1 layout, for tests."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np


def write_mlgwsc(path: Path, segments: dict[str, dict[int, np.ndarray]], rate: int = 2048) -> Path:
    """``segments``: of each detector, strain (T,) by GPS start."""
    with h5py.File(path, "w") as file:
        for detector, pieces in segments.items():
            for start, strain in pieces.items():
                dataset = file.create_dataset(f"{detector}/{start}", data=strain)
                dataset.attrs.update(delta_t=1.0 / rate, start_time=float(start))
    return path
