"""Packing: what comes out is what lay in the files, however often and however rudely it was stopped."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import gwtwins.strain.pack as packing
from g2net_writer import coloured_noise, names, write_g2net_folder
from gwtwins.benchmarks import packing as benchmark
from gwtwins.strain import pack_blocks
from gwtwins.strain.errors import InputError
from gwtwins.strain.g2net import LABELS, window_path
from gwtwins.strain.pack import pack
from gwtwins.strain.pack_blocks import run_blocks, write_at
from gwtwins.strain.splits import is_test
from gwtwins.strain.window_store import PACKED, PENDING, WindowStore, read_columns

N = 60


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty labelled windows and twenty of a test folder; never changed by a test."""
    root = tmp_path_factory.mktemp("g2net")
    windows, ids = coloured_noise(N), names(N)
    write_g2net_folder(root, windows[:40], ids[:40], [k % 2 for k in range(40)])
    return write_g2net_folder(root, windows[40:], ids[40:], folder="test")


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    """The same windows, to be spoilt."""
    return Path(shutil.copytree(source, tmp_path / "copy" / source.name))


def _pack(source: Path, out: Path, **options: object) -> WindowStore:
    return pack(source, out, **{"workers": 1, "progress": False, **options})  # type: ignore[arg-type]


def test_every_window_label_and_id_is_in_the_store(source, tmp_path) -> None:
    store = _pack(source, tmp_path / "out.hdf5")
    windows, ids = coloured_noise(N), names(N)
    order = np.argsort(ids)
    assert store.ids == sorted(ids)
    assert store.detectors == ("H1", "L1", "V1")
    assert (store.rate, store.samples) == (2048.0, 4096)
    assert store.label.tolist() == [k % 2 if k < 40 else -1 for k in order]
    assert store.pretrain_only.tolist() == [k >= 40 for k in order]
    with h5py.File(tmp_path / "out.hdf5", locking=False) as file:
        assert set(json.loads(file.attrs["versions"])) >= {"gwtwins", "numpy"} and file.attrs["origin"]
        assert file["strain"].id.get_offset() % 4096 == 0  # rows out of step with pages are read half as fast
    assert np.isnan(store.gps).all()
    np.testing.assert_allclose(store.read(range(N)) * store.scale[:, None], windows[order], rtol=6e-8)
    assert (np.exp2(np.round(np.log2(store.scale))) == store.scale).all()
    assert os.listdir(tmp_path) == ["out.hdf5"]


def test_windows_in_float32_are_packed_without_any_rounding(tmp_path) -> None:
    windows = coloured_noise(20).astype(np.float32)
    write_g2net_folder(tmp_path / "g", windows, names(20))
    store = _pack(tmp_path / "g", tmp_path / "out.hdf5")
    assert np.array_equal(store.read(range(20)) * store.scale[:, None], windows[np.argsort(names(20))])


def test_processes_and_block_sizes_do_not_change_a_byte(source, tmp_path) -> None:
    _pack(source, tmp_path / "one.hdf5")
    _pack(source, tmp_path / "three.hdf5", workers=3, block=7)
    assert (tmp_path / "one.hdf5").read_bytes() == (tmp_path / "three.hdf5").read_bytes()


SLOW_PACK = """
import functools, sys, time
import gwtwins.strain.pack as packing, gwtwins.strain.pack_blocks as blocks
from gwtwins.strain.errors import run_command
quick = blocks.read_window
def slow(path):  # set at import, so in the spawned processes too
    time.sleep(0.02)
    return quick(path)
blocks.read_window, packing.pack = slow, functools.partial(packing.pack, block=2)
if __name__ == "__main__":
    sys.exit(run_command(packing.main))
"""
# However late a busy machine looks at it, there is something left to do.
HELD_PACK = SLOW_PACK.replace("0.02", f"0.02 if path.stem < {sorted(names(N))[N // 2]!r} else 60")


def _started(source: Path, out: Path, script: Path, workers: int) -> tuple[subprocess.Popen, list[int]]:
    """A packer that has begun and does not get beyond half of its windows, and the ids of its processes."""
    script.write_text(HELD_PACK)
    command = [sys.executable, str(script), str(source), str(out), "--workers", str(workers)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            state = read_columns(f"{out}.partial")["state"]
        except InputError:
            state = np.zeros(1)
        if (state == PACKED).any():
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            return process, [int(id) for id in children.read_text().split()] if children.exists() else []
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"the packer did not get going: {process.communicate()[1]}")


