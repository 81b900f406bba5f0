"""The readers that a fuzz run is after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gwtwins.benchmarks import fuzz_data as data
from gwtwins.benchmarks import fuzz_results as results
from gwtwins.benchmarks.fuzz_hdf5 import HDF5
from gwtwins.benchmarks.fuzz_mutations import (
    BYTES,
    TEXT,
    Mutation,
    json_text,
    json_tree,
    table_text,
    yaml_text,
    yaml_tree,
)


@dataclass(frozen=True)
class Subject:
    """A reader."""

    serves: str
    """The options or functions that hand files to it."""
    make: Callable[[Path], None]
    """Write sound files into a folder."""
    read: Callable[[Path], Any]
    """Read that folder; asserts what the reader promises of a result, and gives it to be compared."""
    mutations: dict[str, tuple[Mutation, ...]]
    """For each file that is spoilt, relative to the folder, the ways to."""
    bound: int = 64
    """MiB above what the process has at rest."""
    prepare: Callable[[], object] = field(default=lambda: None)
    """What is to be loaded once, before processes are forked."""


def _torch() -> None:
    results.small_encoder()


def _short_limit() -> None:
    from gwtwins.strain import gwf_process

    gwf_process.LIMIT_SECONDS = 10


_JSON = (*BYTES, json_tree, json_tree, json_text)
_YAML = (*TEXT, yaml_tree, yaml_tree, yaml_text)
_TABLE = (*TEXT, table_text, table_text)
_HDF5 = (*BYTES, *HDF5)
_STRAIN = "scan FILES; --data and --noise of train, probe, embed"

SUBJECTS: dict[str, Subject] = {
    # Strain of 4096 s at 16384 Hz, GWOSC's largest file, has 512 MiB, and finding its gaps takes as much again.
    "gwosc": Subject(_STRAIN, data.make_gwosc, data.read_gwosc, {"x.hdf5": _HDF5}, 2048),
    "mlgwsc": Subject("scan FILES", data.make_mlgwsc, lambda f: data.read_strain(f, "x.hdf5"), {"x.hdf5": _HDF5}, 512),
    "gwf": Subject(
        "scan FILES", data.make_gwf, lambda f: data.read_strain(f, "x.gwf"), {"x.gwf": BYTES}, 512, _short_limit
    ),
    "window-store": Subject("--data of train, probe, embed", data.make_store, data.read_store, {"x.hdf5": _HDF5}),
    "g2net": Subject(
        "--data of train, probe, embed; pack FOLDER",
        data.make_g2net,
        data.read_g2net,
        {"training_labels.csv": _TABLE, "train/0/0/a/00aa.npy": BYTES},
    ),
    "weights": Subject(
        "--weights of probe, scan, embed; export WEIGHTS; load_encoder",
        results.make_weights,
        results.read_weights,
        {"encoder.json": _JSON, "encoder.safetensors": BYTES},
        128,
        _torch,
    ),
    "probe": Subject(
        "--probe of probe, scan",
        results.make_probe,
        results.read_probe,
        {"probe.json": _JSON, "probe.safetensors": BYTES},
    ),
    "embeddings": Subject(
        "embed FILE --like, --projector", results.make_embeddings, results.read_embeddings, {"x.hdf5": _HDF5}, 128
    ),
    "waveform-bank": Subject(
        "the cache of banks", results.make_bank, results.read_bank, {"x.hdf5": _HDF5}, 128, _torch
    ),
    "template-bank": Subject(
        "the cache of banks", results.make_templates, results.read_templates, {"x.hdf5": _HDF5}, 128, _torch
    ),
    "config": Subject(
        "--config, --resume",
        results.make_config,
        results.read_config,
        {"x.yaml": _YAML},
        64,
        results.train_concerns,
    ),
    "population": Subject("--population", results.make_population, results.read_population, {"x.yaml": _YAML}),
    "asd": Subject("--psds", results.make_asd, results.read_asd, {"x.txt": _TABLE}),
    "gps-times": Subject("--noise-avoid", results.make_times, results.read_times, {"x.txt": _TABLE}),
    "checkpoint": Subject(
        "--resume", results.make_checkpoint, results.read_checkpoint, {"last.ckpt": BYTES}, 128, results.small_module
    ),
    "scan-folder": Subject(
        "python -m gwtwins.probes.scan_page",
        results.make_scan,
        results.read_scan,
        {"scan.json": _JSON, "triggers.csv": _TABLE, "scan-config.json": _JSON},
        128,
    ),
}
