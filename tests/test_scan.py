"""The scan of long strain: signals are found where they are, and what is missing from a detector changes nothing."""

from __future__ import annotations

import csv
import json
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from gwosc_writer import GPS_START, coloured_noise, detector_asd, write_gwosc
from gwtwins import scan_strain
from gwtwins.encoders.paired import PairedEncoder
from gwtwins.encoders.weights import load_encoder, save_encoder
from gwtwins.probes.features import fingerprint
from gwtwins.probes.linear import LinearProbe
from gwtwins.probes.scan import Series, join_pieces, noise_reference, scan, strain_between, window_table
from gwtwins.probes.triggers import (
    TIME_TOLERANCE,
    Trigger,
    merger_time,
    peaks,
    usual_threshold,
    window_time,
    write_events,
    write_triggers,
)
from gwtwins.strain import draws
from gwtwins.strain.coverage import Span, analysed, left_out, merged
from gwtwins.strain.errors import InputError
from gwtwins.strain.gwosc import read_gwosc
from gwtwins.strain.injection import draw_extrinsic
from gwtwins.strain.noise import gaussian_noise
from gwtwins.strain.population import Distribution
from gwtwins.strain.psd import PSD
from gwtwins.strain.recording import Conditioned, condition_recording
from gwtwins.strain.simulated import SimulatedSource, SimulationConfig
from gwtwins.strain.sources import Window

RATE = 1024  # Hz, of the files and of the encoder
DETECTORS = ("H1", "L1", "V1")
ARRIVAL = {"H1": 0.0, "L1": -0.007, "V1": 0.013}  # s after the geocentre
SNR = 30.0  # in each detector


def chirp(seconds: int, merger: float, snr: float = SNR) -> np.ndarray:
    """Strain (T,) of a 30+30 Msun inspiral (leading order) that ends ``merger`` seconds after the first sample."""
    chirp_mass = 26.1 * 4.925e-6  # s
    tau = np.maximum(merger - np.arange(seconds * RATE) / RATE, 1e-4)
    phase = -2 * (tau / (5 * chirp_mass)) ** (5 / 8)
    frequency = (5 / (256 * tau)) ** (3 / 8) * chirp_mass ** (-5 / 8) / np.pi
    shape = np.where((frequency > 18) & (frequency < 200) & (tau > 1e-3), tau**-0.25 * np.cos(phase), 0.0)
    spectrum, f = np.fft.rfft(shape) / RATE, np.fft.rfftfreq(shape.size, 1 / RATE)
    power = 4 * np.sum(np.abs(spectrum[f >= 20] / detector_asd(f[f >= 20])) ** 2) / seconds
    return shape * snr / np.sqrt(power)