def _gone(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_after_sigkill_the_same_command_goes_on_and_repeats_nothing(source, copy, tmp_path) -> None:
    whole, out = tmp_path / "whole.hdf5", tmp_path / "out.hdf5"
    _pack(source, whole)
    process, workers = _started(copy, out, tmp_path / "slow.py", workers=2)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while not all(map(_gone, workers)):
        assert time.monotonic() < deadline, "a packing process outlived its parent"
        time.sleep(0.02)

    state = read_columns(f"{out}.partial")["state"]
    packed = np.flatnonzero(state == PACKED)
    assert 0 < len(packed) < N
    assert (state[np.setdiff1d(np.arange(N), packed)] == PENDING).all()
    # What is packed already is spoilt in the source: reading any of it again would stop the packer.
    for row in packed:
        folder = "test" if names(N).index(sorted(names(N))[row]) >= 40 else "train"
        window_path(copy, folder, sorted(names(N))[row]).write_bytes(b"")
    _pack(copy, out)
    assert not Path(f"{out}.partial").exists()
    assert out.read_bytes() == whole.read_bytes()


LOGGED_PACK = SLOW_PACK.replace(
    "    return quick(path)", "    open(LOG, 'a').write(path.stem + ' ')\n    return quick(path)"
)


def _killed_at_random(source: Path, folder: Path, kills: int, seed: int) -> int:
    """Start the packer and kill it, again and again; how many kills found some but not all of the windows packed.

    A quarter of them at any time from its start on, the others from its first window on. Whenever it got to its end
    the store is compared with that of an undisturbed packer, and packing begins anew.
    """
    moments, on_the_way = random.Random(seed), 0
    whole, out, log, script = (folder / name for name in ("whole.hdf5", "out.hdf5", "log", "logged.py"))
    partial = Path(f"{out}.partial")
    _pack(source, whole)
    script.write_text(f"LOG = {str(log)!r}\n" + LOGGED_PACK)
    command = [sys.executable, str(script), str(source), str(out), "--workers", "2"]

    def packed() -> set[str]:
        try:
            columns = read_columns(partial)
        except InputError:  # not begun, killed while it was laid out, or done
            return set()
        return {id.decode() for id in columns["id"][columns["state"] == PACKED]}

    for _ in range(kills):
        before = packed()
        log.write_text("")
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        early = moments.random() < 0.25
        while not early and not log.read_text() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 2.0 if early else 0.6))
        process.kill()
        errors = process.communicate()[1]
        assert process.returncode in (0, -signal.SIGKILL), errors
        assert not before & set(log.read_text().split())  # what was packed is not read again
        if out.exists():
            assert out.read_bytes() == whole.read_bytes() and not partial.exists()
            out.unlink()
        on_the_way += 0 < len(packed()) < N
    subprocess.run(command, check=True, capture_output=True)
    assert out.read_bytes() == whole.read_bytes()
    assert set(folder.iterdir()) == {whole, out, log, script}
    return on_the_way


