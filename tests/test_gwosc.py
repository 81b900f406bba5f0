"""Reading GWOSC files: what is in them, and one clear line for each thing that can be wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from gwosc_writer import FLAGS, GPS_START, coloured_noise, write_gwosc
from gwtwins.strain.errors import InputError
from gwtwins.strain.gwosc import read_gwosc

RATE = 1024


@pytest.fixture
def strain() -> np.ndarray:
    return coloured_noise(12, RATE, lines=False)


@pytest.fixture
def file(tmp_path: Path, strain: np.ndarray) -> Path:
    return write_gwosc(tmp_path / "H-H1_TEST.hdf5", strain, RATE)


@pytest.mark.parametrize("rate", [1024, 2048, 4096, 16384])
def test_strain_comes_back_exactly_at_every_rate(tmp_path: Path, rate: int) -> None:
    strain = coloured_noise(3, rate, lines=False)
    recording = read_gwosc(write_gwosc(tmp_path / "a.hdf5", strain, rate, detector="V1"))
    assert (recording.detector, recording.rate, recording.gps_start) == ("V1", float(rate), float(GPS_START))
    assert recording.gps_end == GPS_START + 3
    assert recording.strain.dtype == np.float64
    np.testing.assert_array_equal(recording.strain, strain)
    assert recording.good.all() and recording.injection_free.all()


def test_a_second_is_good_only_if_it_passes_data_cat1_and_cat2(tmp_path: Path, strain: np.ndarray) -> None:
    vetoed = {"DATA": [0], "CBC_CAT1": [2], "CBC_CAT2": [4, 5], "CBC_CAT3": [7], "BURST_CAT2": [8]}
    path = write_gwosc(tmp_path / "a.hdf5", strain, RATE, vetoed=vetoed)
    recording = read_gwosc(path)
    assert np.flatnonzero(~recording.good).tolist() == [0, 2, 4, 5]
    assert np.flatnonzero(~recording.flags["BURST_CAT2"]).tolist() == [8]
    assert np.flatnonzero(~read_gwosc(path, ["DATA", "CBC_CAT3"]).good).tolist() == [0, 7]


def test_bits_are_found_by_name_whatever_their_order(tmp_path: Path, strain: np.ndarray) -> None:
    for i, flags in enumerate((FLAGS[::-1], ("CBC_CAT2", "OTHER", "DATA"))):
        path = write_gwosc(tmp_path / f"{i}.hdf5", strain, RATE, flags=flags, vetoed={"CBC_CAT2": [3]})
        assert np.flatnonzero(~read_gwosc(path).good).tolist() == [3]


def test_the_mask_is_at_1_hz_where_it_does_not_say(tmp_path: Path, strain: np.ndarray) -> None:
    path = write_gwosc(tmp_path / "a.hdf5", strain, RATE, mask_spacing=None, vetoed={"DATA": [1]})
    assert np.flatnonzero(~read_gwosc(path).good).tolist() == [1]


def test_hardware_injections_are_marked_but_continuous_ones_are_not(
    tmp_path: Path, strain: np.ndarray
) -> None:
    injected = {"NO_CBC_HW_INJ": [1], "NO_BURST_HW_INJ": [2], "NO_CW_HW_INJ": list(range(12))}
    recording = read_gwosc(write_gwosc(tmp_path / "a.hdf5", strain, RATE, injected=injected))
    assert np.flatnonzero(~recording.injection_free).tolist() == [1, 2]
    assert recording.good.all()


def test_nan_is_missing_data_and_stays_nan(tmp_path: Path, strain: np.ndarray) -> None:
    strain[5 * RATE : 6 * RATE] = np.nan
    recording = read_gwosc(write_gwosc(tmp_path / "a.hdf5", strain, RATE))
    assert np.isnan(recording.strain).sum() == RATE


def test_a_flag_that_was_asked_for_must_be_there(file: Path) -> None:
    with pytest.raises(InputError, match="no data quality flag CBC_CAT9; expected one of BURST_CAT1"):
        read_gwosc(file, ["CBC_CAT9"])


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent.hdf5: no such file"):
        read_gwosc(tmp_path / "absent.hdf5")
    with pytest.raises(InputError, match="no such file"):
        read_gwosc(tmp_path)  # a folder


@pytest.mark.parametrize(
    "content", [b"", b"not HDF5 at all", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(500)]
)
def test_not_hdf5(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.hdf5"
    path.write_bytes(content)
    with pytest.raises(InputError, match="a.hdf5: (not a readable HDF5 file|truncated)"):
        read_gwosc(path)


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.6, 0.9, 0.999])
def test_truncated(file: Path, fraction: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(InputError, match="H-H1_TEST.hdf5: truncated"):
        read_gwosc(file)


def test_damaged_anywhere_is_an_input_error_or_no_matter(file: Path) -> None:
    content = bytearray(file.read_bytes())
    rng = np.random.default_rng(3)
    faults = 0
    for _ in range(60):
        damaged = bytearray(content)
        where = int(rng.integers(0, 6000))  # the headers: behind them is compressed strain
        damaged[where : where + 16] = rng.bytes(16)
        file.write_bytes(damaged)
        try:
            read_gwosc(file)
        except InputError:
            faults += 1
    assert faults > 10


@pytest.mark.parametrize(
    "name",
    [
        "strain/Strain",
        "quality/simple/DQmask",
        "quality/simple/DQShortnames",
        "meta/Detector",
        "strain",
        "quality",
    ],
)
def test_a_missing_dataset_is_named(file: Path, name: str) -> None:
    with h5py.File(file, "a") as f:
        del f[name]
    with pytest.raises(InputError, match=f"no {name}"):
        read_gwosc(file)


def _replace(name: str, data: object, **attrs: object) -> Callable[[h5py.File], None]:
    def change(f: h5py.File) -> None:
        kept = dict(f[name].attrs)
        del f[name]
        f[name] = data
        f[name].attrs.update({**kept, **attrs})

    return change


def _attr(name: str, key: str, value: object) -> Callable[[h5py.File], None]:
    return lambda f: f[name].attrs.__setitem__(key, value)


def _huge(f: h5py.File) -> None:
    attrs = dict(f["strain/Strain"].attrs)
    del f["strain/Strain"]
    n = 1 << 40  # 8 TiB that are declared and not there
    f.create_dataset("strain/Strain", shape=(n,), dtype="f8", chunks=(1024,)).attrs.update(
        {**attrs, "Npoints": n}
    )


def _huge_mask(f: h5py.File) -> None:
    del f["quality/simple/DQmask"]
    f.create_dataset("quality/simple/DQmask", shape=(1 << 40,), dtype="u4", chunks=(1024,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_replace("strain/Strain", np.zeros((12, RATE))), r"shape \(12, 1024\)"),
        (
            _replace("strain/Strain", np.zeros(12 * RATE - 1), Npoints=12 * RATE - 1),
            "whole number of seconds",
        ),
        (_replace("strain/Strain", np.zeros(11 * RATE), Npoints=11 * RATE), "Duration is 12 s"),
        (_replace("strain/Strain", np.zeros(0), Npoints=0), "0 samples"),
        (_replace("strain/Strain", np.zeros(12 * RATE, np.int32)), "dtype int32"),
        (_replace("strain/Strain", np.full(12 * RATE, np.nan)), "no finite sample"),
        (_replace("strain/Strain", np.full(12 * RATE, 1e300)), r"sample of 1e\+300"),
        (_huge, "declares 1099511627776 entries"),
        (_huge_mask, "declares 1099511627776 entries"),
        (_attr("strain/Strain", "Npoints", 10**15), r"Npoints is 1e\+15"),
        (_attr("strain/Strain", "Npoints", np.nan), "Npoints is not a finite number"),
        (_attr("strain/Strain", "Xspacing", 1 / 1000), "0.001 s apart"),
        (_attr("strain/Strain", "Xspacing", "fast"), "Xspacing of strain/Strain is not a finite number"),
        (_attr("strain/Strain", "Xstart", 5), "GPSstart 1000000000.000 and Xstart 5.000"),
        (
            lambda f: f["strain/Strain"].attrs.__delitem__("Xspacing"),
            "Xspacing of strain/Strain is not a finite",
        ),
        (_replace("meta/Detector", "X9"), "unknown detector 'X9'; expected one of H1, L1, V1, K1"),
        (_replace("meta/Detector", 7), "meta/Detector is not text"),
        (_replace("quality/simple/DQmask", np.ones(11, np.uint32)), "DQmask has 11 entries for 12 s"),
        (_replace("quality/simple/DQmask", np.ones(12)), "DQmask of float64"),
        (_attr("quality/simple/DQmask", "Xspacing", 16.0), "every 16 s"),
        (_replace("quality/simple/DQShortnames", np.arange(7)), "DQShortnames is not text"),
        (_replace("quality/simple/DQShortnames", np.array([b"A"] * 33)), "at most 32"),
        (_replace("meta/Duration", np.arange(3)), "meta/Duration declares 3 entries"),
    ],
)
def test_each_fault_has_its_line(file: Path, change: Callable[[h5py.File], None], message: str) -> None:
    with h5py.File(file, "a") as f:
        change(f)
    with pytest.raises(InputError, match=message) as caught:
        read_gwosc(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_strain_in_another_file_is_refused(tmp_path: Path, file: Path, strain: np.ndarray) -> None:
    """A file from elsewhere must not be able to read this machine's other files."""
    (tmp_path / "other.raw").write_bytes(strain.tobytes())
    with h5py.File(tmp_path / "other.hdf5", "w") as f:
        f["data"] = strain

    def external_link(f: h5py.File) -> None:
        f["strain/Strain"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "data")

    def soft_link(f: h5py.File) -> None:
        f["strain/Strain"] = h5py.SoftLink("/meta/GPSstart")

    def virtual(f: h5py.File) -> None:
        layout = h5py.VirtualLayout((strain.size,), "f8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.hdf5"), "data", (strain.size,))
        f.create_virtual_dataset("strain/Strain", layout)

    def external_storage(f: h5py.File) -> None:
        place = [(str(tmp_path / "other.raw"), 0, strain.nbytes)]
        f.create_dataset("strain/Strain", shape=strain.shape, dtype="f8", external=place)

    for put in (external_link, soft_link, virtual, external_storage):
        with h5py.File(file, "a") as f:
            del f["strain/Strain"]
            put(f)
        with pytest.raises(
            InputError, match="strain/Strain is (a link to another place|stored in other files)"
        ):
            read_gwosc(file)
    with h5py.File(file, "a") as f:
        del f["quality"]
        f["quality"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "/")
    with pytest.raises(InputError, match="link to another place|no strain|stored in other"):
        read_gwosc(file)


def test_real_files_can_be_read(gwosc: Path) -> None:
    files = sorted(gwosc.glob("*.hdf5"))
    assert files
    for path in files:
        recording = read_gwosc(path)
        assert recording.detector == path.name.split("_")[0].split("-")[1]
        assert path.stem.endswith(f"-{recording.gps_start:.0f}-{recording.seconds}")
        assert np.isfinite(recording.strain).all()


def test_gw200129_livingston_has_a_cat2_veto(gwosc: Path) -> None:
    (path,) = gwosc.glob("L-L1_GWOSC_4KHZ_R1-1264316101-32.hdf5")
    recording = read_gwosc(path)
    bad = np.flatnonzero(~recording.good) + 1264316101
    assert bad.tolist() == [*range(1264316116, 1264316124), 1264316126]
    # DQmask 19: present, CAT1 passed for both kinds of search, and nothing more.
    for name, passed in (("DATA", True), ("CBC_CAT1", True), ("CBC_CAT2", False), ("CBC_CAT3", False)):
        assert (recording.flags[name][bad - 1264316101] == passed).all()
    assert recording.flags["BURST_CAT1"].all()
    assert read_gwosc(path, ["DATA", "CBC_CAT1"]).good.all()
