"""Makes one part of the detection benchmark: trains within the budget, scores the test rows, and judges the scores."""

from __future__ import annotations

import dataclasses
import shlex
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from gwtwins import train_ssl
from gwtwins.benchmarks import frozen_probe, supervised
from gwtwins.benchmarks.detection_figures import Judge
from gwtwins.benchmarks.detection_rows import Row, data_of, limit_of
from gwtwins.benchmarks.detection_sources import FixedRows, NoiseOnly
from gwtwins.encoders.paired import PairedEncoder
from gwtwins.encoders.weights import describe_weights, load_encoder
from gwtwins.probes.features import embed
from gwtwins.probes.limits import MatchedFilterBank, known_signal, snr_in_window
from gwtwins.probes.optimal import LikelihoodRatio
from gwtwins.strain.command import parse
from gwtwins.strain.device import choose_device
from gwtwins.strain.errors import InputError
from gwtwins.strain.mergers import mergers_of
from gwtwins.strain.progress import progress_bar
from gwtwins.strain.simulated import SimulatedSource, SimulationConfig
from gwtwins.strain.sources import Window
from gwtwins.strain.template_bank import search_bank
from gwtwins.strain.versions import versions

ROOT = Path(__file__).resolve().parents[1]
NO_COUNT = "any"
"""Stands for the number of labels of what needs none, or has no end of them."""
TOLERANCE = 0.1
"""By this much of its budget a training may miss it before the table says so: speeds vary from minute to minute."""
_SUPERVISED_DRAWS = 3
_FALSE_ALARM = (0.01, 0.001)

Made = tuple[dict[str, Any], dict[str, NDArray[np.floating]]]
"""What result.json holds, and the replicates by label count."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all rows of a benchmark have in common."""

    config: str
    minutes: float
    """Budget of a training; with ``steps`` that many steps instead."""
    steps: int
    label_counts: tuple[int, ...]
    label_draws: int
    test_rows: int
    noise_rows: int
    noise: str = ""
    evaluation_seed: int = 1
    """Of the labelled, the test and the noise-only rows."""
    options: str = ""
    """Further options of train_ssl.py."""
    device: str = "cpu"

    def budget(self, row: Row) -> list[str]:
        """The budget of a row's training as train_ssl.py is told it."""
        if self.steps:
            return ["--steps", f"{round(self.steps * row.budget)}"]
        return ["--steps", "0", "--minutes", f"{self.minutes * row.budget:g}"]

    def source(self, row: Row, encoder: PairedEncoder | None = None) -> SimulatedSource:
        """The labelled and the test rows that a row is judged on."""
        labelled = 2 if row.kind in ("limit", "evidence", "endless") else max(frozen_probe.POOL, *self.label_counts)
        config = SimulationConfig(n_labelled=labelled, n_test=self.test_rows, **data_of(row, self.noise))  # type: ignore[arg-type]
        config.evaluation_seed = self.evaluation_seed
        return frozen_probe.open_rows(config, encoder, choose_device(self.device))


def make(row: Row, seed: int, count: int | None, settings: Settings, where: Path, out: Path) -> Made:
    """Train, score and judge one part of a row; files go to the folder ``where`` of the benchmark's ``out``."""
    result: dict[str, Any] = {"row": row.name, "seed": seed, "versions": versions()}
    if row.kind == "limit":
        about, by_labels, replicates = _limit(row, settings)
    elif row.kind == "frozen":
        about, by_labels, replicates = _frozen(row, seed, settings, where, out)
    elif row.kind == "evidence":
        about, by_labels, replicates = _evidence(row, settings, out)
    else:
        about, by_labels, replicates = _supervised(row, seed, count, settings)
    if row.kind in ("frozen", "endless") and not settings.steps and "untrained" not in row.name:
        about["share_of_budget"] = about["seconds"] / (60 * settings.minutes * row.budget)
    return {**result, **about, "by_labels": by_labels}, replicates


Parts = tuple[dict[str, Any], dict[str, Any], dict[str, NDArray[np.floating]]]


def train_command(row: Row, seed: int, settings: Settings, run: Path) -> list[str]:
    """What train_ssl.py is given for a row."""
    config = str(ROOT / "configs" / row.config) if row.config else settings.config
    data = [f"--{key.replace('_', '-')}={value}" for key, value in data_of(row, settings.noise).items()]
    common = ["--config", config, "--seed", f"{seed}", "--out", str(run), "--watch", "0", "--device", settings.device]
    return [*common, *shlex.split(settings.options), *settings.budget(row), *data, *row.options]


