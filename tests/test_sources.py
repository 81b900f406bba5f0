"""What ``--data`` may name, and what is said when it names nothing that is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pycbc.frame import write_frame
from pycbc.types import TimeSeries

from g2net_writer import coloured_noise, names, write_g2net_folder
from gwosc_writer import GPS_START, write_gwosc
from gwosc_writer import coloured_noise as recording
from gwtwins.strain.errors import InputError
from gwtwins.strain.pack import pack
from gwtwins.strain.real_noise import RealNoise
from gwtwins.strain.recorded_strain import RecordedStrainSource
from gwtwins.strain.recorded_windows import G2NetSource, WindowStoreSource
from gwtwins.strain.simulated import SimulatedSource
from gwtwins.strain.sources import Source, Window, open_source

OPTIONS = {"bank_size": 64, "n_labelled": 64, "n_test": 64}


def test_the_window_an_encoder_asks_for() -> None:
    assert (Window().rate, Window().seconds, Window().f_low, Window().f_high) == (2048.0, 2.0, 20.0, 500.0)
    assert Window().samples == 4096 and Window(rate=1024.0, seconds=1.5).samples == 1536


def test_a_source_that_gives_nothing_says_so() -> None:
    source = Source()
    for call in (
        lambda: source.train_batch(0, 0, range(1)),
        lambda: source.count("test"),
        lambda: source.batches("test"),
        source.describe,
    ):
        with pytest.raises(NotImplementedError):
            call()


def test_a_recording_has_one_noise_only() -> None:
    source = Source()
    source.spec = "windows.hdf5"
    with pytest.raises(InputError, match="--views noise with windows.hdf5: a recorded signal comes with one"):
        source.train_pair(0, 0, range(1))


def test_simulated(cache: Path) -> None:
    source = open_source("simulated", Window(rate=1024.0), options=OPTIONS)
    assert isinstance(source, SimulatedSource) and source.rate == 1024.0 and source.window == 2.0
    assert source.train_batch(0, 0, range(2)).strain.shape == (2, 3, 2048)


def test_recorded_kinds(tmp_path: Path) -> None:
    ids = names(24)
    folder = write_g2net_folder(tmp_path / "g2net", coloured_noise(24), ids, [0, 1] * 12)
    tree = open_source(str(folder))
    assert isinstance(tree, G2NetSource) and tree.detectors == ("H1", "L1", "V1")
    pack(folder, tmp_path / "windows.hdf5", workers=1)
    store = open_source(str(tmp_path / "windows.hdf5"), Window(rate=1024.0))
    assert isinstance(store, WindowStoreSource) and store.rate == 1024.0
    assert store.count("labelled") == tree.count("labelled")


def test_strain_files(tmp_path: Path) -> None:
    paths = [tmp_path / "strain" / f"{name}.hdf5" for name in ("H1", "L1")]
    paths[0].parent.mkdir()
    for n, path in enumerate(paths):
        write_gwosc(path, recording(20, 4096, seed=n), detector=path.stem, gps=GPS_START)
    for spec in (",".join(map(str, paths)), str(tmp_path / "strain")):
        source = open_source(spec)
        assert isinstance(source, RecordedStrainSource) and source.detectors == ("H1", "L1")
        assert source.fresh_noise is False


def test_frame_files_give_the_windows_that_the_same_strain_in_hdf5_gives(tmp_path: Path) -> None:
    """In folders of folders too."""
    for n, name in enumerate(("H1", "L1")):
        (tmp_path / "hdf5" / name).mkdir(parents=True)
        (tmp_path / "frames" / name).mkdir(parents=True)
        strain = recording(40, 4096, seed=n)
        write_gwosc(tmp_path / "hdf5" / name / "a.h5", strain, detector=name, gps=GPS_START)
        series = TimeSeries(strain, delta_t=1 / 4096, epoch=GPS_START)
        write_frame(str(tmp_path / "frames" / name / "a.gwf"), f"{name}:GWOSC-4KHZ_R1_STRAIN", series)
    one, two = open_source(str(tmp_path / "hdf5")), open_source(str(tmp_path / "frames"))
    assert one.detectors == two.detectors == ("H1", "L1")
    for a, b in zip(one.batches("all"), two.batches("all"), strict=True):
        assert a.id == b.id and torch.equal(a.present, b.present)
        assert torch.allclose(a.strain, b.strain, atol=1e-5)
    noise = [RealNoise.from_spec(str(tmp_path / kind)) for kind in ("hdf5", "frames")]
    assert noise[0].seconds("H1") == noise[1].seconds("H1") > 20


def test_the_same_strain_is_the_same_data_wherever_it_lies(tmp_path: Path) -> None:
    described = []
    for where in ("a", "b"):
        (tmp_path / where).mkdir()
        write_gwosc(tmp_path / where / "H1.hdf5", recording(20, 4096), detector="H1", gps=GPS_START)
        described.append(open_source(str(tmp_path / where)).describe())
    assert described[0] == described[1] and described[0]["files"] == ["H1.hdf5"]


@pytest.mark.parametrize("spec", ["simulate", "/nowhere/at-all.hdf5"])
def test_what_is_not_there(spec: str) -> None:
    with pytest.raises(InputError, match=f"--data {spec}: no such file or folder; expected simulated, a packed"):
        open_source(spec)


def test_one_of_several_files_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_gwosc(tmp_path / "H1.hdf5", np.ones(4096 * 10))
    with pytest.raises(InputError, match=r"gone\.hdf5: no such file or folder"):
        open_source(f"{tmp_path / 'H1.hdf5'},{tmp_path / 'gone.hdf5'}")


@pytest.mark.parametrize("name", ["notes.txt", "empty"])
def test_what_is_no_data(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("no strain here")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"{name}: not a kind of data that is known; expected a file from"):
        open_source(str(tmp_path / name))


def test_no_name_at_all() -> None:
    with pytest.raises(InputError, match="--data"):
        open_source("")
