"""Frame files: the detector by the channel's prefix, slices, GWOSC's flags, and what is wrong with a file."""

from __future__ import annotations

from pathlib import Path

import lal
import lalframe
import numpy as np
import pytest
from pycbc.frame import write_frame
from pycbc.types import TimeSeries

from gwosc_writer import coloured_noise, write_gwosc
from gwtwins.strain.errors import InputError
from gwtwins.strain.strain_index import index_strain
from gwtwins.strain.streaming import stream_conditioned

START = 64 * 18_000_000
RATE = 4096
CHANNEL = "GWOSC-4KHZ_R1_STRAIN"


def write(path: Path, strain: np.ndarray, channel: str = f"H1:{CHANNEL}", gps: int = START, rate: int = RATE) -> Path:
    write_frame(str(path), channel, TimeSeries(strain, delta_t=1 / rate, epoch=gps, dtype=strain.dtype))
    return path


def write_with_masks(path: Path, strain: np.ndarray, quality: np.ndarray, injections: np.ndarray) -> Path:
    channels = [f"H1:{CHANNEL}", "H1:GWOSC-4KHZ_R1_DQMASK", "H1:GWOSC-4KHZ_R1_INJMASK"]
    series = [
        TimeSeries(strain, delta_t=1 / RATE, epoch=START),
        TimeSeries(quality, delta_t=1.0, epoch=START, dtype=np.uint32),
        TimeSeries(injections, delta_t=1.0, epoch=START, dtype=np.uint32),
    ]
    write_frame(str(path), channels, series)
    return path


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return coloured_noise(40, RATE, seed=5)


def test_a_frame_file_gives_what_the_same_strain_in_hdf5_gives(tmp_path: Path, noise: np.ndarray) -> None:
    frames = index_strain([write(tmp_path / "a.gwf", noise)])
    hdf5 = index_strain([write_gwosc(tmp_path / "a.hdf5", noise, RATE, gps=START)])
    assert frames.notes[0].endswith("frames without data quality flags that are known; every second counts")
    (file,) = frames.files
    assert (file.detector, file.start, file.end, file.rate) == ("H1", START, START + 40, RATE)
    assert file.place == f"H1:{CHANNEL}"
    reader = frames.open(file)
    assert np.array_equal(reader.read(1000, 90000), noise[1000:90000])
    reader.close()
    (one,) = stream_conditioned(frames, 1024.0, 20.0, 500.0)
    (two,) = stream_conditioned(hdf5, 1024.0, 20.0, 500.0)
    assert np.array_equal(one.strain, two.strain) and np.array_equal(one.valid, two.valid)


def test_single_precision_frames_of_another_detector(tmp_path: Path, noise: np.ndarray) -> None:
    path = write(tmp_path / "v.gwf", noise.astype(np.float32) * 1.0, "V1:Hrec_hoft_16384Hz")
    index = index_strain([path])
    assert index.detectors == ("V1",)
    assert index.open(index.files[0]).read(0, 10).dtype == np.float64


def test_gwosc_masks_veto_by_name(tmp_path: Path, noise: np.ndarray) -> None:
    quality, injections = np.full(40, 127), np.full(40, 31)
    quality[3] = 127 - 4  # CBC_CAT2
    quality[15] = 127 - 8  # CBC_CAT3
    injections[30] = 31 - 1
    injections[31] = 31 - 8  # a continuous wave: not a veto
    path = write_with_masks(tmp_path / "m.gwf", noise, quality, injections)

    def vetoed(*flags: str) -> list[tuple[int, str]]:
        index = index_strain([path], required_flags=flags or None)
        (chunk,) = stream_conditioned(index, 1024.0, 20.0, 500.0)
        why = [(int(s.start - START), s.why) for _, s in chunk.left_out]
        return [entry for entry in why if entry[1].startswith(("fails", "hardware"))]

    assert vetoed() == [(3, "fails CBC_CAT2"), (30, "hardware injection")]
    assert vetoed("DATA", "CBC_CAT3") == [(15, "fails CBC_CAT3"), (30, "hardware injection")]
    with pytest.raises(InputError, match="no data quality flag NOISY"):
        index_strain([path], required_flags=["NOISY"])


