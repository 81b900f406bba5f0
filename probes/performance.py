"""The probe's figures and those of the limits beside them, in one form: numbers, intervals, curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import norm

from gwtwins.probes import metrics
from gwtwins.probes.results import ProbeResults, shown_fap
from gwtwins.strain.errors import InputError

Array = NDArray[np.floating]

TITLES = {
    "bank": "matched-filter bank",
    "bank_maximum": "the same bank, maximum",
    "known_signal": "signal known exactly",
}
"""How limits are called in words; in the order in which they are shown."""
TABLE_ONLY = ("bank_maximum",)
"""Limits too close to another one for a line of their own."""
FAPS = (0.1, 0.01, 0.001)
SNR_EDGES = (4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0)


@dataclass
class Performance:
    """One statistic's figures: the probe's, or those of a limit it is compared with."""

    title: str
    drawn: bool = True
    """Whether it has a line in the pictures."""
    auc: dict[str, Any] | None = None
    """``{"value", "ci95"}``."""
    efficiency: dict[float, dict[str, Any]] = field(default_factory=dict)
    """By false-alarm probability: ``{"value", "ci95"}``, perhaps with a ``reason``."""
    roc: tuple[Array, Array] | None = None
    """False-alarm probabilities and efficiencies."""
    by_snr: list[dict[str, Any]] = field(default_factory=list)
    """Bins ``{"snr": [low, high], "n", "value", "ci95"}`` at the false-alarm probability of `shown_fap`."""


def probe_performance(results: ProbeResults) -> Performance:
    """The probe's own figures: as given, with the curves computed from its scores."""
    shown = Performance("frozen probe")
    given = ("auc", "auc_ci95", "efficiency", "efficiency_vs_snr")
    _fill(shown, results, {**{key: results.figures.get(key) for key in given}, "score": results.score})
    return shown


def evidence_performance(results: ProbeResults) -> Performance | None:
    """The figures of evidence without any label, where the encoder has evidence."""
    node = results.figures.get("evidence")
    if not isinstance(node, dict):
        return None
    shown = Performance("evidence alone, no labels", drawn=False)
    _fill(shown, results, {key: node.get(key) for key in ("auc", "efficiency")})
    return shown


def limit_performances(results: ProbeResults) -> list[Performance]:
    """The limits of ``figures["limit"]`` and of ``limits``, in the order of `TITLES`, others behind."""
    node = results.figures.get("limit")
    given = {k: v for k, v in node.items() if isinstance(v, dict)} if isinstance(node, dict) else {}
    names = [name for name in {**given, **results.limits} if given.get(name) or results.limits.get(name)]
    order = list(TITLES)
    shown = []
    for name in sorted(names, key=lambda n: (order.index(n) if n in order else len(order), n)):
        limit = Performance(TITLES.get(name, name.replace("_", " ")), drawn=name not in TABLE_ONLY)
        _fill(limit, results, {**(given.get(name) or {}), **(results.limits.get(name) or {})})
        shown.append(limit)
    return shown


def _fill(shown: Performance, results: ProbeResults, node: dict[str, Any]) -> None:
    """Figures as they are given; curves, and what is not given with an interval, from the rows' statistic."""
    label, fap = results.label, shown_fap(results)
    if node.get("auc") is not None:
        shown.auc = _with_interval(node["auc"], node.get("auc_ci95"))
    for key, value in (node.get("efficiency") or {}).items():
        if value is not None:
            shown.efficiency[float(key)] = _with_interval(value)
    vs_snr = node.get("efficiency_vs_snr") or {}
    if vs_snr.get("bins") and vs_snr.get("fap", fap) == fap:
        shown.by_snr = vs_snr["bins"]
    if not results.judged or label is None:
        return
    edges = _edges(results)
    if node.get("snr") is not None:
        _fill_known(shown, results, np.asarray(node["snr"], dtype=np.float64), edges)
    elif node.get("score") is not None:
        score = np.asarray(node["score"], dtype=np.float64)
        if shown.auc is None or shown.auc.get("ci95") is None:
            shown.auc = metrics.auc(label, score)
        for p in FAPS:
            if shown.efficiency.get(p, {}).get("ci95") is None:
                shown.efficiency[p] = metrics.efficiency(label, score, p)
        curve = metrics.roc(label, score)
        shown.roc = np.asarray(curve["fap"]), np.asarray(curve["efficiency"])
        if fap and results.snr_known and results.snr is not None and not shown.by_snr:
            shown.by_snr = metrics.efficiency_vs_snr(label, score, results.snr, fap, edges)["bins"]


def _fill_known(shown: Performance, results: ProbeResults, snr: Array, edges: Sequence[float]) -> None:
    """Everything of a statistic that is N(snr, 1) for signals and N(0, 1) for noise."""
    signal = np.asarray(results.label) == 1
    if snr.shape != signal.shape:
        raise InputError("limit's SNR", f"shape {snr.shape}", f"one for each of {signal.size} rows")
    rho, injected = snr[signal], np.asarray(snr if results.snr is None else results.snr)[signal]
    shown.auc = shown.auc or {"value": float(ndtr(rho / np.sqrt(2)).mean()), "ci95": None}
    for p in FAPS:
        shown.efficiency.setdefault(p, {"value": float(ndtr(rho - norm.isf(p)).mean()), "ci95": None})
    grid = np.geomspace(1 / results.n_noise, 1.0, 100)
    shown.roc = grid, np.array([ndtr(rho - norm.isf(p)).mean() for p in grid])
    fap = shown_fap(results)
    if fap and not shown.by_snr:
        detected = ndtr(rho - norm.isf(fap))
        for low, high in zip(edges, edges[1:]):
            closed = np.nextafter(high, np.inf) if high == edges[-1] else high  # as metrics counts
            inside = detected[(injected >= low) & (injected < closed)]
            value = float(inside.mean()) if inside.size else None
            shown.by_snr.append({"snr": [low, high], "n": int(inside.size), "value": value, "ci95": None})


def _edges(results: ProbeResults) -> list[float]:
    """The SNR bins of the probe's own figures, so that limits are counted in the same ones."""
    bins = (results.figures.get("efficiency_vs_snr") or {}).get("bins")
    return [float(b["snr"][0]) for b in bins] + [float(bins[-1]["snr"][1])] if bins else list(SNR_EDGES)


def _with_interval(value: Any, ci95: Any = None) -> dict[str, Any]:
    return value if isinstance(value, dict) else {"value": value, "ci95": ci95}