def trained(where: Path) -> bool:
    """Whether the training of a part in ``where`` came to its end: the description is written last."""
    return (where / "run" / "encoder.json").exists()


def pretrain(row: Row, seed: int, settings: Settings, run: Path) -> None:
    """Run train_ssl.py for a row; SystemExit where it was interrupted."""

    def fixed(spec: str, window: Window, device: str, options: dict[str, Any]) -> FixedRows:
        return FixedRows(row.fixed_rows, SimulationConfig(**options), window, device)

    command = train_command(row, seed, settings, run)
    if row.fixed_rows:
        with mock.patch("gwtwins.strain.sources.open_source", fixed):
            status = train_ssl.train(command)
    else:
        status = train_ssl.train(command)
    if status:
        raise SystemExit(status)


def _run_of(row: Row, seed: int, where: Path, out: Path) -> Path:
    """The folder of the run whose encoder a row reads; InputError where another row should have left it."""
    if not row.trained_as:
        return where / "run"
    where = out / row.trained_as / f"seed{seed}"
    if not trained(where):
        raise InputError(f"--rows {row.name}", f"reads the encoders of {row.trained_as}", "those in --out, made first")
    return where / "run"


def _frozen(row: Row, seed: int, settings: Settings, where: Path, out: Path) -> Parts:
    run = _run_of(row, seed, where, out)
    if not trained(run.parent):
        pretrain(row, seed, settings, run)
    device = choose_device(settings.device)
    encoder, card = load_encoder(run, device), describe_weights(run)
    source = settings.source(row, encoder)
    train, test = (embed(encoder, source, split, device=device) for split in ("labelled", "test"))
    kind = row.features or ("coherent" if encoder.frames else "concat")
    probes = {n: frozen_probe.fit_probes(train, n, settings.label_draws, seed, kind) for n in settings.label_counts}
    every = [probe for fitted in probes.values() for probe in fitted]
    scores = frozen_probe.score_test(every, test)
    noise = frozen_probe.score_noise(every, encoder, source, settings.noise_rows, device)
    assert test.label is not None
    judge, by_labels, replicates, first = Judge(test.label, settings.noise_rows), {}, {}, 0
    for n, fitted in probes.items():
        rows = slice(first, first + len(fitted))
        judged = judge(scores[rows], noise[rows])
        by_labels[f"{n}"], replicates[f"{n}"] = judged.figures, judged.replicates
        first = rows.stop
    options = yaml.safe_load((run / "config.yaml").read_text())
    about = {"steps": card["steps"], "seconds": card["seconds"], "parameters": frozen_probe.parameters(encoder)}
    about |= {"samples": card["steps"] * options["batch"], "features": kind}
    return about, by_labels, replicates


class _EvidenceAlone:
    """Scores what the detectors' evidence says together: nothing is learnt, neither with labels nor without."""

    @staticmethod
    def decision(_: NDArray[np.floating], present: None, together: NDArray[np.floating]) -> NDArray[np.floating]:
        return together[:, -1]


def _evidence(row: Row, settings: Settings, out: Path) -> Parts:
    device = choose_device(settings.device)
    run = _run_of(row, 0, out, out)
    encoder = load_encoder(run, device)
    if not encoder.evidence:
        raise InputError(f"--rows {row.name}", f"{run} has no evidence for mergers", "--encoder-args.mergers above 0")
    source = settings.source(row, encoder)
    test = embed(encoder, source, "test", device=device)
    scores = frozen_probe.score_test([_EvidenceAlone()], test)
    noise = frozen_probe.score_noise([_EvidenceAlone()], encoder, source, settings.noise_rows, device)
    assert test.label is not None
    judged = Judge(test.label, settings.noise_rows)(scores, noise)
    return {"seconds": None}, {NO_COUNT: judged.figures}, {NO_COUNT: judged.replicates}


