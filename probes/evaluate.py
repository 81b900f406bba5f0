"""From frozen features to every figure of probe.json."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from gwtwins.probes.features import Features
from gwtwins.probes.knn import KnnProbe
from gwtwins.probes.limits import MatchedFilterBank, known_signal, snr_in_window
from gwtwins.probes.linear import LinearProbe, labelled_subset
from gwtwins.probes.metrics import auc, calibration, efficiency, efficiency_vs_snr
from gwtwins.strain.conditioning import WINDOW
from gwtwins.strain.progress import progress_bar
from gwtwins.strain.simulated import SimulatedSource

FALSE_ALARM = (0.1, 0.01, 0.001)
_BANK_BATCH = 64  # rows at a time: the SNR series of 25 templates then take 100 MB


@dataclass
class Evaluation:
    """A fitted probe, its scores on the test rows, and the figures."""

    probe: LinearProbe
    score: NDArray[np.floating]
    """(N,) unbounded logit of each test row."""
    probability: NDArray[np.floating]
    """(N,) calibrated on the labelled rows alone."""
    figures: dict[str, Any]


def evaluate(train: Features, test: Features, n_labels: int, seed: int, kind: str) -> Evaluation:
    """Fit on ``n_labels`` of the labelled rows, score the test rows once, and say how well it does.

    Args:
        train, test: features of the labelled and of the test rows, with labels.
        n_labels: labelled rows the probe may see.
        seed: of the draw of labels and of the folds.
        kind: "concat" or "coherent".
    """
    assert train.label is not None and test.label is not None
    began = time.perf_counter()
    rows = labelled_subset(train.ids, n_labels, seed, train.label)
    probe = fit_probe(train, rows, kind, seed)
    score = probe.decision(test.embeddings, None, test.together)
    probability = expit(score)
    fitted = time.perf_counter()
    knn = KnnProbe(kind=kind).fit(train.embeddings, None, train.label, rows, train.together)
    nearest = knn.decision(test.embeddings, None, test.together)
    area = auc(test.label, score)
    figures: dict[str, Any] = {
        "auc": area["value"],
        "auc_ci95": area["ci95"],
        "efficiency": {f"{p:g}": efficiency(test.label, score, p) for p in FALSE_ALARM},
        "efficiency_vs_snr": None,
        "n_labels": int(n_labels),
        "n_test": len(test),
        "signal_fraction_test": float(np.mean(test.label)),
        "knn_auc": auc(test.label, nearest)["value"],
        "calibration": calibration(test.label, probability),
        "seconds": {"fit": round(fitted - began, 2)},
    }
    if test.evidence and test.together is not None:
        alone = test.together[:, -1]
        detected = {f"{p:g}": efficiency(test.label, alone, p) for p in FALSE_ALARM}
        figures["evidence"] = {"auc": auc(test.label, alone)["value"], "efficiency": detected}
    if test.snr is not None and np.isfinite(test.snr).all():
        figures["efficiency_vs_snr"] = efficiency_vs_snr(test.label, score, test.snr, 0.01)
    return Evaluation(probe, score, probability, figures)


def fit_probe(train: Features, rows: NDArray[np.integer], kind: str, seed: int) -> LinearProbe:
    """A linear probe on the labels of ``rows`` alone."""
    assert train.label is not None
    about = train.detectors, train.encoder, train.together, train.evidence
    return LinearProbe.fit(train.embeddings, None, train.label, rows, kind, seed, *about)


def label_curve(
    train: Features, test: Features, counts: list[int], draws: int, seed: int, kind: str
) -> list[dict[str, Any]]:
    """AUC and efficiency with few labels: mean and standard deviation over ``draws`` random draws of each count."""
    assert train.label is not None and test.label is not None
    curve = []
    for n in counts:
        areas, detected = [], []
        different = draws if n < len(train) else 1  # ways to draw all of them
        for draw in range(different):
            rows = labelled_subset(train.ids, n, 1000 * seed + draw, train.label)
            score = fit_probe(train, rows, kind, draw).decision(test.embeddings, None, test.together)
            areas.append(auc(test.label, score)["value"])
            detected.append(efficiency(test.label, score, 0.01)["value"])
        entry: dict[str, Any] = {"n_labels": n, "draws": different}
        entry |= {"auc": float(np.mean(areas)), "auc_sd": float(np.std(areas, ddof=1)) if different > 1 else None}
        if None not in detected:
            entry |= {"efficiency": float(np.mean(detected))}
            entry |= {"efficiency_sd": float(np.std(detected, ddof=1)) if different > 1 else None}
        curve.append(entry)
    return curve


def limits(source: SimulatedSource, templates: int, progress: bool = True) -> dict[str, dict[str, Any]]:
    """The known-signal limit and a matched-filter bank's scores on the same test rows.

    Returns:
        ``known_signal`` with figures and ``snr`` (N,), 0 for noise; unless ``templates`` is 0 also ``bank`` (the
        marginalised statistic) and ``bank_maximum``, with figures and ``score`` (N,).
    """
    # The bank's spans are those of 2 s windows.
    bank = MatchedFilterBank(source, templates, progress) if templates and source.window == WINDOW else None
    scores: dict[str, list[NDArray[np.float64]]] = {"marginalised": [], "maximum": []}
    label, snr, inside = [], [], []
    with progress_bar(source.count("test"), "matched filter", "row", progress) as bar:
        for batch in source.batches("test", _BANK_BATCH, signal=True):
            assert batch.label is not None
            label.append(batch.label.cpu().numpy())
            snr.append(batch.truth["snr"].cpu().numpy())
            inside.append(snr_in_window(batch.truth["signal"], source.f_low, source.f_high, source.rate).cpu().numpy())
            if bank:
                for name, value in bank(batch).items():
                    scores[name].append(value.cpu().numpy())
            bar.update(len(batch))
    y, rho = np.concatenate(label), np.concatenate(snr)
    seen = np.concatenate(inside)
    known: dict[str, Any] = {**known_signal(seen[y == 1]), "snr": seen}
    found: dict[str, dict[str, Any]] = {"known_signal": known}
    for name, statistic in (("bank", "marginalised"), ("bank_maximum", "maximum")):
        if bank:
            score = np.concatenate(scores[statistic])
            found[name] = {
                "statistic": statistic,
                "templates": templates,
                "auc": auc(y, score)["value"],
                "efficiency": {f"{p:g}": efficiency(y, score, p)["value"] for p in FALSE_ALARM},
                "efficiency_vs_snr": efficiency_vs_snr(y, score, rho, 0.01),
                "score": score,
            }
    return found
