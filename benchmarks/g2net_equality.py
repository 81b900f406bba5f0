"""Is anything lost on the way through raw strain? Recorded windows against the simulation that they were made from.

    python benchmarks/g2net_equality.py                a table; about 6 minutes on 2 cores, 2 GB of disk meanwhile
    python benchmarks/g2net_equality.py --rows 1000 --steps 100

Rows of the simulated source are written as a folder in the G2Net layout: raw strain in float64, its noise coloured by
PSDs that nobody is told. The folder is packed, an encoder is pretrained on the store without labels, and a probe is
fitted and judged on the store. The same encoder is judged on the same rows as the simulation itself whitens them; and a
second encoder sees nothing but these, in pretraining as in judging. Differences of AUC are paired, row by row (DeLong).

The two kinds of windows differ in their last 62 ms a side, where a bare window has to be tapered, and by the error of
the measured PSD. An encoder is a little better on the kind it was pretrained on: what is to be equal are the table's
first row and its last, each of one kind from end to end.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from gwtwins import eval_probe, train_ssl
from gwtwins.probes.metrics import auc_difference
from gwtwins.strain.batch import Batch
from gwtwins.strain.g2net import LABELS, RATE, window_path
from gwtwins.strain.pack import pack
from gwtwins.strain.psd import PSD
from gwtwins.strain.recorded_windows import WindowStoreSource
from gwtwins.strain.simulated import SimulatedSource, SimulationConfig
from gwtwins.strain.sources import Window
from gwtwins.strain.splits import is_test

F_CUT = 10.0  # Hz: the recorded strain is cut off below, as that of the G2Net data
_SPLITS = ("labelled", "test", "unlabelled")


def raw_strain(
    white: np.ndarray, psds: list[PSD], f_low: float, f_high: float, rng: np.random.Generator, rate: float = RATE
) -> np.ndarray:
    """Strain (B, D, T) float64 as a detector would have recorded it around whitened windows (B, D, T).

    The window is set into noise of twice its length, given what whitening had removed (noise below f_low and above
    f_high), coloured by the square root of each detector's PSD, and cut out again. So it is not periodic, and strain
    from outside reaches into its ends.
    """
    n = white.shape[-1]
    middle = slice(n // 2, n // 2 + n)
    frequency = np.fft.rfftfreq(2 * n, 1 / rate)
    inside = (frequency >= f_low) & (frequency < f_high)
    # Whitened noise of variance 1 has the one-sided PSD 1 / (f_high - f_low); unit draws have 2 / rate.
    level = np.sqrt(rate / 2 / (f_high - f_low))
    fresh = np.fft.rfft(level * rng.standard_normal((*white.shape[:-1], 2 * n)))
    around = np.fft.irfft(np.where(inside, fresh, 0.0))
    around[..., middle] = white
    colour = np.sqrt(np.stack([psd.at(frequency) for psd in psds]) * (f_high - f_low))
    colour[:, frequency < F_CUT] = 0.0
    return np.fft.irfft((np.fft.rfft(around) + np.where(inside, 0.0, fresh)) * colour)[..., middle]


def simulated_rows(source: SimulatedSource, split: str, unlabelled: int, seed: int) -> Iterator[Batch]:
    """The rows of "labelled" and "test", or as many unlabelled ones of the training stream as are asked for."""
    if split != "unlabelled":
        yield from source.batches(split, 128)
        return
    for start in range(0, unlabelled, 128):
        yield source.train_batch(seed, 0, range(start, min(start + 128, unlabelled)), progress=1.0)


def new_ids(split: str) -> Iterator[str]:
    """Ids that the fixed split puts where they belong; those of unlabelled rows begin with another digit."""
    for k in count():
        id = ("f" if split == "unlabelled" else "0") + f"{(k * 2654435761) % 2**36:09x}"
        if split == "unlabelled" or is_test(id) == (split == "test"):
            yield id


def write_folder(root: Path, options: SimulationConfig, unlabelled: int = 0, seed: int = 0) -> dict[str, list[str]]:
    """Write the simulated source's rows under ``root`` in the G2Net layout; the ids of each split in row order."""
    source = SimulatedSource(options, Window(rate=RATE), progress=False)
    rng = np.random.default_rng(seed)
    psds = [source.psds[name] for name in source.detectors]
    ids: dict[str, list[str]] = {}
    lines = ["id,target"]
    for split in _SPLITS:
        names, ids[split] = new_ids(split), []
        for batch in simulated_rows(source, split, unlabelled, seed):
            windows = raw_strain(batch.strain.double().cpu().numpy(), psds, source.f_low, source.f_high, rng)
            for i, window in enumerate(windows):
                id = next(names)
                ids[split].append(id)
                path = window_path(root, "test" if split == "unlabelled" else "train", id)
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, window)
                if batch.label is not None:
                    lines.append(f"{id},{int(batch.label[i])}")
    (root / LABELS).write_text("\n".join(lines) + "\n")
    return ids


