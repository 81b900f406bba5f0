"""The G2Net layout: what is read, and every fault that is named instead of being read."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest

from g2net_writer import coloured_noise, names, write_g2net_folder
from gwtwins.strain.errors import InputError
from gwtwins.strain.g2net import LABELS, G2NetFolder, is_g2net_folder, read_window, window_path


@pytest.fixture
def window() -> np.ndarray:
    return coloured_noise(1)[0]


def _npy(window: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, window)
    return file.getvalue()


def test_ids_labels_and_strain_come_back_in_the_order_of_the_ids(tmp_path: Path) -> None:
    windows, ids = coloured_noise(12), names(12)
    write_g2net_folder(tmp_path, windows, ids, [k % 2 for k in range(12)])
    folder = G2NetFolder(tmp_path)
    order = np.argsort(ids)
    assert folder.ids == sorted(ids)
    assert folder.label.tolist() == [k % 2 for k in order]
    assert np.array_equal(folder.read([3, 0]), windows[order[[3, 0]]])
    assert folder.path(0) == window_path(tmp_path, "train", sorted(ids)[0])
    assert not folder.pretrain_only.any()


def test_a_folder_without_labels_and_a_test_folder_are_read_as_unknown(tmp_path: Path) -> None:
    windows, ids = coloured_noise(6), names(6)
    write_g2net_folder(tmp_path, windows[:2], ids[:2])
    write_g2net_folder(tmp_path, windows[2:], ids[2:], folder="test")
    folder = G2NetFolder(tmp_path)
    assert len(folder) == 6
    assert (folder.label == -1).all()
    assert [id for id, only in zip(folder.ids, folder.pretrain_only, strict=True) if only] == sorted(ids[2:])
    assert is_g2net_folder(tmp_path)
    assert not is_g2net_folder(tmp_path / "train")


@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_both_precisions_byte_orders_and_memory_orders_give_the_same_strain(
    tmp_path, window, dtype, order
) -> None:
    np.save(tmp_path / "w.npy", np.asarray(window, dtype=dtype, order=order))
    read = read_window(tmp_path / "w.npy")
    assert read.dtype == np.float64
    assert read.flags.c_contiguous
    np.testing.assert_allclose(read, window, rtol=0 if dtype[1:] == "f8" else 1e-7)


def test_header_versions_one_and_two_are_read(tmp_path, window) -> None:
    with open(tmp_path / "w.npy", "wb") as file:
        np.lib.format.write_array(file, window, version=(2, 0))
    assert np.array_equal(read_window(tmp_path / "w.npy"), window)


def _pickled(window: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([["payload"] * 4096] * 3, dtype=object), allow_pickle=True)
    return file.getvalue()


def _with(window: np.ndarray, where: object, value: float) -> bytes:
    changed = window.copy()
    changed[where] = value  # type: ignore[call-overload]
    return _npy(changed)


def _forged(header: str) -> bytes:
    """A file of the right length whose header says something else."""
    text = header.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(3 * 4096 * 8)


BAD_WINDOWS = {
    "shape": (lambda w: _npy(w[:, :4095]), r"shape \(3, 4095\)"),
    "one detector": (lambda w: _npy(w[0]), r"shape \(4096,\)"),
    "huge": (lambda w: _npy(np.zeros((3, 40960))), r"shape \(3, 40960\)"),
    "integers": (lambda w: _npy((w * 1e25).astype(np.int64)), "type int64"),
    "half precision": (lambda w: _npy(w.astype(np.float16)), "type float16"),
    "complex": (lambda w: _npy(w.astype(np.complex64)), "type complex64"),
    "pickle": (_pickled, "pickled Python objects"),
    "structured": (lambda w: _npy(np.zeros((3, 4096), [("a", "f8")])), "type"),
    "truncated": (lambda w: _npy(w)[:-1], "truncated, 98431 bytes"),
    "cut in the header": (lambda w: _npy(w)[:40], "header"),
    "overlong": (lambda w: _npy(w) + b"x", "overlong"),
    "empty": (lambda w: b"", "empty"),
    "text": (lambda w: b"id,target\n", r"not a \.npy file"),
    "nan": (lambda w: _with(w, (1, 77), np.nan), "NaN or infinite"),
    "infinity": (lambda w: _with(w, (2, 0), -np.inf), "NaN or infinite"),
    "zero detector": (lambda w: _with(w, 2, 0.0), "V1 is all zero"),
    "constant detector": (lambda w: _with(w, 0, 1e-21), "H1 is constant"),
    "forged shape": (
        lambda w: _forged("{'descr': '<f8', 'fortran_order': False, 'shape': (3, 99999999999), }"),
        r"shape \(3, 99999999999\)",
    ),
    "forged code": (lambda w: _forged("__import__('os').abort()"), "header"),
    "forged depth": (lambda w: _forged("(" * 110), "header"),
    "forged length": (lambda w: b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(98304), "header"),
}


@pytest.mark.parametrize(("make", "fault"), BAD_WINDOWS.values(), ids=BAD_WINDOWS.keys())
def test_a_bad_window_is_named_with_its_fault(tmp_path, window, make, fault) -> None:
    path = tmp_path / "abc0.npy"
    path.write_bytes(make(window))
    with pytest.raises(InputError, match=rf"^{re.escape(str(path))}: .*{fault}.*expected"):
        read_window(path)


def test_a_missing_window_a_folder_and_a_pipe_are_refused_without_waiting(tmp_path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_window(tmp_path / "none.npy")
    with pytest.raises(InputError, match="Is a directory"):
        read_window(tmp_path)
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(InputError, match="not a plain file"):
        read_window(tmp_path / "pipe.npy")


BAD_LABELS = {
    "absent id": ("id,target\n{0},1\n{1},0\nabcdef0123,1\n", "1 of 3 labelled ids have no file.*abcdef0123"),
    "id without label": ("id,target\n{0},1\n", "1 of 2 windows in train/ have no label.*{1}"),
    "twice": ("id,target\n{0},1\n{1},0\n{0},1\n", "line 4: id {0} a second time"),
    "target 2": ("id,target\n{0},2\n{1},0\n", "line 2: target '2'"),
    "target 1.0": ("id,target\n{0},1.0\n{1},0\n", "line 2: target '1.0'"),
    "no target": ("id,target\n{0},\n{1},0\n", "line 2: target ''"),
    "three columns": ("id,target\n{0},1,1\n{1},0\n", "line 2: 3 columns"),
    "path in id": ("id,target\n../../etc/passwd,1\n", "line 2: id"),
    "odd character": ("id,target\nabc def,1\n", "line 2: id"),
    "other header": ("name,label\n{0},1\n{1},0\n", "header.*expected id,target"),
    "no header": ("{0},1\n{1},0\n", "header"),
    "empty": ("", "header"),
    "endless line": ("id,target\n" + "a" * 200_000 + ",1\n", "not a table"),
}


@pytest.mark.parametrize(("text", "fault"), BAD_LABELS.values(), ids=BAD_LABELS.keys())
def test_bad_labels_are_named_with_their_line(tmp_path, text, fault) -> None:
    ids = names(2)
    write_g2net_folder(tmp_path, coloured_noise(2), ids)
    (tmp_path / LABELS).write_text(text.format(*ids))
    with pytest.raises(InputError, match=fault.format(*ids)) as caught:
        G2NetFolder(tmp_path)
    assert str(tmp_path / LABELS) in str(caught.value)


def test_labels_that_are_not_text_are_refused_and_a_byte_order_mark_is_not(tmp_path) -> None:
    ids = names(2)
    write_g2net_folder(tmp_path, coloured_noise(2), ids, [0, 1])
    good = (tmp_path / LABELS).read_bytes()
    (tmp_path / LABELS).write_bytes(b"\xef\xbb\xbf" + good.replace(b"\n", b"\r\n"))
    assert sorted(G2NetFolder(tmp_path).label) == [0, 1]
    (tmp_path / LABELS).write_bytes(b"\xff\xfe\x00" + good)
    with pytest.raises(InputError, match="UTF-8"):
        G2NetFolder(tmp_path)


def test_labels_for_windows_of_the_test_folder_are_labels_for_absent_ids(tmp_path) -> None:
    windows, ids = coloured_noise(2), names(2)
    write_g2net_folder(tmp_path, windows[:1], ids[:1])
    write_g2net_folder(tmp_path, windows[1:], ids[1:], folder="test")
    (tmp_path / LABELS).write_text(f"id,target\n{ids[0]},1\n{ids[1]},0\n")
    with pytest.raises(InputError, match=f"no file, the first is {ids[1]}"):
        G2NetFolder(tmp_path)


def test_misplaced_odd_and_double_windows_are_refused(tmp_path, window) -> None:
    good = write_g2net_folder(tmp_path / "good", window[None], ["abcdef0123"])
    (good / "train" / "a" / ".hidden.npy").write_bytes(b"")
    (good / "train" / "notes.txt").write_text("not a window")
    assert G2NetFolder(good).ids == ["abcdef0123"]

    def refused(name: str, relative: str, fault: str) -> None:
        root = write_g2net_folder(tmp_path / name, window[None], ["abcdef0123"])
        (root / relative).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / relative, window)
        with pytest.raises(InputError, match=fault):
            G2NetFolder(root)

    refused("flat", "train/abcdef0124.npy", "wrong folder; expected train/a/b/c/abcdef0124.npy")
    refused("other", "train/x/b/c/abcdef0124.npy", "wrong folder")
    refused("deep", "train/a/b/c/d/abcd.npy", "below the third level")
    refused("odd", "train/a/b/c/abc def.npy", "an id of other characters")
    refused("newline", "train/a/b/c/abc\ndef.npy", "an id of other characters")
    refused("double", "test/a/b/c/abcdef0123.npy", "abcdef0123 is in train/ and in test/")


def test_a_link_to_a_folder_above_ends(tmp_path, window) -> None:
    write_g2net_folder(tmp_path, window[None], ["abcdef0123"])
    os.symlink(tmp_path / "train", tmp_path / "train" / "a" / "loop")
    with pytest.raises(InputError, match="below the third level|wrong folder"):
        G2NetFolder(tmp_path)


def test_an_empty_or_absent_folder_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="no windows"):
        G2NetFolder(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        G2NetFolder(tmp_path / "none")
