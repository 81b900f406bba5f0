"""Makes folders in the G2Net layout for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gwtwins.strain.g2net import DETECTORS, LABELS, RATE, SAMPLES, window_path


def names(n: int, prefix: str = "") -> list[str]:
    """N ids as the data set has them, ten hexadecimal digits, spread over the folders."""
    return [prefix + f"{(k * 2654435761) % 2**40:010x}"[len(prefix) :] for k in range(n)]


def coloured_noise(n: int, seed: int = 0, level: float = 1e-21) -> np.ndarray:
    """(N, 3, 4096) Gaussian strain of RMS ``level`` in H1 and L1, thrice in V1, red below 100 Hz."""
    rng = np.random.default_rng(seed)
    frequency = np.fft.rfftfreq(SAMPLES, 1 / RATE)
    colour = (100.0 / np.maximum(frequency, 5.0)) ** 2 + 1.0 + (frequency / 300.0) ** 2
    # Twice as long and cut, so that a window is not periodic: recorded ones are not.
    white = rng.standard_normal((n, len(DETECTORS), 2 * SAMPLES))
    fine = np.interp(np.fft.rfftfreq(2 * SAMPLES, 1 / RATE), frequency, colour)
    noise = np.fft.irfft(np.fft.rfft(white) * fine)[..., :SAMPLES]
    return noise / noise.std() * level * np.array([1.0, 1.0, 3.0])[:, None]


def write_g2net_folder(
    root: str | Path,
    windows: np.ndarray,
    ids: Sequence[str],
    labels: Sequence[int] | None = None,
    folder: str = "train",
) -> Path:
    """Write windows (N, 3, 4096) of any type to ROOT/``folder``/a/b/c, and their labels if there are any."""
    root = Path(root)
    for id, window in zip(ids, windows, strict=True):
        path = window_path(root, folder, id)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, window)
    if labels is not None:
        lines = [f"{id},{int(label)}" for id, label in zip(ids, labels, strict=True)]
        (root / LABELS).write_text("\n".join(["id,target", *lines]) + "\n")
    return root