def test_killed_at_three_random_moments_it_loses_and_repeats_nothing(source, tmp_path) -> None:
    _killed_at_random(source, tmp_path, kills=3, seed=3)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_loses_and_repeats_nothing(source, tmp_path) -> None:
    assert _killed_at_random(source, tmp_path, kills=20, seed=1) >= 5


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_keep_what_is_packed(source, tmp_path, number, status) -> None:
    out = tmp_path / "out.hdf5"
    process, _ = _started(source, out, tmp_path / "slow.py", workers=1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert f"{out}.partial is kept" in errors
    assert "Traceback" not in errors
    assert (read_columns(f"{out}.partial")["state"] == PACKED).any()
    assert len(_pack(source, out)) == N


def test_a_bad_window_stops_the_packer_by_name_and_mended_it_goes_on(copy, tmp_path) -> None:
    id = sorted(names(N))[30]
    path = window_path(copy, "test" if names(N).index(id) >= 40 else "train", id)
    good = path.read_bytes()
    path.write_bytes(good[:-8])
    for workers in (1, 2):
        with pytest.raises(InputError, match=rf"{id}\.npy: truncated"):
            _pack(copy, tmp_path / "out.hdf5", workers=workers, block=8)
    assert not (tmp_path / "out.hdf5").exists()
    path.write_bytes(good)
    assert len(_pack(copy, tmp_path / "out.hdf5")) == N


def test_bad_windows_are_left_out_when_asked_and_named(copy, tmp_path, capsys) -> None:
    bad = [id for id in sorted(names(N)) if names(N).index(id) < 40][3:6]
    for id, blob in zip(bad, (b"", b"nonsense", None), strict=True):
        path = window_path(copy, "train", id)
        if blob is None:
            np.save(path, np.full((3, 4096), np.nan))
        else:
            path.write_bytes(blob)
    store = _pack(copy, tmp_path / "out.hdf5", skip_bad=True, block=4)
    assert store.skipped == bad
    assert store.ids == sorted(set(names(N)) - set(bad))
    told = capsys.readouterr().err
    assert all(f"{id}.npy: " in told for id in bad)
    windows, ids = coloured_noise(N), names(N)
    order = [k for k in np.argsort(ids) if ids[k] not in bad]
    np.testing.assert_allclose(store.read(range(len(store))) * store.scale[:, None], windows[order], rtol=6e-8)


def test_what_an_earlier_run_skipped_stops_a_run_that_may_not_skip(copy, tmp_path, monkeypatch) -> None:
    first, last = sorted(names(N))[0], sorted(names(N))[-1]
    for id in (first, last):
        window_path(copy, "test" if names(N).index(id) >= 40 else "train", id).write_bytes(b"")
    partial = tmp_path / "out.hdf5.partial"
    with pytest.raises(InputError, match=first):
        _pack(copy, tmp_path / "out.hdf5", block=10)
    columns = read_columns(partial)
    assert (columns["state"] == PENDING).all()
    # A run with skip_bad that is stopped after its first block:
    with monkeypatch.context() as patched:
        patched.setattr(packing, "run_blocks", lambda jobs, workers: run_blocks(jobs[:1], workers))
        with pytest.raises(InputError, match="at least 8 to measure"):
            _pack(copy, tmp_path / "out.hdf5", block=5, skip_bad=True)
    assert (read_columns(partial)["state"][:5] == [2, 1, 1, 1, 1]).all()
    with pytest.raises(InputError, match=first):
        _pack(copy, tmp_path / "out.hdf5", block=5)


def test_an_existing_store_is_replaced_only_when_asked(source, tmp_path) -> None:
    out = tmp_path / "out.hdf5"
    out.write_text("precious")
    with pytest.raises(InputError, match="exists; expected another name, or --overwrite"):
        _pack(source, out)
    assert out.read_text() == "precious"
    assert len(_pack(source, out, overwrite=True)) == N
    with pytest.raises(InputError, match="is a folder"):
        _pack(source, tmp_path, overwrite=True)
    with pytest.raises(InputError, match="no such folder"):
        _pack(source, tmp_path / "none" / "out.hdf5")


def test_a_partial_file_of_other_windows_is_refused_and_a_broken_one_is_begun_again(source, copy, tmp_path) -> None:
    partial = tmp_path / "out.hdf5.partial"
    spoilt = window_path(copy, "train", names(N)[0])
    spoilt.write_bytes(b"")
    with pytest.raises(InputError, match="empty"):
        _pack(copy, tmp_path / "out.hdf5")
    assert partial.exists()
    labels = (copy / LABELS).read_text()
    (copy / LABELS).write_text(labels.replace(f"{names(N)[1]},1", f"{names(N)[1]},0"))
    with pytest.raises(InputError, match="begun from windows other"):
        _pack(copy, tmp_path / "out.hdf5")
    shutil.copy(window_path(source, "train", names(N)[0]), spoilt)
    assert len(_pack(copy, tmp_path / "out.hdf5", overwrite=True)) == N

    partial.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(1000))  # killed while it was laid out
    assert len(_pack(source, tmp_path / "out.hdf5", overwrite=True)) == N


def test_two_packers_do_not_write_one_file(source, tmp_path) -> None:
    out = tmp_path / "out.hdf5"
    process, _ = _started(source, out, tmp_path / "slow.py", workers=1)
    try:
        with pytest.raises(InputError, match="another process is packing into it"):
            _pack(source, out)
        assert Path(f"{out}.partial").exists()
    finally:
        process.kill()
        process.communicate()