def test_flags_cannot_be_required_of_frames_without_any(tmp_path: Path, noise: np.ndarray) -> None:
    path = write(tmp_path / "n.gwf", noise)
    with pytest.raises(InputError, match=r"n\.gwf: a frame file without data quality flags"):
        index_strain([path], required_flags=["DATA"])


def test_the_channel_is_chosen_by_name_with_or_without_its_prefix(tmp_path: Path, noise: np.ndarray) -> None:
    path = tmp_path / "two.gwf"
    one = TimeSeries(noise, delta_t=1 / RATE, epoch=START)
    write_frame(str(path), ["H1:DCS-C01", "H1:DCS-C02"], [one, one * 2.0])
    with pytest.raises(InputError, match=r"2 channels of strain; expected .* H1:DCS-C01, H1:DCS-C02"):
        index_strain([path])
    for name in ("H1:DCS-C02", "DCS-C02", "L1:DCS-C02"):
        index = index_strain([path], channel=name)
        assert index.open(index.files[0]).read(7, 8)[0] == 2 * noise[7]
    with pytest.raises(InputError, match="no channel DCS-C03"):
        index_strain([path], channel="DCS-C03")


def test_frames_that_follow_on_each_other_are_one_stretch_and_a_missing_one_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "frames.gwf"
    out = lalframe.FrameUFrFileOpen(str(path), "w")
    for number, gps in enumerate((START, START + 16, START + 48)):
        frame = lalframe.FrameNew(lal.LIGOTimeGPS(gps), 16.0, "test", 0, number, 0)
        series = lal.CreateREAL8TimeSeries("H1:STRAIN", lal.LIGOTimeGPS(gps), 0, 1 / 1024, lal.StrainUnit, 16384)
        series.data.data = np.full(16384, 1e-21 * (number + 1))
        lalframe.FrameAddREAL8TimeSeriesProcData(frame, series)
        lalframe.FrameUFrameHWrite(out, frame)
    del out  # closes the file
    index = index_strain([path])
    assert [(f.start - START, f.end - START) for f in index.files] == [(0, 32), (48, 64)]
    first, second = (index.open(file) for file in index.files)
    assert first.read(16382, 16386).tolist() == [1e-21, 1e-21, 2e-21, 2e-21]
    assert second.read(0, 1)[0] == pytest.approx(3e-21, rel=1e-12)


def test_several_detectors_in_one_file(tmp_path: Path, noise: np.ndarray) -> None:
    path = tmp_path / "network.gwf"
    one = TimeSeries(noise, delta_t=1 / RATE, epoch=START)
    write_frame(str(path), ["L1:DCS-C01", "H1:DCS-C01"], [one, one * 2.0])
    index = index_strain([path])
    assert index.detectors == ("H1", "L1")
    assert [index.open(file).read(7, 8)[0] / noise[7] for file in index.files] == [2.0, 1.0]


def test_an_unknown_detector_is_refused(tmp_path: Path, noise: np.ndarray) -> None:
    with pytest.raises(InputError, match="unknown detector 'G1'"):
        index_strain([write(tmp_path / "g.gwf", noise, "G1:DER_DATA_H")])


@pytest.mark.parametrize("kept", [0, 4, 100_000])
def test_a_frame_file_cut_short_is_named_quietly(
    tmp_path: Path, noise: np.ndarray, kept: int, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "whole.gwf", noise)
    cut = tmp_path / "cut.gwf"
    cut.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"cut\.gwf: (the file is empty|truncated)"):
        index_strain([cut])
    assert capfd.readouterr().err == ""