class AsSimulated(WindowStoreSource):
    """The store's rows in the store's order, but whitened by the simulation and never through raw strain."""

    def __init__(
        self, spec: str, window: Window, options: SimulationConfig, ids: dict[str, list[str]], seed: int
    ) -> None:
        super().__init__(spec, window)
        source = SimulatedSource(options, window, progress=False)
        number = {id: row for row, id in enumerate(self.windows.ids)}
        self.white = torch.empty(len(number), len(self.detectors), window.samples)
        for split in _SPLITS:
            batches = simulated_rows(source, split, len(ids["unlabelled"]), seed)
            rows = torch.tensor([number[id] for id in ids[split]], dtype=torch.long)
            self.white[rows] = torch.cat([self.white[:0], *(batch.strain for batch in batches)])

    def _batch(self, rows: np.ndarray, labels: bool) -> Batch:
        return Batch(
            strain=self.white[torch.from_numpy(rows)],
            present=torch.ones(len(rows), len(self.detectors), dtype=torch.bool),
            gps=torch.from_numpy(self.windows.gps[rows]),
            label=torch.from_numpy(self.windows.label[rows].astype(np.float32)) if labels else None,
            id=[self.windows.ids[row] for row in rows],
        )


@dataclasses.dataclass
class Scores:
    """The test rows of one judgement, sorted by id."""

    ids: list[str]
    target: np.ndarray
    score: np.ndarray

    @classmethod
    def read(cls, probe: Path, names: list[str] | None = None) -> Scores:
        """From predictions.csv; ``names`` are the ids under which a simulation's rows were written."""
        with (probe / "predictions.csv").open() as file:
            lines = list(csv.DictReader(file))
        ids = [line["id"] if names is None else names[int(line["id"].split("-")[1])] for line in lines]
        order = np.argsort(ids)
        target, score = (np.array([float(line[column]) for line in lines])[order] for column in ("target", "score"))
        return cls([ids[i] for i in order], target, score)

    def minus(self, other: Scores) -> dict[str, Any]:
        """The difference of the AUCs, paired by row, and how the scores correlate."""
        if self.ids != other.ids or not np.array_equal(self.target, other.target):
            raise RuntimeError("the two are not the same rows")
        correlation = float(np.corrcoef(self.score, other.score)[0, 1])
        return {**auc_difference(self.target, self.score, other.score), "correlation": correlation}


def as_flags(options: SimulationConfig) -> list[str]:
    """The options that differ from the defaults, as they are typed."""
    plain = dataclasses.asdict(SimulationConfig())
    given = dataclasses.asdict(options)
    return [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value != plain[name]]


def main() -> None:
    """Make, pack, pretrain, judge, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000, help="labelled rows, test rows, and further unlabelled rows")
    parser.add_argument("--steps", type=int, default=600, help="of each pretraining, 256 rows each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    options = SimulationConfig(n_labelled=args.rows, n_test=args.rows)
    with tempfile.TemporaryDirectory(prefix="g2net-equality-") as folder:
        here = Path(folder)
        ids = write_folder(here / "g2net", options, args.rows, args.seed)
        pack(here / "g2net", here / "windows.hdf5")
        shutil.rmtree(here / "g2net")
        store = str(here / "windows.hdf5")

        def simulated(spec: str, window: Window, device: str, _: dict[str, Any]) -> AsSimulated:
            return AsSimulated(spec, window, options, ids, args.seed)

        pretraining = ["--steps", str(args.steps), "--seed", str(args.seed), "--data", store, "--watch", "0"]
        pretraining += ["--device", "cpu", "--batch", "256"]
        train_ssl.train([*pretraining, "--out", str(here / "recorded")])
        with mock.patch("gwtwins.strain.sources.open_source", simulated):
            train_ssl.train([*pretraining, "--out", str(here / "simulated")])
        figures, scores = {}, {}
        for encoder in ("recorded", "simulated"):
            for windows, data in (("recorded", [store]), ("simulated", ["simulated", *as_flags(options)])):
                out = here / f"{encoder}-{windows}"
                judging = ["--weights", str(here / encoder), "--out", str(out), "--frac", "1", "--device", "cpu"]
                judging += ["--label-counts", "[]", "--templates", "0"]
                eval_probe.probe([*judging, "--data", *data])
                figures[encoder, windows] = json.loads((out / "probe.json").read_text())
                scores[encoder, windows] = Scores.read(out, ids["test"] if windows == "simulated" else None)
    told = {"recorded": "raw strain, packed", "simulated": "the simulation"}
    reference = ("recorded", "recorded")
    print(f"\n{args.rows:,} labels, {args.rows:,} test rows, {args.steps} steps on {2 * args.rows:,} fixed rows\n")
    print("| pretrained on | judged on | AUC (95%) | efficiency at 1% (95%) | AUC minus the first's | correlation |")
    print("|---|---|---|---|---|---|")
    for pair, found in figures.items():
        area = f"{found['auc']:.4f} ({found['auc_ci95'][0]:.4f}-{found['auc_ci95'][1]:.4f})"
        share, ends = (found["efficiency"]["0.01"][key] for key in ("value", "ci95"))
        detected = "-" if share is None else f"{share:.3f} ({ends[0]:.3f}-{ends[1]:.3f})"
        d = scores[pair].minus(scores[reference])
        gap = "" if pair == reference else f"{d['value']:+.4f} ({d['ci95'][0]:+.4f} to {d['ci95'][1]:+.4f})"
        print(f"| {told[pair[0]]} | {told[pair[1]]} | {area} | {detected} | {gap} | {d['correlation']:.4f} |")
    if args.json:
        args.json.write_text(json.dumps({" ".join(pair): found for pair, found in figures.items()}, indent=2))


if __name__ == "__main__":
    main()
