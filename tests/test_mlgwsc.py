"""Strain in the MLGWSC-1 layout: what is there is found and read, what is broken is named."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from gwosc_writer import coloured_noise
from gwtwins.strain.errors import InputError
from gwtwins.strain.segments import EDGE_REASON
from gwtwins.strain.strain_index import index_strain
from gwtwins.strain.streaming import stream_conditioned
from mlgwsc_writer import write_mlgwsc

RATE = 2048
START = 64 * 20_000_000


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return coloured_noise(64, RATE, seed=11)


def test_segments_of_both_detectors_are_found(tmp_path: Path, noise: np.ndarray) -> None:
    pieces = {START: noise[: 20 * RATE], START + 40: noise[: 24 * RATE]}
    path = write_mlgwsc(tmp_path / "background.hdf", {"L1": pieces, "H1": {START: noise}})
    index = index_strain([path])
    assert index.detectors == ("H1", "L1")
    found = [(file.detector, file.start, file.end, file.rate) for file in index.files]
    assert found == [
        ("H1", START, START + 64, RATE),
        ("L1", START, START + 20, RATE),
        ("L1", START + 40, START + 64, RATE),
    ]
    reader = index.open(index.files[2])
    assert np.array_equal(reader.read(5, 2000), noise[5:2000])
    assert reader.faults is None
    reader.close()


def test_a_challenge_that_starts_at_gps_zero_is_streamed(tmp_path: Path, noise: np.ndarray) -> None:
    path = write_mlgwsc(tmp_path / "zero.hdf", {"H1": {0: noise}})
    (chunk,) = stream_conditioned(index_strain([path]), 1024.0, 20.0, 500.0)
    assert chunk.gps_start == 0.0
    assert chunk.valid.sum() == 63 * 1024
    assert abs(chunk.strain[chunk.valid].std() - 1) < 0.02


def test_segments_that_touch_are_independent_noise_and_not_joined(tmp_path: Path, noise: np.ndarray) -> None:
    other = coloured_noise(32, RATE, seed=12)
    path = write_mlgwsc(tmp_path / "touching.hdf", {"H1": {START: noise[: 32 * RATE], START + 32: other}})
    (chunk,) = stream_conditioned(index_strain([path]), 1024.0, 20.0, 500.0)
    lost = [(s.start - START, s.end - START) for _, s in chunk.left_out if s.why == EDGE_REASON]
    assert lost == [(0.0, 0.5), (31.5, 32.5), (63.5, 64.0)]
    assert np.abs(chunk.strain).max() < 6


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file["H1"].move(str(START), "5"), None),  # the name is only a name
        (lambda file: file[f"H1/{START}"].attrs.pop("delta_t"), "no attribute delta_t"),
        (lambda file: file[f"H1/{START}"].attrs.modify("delta_t", 0.0003), "samples 0.0003 s apart"),
        (lambda file: file[f"H1/{START}"].attrs.modify("start_time", np.nan), "no attribute start_time"),
        (lambda file: file["H1"].create_dataset("9", data=np.zeros((3, 3))), "not a row of floating-point"),
        (lambda file: file["H1"].__setitem__("9", h5py.SoftLink(f"/H1/{START}")), "a link to another place"),
        (lambda file: file["H1"].__setitem__("9", h5py.ExternalLink("x.hdf", "/H1")), "a link to another place"),
        (lambda file: file.move("H1", "X1"), "unknown detector 'X1'"),
        (lambda file: file.__delitem__(f"H1/{START}"), "no segment of strain"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, noise: np.ndarray, spoil: object, message: str | None) -> None:
    path = write_mlgwsc(tmp_path / "broken.hdf", {"H1": {START: noise[: 10 * RATE]}})
    with h5py.File(path, "a") as file:
        spoil(file)  # type: ignore[operator]
    if message is None:
        assert index_strain([path]).files[0].start == START
        return
    with pytest.raises(InputError, match=message) as error:
        index_strain([path])
    assert "broken.hdf" in str(error.value)
