"""What a report is made of: a probe's figures and rows, and the windows worth looking at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gwtwins.probes import metrics
from gwtwins.strain.errors import InputError
from gwtwins.strain.sources import Source

Array = NDArray[np.floating]


class Example(NamedTuple):
    """One window worth looking at."""

    title: str
    id: str
    strain: Array
    """(D, T) whitened to unit noise variance; zero where a detector is not present."""
    rate: float
    """Samples per second."""
    merger: float | None
    """Seconds from the window's start to the merger at the geocentre."""
    snr: float | None
    """Network SNR."""
    score: float


@dataclass
class ProbeResults:
    """A probe on N test rows."""

    figures: dict[str, Any]
    """Those of probe.json: auc, auc_ci95, efficiency, efficiency_vs_snr, by_labels, n_labels, knn_auc, ..."""
    ids: Sequence[str]
    score: Array
    """(N,) logit."""
    p: Array
    """(N,) probability of a signal."""
    detectors: Sequence[str]
    run: dict[str, Any]
    """The encoder's JSON."""
    label: ArrayLike | None = None
    """(N,) 1 signal, 0 noise; None where unknown."""
    snr: ArrayLike | None = None
    """(N,) network SNR; None for a recording."""
    embeddings: Array | None = None
    """(N, F), or (N, D, E)."""
    limits: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per name ("bank", "known_signal", or another) some of: ``score`` (N,) on the same rows; ``snr`` (N,) of
    a filter whose output is N(snr, 1); ``auc``, ``efficiency``, ``efficiency_vs_snr`` as in `figures`, or
    plain numbers."""
    examples: Sequence[Example] = ()
    title: str = "Probe report"
    command: str = ""

    def __post_init__(self) -> None:
        n = len(self.ids)
        self.score, self.p = np.asarray(self.score, dtype=np.float64), np.asarray(self.p, dtype=np.float64)
        self.examples = [Example(*example) for example in self.examples]
        for name in ("score", "p", "label", "snr", "embeddings"):
            value = getattr(self, name)
            if value is not None and len(np.asarray(value)) != n:
                raise InputError(name, f"{len(np.asarray(value))} values", f"one for each of {n} rows")

    @property
    def judged(self) -> bool:
        """Whether there are signals and noise rows to count errors on."""
        return self.label is not None and 0 < np.sum(np.asarray(self.label) == 1) < len(self.ids)

    @property
    def n_signal(self) -> int:
        """Test rows known to hold a signal."""
        return 0 if self.label is None else int(np.sum(np.asarray(self.label) == 1))

    @property
    def n_noise(self) -> int:
        """Test rows known to hold none."""
        return 0 if self.label is None else len(self.ids) - self.n_signal

    @property
    def snr_known(self) -> bool:
        """Whether the signals' SNRs are known."""
        if self.snr is None or not self.judged:
            return False
        return bool(np.any(np.isfinite(np.asarray(self.snr)[np.asarray(self.label) == 1])))


def shown_fap(results: ProbeResults) -> float | None:
    """The false-alarm probability at which efficiency is quoted: 0.01, or 0.1 where noise rows are few."""
    for fap in (0.01, 0.1):
        if results.judged and results.n_noise * fap >= metrics.MIN_FALSE_ALARMS - 1e-6:
            return fap
    return None


def choose_examples(score: Array, label: ArrayLike | None, snr: ArrayLike | None = None) -> dict[str, int]:
    """Rows worth looking at, by title: the best detected, the loudest missed and the worst false alarm.

    Missed is what lies below the threshold of `shown_fap` (the median of the noise where there are too few
    noise rows); where SNRs are unknown it is the signal of the lowest score. Without labels: the three
    highest scores.
    """
    statistic = np.asarray(score, dtype=np.float64)
    order = np.argsort(-statistic, kind="stable")
    truth = None if label is None else np.asarray(label)
    if truth is None or not 0 < np.sum(truth == 1) < truth.size:
        return {title: int(row) for title, row in zip(("Highest", "Second highest", "Third highest"), order)}
    noise, signals = order[truth[order] == 0], order[truth[order] == 1]
    share = next((p for p in (0.01, 0.1) if noise.size * p >= metrics.MIN_FALSE_ALARMS - 1e-6), 0.5)
    threshold = statistic[noise[int(share * noise.size + 1e-6)]]
    chosen = {"Best detected": int(signals[0])} if statistic[signals[0]] > threshold else {}
    missed = signals[statistic[signals] <= threshold]
    if missed.size:
        loudness = None if snr is None else np.asarray(snr, dtype=np.float64)[missed]
        if loudness is not None and np.any(np.isfinite(loudness)):
            chosen["Loudest missed"] = int(missed[np.nanargmax(loudness)])
        else:
            chosen["Worst missed"] = int(missed[-1])
    chosen["Worst false alarm"] = int(noise[0])
    return chosen


def gather_examples(source: Source, split: str, rows: dict[str, int], score: Array) -> list[Example]:
    """The windows of the rows that `choose_examples` names, read from the source once more."""
    found: dict[str, Example] = {}
    start = 0
    for batch in source.batches(split, 512):
        for title, row in rows.items():
            i = row - start
            if 0 <= i < len(batch):
                truth = {key: float(batch.truth[key][i]) for key in ("merger", "snr") if key in batch.truth}
                known = {key: value for key, value in truth.items() if np.isfinite(value) and value > 0}
                strain = batch.strain[i].cpu().numpy().astype(np.float64)
                merger, snr = known.get("merger"), known.get("snr")
                found[title] = Example(title, batch.id[i], strain, source.rate, merger, snr, float(score[row]))
        start += len(batch)
        if len(found) == len(rows):
            break
    return [found[title] for title in rows]
