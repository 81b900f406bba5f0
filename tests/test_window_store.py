"""The packed window store: what is read, and every damage that is named instead of being read."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from g2net_writer import coloured_noise, names, write_g2net_folder
from gwtwins.strain.errors import InputError
from gwtwins.strain.pack import pack
from gwtwins.strain.splits import held_out, is_test
from gwtwins.strain.window_store import WindowStore, is_window_store

N = 40


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    write_g2net_folder(root / "g2net", coloured_noise(N), names(N), [k % 2 for k in range(N)])
    pack(root / "g2net", root / "windows.hdf5", workers=1, progress=False)
    return root / "windows.hdf5"


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(packed, tmp_path / "copy.hdf5"))


def test_rows_come_in_the_order_asked_for_and_may_repeat(packed) -> None:
    store = WindowStore(packed)
    everything = store.read(range(N))
    rows = [7, 3, 39, 3, 0]
    assert np.array_equal(store.read(rows), everything[rows])
    assert everything.shape == (N, 3, 4096)
    assert everything.dtype == np.float32
    # Stored in units near each detector's RMS, so that its squares are far from what float32 cannot hold.
    assert (np.abs(np.log2(everything.std(axis=(0, 2)))) < 1).all()


def test_a_store_is_told_from_other_files_even_when_it_is_cut_short(packed, tmp_path) -> None:
    assert is_window_store(packed)
    (tmp_path / "cut.hdf5").write_bytes(packed.read_bytes()[:100_000])
    assert is_window_store(tmp_path / "cut.hdf5")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["strain/Strain"] = np.zeros(10)
    assert not is_window_store(tmp_path / "other.hdf5")
    assert not is_window_store(tmp_path / "none.hdf5")
    assert not is_window_store(tmp_path)


def test_copies_in_other_processes_read_for_themselves(packed) -> None:
    store = WindowStore(packed)
    expected = store.read([5])
    assert np.array_equal(pickle.loads(pickle.dumps(store)).read([5]), expected)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(store.read([5]), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
    store.close()
    assert np.array_equal(store.read([5]), expected)


def _set(name: str, value: object, where: object = 0) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[name][where] = value

    return change


def _replace(name: str, **options: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        data = options.pop("data", file[name][()])
        del file[name]
        file.create_dataset(name, data=data, **options)

    return change


def _attribute(name: str, value: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        if value is None:
            del file.attrs[name]
        else:
            file.attrs[name] = value

    return change


def _link(link: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["label"]
        file["label"] = link

    return change


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((N,), "f8")
    layout[:] = h5py.VirtualSource("elsewhere.hdf5", "gps", (N,))
    del file["gps"]
    file.create_virtual_dataset("gps", layout)


def _external(file: h5py.File) -> None:
    del file["gps"]
    file.create_dataset("gps", (N,), "f8", external=[("/etc/passwd", 0, 8 * N)])


def _huge(file: h5py.File) -> None:
    """Claims a terabyte, of which nothing was ever written."""
    del file["strain"]
    file.create_dataset("strain", (N, 3, 2**33), "f4")


DAMAGE = {
    "format": (_attribute("format", np.bytes_("gwtwins-windows-9")), "format 'gwtwins-windows-9'"),
    "format of numbers": (_attribute("format", [1, 2]), "attribute format is of type int64"),
    "text in a heap": (_attribute("format", "gwtwins-windows-1"), "attribute format is of type object"),
    "no rate": (_attribute("rate", None), "no attribute rate"),
    "rate": (_attribute("rate", -1.0), "rate -1"),
    "rate not a number": (_attribute("rate", np.bytes_("fast")), "attribute rate is of type"),
    "detectors": (_attribute("detectors", np.array([b"H1", b"L1"])), "2 detectors and strain of 3"),
    "detectors twice": (_attribute("detectors", np.array([b"H1", b"L1", b"L1"])), "detectors"),
    "detector names": (_attribute("detectors", np.array([b"H1", b"L1", b"\x1b[2J"])), "detectors"),
    "unfinished": (_set("complete", 0), "packing was not finished"),
    "pending": (_set("state", 0, 3), "1 of 40 windows are missing"),
    "state": (_set("state", 9), "a state other than"),
    "no windows": (_set("state", 2, slice(None)), "no windows"),
    "label": (_set("label", 7), "a label other than"),
    "gps": (_set("gps", np.inf), "infinite GPS"),
    "scale": (_set("scale", np.nan), "scale"),
    "psd nan": (_set("psd", np.nan, (1, 5)), "PSD value"),
    "psd zero": (_set("psd", 0.0, (1, 5)), "PSD value"),
    "psd grid": (_set("psd_frequency", 1e9), "not finite and ascending"),
    "ids twice": (
        lambda file: _set("id", file["id"][0], 1)(file),
        "ids are not ascending, or one comes twice",
    ),
    "odd id": (_set("id", b"../../a"), "an id of other characters"),
    "no dataset": (lambda file: file.__delitem__("gps"), "no dataset gps"),
    "group": (
        lambda file: (file.__delitem__("gps"), file.create_group("gps")),
        "gps is not a contiguous dataset",
    ),
    "shape": (_replace("label", data=np.zeros(N - 1, "i1")), r"label has shape \(39,\)"),
    "axes": (_replace("psd", data=np.ones(3)), "expected axes D, F"),
    "type": (_replace("label", data=np.zeros(N)), "label is of type float64"),
    "objects": (_replace("id", data=["a" * 10] * N), "id is of type object"),
    "chunks": (_replace("label", chunks=(10,)), "label is not a contiguous dataset"),
    "compressed": (_replace("label", chunks=(10,), compression="gzip"), "label is not a contiguous dataset"),
    "external link": (_link(h5py.ExternalLink("/etc/passwd", "/a")), "no dataset label of its own"),
    "soft link": (_link(h5py.SoftLink("/state")), "no dataset label of its own"),
    "virtual": (_virtual, "gps is not a contiguous dataset"),
    "external storage": (_external, "gps is not a contiguous dataset"),
    "huge": (_huge, "strain reaches beyond the file's end"),
}


@pytest.mark.parametrize(("change", "fault"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_store_that_contradicts_its_layout_is_refused(copy, change, fault) -> None:
    with h5py.File(copy, "r+") as file:
        change(file)
    with pytest.raises(InputError, match=fault):
        WindowStore(copy)


@pytest.mark.parametrize("kept", [0, 5, 100, 3000, 0.5, 0.999])
def test_a_truncated_store_is_refused(copy, kept) -> None:
    size = copy.stat().st_size
    os.truncate(copy, kept if kept >= 1 else int(kept * size))
    with pytest.raises(InputError, match="truncated|not a readable HDF5 file"):
        WindowStore(copy)


def test_bytes_overwritten_anywhere_in_the_structure_never_end_in_another_error(copy) -> None:
    whole = copy.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        blob = bytearray(whole)
        for place in rng.integers(0, 12_000, 8):
            blob[place] = rng.integers(0, 256)
        copy.write_bytes(blob)
        try:
            WindowStore(copy).close()
        except InputError:
            refused += 1
    assert refused > 50


def test_a_sample_that_is_not_finite_is_named_by_its_window(copy) -> None:
    with h5py.File(copy, "r+") as file:
        file["strain"][4, 1, 100] = np.nan
    store = WindowStore(copy)
    store.read([0, 3, 5])
    with pytest.raises(InputError, match=f"window {store.ids[4]} has a sample that is NaN"):
        store.read([5, 4])


def test_infinite_samples_of_both_signs_are_named_too(copy) -> None:
    with h5py.File(copy, "r+") as file:
        file["strain"][7, 0, :2] = np.inf, -np.inf
    store = WindowStore(copy)
    with pytest.raises(InputError, match=f"window {store.ids[7]} has a sample that is NaN"):
        store.read(range(N))


def test_a_store_that_shrinks_under_its_reader_is_named(copy) -> None:
    store = WindowStore(copy)
    os.truncate(copy, os.path.getsize(copy) - 100_000)  # the columns lie before the strain, whose end is gone
    with pytest.raises(InputError, match="cannot be read: damaged or gone"):
        store.read(range(N))


def test_a_store_that_was_replaced_is_not_read_with_the_ids_of_the_old_one(packed, copy) -> None:
    store = WindowStore(copy)
    there = pickle.loads(pickle.dumps(store))
    store.close()
    os.utime(shutil.copy(packed, copy), ns=(1, 1))
    for reader in (store, there):
        with pytest.raises(InputError, match="has changed since it was opened"):
            reader.read([0])


def test_rows_that_are_not_in_the_cache_are_the_same_rows(packed, monkeypatch) -> None:
    """Cold, on a file system that cannot tell what is cached, and where a read gives less than was asked for."""
    store, rows = WindowStore(packed), np.random.default_rng(0).permutation(N)
    expected, plain = store.read(rows), os.preadv
    descriptor = os.open(packed, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    assert np.array_equal(store.read(rows), expected)

    def cannot_tell(*args: object) -> int:
        if len(args) == 4:
            raise OSError(errno.EOPNOTSUPP, "not here")
        return plain(*args)  # type: ignore[arg-type]

    def little_at_a_time(file: int, pieces: list[memoryview], offset: int, flags: int = 0) -> int:
        return plain(file, [pieces[0][:5000]], offset, flags)

    for strange in (cannot_tell, little_at_a_time):
        monkeypatch.setattr(os, "preadv", strange)
        assert np.array_equal(store.read(rows), expected)
    assert store.read([]).shape == (0, 3, 4096)


def test_an_absent_store_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="no such file"):
        WindowStore(tmp_path / "none.hdf5")
    with pytest.raises(InputError, match="not a readable HDF5 file"):
        WindowStore(tmp_path)


def test_a_quarter_of_the_ids_is_held_out_and_always_the_same_quarter() -> None:
    ids = names(20_000)
    share = held_out(ids).mean()
    assert share == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 20_000))
    # SHA-256 of these begins with 0x28, 0xc6, 0xcb and 0xd9; below 0x40 is the test share.
    assert held_out(["00000e74ad", "00001f4945", "0000661522", "00007a006a"]).tolist() == [True] + [False] * 3
    assert is_test("00000e74ad")