def _supervised(row: Row, seed: int, count: int | None, settings: Settings) -> Parts:
    run, optimiser, _, simulation, _ = training_options(settings)
    encoder = PairedEncoder(run.encoder, run.encoder_args, f_low=run.f_low, f_high=run.f_high)
    source = settings.source(row, encoder)
    device = source.device
    scores, noise, chosen, seconds = [], [], [], 0.0
    simulation = dataclasses.replace(simulation, n_labelled=2, n_test=2, **data_of(row, settings.noise))
    endless = frozen_probe.open_rows(simulation, encoder, device)
    held = supervised.LabelledRows.read(source, max(count, frozen_probe.POOL)) if count else None
    for draw in range(min(_SUPERVISED_DRAWS, frozen_probe.draws_of(count, settings.label_draws)) if count else 1):
        torch.manual_seed(1000 * seed + draw)
        encoder = PairedEncoder(
            run.encoder, run.encoder_args, source.detectors, True, source.psds, run.f_low, run.f_high
        )
        if encoder.evidence:
            encoder.start_from_mergers(mergers_of(endless, simulation.population))
        model = supervised.Supervised(encoder).to(device)
        rows = None
        if held and count:
            rows = held.subset(frozen_probe.drawn_labels(held.ids, held.label.cpu().numpy(), count, draw, seed))
        fresh = supervised.endless(endless, seed, 0, optimiser.batch)
        rate = encoder.rate
        feed = (lambda step, r=rows, rate=rate: r.step(seed, step, rate)) if rows else fresh
        steps = settings.steps or supervised.steps_within(model, feed, settings.minutes)
        began = time.perf_counter()
        if rows:
            chosen.append(supervised.train_labelled(model, rows, 1000 * seed + draw, steps))
        else:
            supervised.train_endless(model, supervised.endless(endless, seed, steps, optimiser.batch), steps, optimiser)
            chosen.append({"steps": steps})
        seconds += time.perf_counter() - began
        scores.append(supervised.score(model, source))
        noise.append(supervised.score_noise(model, source, settings.noise_rows))
    label = np.concatenate([b.label.cpu().numpy() for b in source.batches("test") if b.label is not None])
    judged = Judge(label, settings.noise_rows)(np.stack(scores), np.stack(noise))
    key = f"{count}" if count else NO_COUNT
    about = {"seconds": seconds / len(scores), "parameters": frozen_probe.parameters(encoder), "chosen": chosen}
    if not count:
        about |= {"steps": steps, "samples": steps * optimiser.batch}
    return about, {key: judged.figures}, {key: judged.replicates}


def training_options(settings: Settings) -> list[Any]:
    """What train_ssl.py would be told, as its dataclasses; InputError where it would refuse it."""
    options = ["--config", settings.config, *shlex.split(settings.options)]
    return parse("train_ssl.py", "", train_ssl.concerns(), options)[0]


def _limit(row: Row, settings: Settings) -> Parts:
    """The rows' best scores, which no label can improve on."""
    source, name = settings.source(row), limit_of(row)
    began = time.perf_counter()
    statistic: Any = None
    if name == "optimum":
        ratio = LikelihoodRatio(source, progress=True)
        statistic = lambda batch: ratio(batch).value  # noqa: E731
    elif name != "known":
        psds = tuple(source.psds[d].name for d in source.detectors)
        templates = search_bank(source.population, psds, source.f_low, source.f_high) if name == "dense" else None
        filters = MatchedFilterBank(source, 250, progress=True, bank=templates)
        statistic = lambda batch: filters(batch)["marginalised"]  # noqa: E731
    label, scores, noise, inside = [], [], [], []
    noise_rows = settings.noise_rows if name == "bank" else 0
    with progress_bar(settings.test_rows + noise_rows, row.name, "row") as bar:
        for batch in source.batches("test", 16 if statistic else 256, signal=True):
            assert batch.label is not None
            label.append(batch.label.cpu().numpy())
            if statistic:
                scores.append(statistic(batch).cpu().numpy())
            else:
                here = snr_in_window(batch.truth["signal"], source.f_low, source.f_high, source.rate)
                inside.append(here[batch.label == 1].cpu().numpy())
            bar.update(len(batch))
        for batch in NoiseOnly(source, range(noise_rows)).batches("test", 16):
            noise.append(statistic(batch).cpu().numpy())
            bar.update(len(batch))
    about = {"seconds": None, "scoring_seconds": time.perf_counter() - began}
    if not statistic:
        found: Any = known_signal(np.concatenate(inside), _FALSE_ALARM)
        figures = {"auc": found["auc"], **{f"efficiency_{k}": v for k, v in found["efficiency"].items()}}
        return about, {NO_COUNT: {"scores": 1, **figures, **{f"{k}_sd": None for k in figures}}}, {}
    alone = np.concatenate(noise)[None] if noise else None
    judged = Judge(np.concatenate(label), noise_rows)(np.concatenate(scores)[None], alone)
    return about, {NO_COUNT: judged.figures}, {NO_COUNT: judged.replicates}
