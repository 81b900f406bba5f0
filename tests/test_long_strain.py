"""Simulated hours of strain: the noise has its PSD, the signals are as loud and as late as the truth says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from pycbc.filter import matched_filter
from pycbc.types import FrequencySeries, TimeSeries
from pycbc.waveform import get_fd_waveform
from scipy.signal import welch

from gwtwins.benchmarks.long_strain import (
    BLOCK,
    GPS_START,
    Injection,
    design_psds,
    draw_injections,
    save_injections,
    snr_density,
    strain_blocks,
    write_gwosc,
    write_mlgwsc,
)
from gwtwins.strain.detectors import light_travel_time
from gwtwins.strain.gwosc import read_gwosc
from gwtwins.strain.population import Population
from gwtwins.strain.psd import PSD
from gwtwins.strain.strain_index import index_strain

DETECTORS = ("H1", "L1", "V1")
RATE = 2048


@pytest.fixture(scope="module")
def psds() -> dict[str, PSD]:
    return design_psds(DETECTORS)


@pytest.fixture(scope="module")
def injections(psds: dict[str, PSD]) -> list[Injection]:
    return draw_injections(Population.load("standard"), psds, 5, GPS_START, 256, 30.0)


@pytest.fixture(scope="module")
def noise(psds: dict[str, PSD]) -> np.ndarray:
    return np.concatenate(list(strain_blocks(psds, RATE, 1, GPS_START, 256)), axis=1)


@pytest.fixture(scope="module")
def strain(psds: dict[str, PSD], injections: list[Injection]) -> np.ndarray:
    return np.concatenate(list(strain_blocks(psds, RATE, 1, GPS_START, 256, injections)), axis=1)


def test_the_noise_has_the_psd_and_no_step_between_blocks(psds: dict[str, PSD], noise: np.ndarray) -> None:
    assert noise.shape == (3, 256 * RATE)
    for row, psd in zip(noise, psds.values(), strict=True):
        frequency, power = welch(row, RATE, nperseg=4 * RATE)
        for low, high in ((12, 20), (20, 40), (40, 100), (100, 300), (300, 900)):
            inside = (frequency >= low) & (frequency < high)
            assert np.mean(power[inside] / psd.at(frequency[inside])) == pytest.approx(1, abs=0.06)
        jump = np.abs(np.diff(row, 4))
        borders = np.concatenate([np.arange(k * BLOCK * RATE - 6, k * BLOCK * RATE + 2) for k in range(1, 4)])
        assert jump[borders].max() < 5 * jump.std()
    white = np.corrcoef(noise)
    assert np.abs(white[~np.eye(3, dtype=bool)]).max() < 0.05


def test_copies_of_the_noise_follow_on_each_other_without_a_step(noise: np.ndarray) -> None:
    for row in noise:
        jump = np.diff(np.concatenate([row[-100:], row[:100]]), 4)
        assert np.abs(jump).max() < 5 * np.diff(row, 4).std()


def test_pycbc_finds_the_snr_that_was_asked_for_when_it_was(
    psds: dict[str, PSD], injections: list[Injection], noise: np.ndarray, strain: np.ndarray
) -> None:
    """The difference of the strain with and without signals, filtered with the true template."""
    alone = strain - noise
    assert len(injections) == 7
    for one in injections:
        squared, arrival = 0.0, {}
        for name, row in zip(DETECTORS, alone, strict=True):
            first = max(0, round((one.time - GPS_START - 26) * RATE))
            piece = row[first : round((one.time - GPS_START + 2) * RATE)]
            data = TimeSeries(np.concatenate([piece, np.zeros(64 * RATE - piece.size)]), 1 / RATE)
            template, _ = get_fd_waveform(
                approximant="IMRPhenomXAS",
                mass1=one.mass1,
                mass2=one.mass2,
                spin1z=one.spin1z,
                spin2z=one.spin2z,
                f_lower=18,
                f_final=1024,
                delta_f=data.delta_f,
            )
            template.resize(32 * RATE + 1)
            psd = FrequencySeries(psds[name].at(np.arange(32 * RATE + 1) / 64), data.delta_f)
            found = matched_filter(template, data, psd, low_frequency_cutoff=20)
            merger = round((one.time - GPS_START) * RATE) - first
            peak = merger - RATE // 10 + int(np.argmax(abs(found.numpy()[merger - RATE // 10 : merger + RATE // 10])))
            squared += abs(found[peak]) ** 2
            arrival[name] = GPS_START + (first + peak) / RATE
        assert np.sqrt(squared) == pytest.approx(one.snr, rel=0.02)
        # LALSimulation's template ends within some ms of its largest amplitude.
        assert all(abs(time - one.time) < 0.0213 + 0.015 for time in arrival.values())
        assert abs(arrival["H1"] - arrival["L1"]) < light_travel_time("H1", "L1") + 0.002


def test_half_of_the_injections_are_below_snr_8_and_the_density_says_so(psds: dict[str, PSD]) -> None:
    drawn = draw_injections(Population.load("standard"), {"H1": psds["H1"]}, 2, GPS_START, 640, 10.0)
    snr = np.array([one.snr for one in drawn])
    assert len(drawn) == 59 and abs(np.sum(snr < 8) - 29.5) < 1
    assert snr.min() >= 4 and snr.max() < 16
    assert np.sum(1 / snr_density(snr)) / len(snr) == pytest.approx(12, rel=0.1)  # the range they are spread over
    assert np.diff([one.time for one in drawn]).min() > 0


def test_the_truth_is_read_back(tmp_path: Path, injections: list[Injection]) -> None:
    save_injections(tmp_path / "truth.json", injections)
    known = [field.name for field in dataclasses.fields(Injection)]
    rows = json.loads((tmp_path / "truth.json").read_text())
    assert [Injection(**{key: row[key] for key in known}) for row in rows] == injections


def test_both_layouts_hold_the_strain(tmp_path: Path, psds: dict[str, PSD], noise: np.ndarray) -> None:
    def blocks() -> object:
        return strain_blocks(psds, RATE, 1, GPS_START, 100)

    path = write_mlgwsc(tmp_path / "noise.hdf", blocks(), DETECTORS, RATE, GPS_START, 100)  # type: ignore[arg-type]
    with h5py.File(path) as file:
        held = file[f"L1/{GPS_START}"][4 * RATE : 60 * RATE]  # before that, the end of other noise goes on
        assert np.allclose(held, noise[1, 4 * RATE : 60 * RATE], rtol=1e-6, atol=1e-27)
        assert held.dtype == np.float32
    (tmp_path / "gwosc").mkdir()
    paths = write_gwosc(tmp_path / "gwosc", blocks(), DETECTORS, RATE, GPS_START, 100)  # type: ignore[arg-type]
    recording = read_gwosc(paths[1])
    assert recording.good.all()
    assert np.allclose(recording.strain[4 * RATE : 60 * RATE], noise[1, 4 * RATE : 60 * RATE], rtol=0, atol=1e-30)
    for found in (index_strain([path]), index_strain([tmp_path / "gwosc"])):
        spans = [(file.detector, file.start, file.end) for file in found.files]
        assert spans == [(name, GPS_START, GPS_START + 100) for name in DETECTORS]
    assert [p.name for p in (tmp_path / "gwosc").iterdir() if p.name.startswith(".")] == []
