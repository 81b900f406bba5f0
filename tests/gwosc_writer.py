"""Small files in the GWOSC HDF5 layout, made of noise, for tests."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

FLAGS = ("DATA", "CBC_CAT1", "CBC_CAT2", "CBC_CAT3", "BURST_CAT1", "BURST_CAT2", "BURST_CAT3")
INJECTIONS = ("NO_CBC_HW_INJ", "NO_BURST_HW_INJ", "NO_DETCHAR_HW_INJ", "NO_CW_HW_INJ", "NO_STOCH_HW_INJ")
GPS_START = 1_000_000_000
WHITE_LEVEL = 1e-23  # 1/sqrt(Hz), near 100 Hz


def detector_asd(frequency: np.ndarray) -> np.ndarray:
    """An ASD of a detector's shape: a seismic wall, a bucket, shot noise; 1/sqrt(Hz)."""
    f = np.maximum(frequency, 5.0)
    return WHITE_LEVEL * (10.0 * (15.0 / f) ** 6 + 1.0 + f / 400.0)


def coloured_noise(seconds: int, rate: int, seed: int = 0, lines: bool = True) -> np.ndarray:
    """(seconds * rate,) float64 strain with that ASD, and mains lines 1,000 times above it."""
    rng = np.random.default_rng(seed)
    n = (seconds + 8) * rate  # the generator is cyclic: the ends are thrown away
    frequency = np.fft.rfftfreq(n, 1 / rate)
    white = rng.standard_normal(frequency.size) + 1j * rng.standard_normal(frequency.size)
    strain = np.fft.irfft(white * detector_asd(frequency) * np.sqrt(rate * n / 4), n)
    strain = strain[4 * rate : -4 * rate]
    if lines:
        time = np.arange(strain.size) / rate
        for f, phase in ((60.0, 0.3), (120.0, 1.1), (300.0, 2.0)):
            strain = strain + 1000 * WHITE_LEVEL * np.sin(2 * np.pi * f * time + phase)
    return strain


def write_gwosc(
    path: Path,
    strain: np.ndarray,
    rate: int = 4096,
    detector: str = "H1",
    gps: int = GPS_START,
    vetoed: dict[str, list[int]] | None = None,
    injected: dict[str, list[int]] | None = None,
    flags: tuple[str, ...] = FLAGS,
    mask_spacing: float | None = 1.0,
) -> Path:
    """``strain`` as a GWOSC file; ``vetoed`` and ``injected`` name seconds that fail a flag."""
    seconds = strain.size // rate

    def words(names: tuple[str, ...], failed: dict[str, list[int]] | None) -> np.ndarray:
        mask = np.full(seconds, (1 << len(names)) - 1, np.uint32)
        for name, where in (failed or {}).items():
            mask[where] &= np.uint32(~(1 << names.index(name)) & 0xFFFFFFFF)
        return mask

    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("strain/Strain", data=strain, compression="gzip", compression_opts=1)
        dataset.attrs.update(Npoints=strain.size, Xstart=gps, Xspacing=1.0 / rate, Xunits="second")
        mask = file.create_dataset("quality/simple/DQmask", data=words(flags, vetoed))
        if mask_spacing is not None:
            mask.attrs["Xspacing"] = mask_spacing
        file["quality/simple/DQShortnames"] = np.array([name.encode() for name in flags])
        if injected is not None:
            file["quality/injections/Injmask"] = words(INJECTIONS, injected)
            file["quality/injections/InjShortnames"] = np.array([name.encode() for name in INJECTIONS])
        file["meta/Detector"] = detector
        file["meta/GPSstart"] = gps
        file["meta/Duration"] = seconds
    return path
