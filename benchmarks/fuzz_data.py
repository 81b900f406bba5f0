"""Sound files of strain and windows for a fuzz run, how each is read, and what its result must be like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gwtwins.strain.strain_file import LARGEST_STRAIN

RATE = 1024
START = 1_000_000_000
SECONDS = 16
DETECTORS = ("H1", "L1", "V1")


def noise(seconds: int = SECONDS, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """White strain of 1e-21."""
    return np.random.default_rng(seed).normal(0, 1e-21, seconds * rate)


def _fine(strain: np.ndarray) -> None:
    assert strain.dtype == np.float64
    assert not (np.abs(strain[np.isfinite(strain)]) > LARGEST_STRAIN).any()


# ---- strain


def make_gwosc(folder: Path) -> None:
    with h5py.File(folder / "x.hdf5", "w") as file:
        data = file.create_dataset("strain/Strain", data=noise(), compression="gzip", compression_opts=1)
        data.attrs.update(Npoints=data.size, Xstart=START, Xspacing=1.0 / RATE, Xunits="second")
        mask = file.create_dataset("quality/simple/DQmask", data=np.full(SECONDS, 7, np.uint32))
        mask.attrs["Xspacing"] = 1.0
        file["quality/simple/DQShortnames"] = np.array([b"DATA", b"CBC_CAT1", b"CBC_CAT2"])
        file["quality/injections/Injmask"] = np.full(SECONDS, 3, np.uint32)
        file["quality/injections/InjShortnames"] = np.array([b"NO_CBC_HW_INJ", b"NO_BURST_HW_INJ"])
        file["meta/Detector"], file["meta/GPSstart"], file["meta/Duration"] = "H1", START, SECONDS


def read_strain(folder: Path, name: str) -> Any:
    from gwtwins.strain.strain_index import index_strain

    index = index_strain([folder / name])
    found: list[Any] = []
    for file in index.files:
        reader = index.open(file)
        assert 0 <= file.start < 1e10 and file.samples > 0 and 1 <= file.rate <= 65536
        total = 0
        for first in range(file.offset, file.offset + file.samples, 1 << 16):
            strain = reader.read(first, min(first + (1 << 16), file.offset + file.samples))
            _fine(strain)
            found.append(strain)
            total += strain.size
            if total > 1 << 24:
                break  # long files may be: they are read a slice at a time
        faults = [] if reader.faults is None else [str(fault) for fault in reader.faults[:4096]]
        found.append((file.detector, file.start, file.samples, file.rate, faults))
        reader.close()
    return found


def read_gwosc(folder: Path) -> Any:
    from gwtwins.strain.errors import InputError
    from gwtwins.strain.gwosc import read_gwosc
    from gwtwins.strain.recording import condition_recording

    try:
        streamed = read_strain(folder, "x.hdf5")
    except InputError:
        streamed = None
    held = read_gwosc(folder / "x.hdf5")
    assert streamed is not None, "refused by the reader of slices, taken by the other"
    _fine(held.strain)
    assert held.good.shape == (held.seconds,) and held.detector in ("H1", "L1", "V1", "K1")
    whole = np.concatenate([part for part in streamed if isinstance(part, np.ndarray)])
    assert np.array_equal(whole, held.strain[: whole.size], equal_nan=True), "two readers, two results"
    for piece in condition_recording(held) if held.seconds < 600 else []:
        assert np.isfinite(piece.strain).all(), "whitened strain that is not finite"
    return held.strain, held.good, held.injection_free, held.gps_start, held.rate, held.detector


def make_mlgwsc(folder: Path) -> None:
    with h5py.File(folder / "x.hdf5", "w") as file:
        for seed, name in enumerate(("H1", "L1")):
            data = file.create_dataset(f"{name}/{START}", data=noise(seed=seed))
            data.attrs.update(delta_t=1.0 / RATE, start_time=float(START))


def make_gwf(folder: Path) -> None:
    from pycbc.frame import write_frame
    from pycbc.types import TimeSeries

    stem = "H1:GWOSC-4KHZ_R1_"
    mask = [TimeSeries(np.full(8, word), delta_t=1.0, epoch=START, dtype=np.uint32) for word in (127, 31)]
    series = [TimeSeries(noise(8), delta_t=1 / RATE, epoch=START), *mask]
    write_frame(str(folder / "x.gwf"), [stem + end for end in ("STRAIN", "DQMASK", "INJMASK")], series)


# ---- windows


def make_store(folder: Path) -> None:
    from gwtwins.strain.window_store import PACKED, create_store

    n, t = 12, 256
    ids = [f"{k:010x}" for k in range(n)]
    label, rng = np.arange(n) % 2, np.random.default_rng(0)
    path = folder / "x.hdf5"
    create_store(path, ids, label, np.arange(n) * 1.0, np.zeros(n), np.full(3, 2.0**-70), DETECTORS, 128.0, t, "x")
    with h5py.File(path, "r+") as file:
        file["strain"][:] = rng.normal(size=(n, 3, t))
        file["state"][:], file["complete"][0] = PACKED, 1
        file["psd_frequency"][:], file["psd"][:] = np.arange(1, t // 2 + 1) / 2, 1e-46


def read_store(folder: Path) -> Any:
    from gwtwins.strain.window_store import WindowStore

    store = WindowStore(folder / "x.hdf5")
    try:
        strain = store.read(np.arange(len(store)))
        assert strain.dtype == np.float32 and np.isfinite(strain).all()
        assert len(store.ids) == len(store.label) == len(store.gps) == len(strain) > 0
        assert set(np.unique(store.label)) <= {-1, 0, 1}
        return strain, store.ids, store.label, store.gps, store.rate, [store.psds[d].value for d in store.detectors]
    finally:
        store.close()


def make_g2net(folder: Path) -> None:
    from gwtwins.strain.g2net import window_path

    ids = ["00aa", "00ab", "1f00"]
    for seed, id in enumerate(ids):
        path = window_path(folder, "train", id)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.random.default_rng(seed).normal(0, 1e-21, (3, 4096)))
    (folder / "training_labels.csv").write_text("id,target\n" + "".join(f"{id},{k % 2}\n" for k, id in enumerate(ids)))


def read_g2net(folder: Path) -> Any:
    from gwtwins.strain.g2net import G2NetFolder

    windows = G2NetFolder(folder)
    strain = windows.read(range(len(windows)))
    assert strain.shape == (3, 3, 4096) and strain.dtype == np.float64 and np.isfinite(strain).all()
    assert set(np.unique(windows.label)) <= {0, 1}
    return strain, windows.ids, windows.label
