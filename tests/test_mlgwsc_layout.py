"""The challenge's layout in, its events file out: what time, stat and var mean is what the evaluation takes them for.

MLGWSC-1 (arXiv:2209.11146): an injection is found if an event's time is within the event's var of its merger, events
are ranked by stat, and those of the file of noise alone say how often noise reaches it.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from gwtwins import scan_strain
from gwtwins.benchmarks.long_strain import GPS_START, Injection, design_psds, draw_injections, strain_blocks
from gwtwins.strain.population import Population
from mlgwsc_writer import write_mlgwsc

RATE = 2048  # Hz, the challenge's
SEGMENTS = ((0, 100), (130, 230))  # s: two of each detector, with a gap between
DETECTORS = ("H1", "L1")  # as in the challenge
SNR = 20.0


@dataclass
class Events:
    """An events file, and the triggers beside it."""

    time: np.ndarray
    stat: np.ndarray
    var: np.ndarray
    triggers: list[dict[str, str]]


@pytest.fixture(scope="module")
def injections() -> list[Injection]:
    """Merging every 15 s, those of the gap and the segments' ends left out."""
    drawn = draw_injections(Population.load("standard"), design_psds(DETECTORS), 3, GPS_START, 250, 15.0)
    inside = [
        one for one in drawn if any(a + 12 < one.time - GPS_START < b - 5 for a, b in SEGMENTS) and one.mass2 > 15
    ]
    return [replace(one, snr=SNR) for one in inside]


def searched(folder: Path, injections: list[Injection], seed: int) -> Events:
    """Write the layout, scan it, read the events."""
    blocks = strain_blocks(design_psds(DETECTORS), RATE, seed, GPS_START, SEGMENTS[-1][1], injections)
    strain = np.concatenate(list(blocks), axis=1)
    segments = {
        name: {GPS_START + a: row[a * RATE : b * RATE] for a, b in SEGMENTS}
        for name, row in zip(DETECTORS, strain, strict=True)
    }
    path = write_mlgwsc(folder / "strain.hdf", segments, RATE)
    argv = [str(path), "--weights", "gwtwins/small", "--out", str(folder / "scan")]
    assert scan_strain.scan([*argv, "--processes", "1", "--loudest", "0"]) == 0
    with h5py.File(folder / "scan" / "events.hdf5") as file:
        assert sorted(file) == ["stat", "time", "var"]
        held = [file[name][()] for name in ("time", "stat", "var")]
    assert all(values.dtype == np.float64 and values.shape == held[0].shape for values in held)
    with open(folder / "scan" / "triggers.csv", newline="") as file:
        return Events(*held, list(csv.DictReader(file)))


@pytest.fixture(scope="module")
def foreground(tmp_path_factory: pytest.TempPathFactory, injections: list[Injection]) -> Events:
    return searched(tmp_path_factory.mktemp("foreground"), injections, 1)


@pytest.fixture(scope="module")
def background(tmp_path_factory: pytest.TempPathFactory) -> Events:
    return searched(tmp_path_factory.mktemp("background"), [], 2)


def test_every_signal_has_an_event_whose_var_holds_its_merger(
    foreground: Events, background: Events, injections: list[Injection]
) -> None:
    assert len(injections) >= 5
    for one in injections:
        near = np.abs(foreground.time - one.time) <= foreground.var
        assert near.any(), f"merger at {one.time:.3f}, events at {foreground.time[foreground.stat.argsort()[-9:]]}"
        assert foreground.stat[near].max() > background.stat.max()


def test_events_are_in_the_order_of_time_inside_the_strain(foreground: Events, background: Events) -> None:
    for events in (foreground, background):
        assert (np.diff(events.time) > 0).all()
        seconds = events.time - GPS_START
        assert np.all([any(a <= t <= b for a, b in SEGMENTS) for t in seconds])
        assert (events.var > 0).all() and (events.var <= 0.1).all()


def test_the_statistic_ranks_as_the_triggers_do_and_is_no_probability(foreground: Events) -> None:
    listed = np.array([float(row["stat"]) for row in foreground.triggers])
    assert (np.diff(listed) <= 0).all()
    assert np.allclose(np.sort(foreground.stat)[::-1], listed, atol=1e-4)
    assert foreground.stat.max() > 1 and foreground.stat.min() < foreground.stat.max() - 2
