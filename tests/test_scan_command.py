"""python scan_strain.py: what it finds and writes, and that an interruption changes nothing."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from gwosc_writer import GPS_START, coloured_noise, write_gwosc
from gwtwins import scan_strain
from gwtwins.encoders.paired import PairedEncoder
from gwtwins.encoders.weights import save_encoder
from gwtwins.probes import scan as scan_module
from gwtwins.probes import scan_blocks
from gwtwins.probes.triggers import TIME_TOLERANCE
from scan_scene import DETECTORS, RATE, save_run, write_strain


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    return save_run(tmp_path_factory.mktemp("run"))


@dataclass
class Result:
    """What a scan wrote."""

    folder: Path
    rows: list[dict[str, str]]
    report: dict[str, object]


def read(out: Path) -> Result:
    with open(out / "triggers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return Result(out, rows, json.loads((out / "scan.json").read_text()))


def scanned(run: Path, out: Path, files: list[Path], *options: str) -> Result:
    argv = [str(path) for path in files]
    assert scan_strain.scan([*argv, "--weights", str(run), "--out", str(out), *options]) == 0
    return read(out)


@pytest.fixture(scope="module")
def network(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Result, list[Path], float]]:
    """Three detectors, files that start at different seconds, one merger."""
    folder, merger = tmp_path_factory.mktemp("network"), GPS_START + 21.37
    files = [
        write_strain(folder, "H1", 40, merger),
        write_strain(folder, "L1", 32, merger, GPS_START + 5),
        write_strain(folder, "V1", 30, merger, GPS_START + 3),
    ]
    yield scanned(run, folder / "out", files, "--loudest", "1", "--threshold", "-3"), files, merger
    shutil.rmtree(folder)


def test_a_loud_signal_is_the_loudest_trigger_and_its_time_is_right(network: tuple[Result, list[Path], float]) -> None:
    result, _, merger = network
    best = result.rows[0]
    assert abs(float(best["time"]) - merger) < 0.05
    assert float(best["stat"]) > float(result.rows[1]["stat"]) + 2
    assert 0.9 < float(best["p"]) <= 1
    window = result.report["windows"]["seconds"]  # type: ignore[index]
    assert 0 < merger - float(best["window_start"]) < window  # its window holds the merger
    for row in result.rows[1:]:
        assert abs(float(row["time"]) - merger) > 0.5  # a transient is reported once
    assert all(float(best[f"stat_{name}"]) > 0.5 for name in DETECTORS)


def test_the_table_and_the_events_file_have_the_stated_form(network: tuple[Result, list[Path], float]) -> None:
    result, _, _ = network
    head = (result.folder / "triggers.csv").read_text().splitlines()[0]
    assert head.startswith("time,stat,p,far_per_year,stat_H1,stat_L1,stat_V1,window_start,var,network,")
    stat = [float(row["stat"]) for row in result.rows]
    assert stat == sorted(stat, reverse=True) and len(stat) >= 2
    with h5py.File(result.folder / "events.hdf5") as file:
        assert set(file) == {"time", "stat", "var"}
        moment, value, var = (file[name][()] for name in ("time", "stat", "var"))
    assert moment.dtype == value.dtype == var.dtype == np.float64
    assert (np.diff(moment) > 0).all() and (var == TIME_TOLERANCE).all()
    table = sorted((float(row["time"]), float(row["stat"])) for row in result.rows)
    np.testing.assert_allclose(np.stack([moment, value], 1), table, atol=6e-4)


def test_the_false_alarm_rate_is_that_of_the_stated_background(network: tuple[Result, list[Path], float]) -> None:
    result, _, _ = network
    background = result.report["background"]
    assert background["slides"] >= 8 and background["stretches"] == 1  # type: ignore[index]
    own = background["networks"]["H1 L1 V1"]  # type: ignore[index]
    assert own["slid_seconds"] > 5 * 24 and own["far_floor_per_year"] == pytest.approx(31557600 / own["slid_seconds"])
    assert sum(own["histogram"]["count"]) == own["triggers"]
    best = result.rows[0]
    assert best["network"] == "H1 L1 V1"
    assert float(best["far_low"]) < float(best["far_per_year"]) <= float(best["far_high"])
    assert float(best["far_per_year_inclusive"]) >= own["far_floor_per_year"] * 0.999
    if best["far_is_limit"] == "1":
        assert float(best["far_per_year"]) > own["far_floor_per_year"]  # some of the live time is the candidate's own
    alone = background["networks"]["H1"]  # type: ignore[index]
    assert "one detector" in alone["why_none"]
    for row in result.rows:
        assert (row["far_per_year"] == "") == (" " not in row["network"])


def test_what_was_analysed_is_written_down(network: tuple[Result, list[Path], float]) -> None:
    result, _, _ = network
    report = result.report
    assert report["analysed_seconds"] == {"H1": 39.0, "L1": 31.0, "V1": 29.0}
    edge, none = "lost to the filters beside a stretch's end", "no strain file"
    edges = [
        (span["start"] - GPS_START, span["end"] - GPS_START, span["why"])
        for span in report["not_analysed"]["L1"]  # type: ignore[index]
    ]
    assert edges == [(0, 5, none), (5, 5.5, edge), (36.5, 37, edge), (37, 40, none)]
    windows = report["windows"]
    assert (windows["stride_asked"], windows["stride"]) == (0.1, 0.125)  # type: ignore[index]
    window, stride = windows["seconds"], report["config"]["stride"]  # type: ignore[index]
    # H1's windows in 0.5 to 39.5 s, V1's in 3.5 to 32.5, L1's in 5.5 to 36.5.
    start = np.arange(0, 40, stride)
    held = {
        name: (start >= a) & (start + window <= b)
        for name, (a, b) in {"H1": (0.5, 39.5), "L1": (5.5, 36.5), "V1": (3.5, 32.5)}.items()
    }
    expected: dict[str, int] = {}
    for i in range(start.size):
        names = " ".join(name for name in DETECTORS if held[name][i])
        if names:
            expected[names] = expected.get(names, 0) + 1
    assert windows["by_network"] == expected and set(expected) == {"H1", "H1 V1", "H1 L1 V1", "H1 L1"}  # type: ignore[index]
    seconds = report["analysed_seconds_by_network"]
    assert seconds["H1 L1"] == pytest.approx(expected["H1 L1"] * stride)  # type: ignore[index]
    assert {"gwtwins", "torch", "numpy"} <= set(report["versions"])  # type: ignore[call-overload]
    pictures = sorted(path.name for path in (result.folder / "plots").iterdir())
    assert {f"statistic-{GPS_START}.png", "timeline.png", "trigger-1.png"} <= set(pictures)
    for path in (result.folder / "plots").iterdir():
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert width > 800 and height > 500
    assert not list(result.folder.rglob("*.tmp")) and not (result.folder / "blocks").exists()


def test_a_folder_of_the_files_gives_the_same_result(
    network: tuple[Result, list[Path], float], run: Path, tmp_path: Path
) -> None:
    first, files, _ = network
    folder = tmp_path / "strain"
    folder.mkdir()
    for path in files:
        shutil.copy(path, folder)
    second = scanned(run, tmp_path / "out", [folder], "--keep-blocks", "--loudest", "0", "--threshold", "-3")
    for name in ("triggers.csv", "events.hdf5"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()
    assert list((second.folder / "blocks").glob("block-*.hdf5"))


def test_two_detectors_with_an_encoder_of_three(
    network: tuple[Result, list[Path], float], run: Path, tmp_path: Path
) -> None:
    whole, files, merger = network
    result = scanned(run, tmp_path / "out", files[:2], "--loudest", "0")
    best = result.rows[0]
    assert abs(float(best["time"]) - merger) < 0.05
    assert best["stat_V1"] == "" and all(row["stat_V1"] == "" for row in result.rows)
    assert float(best["stat"]) < float(whole.rows[0]["stat"])  # a missing detector costs sensitivity


def test_one_detector_alone(network: tuple[Result, list[Path], float], run: Path, tmp_path: Path) -> None:
    _, files, merger = network
    result = scanned(run, tmp_path / "out", files[1:2], "--loudest", "1", "--threshold", "-4")
    assert abs(float(result.rows[0]["time"]) - merger) < 0.05  # the loudest, though one detector cannot say much
    assert set(result.report["windows"]["by_network"]) == {"L1"}  # type: ignore[index]
    assert min(float(row["stat"]) for row in result.rows) >= -4
    assert all(row["far_per_year"] == row["far_is_limit"] == "" for row in result.rows)


def test_a_gap_and_a_veto_are_left_out_and_the_signal_between_is_found(run: Path, tmp_path: Path) -> None:
    merger = GPS_START + 30.5
    h1 = write_strain(tmp_path, "H1", 48, merger, snr=60.0, vetoed={"CBC_CAT1": [12, 13], "BURST_CAT2": [40]})
    l1 = write_strain(tmp_path, "L1", 48, merger, snr=60.0)
    with h5py.File(l1, "r+") as file:
        file["strain/Strain"][36 * RATE : 38 * RATE + 17] = np.nan
    options = ("--min-detectors", "2", "--loudest", "0", "--slides", "3")
    result = scanned(run, tmp_path / "out", [h1, l1], *options)
    assert abs(float(result.rows[0]["time"]) - merger) < 0.05
    reasons = {
        name: [(s["start"] - GPS_START, s["end"] - GPS_START, s["why"]) for s in spans]
        for name, spans in result.report["not_analysed"].items()  # type: ignore[attr-defined]
    }
    edge = "lost to the filters beside a stretch's end"
    assert reasons["H1"] == [
        (0, 0.5, edge),
        (11.5, 12, edge),
        (12, 14, "fails CBC_CAT1"),
        (14, 14.5, edge),
        (47.5, 48, edge),
    ]
    assert (36, 39, "no data") in reasons["L1"]
    start = np.array([float(row["window_start"]) - GPS_START for row in result.rows])
    window = result.report["windows"]["seconds"]  # type: ignore[index]
    for low, high in ((11.5, 14.5), (35.5, 39.5)):
        assert not np.any((start > low - window) & (start < high))
    assert set(result.report["windows"]["by_network"]) == {"H1 L1"}  # type: ignore[index]
    other = scanned(run, tmp_path / "flags", [h1, l1], *options, "--required-flags", "DATA,BURST_CAT2")
    found = [span["why"] for span in other.report["not_analysed"]["H1"]]  # type: ignore[index]
    assert "fails BURST_CAT2" in found and "fails CBC_CAT1" not in found


def test_files_far_apart_are_one_scan_with_a_picture_each(run: Path, tmp_path: Path) -> None:
    mergers = {GPS_START: GPS_START + 10.2, GPS_START + 50_000: GPS_START + 50_012.8}
    files = [
        write_strain(tmp_path, name, 20, merger, gps, seed=gps % 7)
        for gps, merger in mergers.items()
        for name in ("H1", "L1")
    ]
    result = scanned(run, tmp_path / "out", files, "--loudest", "0")
    found = sorted(float(row["time"]) for row in result.rows[:2])
    np.testing.assert_allclose(found, sorted(mergers.values()), atol=0.05)
    names = {path.name for path in (result.folder / "plots").glob("statistic-*")}
    assert names == {f"statistic-{gps}.png" for gps in mergers}
    assert result.report["background"]["stretches"] == 2  # type: ignore[index]


def test_the_first_event_is_the_loudest_of_its_files(run: Path, gwosc: Path, tmp_path: Path) -> None:
    """Real strain at 4096 Hz; so loud that the sine-Gaussian stem of an untrained encoder is enough."""
    files = sorted(gwosc.glob("*LOSC_4_V2-1126259446-32.hdf5"))
    result = scanned(run, tmp_path / "out", files, "--loudest", "1")
    assert float(result.rows[0]["time"]) == pytest.approx(1126259462.42, abs=0.05)
    assert float(result.rows[0]["stat"]) > float(result.rows[1]["stat"]) + 1


# Interruptions, processes, clusters


def two_files(folder: Path, seconds: int) -> list[Path]:
    """Two detectors with gaps, a veto and a merger."""
    gps = GPS_START - seconds // 2
    h1 = write_strain(folder, "H1", seconds, GPS_START - 30.4, gps, vetoed={"CBC_CAT2": [60, 61, seconds - 40]})
    l1 = write_strain(folder, "L1", seconds - 50, GPS_START - 30.4, gps + 30)
    with h5py.File(l1, "r+") as file:
        file["strain/Strain"][seconds // 2 * RATE : (seconds // 2 + 70) * RATE] = np.nan
    return [h1, l1]


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Over parts of four blocks."""
    return two_files(tmp_path_factory.mktemp("long"), 1400)


