"""Figures of scores on the fixed test rows, and the paired bootstrap that says how surely two of them differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gwtwins.probes.metrics import auc, efficiency

Array = NDArray[np.floating]

FIGURES = ("auc", "efficiency_0.01", "efficiency_0.001")
RARE = 0.001  # false-alarm probabilities from here down take their threshold from the noise-only rows
REPLICATES = 200
_SEED = 20170817


@dataclass
class Judged:
    """Mean figures of P scores of the same rows, and the same for `REPLICATES` resamplings of these."""

    figures: dict[str, Any]
    """Per figure its mean ("auc"), the standard deviation over the P ("auc_sd"); None where noise is too little."""
    replicates: Array
    """(3, R), NaN where there is no figure. Replicate r of every row of the benchmark has the same test rows."""


class Judge:
    """Judges scores of the same test rows, the same noise-only rows, and the same resamplings of both.

    Args:
        label: (N,) of the test rows.
        noise_rows: how many noise-only rows there are.
    """

    def __init__(self, label: NDArray[np.integer], noise_rows: int) -> None:
        self.label = np.asarray(label).astype(np.int8)
        rng = np.random.default_rng(_SEED)
        # Poisson weights: each row by itself, so that fewer rows are resampled as the first of many.
        self.weight = rng.poisson(1.0, (len(self.label), REPLICATES)).astype(np.uint8).T
        self.noise_weight = rng.poisson(1.0, (noise_rows, REPLICATES)).astype(np.uint8).T

    def __call__(self, scores: Array, noise_scores: Array | None = None) -> Judged:
        """Of scores (P, N), and of the noise-only rows (P, M)."""
        if noise_scores is None or not noise_scores.shape[1]:
            noise_scores = np.empty((len(scores), 0))
        values = np.array([self._figures(*pair) for pair in zip(scores, noise_scores)], float)  # (P, 3), NaN for None
        replicates = np.mean([self._resampled(*pair) for pair in zip(scores, noise_scores)], axis=0)
        replicates[np.isnan(values).any(0)] = np.nan
        figures: dict[str, Any] = {"scores": len(scores)}
        for name, column in zip(FIGURES, values.T):
            known = bool(np.isfinite(column).all())
            figures[name] = float(column.mean()) if known else None
            figures[f"{name}_sd"] = float(column.std(ddof=1)) if known and len(column) > 1 else None
        return Judged(figures, replicates)

    def _figures(self, score: Array, noise: Array) -> list[float | None]:
        signal = score[self.label == 1]
        found = [auc(self.label, score)["value"], efficiency(self.label, score, 0.01)["value"]]
        if not noise.size:
            return [*found, efficiency(self.label, score, RARE)["value"]]
        label = np.concatenate([np.ones(signal.size), np.zeros(noise.size)])
        return [*found, efficiency(label, np.concatenate([signal, noise]), RARE)["value"]]

    def _resampled(self, score: Array, noise: Array) -> Array:
        """(3, R), ties taken in the order of the rows."""
        order = np.argsort(-score, kind="stable")
        weight = self.weight[:, order].astype(np.int64)
        signal = self.label[order] == 1
        above = np.cumsum(np.where(signal, weight, 0), axis=1)  # signals from the loudest row down
        alarms = np.cumsum(np.where(signal, 0, weight), axis=1)
        signals, noises = above[:, -1], alarms[:, -1]
        area = (weight * (noises[:, None] - alarms))[:, signal].sum(1) / (signals * noises)
        row = np.arange(len(weight))
        detected = []
        for fap, loudest in ((0.01, None), (RARE, noise if noise.size else None)):
            if loudest is None:
                at = (alarms > np.floor(fap * noises + 1e-6)[:, None]).argmax(1)
            else:
                threshold = self._threshold(loudest, fap)
                at = np.searchsorted(-score[order], -threshold, side="left") - 1
            detected.append(np.where(at < 0, 0, above[row, np.maximum(at, 0)]) / signals)
        return np.stack([area, *detected])

    def _threshold(self, noise: Array, fap: float) -> Array:
        """(R,) scores that a fraction ``fap`` of the resampled noise exceeds."""
        # Twice as many as wanted and 40 more: a resampling never needs them all.
        kept = min(noise.size, int(2 * fap * noise.size) + 40)
        top = np.argpartition(-noise, kept - 1)[:kept]
        top = top[np.argsort(-noise[top], kind="stable")]
        alarms = np.cumsum(self.noise_weight[:, top].astype(np.int64), axis=1)
        allowed = np.floor(fap * self.noise_weight.sum(axis=1, dtype=np.int64) + 1e-6)
        return noise[top][(alarms > allowed[:, None]).argmax(1)]


def over_seeds(results: list[Judged], figure: str) -> tuple[float, float | None] | None:
    """Mean over training seeds and their standard deviation (None for one seed); None where there is no figure."""
    values = [r.figures[figure] for r in results]
    if not values or None in values:
        return None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def difference(first: list[Judged], second: list[Judged], figure: str) -> dict[str, float] | None:
    """How much larger a figure of the first is: ``value`` and ``error``, one standard error.

    The error holds that of the test rows, which both share (paired bootstrap), and that of each one's training: the
    standard error of the mean over seeds, whose draws of labels differ too; of one seed that over its draws of labels.
    """
    means = [over_seeds(results, figure) for results in (first, second)]
    if means[0] is None or means[1] is None:
        return None
    k = FIGURES.index(figure)
    shared = np.mean([r.replicates[k] for r in first], axis=0) - np.mean([r.replicates[k] for r in second], axis=0)
    variance = float(np.var(shared, ddof=1))
    for results, (_, spread) in zip((first, second), (means[0], means[1])):
        drawn = results[0].figures[f"{figure}_sd"]
        if spread is not None:
            variance += spread**2 / len(results)
        elif drawn is not None:
            variance += drawn**2 / results[0].figures["scores"]
    return {"value": means[0][0] - means[1][0], "error": variance**0.5}
