"""The benchmarks of the scan measure what they say: volumes, thresholds, coincidences, loudness of glitches, memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from gwtwins.benchmarks import long_strain, matched_search, scan_glitches, scan_sensitivity, scan_speed
from gwtwins.benchmarks.long_strain import GPS_START, Injection, design_psds, draw_injections, snr_density
from gwtwins.benchmarks.matched_search import Single, SmallBank
from gwtwins.benchmarks.scan_glitches import NETWORK_SNR, Rows
from gwtwins.encoders.weights import load_encoder
from gwtwins.strain.population import Population
from gwtwins.strain.strain_index import index_strain

DETECTORS = ("H1", "L1", "V1")


@pytest.fixture(scope="module")
def injections() -> list[Injection]:
    return draw_injections(Population.load("standard"), design_psds(DETECTORS), 1, GPS_START, 300, 15.0)


def of_snr(snr: np.ndarray, reach: np.ndarray) -> list[Injection]:
    return [
        Injection(30.0 * i, float(r), float(a), 30, 30, 0, 0, 0, 0, 0, 0, 0)
        for i, (r, a) in enumerate(zip(snr, reach, strict=True))
    ]


# ---- sensitivity


def test_a_search_that_finds_all_above_snr_8_reaches_as_far_as_signals_have_snr_8() -> None:
    rng = np.random.default_rng(0)
    n = 4_000
    snr = np.where(np.arange(n) % 2, rng.uniform(4, 8, n), rng.uniform(8, 16, n))
    reach = 8000 * rng.lognormal(0, 0.3, n)
    (one, worse), ratio = scan_sensitivity.sensitive_distances([snr > 8, snr > 10], of_snr(snr, reach))
    expected = (np.mean(reach**3)) ** (1 / 3)
    assert one["value"] == pytest.approx(expected / 8, rel=0.03)
    assert worse["value"] == pytest.approx(expected / 10, rel=0.03)
    assert one["low"] < expected / 8 < one["high"]
    assert ratio["value"] == pytest.approx(1.25, rel=0.04) and ratio["high"] - ratio["low"] < 0.1


def test_signals_placed_evenly_in_space_give_the_same_volume() -> None:
    """Detection by a sigmoid in SNR: the fraction found of sources drawn from a large ball, times its volume."""
    rng = np.random.default_rng(1)
    n, ball = 400_000, 3000.0
    reach = 8000 * rng.lognormal(0, 0.2, n)
    distance = ball * rng.uniform(0, 1, n) ** (1 / 3)

    def seen(snr: np.ndarray) -> np.ndarray:
        return rng.uniform(size=snr.size) < np.where(snr > 16, 1, np.where(snr < 4, 0, 1 / (1 + np.exp(7 - snr))))

    direct = ball * np.mean(seen(reach / distance)) ** (1 / 3)
    snr = np.where(np.arange(6_000) % 2, rng.uniform(4, 8, 6_000), rng.uniform(8, 16, 6_000))
    drawn = of_snr(snr, reach[:6_000])
    ((found,), _) = scan_sensitivity.sensitive_distances([seen(snr)], drawn)
    assert found["value"] == pytest.approx(direct, rel=0.03)
    assert np.all(snr_density(np.array([3.9, 16.1])) == 0)


def test_the_threshold_of_a_histogram_is_where_the_rate_is() -> None:
    """An exponential tail: louder than x with a probability of exp(-x)."""
    stat = np.random.default_rng(2).exponential(1.0, 500_000)
    histogram = {"low": 0.0, "bin": 0.1, "count": np.bincount((stat / 0.1).astype(int)).tolist()}
    for rate in (0.5, 0.01, 1e-3):
        assert scan_sensitivity.statistic_at(histogram, 500_000.0, rate) == pytest.approx(-np.log(rate), abs=0.06)
    assert scan_sensitivity.statistic_at(histogram, 500_000.0, 1e-6) is None  # half a trigger
    assert scan_sensitivity.statistic_at(histogram, 500_000.0, 2.0) is None  # below the lowest


def test_a_trigger_is_of_the_injection_near_it(injections: list[Injection]) -> None:
    gps = np.array([injections[0].time + 0.1, injections[0].time - 0.2, injections[3].time - 0.3])
    loudest, error = scan_sensitivity.nearest_triggers(injections, gps, np.array([5.0, 7.0, 9.0]))
    assert loudest[0] == 7.0 and error[0] == pytest.approx(-0.2)
    assert np.isinf(loudest[1:]).all() and np.isnan(error[1:]).all()


# ---- matched filter


def random_triggers(rng: np.random.Generator, templates: int, seconds: float) -> list[dict[str, Single]]:
    """Noise: SNRs above 3.5 of a Rayleigh distribution at random times, more than 0.1 s apart."""

    def single() -> Single:
        time = np.sort(rng.uniform(0, seconds, rng.poisson(2.0 * seconds)))
        time = time[np.concatenate([[True], np.diff(time) > 0.1])]
        return Single(time, np.sqrt(3.5**2 + 2 * rng.exponential(1.0, time.size)))

    return [{name: single() for name in DETECTORS} for _ in range(templates)]


def test_time_slides_give_the_rate_of_coincidences_of_noise() -> None:
    rng = np.random.default_rng(3)
    counts, expected = [], []
    for _ in range(20):
        triggers = random_triggers(rng, 10, 600.0)
        falling, live = matched_search.background(triggers, 600.0)
        assert all((np.diff(stat) <= 0).all() for stat in falling)
        counts.append(np.sum(matched_search.coincidences(triggers).stat > 6.5))
        expected.append(sum(np.sum(stat > 6.5) for stat in falling) * 600.0 / live)
    assert abs(sum(counts) - sum(expected)) < 4 * np.sqrt(sum(expected))
    assert sum(expected) > 100


def test_a_coincidence_is_ranked_by_all_its_detectors_and_light_needs_its_time() -> None:
    def at(**times: float) -> list[dict[str, Single]]:
        return [{name: Single(np.array([times[name]]), np.array([4.0])) for name in DETECTORS}]

    found = matched_search.coincidences(at(H1=100.0, L1=100.008, V1=100.02))
    assert found.stat.tolist() == [pytest.approx(np.sqrt(48))] and found.time[0] == pytest.approx(100, abs=0.02)
    apart = matched_search.coincidences(at(H1=100.0, L1=100.02, V1=130.0))
    assert apart.stat.size == 0


def test_the_filter_finds_loud_signals_when_they_merge(tmp_path: Path, injections: list[Injection]) -> None:
    psds, loud = design_psds(DETECTORS), [replace(one, snr=15.0) for one in injections[1::3]]
    blocks = long_strain.strain_blocks(psds, 2048, 1, GPS_START, 256, loud)
    path = long_strain.write_mlgwsc(tmp_path / "x.hdf", blocks, DETECTORS, 2048, GPS_START, 256)
    heavy = [one for one in loud if one.time < GPS_START + 230 and one.time > GPS_START + 26]
    exact = np.array([[one.mass1, one.mass2, one.spin1z, one.spin2z] for one in heavy])
    found = matched_search.coincidences(
        matched_search.single_triggers(path, DETECTORS, SmallBank(exact, "IMRPhenomXAS", 1.0))
    )
    assert len(heavy) >= 3
    for one in heavy:
        near = np.abs(GPS_START + found.time - one.time) < 0.04
        # Of three SNRs the one of Virgo may be below the threshold; the noise adds one to each.
        assert 12.0 < found.stat[near].max() < 18.0


# ---- glitches


def test_a_signal_among_real_noise_has_the_snr_that_glitches_are_compared_with(injections: list[Injection]) -> None:
    encoder = load_encoder("gwtwins/small", "cpu")
    rows = Rows(None, encoder, None, 0)  # type: ignore[arg-type]
    psds = list(design_psds(DETECTORS).values())
    for one in injections[:5]:
        wave = rows.whitened_signal(one, psds, 4.0).numpy().astype(float)
        width = encoder.f_high - encoder.f_low
        snr = np.sqrt(2 * width / encoder.rate * np.sum(wave**2))
        assert 0.97 * NETWORK_SNR < snr < 1.001 * NETWORK_SNR  # some lies above the band
        peak = np.argmax(np.abs(wave).max(axis=0)) / encoder.rate
        assert abs(peak - 4.0) < 0.0213 + 0.02


# ---- speed


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_a_process_and_of_its_children_is_seen() -> None:
    grandchild = "x = bytearray(96 << 20); print(len(x), flush=True); input()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        tree = scan_speed.process_tree(process.pid)
        resident, divided = scan_speed.memory_of(tree)
        process.stdin.write("\n")
        process.stdin.flush()
    assert len(tree) == 2
    assert 96 << 20 < divided <= resident < 300 << 20


def test_copies_of_a_file_cover_the_hours_without_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_speed, "FILE_SECONDS", 64)
    assert scan_speed.write_strain(tmp_path, 3, "float32", 0) == 192
    index = index_strain([tmp_path])
    assert not index.notes and len(index.files) == 9
    assert [(span.start, span.end) for span in index.spans] == [(GPS_START, GPS_START + 192)]


# ---- the commands


@pytest.mark.slow
@pytest.mark.parametrize("command", [scan_sensitivity, scan_glitches, scan_speed])
def test_the_quick_form_of_each_command_prints_its_table(
    command: ModuleType,
    tmp_path: Path,
    gwosc: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {
        scan_sensitivity: ["--quick", "--processes", "1"],
        scan_glitches: ["--quick", "--noise", str(gwosc)],
        scan_speed: ["--files", "0", "--formats", "float32", "--processes", "1", "--folder", str(tmp_path)],
    }[command]
    monkeypatch.setattr(sys, "argv", ["benchmark", *options, "--json", str(tmp_path / "figures.json")])
    with pytest.raises(SystemExit) as ended:
        command.main()
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert "|---|---|" in said
    figures = json.loads((tmp_path / "figures.json").read_text())
    if command is scan_sensitivity:
        (found,) = [row for row in figures["rows"] if row["search"] != "gwtwins" and row["rate"] == "1 per hour"]
        loud, faint = found["efficiency"][-1], found["efficiency"][0]
        assert loud["found"] == loud["of"] > 0 and faint["found"] < faint["of"]
    elif command is scan_glitches:
        assert figures["outrank"]["all"]["of"] == 100
        assert figures["median_signal"] > figures["noise"]["50%"]
    else:
        (row,) = figures["rows"]
        assert row["seconds"] == 600 and row["speed"] == pytest.approx(600 / row["wall"])
        assert 100 << 20 < row["shared_out"] <= row["resident"]
