"""How good is a detection statistic: AUC, efficiency at a false-alarm probability, ROC, calibration.

Every function takes ``label`` (N,) of 0 (noise) and 1 (signal) and a score (N,), larger for signals,
unbounded, and gives plain floats, ints, lists and dicts that ``json.dump`` takes as they are. A figure that
cannot be stated is None with a ``reason``. Intervals hold 95%.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from gwtwins.strain.errors import InputError

Array = NDArray[np.float64]

Z95 = float(stats.norm.ppf(0.975))
MIN_FALSE_ALARMS = 10
"""Noise rows above a threshold before it counts as measured (relative error 1/sqrt 10)."""


def wilson(detected: ArrayLike, total: ArrayLike) -> tuple[Array, Array]:
    """Wilson's (1927) 95% interval of a binomial fraction, NaN where ``total`` is 0; shapes broadcast."""
    k, n = np.asarray(detected, dtype=np.float64), np.asarray(total, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = k / n
        centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
        half = Z95 / (1 + Z95**2 / n) * np.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    return np.where(k == 0, np.minimum(0.0, p), centre - half), np.where(k == n, np.maximum(1.0, p), centre + half)


def auc(label: ArrayLike, score: ArrayLike) -> dict[str, Any]:
    """Area under the ROC: the probability that a signal scores above a noise row, ties counting half.

    The variance is DeLong's (Biometrics 44, 837, 1988) from midranks (Sun & Xu, IEEE SPL 21, 1389, 2014); the
    interval is symmetric in logit(AUC), so it stays inside [0, 1]. Where that variance is zero (no overlap at
    all, or a single row of a class), it is Wilson's for as many independent pairs as the smaller class has
    rows.

    Returns ``{"value", "ci95": [low, high], "se"}``. Raises InputError when a class is missing or a score not
    finite.
    """
    signal, noise = _by_class(label, score)
    areas, by_signal, by_noise = _placements(signal[None], noise[None])
    value, se = float(areas[0]), float(np.sqrt(_covariance(by_signal, by_noise)[0, 0]))
    if 0.0 < value < 1.0 and se > 0.0:
        reach = Z95 * se / (value * (1.0 - value))
        low, high = special.expit(special.logit(value) + reach * np.array([-1.0, 1.0]))
    else:
        pairs = min(signal.size, noise.size)
        low, high = wilson(value * pairs, pairs)
    return {"value": value, "ci95": [float(low), float(high)], "se": se}


def auc_difference(label: ArrayLike, score_a: ArrayLike, score_b: ArrayLike) -> dict[str, Any]:
    """AUC of ``score_a`` minus AUC of ``score_b`` on the same rows, with DeLong's covariance of the two.

    Returns ``{"value", "ci95", "se", "p_value"}``; the p-value is two-sided for no difference.
    """
    pairs = [_by_class(label, score) for score in (score_a, score_b)]
    signal, noise = (np.stack([pair[i] for pair in pairs]) for i in (0, 1))
    areas, by_signal, by_noise = _placements(signal, noise)
    contrast = np.array([1.0, -1.0])
    value = float(areas @ contrast)
    se = float(np.sqrt(max(0.0, contrast @ _covariance(by_signal, by_noise) @ contrast)))
    p_value = float(2 * stats.norm.sf(abs(value) / se)) if se > 0 else float(value == 0.0)
    return {"value": value, "ci95": [value - Z95 * se, value + Z95 * se], "se": se, "p_value": p_value}


def efficiency(label: ArrayLike, score: ArrayLike, fap: float) -> dict[str, Any]:
    """Fraction of the signals that score above the threshold which a fraction ``fap`` of the noise exceeds.

    The threshold is the lowest noise score that at most ``fap`` of the noise rows exceed; a signal is
    detected when strictly above it, so ties never raise the false-alarm probability.

    The interval holds both uncertainties. The number of noise rows above the *true* threshold is binomial
    (n_noise, fap), which says where among the noise scores it may lie; for each such place the efficiency has
    the Jeffreys distribution Beta(x + 1/2, n_signal - x + 1/2) of its x detections; the interval runs between
    the 2.5% and 97.5% points of this mixture, which is summed, not sampled.

    Returns ``{"value", "ci95", "threshold", "n_signal", "n_noise"}``, with value, ci95 and threshold None and
    a ``reason`` when there are fewer than 10/fap noise rows.
    """
    signal, noise = _by_class(label, score)
    counts = {"n_signal": int(signal.size), "n_noise": int(noise.size)}
    reason = _too_few(noise.size, fap)
    if reason:
        return {"value": None, "ci95": None, "threshold": None, **counts, "reason": reason}
    threshold = _threshold(noise, fap)
    value = float(np.mean(signal > threshold))
    low, high = _efficiency_interval(signal, noise, fap)
    # A fraction of exactly 0 or 1 has an interval that ends there; Jeffreys' tail would stop just short of
    # it.
    low, high = (0.0 if value == 0.0 else min(low, value)), (1.0 if value == 1.0 else max(high, value))
    return {"value": value, "ci95": [low, high], "threshold": threshold, **counts}


def efficiency_vs_snr(
    label: ArrayLike,
    score: ArrayLike,
    snr: ArrayLike,
    fap: float,
    edges: Sequence[float] = (4, 6, 8, 10, 12, 14, 16),
) -> dict[str, Any]:
    """Efficiency at ``fap`` in bins of network SNR, lower edges included (and the uppermost).

    ``snr`` (N,) is read for signals only; those outside the edges, or with an unknown (NaN) SNR, are counted
    in ``outside``. The threshold is common to the bins, so their Wilson intervals hold the spread of the
    signals alone (the interval of :func:`efficiency` holds the threshold's).

    Returns ``{"fap", "threshold", "outside", "bins": [{"snr": [low, high], "n", "detected", "value",
    "ci95"}]}``, value and ci95 None in an empty bin; no bins and a ``reason`` when there are fewer than
    10/fap noise rows.
    """
    signal, noise = _by_class(label, score)
    truth = np.asarray(snr, dtype=np.float64)
    if truth.shape != np.shape(label):
        raise InputError("snr", f"shape {truth.shape}", f"one SNR for each label, {np.shape(label)}")
    limits = np.asarray(edges, dtype=np.float64)
    if limits.ndim != 1 or limits.size < 2 or not np.all(np.diff(limits) > 0):
        raise InputError("edges", f"{list(edges)}", "two or more rising SNRs")
    result: dict[str, Any] = {"fap": float(fap), "threshold": None, "outside": 0, "bins": []}
    reason = _too_few(noise.size, fap)
    if reason:
        return {**result, "reason": reason}
    threshold = _threshold(noise, fap)
    truth = truth[np.asarray(label) == 1]
    bins = np.searchsorted(limits, truth, side="right") - 1  # NaN sorts last, beyond every edge
    bins[truth == limits[-1]] = limits.size - 2
    for i in range(limits.size - 1):
        inside = signal[bins == i]
        row: dict[str, Any] = {"snr": [float(limits[i]), float(limits[i + 1])], "n": int(inside.size)}
        row["detected"] = int(np.sum(inside > threshold))
        low, high = wilson(row["detected"], row["n"])
        row["value"] = row["detected"] / row["n"] if row["n"] else None
        row["ci95"] = [float(low), float(high)] if row["n"] else None
        result["bins"].append(row)
    result["threshold"] = threshold
    result["outside"] = int(signal.size - sum(row["n"] for row in result["bins"]))
    return result


def roc(label: ArrayLike, score: ArrayLike) -> dict[str, list[Any]]:
    """The ROC's corners: false-alarm probability, efficiency, and the threshold (score >= threshold) of each.

    Returns ``{"fap", "efficiency", "threshold"}``, lists from (0, 0), whose threshold is None, to (1, 1).
    Points on a straight line between their neighbours are left out: the curve is the same and the lists are
    short.
    """
    signal, noise = _by_class(label, score)
    merged = np.concatenate([signal, noise])
    order = np.argsort(-merged, kind="stable")
    last = np.flatnonzero(np.append(np.diff(merged[order]) != 0, True))  # the last row of each tie
    hits = np.cumsum(order < signal.size)[last]
    alarms = last + 1 - hits
    corner = np.ones(last.size, dtype=bool)
    if last.size > 2:
        step_hits, step_alarms = np.diff(hits), np.diff(alarms)
        corner[1:-1] = step_hits[1:] * step_alarms[:-1] != step_hits[:-1] * step_alarms[1:]
    return {
        "fap": [0.0, *(alarms[corner] / noise.size).tolist()],
        "efficiency": [0.0, *(hits[corner] / signal.size).tolist()],
        "threshold": [None, *merged[order][last][corner].tolist()],
    }


def calibration(label: ArrayLike, p: ArrayLike, bins: int = 10) -> dict[str, Any]:
    """Are probabilities true: of the rows given a probability near p, is a fraction p signals?

    Bins have equal width on [0, 1]. Returns ``{"bins": [{"p": [low, high], "n", "mean_p", "fraction",
    "ci95"}], "brier", "log_loss", "ece"}``: mean squared error, mean negative log-likelihood in nats (p kept
    1e-15 off 0 and 1), and the expected calibration error, the mean over rows of their bin's |mean_p -
    fraction|. Empty bins have None. Raises InputError when a probability is outside [0, 1].
    """
    truth, prob = _check(label, p)
    if prob.size == 0 or prob.min() < 0.0 or prob.max() > 1.0:
        raise InputError("probability", "missing or outside [0, 1]", "probabilities")
    if not 1 <= bins <= 1000:
        raise InputError("bins", str(bins), "1 to 1000")
    edges = np.linspace(0.0, 1.0, bins + 1)
    which = np.clip(np.searchsorted(edges, prob, side="right") - 1, 0, bins - 1)
    n = np.bincount(which, minlength=bins)
    hits = np.bincount(which, weights=truth, minlength=bins)
    total = np.bincount(which, weights=prob, minlength=bins)
    low, high = wilson(hits, n)
    rows: list[dict[str, Any]] = [
        {
            "p": [float(edges[i]), float(edges[i + 1])],
            "n": int(n[i]),
            "mean_p": float(total[i] / n[i]) if n[i] else None,
            "fraction": float(hits[i] / n[i]) if n[i] else None,
            "ci95": [float(low[i]), float(high[i])] if n[i] else None,
        }
        for i in range(bins)
    ]
    safe = np.clip(prob, 1e-15, 1.0 - 1e-15)
    return {
        "bins": rows,
        "brier": float(np.mean((prob - truth) ** 2)),
        "log_loss": float(-np.mean(truth * np.log(safe) + (1.0 - truth) * np.log1p(-safe))),
        "ece": float(np.sum(np.abs(total - hits)) / prob.size),
    }


def _check(label: ArrayLike, score: ArrayLike) -> tuple[Array, Array]:
    truth, value = np.asarray(label, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != value.shape:
        raise InputError("score", f"shape {value.shape} for labels {truth.shape}", "one number for each label")
    if not np.all((truth == 0) | (truth == 1)):
        raise InputError("label", "a value that is neither 0 nor 1", "0 for noise, 1 for a signal")
    if not np.all(np.isfinite(value)):
        row = int(np.flatnonzero(~np.isfinite(value))[0])
        raise InputError("score", f"{value[row]} in row {row}", "finite numbers")
    return truth, value


def _by_class(label: ArrayLike, score: ArrayLike) -> tuple[Array, Array]:
    """Scores of the signals and of the noise."""
    truth, value = _check(label, score)
    signal, noise = value[truth == 1], value[truth == 0]
    if not signal.size or not noise.size:
        raise InputError("label", f"{signal.size} signals and {noise.size} noise rows", "both")
    return signal, noise


def _placements(signal: Array, noise: Array) -> tuple[Array, Array, Array]:
    """AUC (S,) of S scores, and the rows' placements among the other class, (S, n_signal), (S, n_noise)."""
    m, n = signal.shape[1], noise.shape[1]
    ranks = stats.rankdata(np.concatenate([signal, noise], axis=1), axis=1)
    by_signal = (ranks[:, :m] - stats.rankdata(signal, axis=1)) / n  # fraction of the noise below this signal
    by_noise = 1.0 - (ranks[:, m:] - stats.rankdata(noise, axis=1)) / m  # fraction of the signals above this noise
    return by_signal.mean(axis=1), by_signal, by_noise


def _covariance(by_signal: Array, by_noise: Array) -> Array:
    """DeLong covariance (S, S) of the areas; 0 where a class has one row and no spread can be seen."""
    total = np.zeros((by_signal.shape[0],) * 2)
    for placement in (by_signal, by_noise):
        if placement.shape[1] > 1:
            total += np.cov(placement).reshape(total.shape) / placement.shape[1]
    return total


def _too_few(n_noise: int, fap: float) -> str | None:
    if not 0.0 < fap < 1.0:
        raise InputError("false-alarm probability", str(fap), "a number between 0 and 1")
    needed = int(np.ceil(MIN_FALSE_ALARMS / fap - 1e-6))
    return (
        None if n_noise >= needed else f"{n_noise} noise rows, {needed} needed for a false-alarm probability of {fap:g}"
    )


def _threshold(noise: Array, fap: float) -> float:
    allowed = int(np.floor(fap * noise.size + 1e-6))  # 0.29 * 100 is 28.999999999999996
    return float(np.partition(noise, noise.size - 1 - allowed)[noise.size - 1 - allowed])


def _efficiency_interval(signal: Array, noise: Array, fap: float) -> tuple[float, float]:
    n = noise.size
    above = np.arange(*stats.binom.ppf([1e-9, 1 - 1e-9], n, fap).astype(int) + np.array([0, 1]))
    above = above[above < n]
    weight = stats.binom.pmf(above, n, fap)
    thresholds = np.sort(noise)[n - 1 - above]
    detected = signal.size - np.searchsorted(np.sort(signal), thresholds, side="right")
    x, inverse = np.unique(detected, return_inverse=True)
    weight = np.bincount(inverse, weights=weight / weight.sum())

    def quantile(q: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = 0.5 * (low + high)
            below = weight @ special.betainc(x + 0.5, signal.size - x + 0.5, middle)
            low, high = (middle, high) if below < q else (low, middle)
        return 0.5 * (low + high)

    return quantile(0.025), quantile(0.975)