def write_strain(
    folder: Path,
    detector: str,
    seconds: int,
    merger: float | None,
    gps: int = GPS_START,
    seed: int = 0,
    **vetoes: object,
) -> Path:
    """A file of coloured noise with a signal at GPS ``merger``."""
    strain = coloured_noise(seconds, RATE, seed + 10 * DETECTORS.index(detector))
    if merger is not None:
        strain = strain + chirp(seconds, merger - gps + ARRIVAL[detector])
    path = folder / f"{detector[0]}-{detector}_TEST-{gps}-{seconds}.hdf5"
    return write_gwosc(path, strain, RATE, detector, gps, **vetoes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A tiny untrained encoder, its sine-Gaussian stem aside, and a probe fitted to loud signals."""
    folder = tmp_path_factory.mktemp("run")
    config = SimulationConfig(bank_size=64, n_labelled=64, n_test=64)
    source = SimulatedSource(config, Window(float(RATE)), progress=False)
    torch.manual_seed(0)
    encoder = PairedEncoder("cnn_gru", {"width": 16, "hidden": 16, "embedding": 32}, psds=source.psds).eval()
    n = 600
    u = draws.uniform(3, "rows", 0, range(n), 8)
    strain = gaussian_noise(3, "noise", 0, range(n), 3, RATE, 2.0, 20.0, 500.0)
    half, index = n // 2, (u[: n // 2, 7] * 64).long()
    gps = GPS_START + 86164 * u[:half, 7]
    draw = draw_extrinsic(u[:half, :7], index, Distribution(1.2, 1.9), Distribution(20.0, 50.0), gps)
    strain[:half] += source.injector("train")(draw, torch.arange(3).expand(half, 3))[0]
    with torch.inference_mode():
        embeddings = encoder(strain).numpy()
    label = (np.arange(n) < half).astype(int)
    print_of = fingerprint(encoder)
    probe = LinearProbe.fit(embeddings, None, label, detectors=encoder.detectors, encoder=print_of)
    save_encoder(encoder, folder, {})
    (folder / "probe").mkdir()
    probe.save(folder / "probe" / "probe.safetensors")
    return folder


@dataclass
class Result:
    """What a scan wrote."""

    folder: Path
    rows: list[dict[str, str]]
    report: dict[str, object]


def scanned(run: Path, out: Path, files: list[Path], *options: str) -> Result:
    argv = [str(path) for path in files]
    assert scan_strain.scan([*argv, "--weights", str(run), "--out", str(out), *options]) == 0
    with open(out / "triggers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return Result(out, rows, json.loads((out / "scan.json").read_text()))


@pytest.fixture(scope="module")
def network(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Result, list[Path], float]]:
    """Three detectors, files that start at different seconds, one merger."""
    folder, merger = tmp_path_factory.mktemp("network"), GPS_START + 21.37
    files = [
        write_strain(folder, "H1", 40, merger),
        write_strain(folder, "L1", 32, merger, GPS_START + 5),
        write_strain(folder, "V1", 30, merger, GPS_START + 3),
    ]
    yield scanned(run, folder / "out", files), files, merger
    shutil.rmtree(folder)


def test_a_loud_signal_is_the_loudest_trigger_and_its_time_is_right(network: tuple[Result, list[Path], float]) -> None:
    result, _, merger = network
    best = result.rows[0]
    assert abs(float(best["time"]) - merger) < 0.1
    assert float(best["stat"]) > float(result.rows[1]["stat"]) + 2
    assert 0.9 < float(best["p"]) <= 1
    assert 0 < merger - float(best["window_start"]) < 2.0  # its window holds the merger
    for row in result.rows[1:]:
        assert abs(float(row["time"]) - merger) > 0.5  # a transient is reported once


def test_the_table_and_the_events_file_have_the_stated_form(network: tuple[Result, list[Path], float]) -> None:
    result, _, _ = network
    head = (result.folder / "triggers.csv").read_text().splitlines()[0]
    assert head == "time,stat,p,far_per_year,stat_H1,stat_L1,stat_V1,window_start,var"
    stat = [float(row["stat"]) for row in result.rows]
    assert stat == sorted(stat, reverse=True) and len(stat) >= 3
    assert all(row["far_per_year"] == "" for row in result.rows)  # no background, no rate
    with h5py.File(result.folder / "events.hdf5") as file:
        assert set(file) == {"time", "stat", "var"}
        time, value, var = (file[name][()] for name in ("time", "stat", "var"))
    assert time.dtype == value.dtype == var.dtype == np.float64
    assert (np.diff(time) > 0).all() and (var == TIME_TOLERANCE).all()
    table = sorted((float(row["time"]), float(row["stat"])) for row in result.rows)
    np.testing.assert_allclose(np.stack([time, value], 1), table, atol=6e-4)


def test_detectors_contributions_add_up_to_the_statistic_from_that_of_noise(
    network: tuple[Result, list[Path], float],
) -> None:
    base = network[0].report["statistic_of_noise"]
    for row in network[0].rows:
        parts = [float(row[f"stat_{name}"]) for name in DETECTORS if row[f"stat_{name}"]]
        assert float(row["stat"]) == pytest.approx(base + sum(parts), abs=1e-3)
    best = network[0].rows[0]
    assert all(float(best[f"stat_{name}"]) > 0.5 for name in DETECTORS)


def test_what_was_analysed_is_written_down(network: tuple[Result, list[Path], float]) -> None:
    result, _, _ = network
    report = result.report
    assert report["analysed_seconds"] == {"H1": 39.0, "L1": 31.0, "V1": 29.0}
    edges = [(span["start"], span["end"]) for span in report["not_analysed"]["L1"]]  # type: ignore[index]
    assert edges == [(GPS_START + 5, GPS_START + 5.5), (GPS_START + 36.5, GPS_START + 37)]
    networks = report["windows"]["by_network"]  # type: ignore[index]
    # Windows every 0.1 s, H1's in 0.5 to 39.5 s, V1's in 3.5 to 32.5, L1's in 5.5 to 36.5.
    assert networks == {"H1": 60, "H1 V1": 20, "H1 L1 V1": 251, "H1 L1": 40}
    assert report["config"]["stride"] == 0.1  # type: ignore[index]
    assert {"gwtwins", "torch", "numpy"} <= set(report["versions"])  # type: ignore[call-overload]
    pictures = sorted(path.name for path in (result.folder / "plots").iterdir())
    assert pictures[0] == f"statistic-{GPS_START}.png" and "trigger-1.png" in pictures
    for path in (result.folder / "plots").iterdir():
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert width > 800 and height > 500
    assert not list(result.folder.rglob("*.tmp"))


def test_a_second_scan_gives_the_same_result(
    network: tuple[Result, list[Path], float], run: Path, tmp_path: Path
) -> None:
    first, files, _ = network
    folder = tmp_path / "strain"
    folder.mkdir()
    for path in files:
        shutil.copy(path, folder)
    second = scanned(run, tmp_path / "out", [folder])
    for name in ("triggers.csv", "events.hdf5"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


def test_two_detectors_with_an_encoder_of_three(
    network: tuple[Result, list[Path], float], run: Path, tmp_path: Path
) -> None:
    whole, files, merger = network
    result = scanned(run, tmp_path / "out", files[:2], "--loudest", "0")
    best = result.rows[0]
    assert abs(float(best["time"]) - merger) < 0.1
    assert best["stat_V1"] == "" and all(row["stat_V1"] == "" for row in result.rows)
    # The same windows: H1 and L1 say what they said in the company of Virgo.
    same = [row for row in whole.rows if row["window_start"] == best["window_start"]]
    for row in same:
        assert float(row["stat_H1"]) == pytest.approx(float(best["stat_H1"]), abs=1e-3)


def test_one_detector_alone(network: tuple[Result, list[Path], float], run: Path, tmp_path: Path) -> None:
    _, files, merger = network
    result = scanned(run, tmp_path / "out", files[1:2], "--loudest", "1", "--threshold", "0")
    assert abs(float(result.rows[0]["time"]) - merger) < 0.1
    assert result.report["windows"]["by_network"] == {"L1": 291}  # type: ignore[index]
    assert min(float(row["stat"]) for row in result.rows) >= 0


def test_a_gap_and_a_veto_are_left_out_and_the_signal_between_is_found(run: Path, tmp_path: Path) -> None:
    merger = GPS_START + 30.5
    h1 = write_strain(tmp_path, "H1", 48, merger, vetoed={"CBC_CAT1": [12, 13]})
    l1 = write_strain(tmp_path, "L1", 48, merger)
    with h5py.File(l1, "r+") as file:
        file["strain/Strain"][36 * RATE : 38 * RATE + 17] = np.nan
    result = scanned(run, tmp_path / "out", [h1, l1], "--min-detectors", "2", "--loudest", "0")
    assert abs(float(result.rows[0]["time"]) - merger) < 0.1
    reasons = {
        name: [(s["start"] - GPS_START, s["end"] - GPS_START, s["why"]) for s in spans]
        for name, spans in result.report["not_analysed"].items()
    }  # type: ignore[attr-defined]
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
    assert not np.any((start > 9.5) & (start < 14.5)) and not np.any((start > 33.5) & (start < 39.5))


def test_files_far_apart_are_one_scan_with_a_picture_each(run: Path, tmp_path: Path) -> None:
    mergers = {GPS_START: GPS_START + 10.2, GPS_START + 50_000: GPS_START + 50_012.8}
    files = [
        write_strain(tmp_path, name, 20, merger, gps, seed=gps % 7)
        for gps, merger in mergers.items()
        for name in ("H1", "L1")
    ]
    result = scanned(run, tmp_path / "out", files, "--loudest", "0")
    found = sorted(float(row["time"]) for row in result.rows[:2])
    np.testing.assert_allclose(found, sorted(mergers.values()), atol=0.1)
    names = {path.name for path in (result.folder / "plots").iterdir()}
    assert names == {f"statistic-{gps}.png" for gps in mergers}


def test_the_first_event_is_the_loudest_of_its_files(run: Path, gwosc: Path, tmp_path: Path) -> None:
    """Real strain at 4096 Hz; so loud that the sine-Gaussian stem of an untrained encoder is enough."""
    files = sorted(gwosc.glob("*LOSC_4_V2-1126259446-32.hdf5"))
    result = scanned(run, tmp_path / "out", files, "--loudest", "1")
    assert float(result.rows[0]["time"]) == pytest.approx(1126259462.42, abs=0.05)
    assert float(result.rows[0]["stat"]) > float(result.rows[1]["stat"]) + 1


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_strain(tmp_path, "H1", 12, None)


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
    assert "threshold" in line(small, *given, "--threshold", "nan")
    (tmp_path / "scan.yaml").write_text("threshold: .inf\n")
    assert "threshold" in line(small, *given, "--config", tmp_path / "scan.yaml")
    assert "--min-detectors" in line(small, *given, "--min-detectors", "2")
    assert "--stride" in line(small, *given, "--strid", "0.1")  # the nearest option is named
    assert "no such file" in line(small, "--weights", tmp_path / "absent")
    assert "cannot be read" in line(small, *given, "--probe", tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "no .hdf5 file" in line(tmp_path / "empty", *given)
    truncated = tmp_path / "truncated.hdf5"
    truncated.write_bytes(small.read_bytes()[:20_000])
    assert "truncated" in line(truncated, *given)
    short = write_strain(tmp_path, "L1", 8, None)
    assert "no stretch" in line(short, *given)
    kagra = write_gwosc(tmp_path / "K-K1.hdf5", coloured_noise(12, RATE), RATE, "K1")
    assert "K1" in line(kagra, *given)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "triggers.csv").write_text("mine")
    assert "already holds" in line(small, "--weights", run, "--out", tmp_path / "full")
    assert (tmp_path / "full" / "triggers.csv").read_text() == "mine"
    assert not (tmp_path / "out").exists()


def test_a_probe_of_another_encoder_is_refused(
    run: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    other = PairedEncoder("cnn_gru", {"width": 16, "hidden": 16, "embedding": 32})
    save_encoder(other, tmp_path, {})
    argv = (small, "--weights", tmp_path, "--probe", run / "probe", "--out", tmp_path / "out")
    assert "another encoder" in refused(capsys, monkeypatch, *argv)


# The parts, on made-up strain.

PSD_OF_ONE = PSD(np.array([1.0, 1000.0]), np.ones(2))


def piece(detector: str, gps: float, seconds: float, gates: list[tuple[float, float]] | None = None) -> Conditioned:
    rng = np.random.default_rng(int(gps) + ord(detector[0]))
    strain = rng.standard_normal(round(seconds * RATE)).astype(np.float32)
    return Conditioned(detector, gps, float(RATE), strain, PSD_OF_ONE, gates or [], "file")


def test_windows_cross_from_one_part_of_a_recording_to_the_next_but_no_gap() -> None:
    parts = [piece("H1", 110.5, 10), piece("H1", 100.5, 10), piece("H1", 121.0, 5), piece("L1", 120.5, 4)]
    joined = join_pieces(parts)
    assert [(p.detector, p.gps_start, p.gps_end) for p in joined] == [
        ("H1", 100.5, 120.5),
        ("H1", 121.0, 126.0),
        ("L1", 120.5, 124.5),
    ]
    np.testing.assert_array_equal(joined[0].strain, np.concatenate([parts[1].strain, parts[0].strain]))
    start, where = window_table(joined, DETECTORS, 2.0, 0.5, 1)
    assert start[0] == 100.5 and start[-1] == 124.0
    held = {gps: tuple(row) for gps, row in zip(start, where)}
    assert held[118.5] == (0, -1, -1) and 119.0 not in held and held[120.5] == (-1, 2, -1)
    assert held[121.0] == (1, 2, -1) and held[123.0] == (1, -1, -1)
    both, _ = window_table(joined, DETECTORS, 2.0, 0.5, 2)
    np.testing.assert_allclose(both, [121.0, 121.5, 122.0, 122.5])


def test_windows_that_touch_a_gate_are_not_looked_at_in_that_detector() -> None:
    gated = [piece("H1", 100.5, 20, gates=[(110.0, 110.5)]), piece("L1", 100.5, 20)]
    start, where = window_table(gated, DETECTORS, 2.0, 0.1, 1)
    absent = start[where[:, 0] < 0]
    assert absent.min() == pytest.approx(108.1) and absent.max() == pytest.approx(110.4)
    assert (where[:, 1] >= 0).all()


def test_the_same_strain_gives_the_same_windows_in_any_company() -> None:
    alone, _ = window_table([piece("H1", 1_126_259_446.5, 31)], DETECTORS, 2.0, 0.1, 1)
    company = [piece("H1", 1_126_259_446.5, 31), piece("L1", 1_126_259_440.5, 50)]
    start, where = window_table(company, DETECTORS, 2.0, 0.1, 1)
    np.testing.assert_array_equal(start[where[:, 0] >= 0], alone)
    assert alone.size == 291  # none lost to rounding at either end
    np.testing.assert_allclose(np.diff(start), 0.1, atol=1e-6)


def test_the_statistic_is_that_of_the_windows_cut_by_hand(run: Path) -> None:
    encoder, probe = load_encoder(run), LinearProbe.load(run / "probe")
    pieces = [piece("H1", 100.5, 6), piece("V1", 101.5, 6)]
    series = scan(encoder, probe, pieces, 0.25, batch=7, progress=False)
    assert series.windows_by_network() == {"V1": 4, "H1": 4, "H1 V1": 13}
    i = int(np.flatnonzero(series.start == 103.25)[0])
    strain = np.zeros((1, 3, 2048), np.float32)  # L1 absent
    strain[0, 0] = pieces[0].strain[round(2.75 * RATE) :][:2048]
    strain[0, 2] = pieces[1].strain[round(1.75 * RATE) :][:2048]
    with torch.inference_mode():
        embedding = encoder(torch.from_numpy(strain)).numpy()
    embedding[0, 1] = noise_reference(encoder)[1]
    assert series.stat[i] == pytest.approx(probe.decision(embedding)[0], abs=1e-4)
    assert np.isnan(series.part[i, 1]) and np.isfinite(series.part[i, [0, 2]]).all()
    strip, rate = strain_between(pieces, "V1", 101.0, 103.0)
    assert rate == RATE and np.isnan(strip[:512]).all()
    np.testing.assert_array_equal(strip[512:], pieces[1].strain[:1536])
    with pytest.raises(InputError, match="detectors asked for"):
        scan(encoder, probe, pieces, 0.25, at_least=3, progress=False)


def test_noise_looks_alike_in_every_network(run: Path) -> None:
    """Regression: with the mean of the labelled rows in its place, a missing detector made noise look like a signal."""
    encoder, probe = load_encoder(run), LinearProbe.load(run / "probe")
    noise = gaussian_noise(8, "noise", 0, range(3), 1, RATE, 60.0, 20.0, 500.0).numpy()[:, 0]
    pieces = [Conditioned(name, 100.0, float(RATE), x, PSD_OF_ONE) for name, x in zip(DETECTORS, noise)]
    median = {}
    for kept in ("H1 L1 V1", "H1 L1", "L1 V1", "L1", "V1"):
        series = scan(encoder, probe, [p for p in pieces if p.detector in kept], 0.5, progress=False)
        median[kept] = float(np.median(series.stat))
        spread = float(np.std(series.stat))
        assert spread < 2.0
    assert max(median.values()) - min(median.values()) < 0.6
    assert series.base == pytest.approx(median["H1 L1 V1"], abs=0.5)


def test_coherent_features_are_scanned_too(run: Path) -> None:
    encoder = load_encoder(run)
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((80, 3, encoder.embedding_dim)).astype(np.float32)
    probe = LinearProbe.fit(embeddings, None, np.arange(80) % 2, kind="coherent", detectors=DETECTORS)
    series = scan(encoder, probe, [piece("H1", 100.0, 4), piece("L1", 100.0, 4)], 0.5, progress=False)
    assert np.isfinite(series.stat).all() and np.isfinite(series.part[:, :2]).all()


def series_of(stat: np.ndarray, stride: float = 0.1, start: float = 1000.0) -> Series:
    n = len(stat)
    return Series(start + stride * np.arange(n), np.asarray(stat, float), np.zeros((n, 3)), 0.0, DETECTORS, 2.0, stride)


def test_peaks_are_apart_and_above_the_threshold_the_loudest_first() -> None:
    stat = np.full(200, -3.0)
    stat[50], stat[60], stat[95], stat[150] = 4.0, 5.0, 3.0, 1.0
    np.testing.assert_array_equal(peaks(series_of(stat), 0.0, 2.0), [60, 95, 150])
    np.testing.assert_array_equal(peaks(series_of(stat), 0.0, 0.5), [60, 50, 95, 150])
    np.testing.assert_array_equal(peaks(series_of(stat), 2.0, 5.0), [60])
    assert peaks(series_of(stat), 9.0, 2.0).size == 0
    # Equal ones: the first.
    np.testing.assert_array_equal(peaks(series_of(np.ones(10)), 0.0, 2.0), [0])


def lit_by(merger: float, start: np.ndarray) -> np.ndarray:
    """A statistic like the encoder's: it rises as the merger comes into the window and falls slowly as it moves on."""
    into = merger - start
    return np.where((into > 0) & (into < 1.95), 2.0 + 3.0 * into, -2.0)


def test_the_time_at_which_windows_light_up_gives_the_merger_time() -> None:
    start = 1000.0 + 0.1 * np.arange(100)
    for merger in (1005.03, 1005.08, 1002.3, 1009.0):
        series = series_of(lit_by(merger, start))
        assert window_time(series, int(np.argmax(series.stat))) == pytest.approx(merger, abs=0.08)
    coarse = series_of(lit_by(1025.0, 1000.0 + np.arange(50)), stride=1.0)
    assert window_time(coarse, int(np.argmax(coarse.stat))) == pytest.approx(1025.0, abs=1.0)


def test_the_usual_threshold_is_that_of_noise_whatever_the_event() -> None:
    stat = np.random.default_rng(2).standard_normal(400) * 1.5 - 2
    quiet = usual_threshold(series_of(stat))
    assert quiet == pytest.approx(1.0, abs=0.4)
    stat[100:120] = 15.0
    assert usual_threshold(series_of(stat)) == pytest.approx(quiet, abs=0.3)


def test_the_strain_refines_the_merger_time_and_absent_detectors_do_not_matter() -> None:
    merger = 1005.03
    start = 1000.0 + 0.1 * np.arange(100)
    series = series_of(lit_by(merger, start))
    series.part[:, 1] = np.nan
    noise = gaussian_noise(5, "noise", 0, range(2), 1, RATE, 12.0, 20.0, 500.0).numpy()[:, 0]
    time = np.arange(noise.shape[1]) / RATE + 999.0
    burst = np.exp(-(((time - merger + 0.015) / 0.01) ** 2)) * np.cos(2 * np.pi * 100 * time)
    pieces = [
        Conditioned(name, 999.0, float(RATE), (x + 4 * burst).astype(np.float32), PSD_OF_ONE)
        for name, x in zip(("H1", "V1"), noise)
    ]
    found = merger_time(series, int(np.argmax(series.stat)), pieces, 20.0, 500.0)
    assert found == pytest.approx(merger, abs=0.01)


def test_spans_are_merged_by_their_reason() -> None:
    assert merged([Span(2, 3, "a"), Span(0, 1, "a"), Span(1, 2, "a"), Span(3, 4, "b"), Span(6, 7, "b")]) == [
        Span(0, 3, "a"),
        Span(3, 4, "b"),
        Span(6, 7, "b"),
    ]


def test_every_second_of_a_file_is_analysed_or_has_its_reason(tmp_path: Path) -> None:
    strain = coloured_noise(64, RATE)
    strain[40 * RATE + 100] += 1e-17  # 900 sigma: gated
    path = write_gwosc(
        tmp_path / "x.hdf5", strain, RATE, vetoed={"CBC_CAT2": [20], "DATA": [27]}, injected={"NO_CBC_HW_INJ": [60]}
    )
    recording = read_gwosc(path)
    pieces = condition_recording(recording, float(RATE))
    covered, missing = analysed(pieces), left_out(recording, pieces)
    assert sum(s.end - s.start for s in [*covered, *missing]) == pytest.approx(64)
    edges = sorted((s.start, s.end) for s in [*covered, *missing])
    assert all(a[1] == pytest.approx(b[0]) for a, b in zip(edges, edges[1:]))
    why = {s.why: (s.start - GPS_START, s.end - GPS_START) for s in missing}
    assert why["fails CBC_CAT2"] == (20, 21) and why["fails DATA"] == (27, 28)
    assert why["in a stretch shorter than 9 s"] == (61, 64) or why["hardware injection"] == (60, 61)
    gate = next(s for s in missing if s.why.startswith("gated"))
    assert gate.start < GPS_START + 40.1 < gate.end and gate.end - gate.start < 2


def test_absent_detectors_leave_their_cells_empty(tmp_path: Path) -> None:
    triggers = [Trigger(1000.0004, 1.23456, 0.5, {"L1": -0.5}, 998.5, 0.1)]
    write_triggers(tmp_path / "t.csv", triggers, DETECTORS)
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines[1] == "1000.000,1.2346,0.5,,,-0.5000,,998.500,0.1"
    write_events(tmp_path / "e.hdf5", [])
    with h5py.File(tmp_path / "e.hdf5") as file:
        assert file["time"].shape == (0,)