QUICK = ("--slides", "20", "--loudest", "0", "--processes", "1")


@pytest.fixture(scope="module")
def undisturbed(run: Path, long: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Result:
    return scanned(run, tmp_path_factory.mktemp("undisturbed") / "out", long, *QUICK)


def same(a: Path, b: Path) -> bool:
    if (a / "triggers.csv").read_bytes() != (b / "triggers.csv").read_bytes():
        return False
    with h5py.File(a / "events.hdf5") as one, h5py.File(b / "events.hdf5") as two:
        return all(one[name][()].tobytes() == two[name][()].tobytes() for name in ("time", "stat", "var"))


class Stopped(Exception):
    """Stands for whatever ends a process."""


def test_a_scan_that_was_interrupted_goes_on_to_the_same_result(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while computing the second block, and the slides of the second stretch."""
    monkeypatch.setattr(scan_blocks, "BLOCK_SECONDS", 64.0)
    files = two_files(tmp_path, 300)
    whole = scanned(run, tmp_path / "whole", files, *QUICK, "--keep-blocks")
    blocks_made = len(list((whole.folder / "blocks").glob("block-*.hdf5")))
    assert blocks_made >= 4 and whole.report["background"]["stretches"] == 2  # type: ignore[index]
    for after in (1, blocks_made + 1):
        out = tmp_path / f"out-{after}"
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, after)
            with pytest.raises(Stopped):
                scanned(run, out, files, *QUICK)
        made = {path.name: path.stat().st_mtime_ns for path in (out / "blocks").glob("*.hdf5")}
        assert len(made) == after and not (out / "scan.json").exists()
        result = scanned(run, out, files, *QUICK, "--keep-blocks")
        assert same(result.folder, whole.folder)
        for name, when in made.items():  # nothing was computed twice
            assert (out / "blocks" / name).stat().st_mtime_ns == when


def stop_after(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    """Raise Stopped when so many blocks and rings are done and another is about to be."""
    count = 0
    compute, slide = scan_module.compute_blocks, scan_module.slide_ring

    def counted() -> None:
        nonlocal count
        count += 1
        if count > parts:
            raise Stopped

    def blocks(index: object, encoder: object, store: object, numbers: Sequence[int], batch: int) -> Iterator[int]:
        for number in numbers:
            counted()
            yield from compute(index, encoder, store, [number], batch)  # type: ignore[arg-type]

    def ring(*args: object) -> Path:
        counted()
        return slide(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(scan_module, "compute_blocks", blocks)
    monkeypatch.setattr(scan_module, "slide_ring", ring)


def test_an_unfinished_scan_of_something_else_is_not_gone_on_with(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [write_strain(tmp_path, name, 24, None) for name in ("H1", "L1")]
    out = tmp_path / "out"
    out.mkdir()
    scanned(run, out, files[:1], *QUICK)
    (out / "scan.json").unlink()  # as if it had not come to its end
    given = ("--weights", run, "--out", out, *QUICK)
    assert "other strain files" in refused(capsys, monkeypatch, *files, *given)
    assert "other settings" in refused(capsys, monkeypatch, files[0], *given, "--apart", "3")
    scanned(run, out, files[:1], *QUICK)
    assert "already holds a result" in refused(capsys, monkeypatch, files[0], *given)


def command(run: Path, out: Path, files: list[Path], *options: str) -> subprocess.Popen[bytes]:
    script = [sys.executable, "-m", "gwtwins.scan_strain", *map(str, files)]
    argv = [*script, "--weights", str(run), "--out", str(out), *QUICK[:4], *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_scan_that_was_killed_goes_on_to_the_same_result(
    run: Path, long: list[Path], undisturbed: Result, tmp_path: Path, processes: int
) -> None:
    """SIGKILL as soon as each number of finished parts is there."""
    out = tmp_path / "out"
    for parts in (1, 3, 5):
        child = command(run, out, long, "--processes", str(processes))
        try:
            until = time.monotonic() + 120
            while child.poll() is None and time.monotonic() < until:
                if len(list(out.glob("blocks/*.hdf5"))) >= parts:
                    break
                time.sleep(0.001)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
    assert command(run, out, long, "--processes", str(processes)).wait(timeout=120) in (0, 2)  # 2: it was done already
    assert same(out, undisturbed.folder)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_the_number_of_processes_changes_nothing(
    run: Path, long: list[Path], undisturbed: Result, tmp_path: Path, processes: int
) -> None:
    assert command(run, tmp_path / "out", long, "--processes", str(processes)).wait(timeout=200) == 0
    assert same(tmp_path / "out", undisturbed.folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Dask and what it imports
def test_a_dask_cluster_gives_the_same_result(run: Path, long: list[Path], undisturbed: Result, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        result = scanned(run, tmp_path / "out", long, *QUICK, "--scheduler", cluster.scheduler_address)
    assert same(result.folder, undisturbed.folder)


# Bad input


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *argv: object) -> str:
    """The one line with which the command ends with status 2."""
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["scan_strain.py", *map(str, argv)])
    with pytest.raises(SystemExit) as end:
        scan_strain.main()
    assert end.value.code == 2
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line and "%|" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_strain(tmp_path, "H1", 12, None)


def test_bad_arguments_and_files_end_with_one_line(
    run: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def line(*argv: object) -> str:
        return refused(capsys, monkeypatch, *argv)

    given = ("--weights", run, "--out", tmp_path / "out")
    assert "no files given" in line(*given)
    assert "no such file" in line(tmp_path / "absent.hdf5", *given)
    assert "--stride" in line(small, *given, "--stride", "0")
    assert "stride" in line(small, *given, "--stride", "nan")
    assert "--apart" in line(small, *given, "--apart", "-1")
    assert "--slide" in line(small, *given, "--slide", "1")
    assert "--slides" in line(small, *given, "--slides", "-1")
    assert "--processes" in line(small, *given, "--processes", "-2")
    assert "threshold" in line(small, *given, "--threshold", "nan")
    (tmp_path / "scan.yaml").write_text("threshold: .inf\n")
    assert "threshold" in line(small, *given, "--config", tmp_path / "scan.yaml")
    assert "--min-detectors" in line(small, *given, "--min-detectors", "2")
    assert "--stride" in line(small, *given, "--strid", "0.1")  # the nearest option is named
    assert "no such file" in line(small, "--weights", tmp_path / "absent")
    assert "no such file" in line(small, *given, "--probe", tmp_path / "absent")
    assert "NO_SUCH_FLAG" in line(small, *given, "--required-flags", "DATA,NO_SUCH_FLAG")
    (tmp_path / "empty").mkdir()
    assert "no " in line(tmp_path / "empty", *given)
    truncated = tmp_path / "truncated.hdf5"
    truncated.write_bytes(small.read_bytes()[:20_000])
    assert "truncated" in line(truncated, *given)
    kagra = write_gwosc(tmp_path / "K-K1.hdf5", coloured_noise(12, RATE), RATE, "K1")
    assert "K1" in line(kagra, *given)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "triggers.csv").write_text("mine")
    assert "already holds" in line(small, "--weights", run, "--out", tmp_path / "full")
    assert (tmp_path / "full" / "triggers.csv").read_text() == "mine"
    assert not (tmp_path / "out").exists()
    short = write_strain(tmp_path, "L1", 8, None)
    assert "no stretch" in line(short, *given)


def test_a_probe_of_another_encoder_is_refused(
    run: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    other = PairedEncoder("cnn_gru", {"width": 16, "hidden": 16, "embedding": 32})
    save_encoder(other, tmp_path, {})
    argv = (small, "--weights", tmp_path, "--probe", run / "probe", "--out", tmp_path / "out")
    assert "another encoder" in refused(capsys, monkeypatch, *argv)
