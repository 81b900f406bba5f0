"""The scan of long strain: its windows say what windows embedded by themselves say; gaps and ends change nothing."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from gwosc_writer import GPS_START
from gwtwins.encoders.paired import PairedEncoder
from gwtwins.encoders.weights import load_encoder
from gwtwins.probes.false_alarm_rate import Rate
from gwtwins.probes.frame_statistic import FrameStatistic
from gwtwins.probes.linear import LinearProbe
from gwtwins.probes.scan import ScanSettings, scan, search, step_of, trigger_at
from gwtwins.probes.scan_blocks import BlockStore, Grid, compute_blocks
from gwtwins.probes.scan_workers import workers
from gwtwins.probes.triggers import (
    Series,
    Trigger,
    merger_time,
    peaks,
    usual_threshold,
    write_events,
    write_triggers,
)
from gwtwins.strain.errors import InputError
from gwtwins.strain.noise import gaussian_noise
from gwtwins.strain.strain_index import from_series, index_strain
from scan_scene import (
    AROUND,
    DETECTORS,
    RATE,
    blocks_of_whitened,
    fitted_probe,
    rows_in_noise,
    shown,
    tiny_encoder,
    write_strain,
)

GPS = 512.0 * 1_953_125  # where a block begins


@pytest.fixture(scope="module")
def encoder(cache: Path) -> PairedEncoder:
    return tiny_encoder()


@pytest.fixture(scope="module", params=["concat", "coherent"])
def probe(request: pytest.FixtureRequest, encoder: PairedEncoder) -> LinearProbe:
    return fitted_probe(encoder, request.param)


@pytest.fixture(scope="module")
def coherent(encoder: PairedEncoder) -> LinearProbe:
    return fitted_probe(encoder, "coherent")


@pytest.fixture(scope="module")
def trained(cache: Path) -> PairedEncoder:
    """The shipped encoder."""
    return load_encoder("gwtwins/small")


@pytest.fixture(scope="module", params=["concat", "coherent"])
def trained_probe(request: pytest.FixtureRequest, trained: PairedEncoder) -> LinearProbe:
    return fitted_probe(trained, request.param, (4.0, 16.0))


def whitened(seed: int, seconds: float, k: int = 3) -> np.ndarray:
    return gaussian_noise(seed, "strain", 0, range(1), k, RATE, seconds, 20.0, 500.0)[0].numpy()


def statistic_of(encoder: PairedEncoder, probe: LinearProbe) -> FrameStatistic:
    return FrameStatistic.of(encoder, probe)


# Shared computation


def scanned_rows(
    encoder: PairedEncoder, probe: LinearProbe, rows: torch.Tensor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> np.ndarray:
    """The statistic of the window in each row's middle, of a scan of rows (B, 3, T) of 6 s one after the other."""
    x = rows.permute(1, 0, 2).reshape(3, -1).numpy()
    windows, numbers = blocks_of_whitened(monkeypatch, encoder, folder, dict(zip(DETECTORS, x)), GPS)
    series = search(windows, numbers, statistic_of(encoder, probe), 1, 1)
    start = GPS + AROUND + encoder.pool_start * encoder.hop + 6.0 * np.arange(len(rows))
    return series.stat[np.searchsorted(series.start, start - 1e-6)].astype(np.float64)


