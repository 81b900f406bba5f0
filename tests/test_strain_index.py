"""Files, folders and series as one index: what holds which time, and what cannot be used."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pycbc.types import TimeSeries

from gwosc_writer import coloured_noise, write_gwosc
from gwtwins.strain.errors import InputError
from gwtwins.strain.strain_index import from_series, index_strain
from gwtwins.strain.streaming import stream_conditioned

RATE = 1024
START = 64 * 17_000_000


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return coloured_noise(64, RATE, seed=21)


def write(path: Path, noise: np.ndarray, start: int = 0, stop: int = 64, detector: str = "H1") -> Path:
    return write_gwosc(path, noise[start * RATE : stop * RATE], RATE, detector, START + start)


def test_a_folder_is_searched_to_any_depth(tmp_path: Path, noise: np.ndarray) -> None:
    (tmp_path / "H" / "1").mkdir(parents=True)
    write(tmp_path / "H" / "1" / "b.hdf5", noise, 20, 40)
    write(tmp_path / "a.h5", noise, 0, 20, "L1")
    (tmp_path / "readme.txt").write_text("no strain")
    index = index_strain(tmp_path)
    assert [(f.detector, f.start - START, f.end - START, f.rate) for f in index.files] == [
        ("H1", 20, 40, RATE),
        ("L1", 0, 20, RATE),
    ]
    assert [(s.start - START, s.end - START) for s in index.spans] == [(0, 40)]
    assert pickle.loads(pickle.dumps(index)) == index


def test_the_first_of_overlapping_files_holds_the_overlap(tmp_path: Path, noise: np.ndarray) -> None:
    first = write(tmp_path / "b.hdf5", noise, 0, 30)
    second = write(tmp_path / "a.hdf5", noise, 20, 50)
    index = index_strain([second, first])
    assert [(f.path, f.start - START, f.end - START) for f in index.files] == [
        (str(first), 0, 30),
        (str(second), 30, 50),
    ]
    (note,) = index.notes
    assert "a.hdf5: H1 at GPS" in note and "b.hdf5" in note and note.endswith("used from there on only")
    (joined,) = stream_conditioned(index, 1024.0, 20.0, 500.0)
    whole = index_strain([write(tmp_path / "whole.hdf5", noise, 0, 50)])
    (alone,) = stream_conditioned(whole, 1024.0, 20.0, 500.0)
    assert np.array_equal(joined.strain, alone.strain)


def test_duplicates_are_dropped(tmp_path: Path, noise: np.ndarray) -> None:
    path = write(tmp_path / "a.hdf5", noise)
    copy = write(tmp_path / "copy.hdf5", noise)
    assert index_strain([path, tmp_path / ".." / tmp_path.name / "a.hdf5"]).notes == ()
    index = index_strain([path, copy])
    assert [file.path for file in index.files] == [str(path)]
    assert index.notes[0].endswith("copy.hdf5: H1 at GPS 1088000000-1088000064 is in " + str(path)) or (
        "it is not used" in index.notes[0]
    )


def test_a_detector_that_is_not_asked_for_is_refused(tmp_path: Path, noise: np.ndarray) -> None:
    path = write(tmp_path / "k.hdf5", noise, detector="K1")
    assert index_strain([path]).detectors == ("K1",)
    with pytest.raises(InputError, match=r"k\.hdf5: is of K1; expected strain of H1, L1"):
        index_strain([path], detectors=("H1", "L1"))


def test_a_detector_that_does_not_exist_is_refused(tmp_path: Path, noise: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"x\.hdf5: unknown detector 'X9'"):
        index_strain([write(tmp_path / "x.hdf5", noise, detector="X9")])


def test_an_empty_file_and_one_cut_short_are_named(tmp_path: Path, noise: np.ndarray) -> None:
    whole = write(tmp_path / "whole.hdf5", noise)
    (tmp_path / "empty.hdf5").touch()
    (tmp_path / "cut.hdf5").write_bytes(whole.read_bytes()[:200_000])
    with pytest.raises(InputError, match=r"empty\.hdf5: not a readable HDF5 file \(it is empty\)"):
        index_strain([whole, tmp_path / "empty.hdf5"])
    with pytest.raises(InputError, match=r"cut\.hdf5: truncated"):
        index_strain([whole, tmp_path / "cut.hdf5"])


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.hdf5: no such file"):
        index_strain([tmp_path / "absent.hdf5"])
    with pytest.raises(InputError, match="no strain file in this folder"):
        index_strain([tmp_path])
    with pytest.raises(InputError, match="none given"):
        index_strain([])


def test_a_required_flag_must_be_in_every_file(tmp_path: Path, noise: np.ndarray) -> None:
    path = write_gwosc(tmp_path / "old.hdf5", noise, RATE, gps=START, flags=("DATA", "CBC_CAT1"))
    assert index_strain([path]).files
    with pytest.raises(InputError, match=r"old\.hdf5: no data quality flag CBC_CAT3; expected one of CBC_CAT1, DATA"):
        index_strain([path], required_flags=["CBC_CAT3"])


def test_a_file_that_changes_after_it_was_indexed_is_noticed(tmp_path: Path, noise: np.ndarray) -> None:
    path = write(tmp_path / "a.hdf5", noise)
    index = index_strain([path])
    write(path, noise, 0, 32)
    with pytest.raises(InputError, match="has changed since it was indexed"):
        list(stream_conditioned(index, 1024.0, 20.0, 500.0))


def test_pycbc_and_gwpy_series_give_what_the_file_gives(tmp_path: Path, noise: np.ndarray) -> None:
    class Quantity(SimpleNamespace):
        def to_value(self, unit: str) -> float:
            assert unit == "s"
            return self.seconds

    pycbc = TimeSeries(noise, delta_t=1 / RATE, epoch=START)
    gwpy = SimpleNamespace(value=noise, t0=Quantity(seconds=START), dt=Quantity(seconds=1 / RATE))
    (expected,) = stream_conditioned(index_strain([write(tmp_path / "a.hdf5", noise)]), 1024.0, 20.0, 500.0)
    for series in (pycbc, gwpy, [pycbc]):
        index = index_strain({"H1": series})
        assert (index.detectors, index.files[0].start, index.files[0].end) == (("H1",), START, START + 64)
        (chunk,) = stream_conditioned(index, 1024.0, 20.0, 500.0)
        assert np.array_equal(chunk.strain, expected.strain)


def test_what_is_no_series_is_refused(noise: np.ndarray) -> None:
    with pytest.raises(InputError, match="series of H1: a ndarray; expected a pycbc or gwpy TimeSeries"):
        from_series({"H1": noise})
    with pytest.raises(InputError, match="unknown detector 'Hanford'"):
        from_series({"Hanford": TimeSeries(noise, delta_t=1 / RATE)})
    with pytest.raises(InputError, match="samples 0.0003 s apart"):
        from_series({"H1": TimeSeries(noise, delta_t=0.0003)})