def test_too_little_room_is_seen_before_packing(source, tmp_path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(InputError, match="0.00 GB free on its disk"):
        _pack(source, tmp_path / "out.hdf5")


def test_a_disk_that_fills_up_meanwhile_ends_with_one_line_and_what_is_packed_stays(
    source, tmp_path, monkeypatch
) -> None:
    out, written, before = tmp_path / "out.hdf5", 0, resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))  # as a quota, or a FAT file system
        with pytest.raises(InputError, match=r"out.hdf5.partial: cannot be written: .*File too large"):
            _pack(source, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def write(descriptor: int, array: np.ndarray, offset: int) -> None:
        nonlocal written
        written += array.nbytes
        if written > 1_000_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_at(descriptor, array, offset)

    with monkeypatch.context() as patched:
        patched.setattr(pack_blocks, "write_at", write)
        with pytest.raises(InputError, match=r"cannot be written: No space left on device; expected room"):
            _pack(source, out, block=8)
    assert np.count_nonzero(read_columns(f"{out}.partial")["state"] == PACKED) == 16
    assert len(_pack(source, out)) == N


def test_the_measured_psd_is_that_of_the_noise_whatever_the_labels_and_a_few_glitches(tmp_path) -> None:
    rng = np.random.default_rng(3)
    windows = 2e-21 * rng.standard_normal((160, 3, 4096))
    ids = names(160)
    loud = [k for k in range(160) if not is_test(ids[k])][:6]
    windows[loud] *= 1000.0
    write_g2net_folder(tmp_path / "a", windows, ids, [k % 2 for k in range(160)])
    write_g2net_folder(tmp_path / "b", windows, ids)
    labelled = _pack(tmp_path / "a", tmp_path / "a.hdf5")
    unlabelled = _pack(tmp_path / "b", tmp_path / "b.hdf5")
    for detector, psd in labelled.psds.items():
        # One-sided PSD of white noise: 2 sigma^2 / rate. Six of 120 glitchy windows move a median by 7%.
        assert np.mean(psd.value) == pytest.approx(1.07 * 2 * (2e-21) ** 2 / 2048.0, rel=0.04)
        assert psd.frequency[0] == 0.5
        assert psd.frequency[-1] == 1024.0
        assert np.array_equal(psd.value, unlabelled.psds[detector].value)


def _command(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "gwtwins.strain.pack", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_packs_and_ends_with_one_line_and_status_2_on_bad_input(source, tmp_path) -> None:
    done = _command(source, tmp_path / "out.hdf5", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "60 windows of H1 L1 V1, 40 labelled, 0 bad ones left out" in done.stdout
    assert "60/60" in done.stderr
    for arguments, fault in (
        ((source, tmp_path / "out.hdf5"), "exists"),
        ((tmp_path / "none", tmp_path / "new.hdf5"), "no such folder"),
        ((source, tmp_path / "new.hdf5", "--worker", 2), "unrecognized arguments"),
    ):
        bad = _command(*arguments)
        assert bad.returncode == 2
        assert fault in bad.stderr
        assert bad.stderr.count("\n") == 1


def test_the_benchmark_prints_its_tables(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(benchmark, "BATCH", 16)
    monkeypatch.setattr(benchmark, "STEPS", 1)
    options = ["--windows", "40", "60", "--repeats", "1", "--device", "cpu"]
    given = [*options, "--folder", str(tmp_path), "--json", str(tmp_path / "figures.json")]
    monkeypatch.setattr(sys, "argv", ["packing.py", *given])
    benchmark.main()
    said, figures = capsys.readouterr().out, json.loads((tmp_path / "figures.json").read_text())
    assert "| 560,000 | extrapolated |" in said and "| pretraining step |" in said
    assert set(figures["packing"]) == {"40", "60"} and set(figures["versions"]) >= {"numpy", "torch"}
    for seconds, busy, peak in figures["packing"].values():
        assert seconds > 0 and busy > 0 and 50 < peak < 1000  # MB
    for rates in figures["reading"].values():
        assert all(len(rates[state]) == 1 and rates[state][0] > 0 for state in ("cold", "warm", "cpu"))
    assert os.listdir(tmp_path) == ["figures.json"]
