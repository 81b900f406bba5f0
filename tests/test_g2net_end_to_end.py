"""A folder in the G2Net layout goes through packing, pretraining and probing, and nothing is lost on the way.

The windows are rows of the simulated source, written as raw strain by ``benchmarks/g2net_equality.py``, whose smaller
twin this is.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from gwtwins.eval_probe import probe
from gwtwins.strain.pack import pack
from gwtwins.strain.recorded_windows import G2NetSource, WindowStoreSource
from gwtwins.strain.simulated import SimulationConfig
from gwtwins.strain.sources import Window
from gwtwins.train_ssl import train

N_LABELLED, N_TEST, N_UNLABELLED = 600, 600, 200
LOUD = "snr: {uniform: [5, 24]}"  # an encoder of a minute's training then has something to tell apart
JUDGING = ["--frac", "1", "--label-counts", "[]", "--templates", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def benchmark(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("g2net_equality", root / "benchmarks" / "g2net_equality.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def options(root: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> SimulationConfig:
    lines = (root / "strain" / "populations" / "standard.yaml").read_text().splitlines()
    population = tmp_path_factory.mktemp("population") / "loud.yaml"
    population.write_text("\n".join(LOUD if line.startswith("snr:") else line for line in lines))
    return SimulationConfig(
        population=str(population), bank_size=64, n_labelled=N_LABELLED, n_test=N_TEST, curriculum_snr=0
    )


@pytest.fixture(scope="module")
def folder(benchmark: ModuleType, options: SimulationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """g2net/, windows.hdf5, and ids.json with the ids of the test rows in the simulation's order."""
    here = tmp_path_factory.mktemp("recorded")
    ids = benchmark.write_folder(here / "g2net", options, N_UNLABELLED)
    (here / "ids.json").write_text(json.dumps(ids))
    pack(here / "g2net", here / "windows.hdf5", workers=1, progress=False)
    return here


def test_the_folder_is_what_the_data_set_looks_like(folder: Path) -> None:
    ids = json.loads((folder / "ids.json").read_text())
    assert [len(ids[split]) for split in ("labelled", "test", "unlabelled")] == [N_LABELLED, N_TEST, N_UNLABELLED]
    window = np.load(next((folder / "g2net" / "train").rglob("*.npy")))
    assert window.shape == (3, 4096) and window.dtype == np.float64
    hanford, livingston, virgo = window.std(axis=1)
    assert 1e-22 < hanford < 1e-20 and 1e-22 < livingston < 1e-20 and hanford < virgo < 1e-19
    # A periodic window would go on from its last sample to its first as it does from any sample to the next.
    files = sorted((folder / "g2net" / "train").rglob("*.npy"))[:400]
    first, second, last = (np.stack([w[:, k] for w in map(np.load, files)]) for k in (0, 1, -1))
    assert (np.abs(first - last).mean(axis=0) > 1.2 * np.abs(first - second).mean(axis=0)).all()


def test_whitened_from_raw_strain_or_by_the_simulation_windows_are_the_same(
    benchmark: ModuleType, folder: Path, options: SimulationConfig
) -> None:
    ids = json.loads((folder / "ids.json").read_text())
    window = Window(rate=1024.0)
    recorded = WindowStoreSource(str(folder / "windows.hdf5"), window)
    twin = benchmark.AsSimulated(str(folder / "windows.hdf5"), window, options, ids, 0)
    for a, b in zip(recorded.batches("test", 200), twin.batches("test", 200), strict=True):
        assert a.id == b.id and a.label is not None and b.label is not None
        assert torch.equal(a.label, b.label)
        x, y = a.strain[..., 100:-100], b.strain[..., 100:-100]  # 98 ms: the taper of bare windows, and its filter
        correlation = (x * y).mean(dim=(0, 2)) / (x.std(dim=(0, 2)) * y.std(dim=(0, 2)))
        assert (correlation > 0.998).all(), correlation
        assert torch.allclose(x.std(dim=(0, 2)), y.std(dim=(0, 2)), rtol=0.02)


def test_an_encoder_trained_on_the_store_detects_alike_on_the_store_and_in_the_simulation(
    benchmark: ModuleType, folder: Path, options: SimulationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gwtwins.probes.report.write_report", lambda *_: None)  # seconds of pictures; not what is asked
    store, run = str(folder / "windows.hdf5"), str(tmp_path / "run")
    budget = ["--steps", "100", "--batch", "64", "--watch", "0", "--device", "cpu"]
    assert train(["--data", store, "--out", run, *budget]) == 0
    card = json.loads((tmp_path / "run" / "encoder.json").read_text())
    assert card["data"]["unlabelled"] == N_LABELLED + N_UNLABELLED  # the test rows were not trained on

    for name, data in (("store", [store]), ("simulation", ["simulated", *benchmark.as_flags(options)])):
        assert probe(["--weights", run, "--out", str(tmp_path / name), *JUDGING, "--data", *data]) == 0
    figures = {name: json.loads((tmp_path / name / "probe.json").read_text()) for name in ("store", "simulation")}
    assert all((f["n_labels"], f["n_test"]) == (N_LABELLED, N_TEST) for f in figures.values())
    assert figures["store"]["limit"] is None and figures["simulation"]["limit"]["known_signal"]["auc"] > 0.99

    ids = json.loads((folder / "ids.json").read_text())
    recorded = benchmark.Scores.read(tmp_path / "store")
    difference = recorded.minus(benchmark.Scores.read(tmp_path / "simulation", ids["test"]))
    assert figures["store"]["auc"] > 0.9, figures["store"]["auc"]
    assert abs(difference["value"]) < 3 * difference["se"], difference
    assert difference["se"] < 0.004, difference  # or the line above would say nothing
    assert difference["correlation"] > 0.98, difference
    # The folder itself, unpacked, is the same data.
    unpacked = G2NetSource(str(folder / "g2net"), Window(rate=1024.0))
    assert unpacked.count("test") == N_TEST and unpacked.count("unlabelled") == N_LABELLED + N_UNLABELLED