def test_a_windows_statistic_is_the_probes_of_its_frames(
    encoder: PairedEncoder, probe: LinearProbe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Convolved with the strain around them, cut out, through the GRU, pooled and asked, one window at a time.

    Up to a constant, by which noise has the mean statistic of bare windows, and what float16 rounds stored frames by.
    """
    rows, _ = rows_in_noise(encoder, 11, 64, 6.0, 30.0)
    found = scanned_rows(encoder, probe, rows, tmp_path, monkeypatch)
    cut = round(AROUND / encoder.hop)
    with torch.inference_mode():
        local = encoder.local(rows.flatten(0, 1), torch.arange(3).repeat(64))[:, cut:-cut]
        frames = encoder.recur(local, torch.arange(3).repeat(64))[:, encoder.pool_start :]
        embedding = encoder.hl.head(encoder.hl.pool(frames[..., :32].transpose(1, 2))).reshape(64, 3, -1)
        together = encoder.hl.pooled(frames.reshape(64, 3, *frames.shape[1:]).sum(1))
    expected = probe.decision(embedding.numpy(), None, together.numpy())
    assert np.std(expected) > 1
    assert np.ptp(found - expected) < 0.1 and abs(np.mean(found - expected)) < 0.5


def test_a_windows_statistic_is_that_of_the_bare_window(
    trained: PairedEncoder, trained_probe: LinearProbe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for what convolutions see beyond a bare window's ends: zeros there, strain in the scan."""
    rows, _ = rows_in_noise(trained, 11, 128, 6.0, 30.0)
    found = scanned_rows(trained, trained_probe, rows, tmp_path, monkeypatch)
    embeddings, together = shown(trained, rows)
    difference = found - trained_probe.decision(embeddings, None, together)
    noise, spread = difference[64:], np.std(found[64:])
    assert abs(np.mean(noise)) < 0.15 * spread
    assert np.median(np.abs(difference)) < 0.6 * spread and np.quantile(np.abs(difference), 0.99) < 2 * spread


def test_frames_do_not_depend_on_blocks_rows_or_batches(
    encoder: PairedEncoder, coherent: LinearProbe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stretch across a block's border gives the statistic that it gives inside a block."""
    x = whitened(5, 60.0)
    statistic = statistic_of(encoder, coherent)
    found = []
    for i, offset in enumerate((100.0, 512.0 - 31.25)):
        (tmp_path / str(i)).mkdir()
        strain = dict(zip(DETECTORS, x))
        windows, numbers = blocks_of_whitened(
            monkeypatch, encoder, tmp_path / str(i), strain, GPS + offset, batch=3 + i
        )
        assert len(numbers) == 1 + i
        found.append(search(windows, numbers, statistic, 1, 1))
    np.testing.assert_allclose(found[0].start - 100.0, found[1].start - 512.0 + 31.25)
    inner = slice(40, -40)  # beside the stretch's ends, other noise is put
    difference = np.abs(found[0].stat - found[1].stat)[inner]
    assert np.median(difference) < 0.02 and difference.max() < 0.3


def test_a_window_is_the_same_in_whatever_company_it_is_asked_for(
    encoder: PairedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: windows that begin with the strain had the mean of what else was asked for as their context."""
    x = dict(zip(DETECTORS, whitened(4, 20.0)))
    windows, _ = blocks_of_whitened(monkeypatch, encoder, tmp_path, x, GPS)
    first = round(GPS / encoder.hop)
    many, ok = windows.of(first, first + 60)
    assert ok.all()
    for w in (0, 3, 40):
        one, _ = windows.of(first + w, first + w + 1)
        for alone, among in zip(one, many, strict=True):
            part = among.part(w, w + 1)
            for found, wanted in ((part.learnt, alone.learnt), (part.evidence, alone.evidence)):
                assert np.abs(found.astype(int) - wanted).max() <= 1  # of 8191


def test_blocks_are_the_same_bits_wherever_the_computation_starts(encoder: PairedEncoder, tmp_path: Path) -> None:
    files = [write_strain(tmp_path, "H1", 600, None, 999_999_900), write_strain(tmp_path, "L1", 500, None, 999_999_950)]
    index, grid = index_strain(files), Grid.of(encoder)
    numbers = grid.blocks_of(index.spans)
    assert len(numbers) >= 2
    stores = []
    for name, parts in (("whole", [numbers]), ("single", [[n] for n in reversed(numbers)])):
        (tmp_path / name).mkdir()
        stores.append(BlockStore(tmp_path / name, grid, index.detectors))
        with workers(1):
            for part in parts:
                assert list(compute_blocks(index, encoder, stores[-1], part, 8)) == part
    for number in numbers:
        with h5py.File(stores[0].path(number)) as a, h5py.File(stores[1].path(number)) as b:
            for name in ("frames", "good", "strain"):
                assert a[name][()].tobytes() == b[name][()].tobytes()
            assert a.attrs["left_out"] == b.attrs["left_out"]


# Gaps, ends, and detectors that come and go


def test_a_window_counts_in_a_detector_where_all_of_it_was_recorded(
    encoder: PairedEncoder, coherent: LinearProbe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = whitened(6, 60.0)
    valid = {name: np.ones(60 * RATE, bool) for name in DETECTORS}
    valid["L1"][20 * RATE : 25 * RATE] = False
    valid["V1"][: 40 * RATE + 3] = False
    windows, numbers = blocks_of_whitened(monkeypatch, encoder, tmp_path, dict(zip(DETECTORS, x)), GPS, valid)
    series = search(windows, numbers, statistic_of(encoder, coherent), 1, 1)
    start = series.start - GPS
    held = {name: start[series.present[:, d]] for d, name in enumerate(DETECTORS)}
    window, hop = series.window, series.hop
    assert held["H1"].tolist() == np.arange(0, 60 - window + hop / 2, hop).tolist()
    assert held["V1"][0] == 40 + hop  # the frame that begins at 40 s lacks three samples
    assert held["L1"].tolist() == [t for t in held["H1"] if t + window <= 20 or t >= 25]
    assert set(series.windows_by_network()) == {"H1", "H1 L1", "H1 L1 V1"}
    two = search(windows, numbers, statistic_of(encoder, coherent), 2, 2)
    assert (two.present.sum(1) >= 2).all() and (np.diff(two.tick) % 2 == 0).all()
    strip, rate = windows.store.strain("L1", GPS + 19.0, GPS + 21.0)
    assert rate == RATE and np.isnan(strip[RATE:]).all()
    np.testing.assert_allclose(strip[:RATE], x[1, 19 * RATE : 20 * RATE], atol=3e-3)


def test_noise_beside_gaps_is_what_it_is_without_them(
    trained: PairedEncoder, trained_probe: LinearProbe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: zeros in gaps, and the end of all strain, made the loudest triggers of short files."""
    x = dict(zip(DETECTORS, whitened(7, 360.0)))
    lit = np.arange(360 * RATE) // RATE % 12 < 8  # 8 s on, 4 s off
    found = []
    for name, valid in (("gaps", dict.fromkeys(DETECTORS, lit)), ("none", None)):
        (tmp_path / name).mkdir()
        blocks = blocks_of_whitened(monkeypatch, trained, tmp_path / name, x, GPS, valid)
        found.append(search(*blocks, statistic_of(trained, trained_probe), 1, 1))
    with_gaps, without = found
    same = np.searchsorted(without.tick, with_gaps.tick)
    difference, spread = with_gaps.stat - without.stat[same], np.std(without.stat)
    for into in (0.0, 8.0 - without.window):  # windows that begin or end with a stretch
        beside = difference[(with_gaps.start - GPS) % 12 == into]
        assert len(beside) >= 29
        assert abs(np.mean(beside)) < 0.15 * spread and np.median(np.abs(beside)) < 0.3 * spread


def test_noise_looks_alike_in_every_network(
    encoder: PairedEncoder, probe: LinearProbe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: with the mean of the labelled rows in its place, a missing detector made noise look like a signal."""
    x = dict(zip(DETECTORS, whitened(8, 120.0)))
    statistic = statistic_of(encoder, probe)
    median, spread = {}, {}
    for kept in ("H1 L1 V1", "H1 L1", "L1 V1", "L1", "V1"):
        folder = tmp_path / kept.replace(" ", "")
        folder.mkdir()
        strain = {name: x[name] for name in kept.split()}
        series = search(*blocks_of_whitened(monkeypatch, encoder, folder, strain, GPS), statistic, 1, 1)
        assert series.windows_by_network() == {kept: len(series)}
        median[kept], spread[kept] = series.median, float(np.std(series.stat))
    assert max(median.values()) - min(median.values()) < 0.6
    assert max(spread.values()) < 2.0
    assert series.base == pytest.approx(series.median, abs=0.6)


def test_one_detectors_transient_is_seen_for_what_it_is(
    trained: PairedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What looks like a merger, in Livingston alone, to a probe that does not ask for two."""
    probe = fitted_probe(trained, "concat", (4.0, 16.0))
    x = whitened(9, 60.0)
    rows, merger = rows_in_noise(trained, 9, 2, 60.0, 80.0)
    x[1, 27 * RATE : 33 * RATE] = rows[0, 1].numpy()
    windows, numbers = blocks_of_whitened(monkeypatch, trained, tmp_path, dict(zip(DETECTORS, x)), GPS)
    statistic = statistic_of(trained, probe)
    series = search(windows, numbers, statistic, 1, 1)
    best = peaks(series, -1.0, 2.0)[0]
    found = trigger_at(series, int(best), windows, statistic)
    assert found.time == pytest.approx(GPS + 27.0 + AROUND + float(merger[0]), abs=0.05)
    assert found.part["L1"] > 3 * max(abs(found.part["H1"]), abs(found.part["V1"]))
    assert found.stat == pytest.approx(float(series.stat[best]), abs=1e-3)
    assert found.stat == pytest.approx(series.base + sum(found.part.values()), abs=0.01)  # the parts add up


def test_mergers_are_timed_to_50_ms(
    trained: PairedEncoder, trained_probe: LinearProbe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 60
    rows, merger = rows_in_noise(trained, 12, 2 * n, 10.0, 16.0)
    x = rows[:n].permute(1, 0, 2).reshape(3, -1).numpy()
    windows, numbers = blocks_of_whitened(monkeypatch, trained, tmp_path, dict(zip(DETECTORS, x)), GPS)
    statistic = statistic_of(trained, trained_probe)
    series = search(windows, numbers, statistic, 1, 1)
    true = GPS + 6.0 * np.arange(n) + AROUND + merger
    at = peaks(series, 1.0, 2.0)
    times = np.array([trigger_at(series, int(i), windows, statistic).time for i in at])
    error = np.abs(times[:, None] - true[None]).min(axis=0)
    assert np.count_nonzero(error < 0.5) > 0.9 * n
    assert np.median(error) < 0.025 and np.mean(error[error < 0.5] < 0.05) > 0.9


# Strain in memory, and strain that cannot be scanned


class PycbcLike:
    """What gwtwins asks of a pycbc TimeSeries."""

    def __init__(self, values: np.ndarray, start: float):
        self._values, self.start_time, self.delta_t = values, start, 1 / RATE

    def numpy(self) -> np.ndarray:
        return self._values


def test_series_in_memory_give_what_their_file_gives(
    encoder: PairedEncoder, coherent: LinearProbe, tmp_path: Path
) -> None:
    merger = GPS_START + 21.4
    paths = [write_strain(tmp_path, name, 40, merger) for name in ("H1", "L1")]
    series = {}
    for name, path in zip(("H1", "L1"), paths):
        with h5py.File(path) as file:
            series[name] = PycbcLike(file["strain/Strain"][()], float(GPS_START))
    settings = ScanSettings(slides=5)
    a = scan(index_strain(paths), encoder, coherent, tmp_path / "a", settings, progress=False)
    b = scan(from_series(series), encoder, coherent, tmp_path / "b", settings, progress=False)
    assert a.triggers == b.triggers and abs(a.triggers[0].time - merger) < 0.1
    np.testing.assert_array_equal(a.series.stat, b.series.stat)
    assert a.analysed == b.analysed
    assert a.background.slides == 5 and a.triggers[0].far is not None


def test_what_cannot_be_scanned_is_said(encoder: PairedEncoder, coherent: LinearProbe, tmp_path: Path) -> None:
    path = write_strain(tmp_path, "H1", 20, None)
    settings = ScanSettings(min_detectors=2)
    with pytest.raises(InputError, match=r"no 0.875 s in which 2 detectors.*detectors asked for"):
        scan(index_strain([path]), encoder, coherent, tmp_path / "a", settings, progress=False)
    torch.manual_seed(1)
    two = PairedEncoder("cnn_gru", {"width": 16, "hidden": 16, "embedding": 32}, detectors=("L1", "V1")).eval()
    with pytest.raises(InputError, match="is of H1"):
        scan(index_strain([path]), two, coherent, tmp_path / "b", progress=False)
    whole = PairedEncoder("cnn_gru_2021").eval()
    with pytest.raises(InputError, match="frames"):
        scan(index_strain([path]), whole, coherent, tmp_path / "c", progress=False)


# Triggers


def series_of(stat: np.ndarray, step: int = 1, first: int = 16_000) -> Series:
    n = len(stat)
    tick = first + step * np.arange(n)
    return Series(tick, np.asarray(stat, np.float32), np.full(n, 7, np.uint8), 0.0, DETECTORS, 32, 1 / 16, step)


def test_the_stride_is_rounded_to_whole_frames_at_least_one() -> None:
    assert [step_of(s, 1 / 8) for s in (0.001, 0.1, 0.125, 0.2, 0.25, 1.0)] == [1, 1, 1, 1, 2, 8]


def test_peaks_are_apart_and_above_the_threshold_the_loudest_first() -> None:
    stat = np.full(200, -3.0)
    stat[50], stat[60], stat[95], stat[150] = 4.0, 5.0, 3.0, 1.0
    np.testing.assert_array_equal(peaks(series_of(stat), 0.0, 2.0), [60, 95, 150])
    np.testing.assert_array_equal(peaks(series_of(stat), 0.0, 0.5), [60, 50, 95, 150])
    np.testing.assert_array_equal(peaks(series_of(stat, step=2), 0.0, 2.0), [60, 95, 150])
    np.testing.assert_array_equal(peaks(series_of(stat, step=4), 0.0, 2.0), [60, 50, 95, 150])
    np.testing.assert_array_equal(peaks(series_of(stat), 2.0, 5.0), [60])
    assert peaks(series_of(stat), 9.0, 2.0).size == 0
    np.testing.assert_array_equal(peaks(series_of(np.ones(10)), 0.0, 2.0), [0])  # equal ones: the first


def test_peaks_on_two_sides_of_a_gap_are_apart_by_its_length() -> None:
    stat = np.full(100, -3.0)
    stat[49], stat[50] = 4.0, 5.0
    series = series_of(stat)
    series.tick[50:] += 20
    np.testing.assert_array_equal(peaks(series, 0.0, 2.0), [50])
    series.tick[50:] += 20
    np.testing.assert_array_equal(peaks(series, 0.0, 2.0), [50, 49])


def test_the_usual_threshold_is_that_of_noise_whatever_the_event() -> None:
    stat = np.random.default_rng(2).standard_normal(400) * 1.5 - 2
    quiet = usual_threshold(series_of(stat))
    assert quiet == pytest.approx(1.0, abs=0.4)
    stat[100:120] = 15.0
    assert usual_threshold(series_of(stat)) == pytest.approx(quiet, abs=0.3)


def test_the_strain_refines_the_merger_time() -> None:
    merger = 1005.03
    noise = gaussian_noise(5, "noise", 0, range(2), 1, RATE, 12.0, 20.0, 500.0).numpy()[:, 0]
    time = np.arange(noise.shape[1]) / RATE + 999.0
    burst = np.exp(-(((time - merger + 0.015) / 0.01) ** 2)) * np.cos(2 * np.pi * 100 * time)

    def strain(name: str, low: float, high: float) -> tuple[np.ndarray, float]:
        x = noise[("H1", "V1").index(name)] + 4 * burst
        x[:4000] = np.nan  # a gap, before
        first = round((low - 999.0) * RATE)
        return x[first : first + round((high - low) * RATE)], float(RATE)

    for rough in (merger - 0.06, merger + 0.04):
        assert merger_time(rough, ("H1", "V1"), strain, 20.0, 500.0) == pytest.approx(merger, abs=0.012)


def test_absent_detectors_and_rates_leave_their_cells_empty(tmp_path: Path) -> None:
    rate = Rate(2.5, 1.0, 5.0, False, 3, 4e7)
    limit = Rate(0.5, 0.0, 0.9, True, 0, 6e7)
    triggers = [
        Trigger(1000.0004, 1.23456, {"L1": -0.5}, 998.5, 0.05),
        Trigger(2000.0, 1.0, {"H1": 0.25, "L1": 1.0}, 1998.5625, 0.05, limit, rate),
    ]
    write_triggers(tmp_path / "t.csv", triggers, DETECTORS)
    head, one, two = (tmp_path / "t.csv").read_text().splitlines()
    assert head == (
        "time,stat,p,far_per_year,stat_H1,stat_L1,stat_V1,window_start,var,network,far_per_year_inclusive,"
        "far_low,far_high,far_is_limit,far_inclusive_low,far_inclusive_high,far_inclusive_is_limit"
    )
    assert one == "1000.000,1.2346,0.774616,,,-0.5000,,998.5000,0.05,L1,,,,,,,"
    assert two == "2000.000,1.0000,0.731059,0.5,0.2500,1.0000,,1998.5625,0.05,H1 L1,2.5,0,0.9,1,1,5,0"
    write_events(tmp_path / "e.hdf5", [])
    with h5py.File(tmp_path / "e.hdf5") as file:
        assert file["time"].shape == (0,)
