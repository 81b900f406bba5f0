"""The probe's report: ``report.html``, which holds its pictures and needs nothing else, and ``plots/*.png``."""

from __future__ import annotations

import json
import re
import time
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gwtwins.probes import metrics, page, plots, wording
from gwtwins.probes.page import Picture
from gwtwins.probes.performance import Performance, limit_performances, probe_performance
from gwtwins.probes.results import Example, ProbeResults, shown_fap
from gwtwins.strain.conditioning import F_HIGH, F_LOW

Array = NDArray[np.floating]

MAP_POINTS = 6000  # of the embedding map: more hide each other, and their principal components are the same


def write_report(folder: Path, results: ProbeResults) -> Path:
    """Write ``folder/report.html`` and ``folder/plots/*.png``; the path of the page.

    Parts that the data cannot fill (no labels, no SNRs, no limits) are left out, with a sentence that says so.
    """
    folder = Path(folder)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    probe, limits = probe_performance(results), limit_performances(results)
    drawn = [limit for limit in limits if limit.drawn]
    pictures, notes = _pictures(results, probe, drawn)
    examples = [_example_picture(i, e, results) for i, e in enumerate(results.examples, start=1)]
    columns, rows, unstated = wording.figure_table(results, probe, limits)
    snr_columns, snr_rows = wording.snr_table(probe, drawn)
    label_columns, label_rows = wording.label_table(results)
    fap = shown_fap(results)
    page.render_page(
        folder / "report.html",
        "report.html",
        title=results.title,
        headline=wording.headline(results, probe, limits),
        summary=wording.summary(results),
        columns=columns,
        rows=rows,
        notes=[*unstated, *notes],
        snr_columns=snr_columns,
        snr_rows=snr_rows,
        label_columns=label_columns,
        label_rows=label_rows,
        snr_fap=f"{1 / fap:,.0f}" if fap else "",
        highest=_highest(results),
        pictures=[page.drawn(p, folder / "plots") for p in pictures],
        examples=[page.drawn(p, folder / "plots") for p in examples],
        made=wording.made(results),
        run=json.dumps(results.run, indent=2, default=str) if results.run else "",
        written=f"Written by gwtwins {metadata.version('gwtwins')} on {time.strftime('%Y-%m-%d %H:%M %Z')}.",
    )
    return folder / "report.html"


def _pictures(
    results: ProbeResults, probe: Performance, limits: list[Performance]
) -> tuple[list[Picture], list[str]]:
    """The pictures that the data can fill, and a sentence on each that they cannot."""
    pictures: list[Picture] = []
    notes: list[str] = []
    label = None if results.label is None else np.asarray(results.label)
    fap = shown_fap(results)
    if results.judged and label is not None:
        if results.n_noise > metrics.MIN_FALSE_ALARMS:
            pictures.append(_roc_picture(label, results, probe, limits))
        else:
            notes.append(f"The ROC is left out: {results.n_noise} noise windows measure no false-alarm probability.")
        if not limits:
            notes.append("No limits stand beside the figures: they need the truth that only a simulation knows.")
        if fap and results.snr_known and any(b["value"] is not None for b in probe.by_snr):
            pictures.append(_snr_picture(fap, probe, limits))
        elif not results.snr_known:
            notes.append("Efficiency against SNR is left out: the signals' SNRs are not known.")
        else:
            reason = "no signal lies in its bins" if fap else "too few noise windows for a threshold"
            notes.append(f"Efficiency against SNR is left out: {reason}.")
    else:
        reason = "the labels are not known" if label is None else "all windows are of one class"
        notes.append(f"ROC, efficiency and calibration are left out: {reason}.")
    pictures += [*_label_pictures(results, probe, limits), _score_picture(results, label)]
    maps = _map_pictures(results, label)
    if results.judged and label is not None:
        # The maps stand side by side where pictures stand in twos.
        maps.insert(0 if len(pictures) % 2 else len(maps), _calibration_picture(label, results))
    return pictures + maps, notes


def _roc_picture(
    label: Array, results: ProbeResults, probe: Performance, limits: list[Performance]
) -> Picture:
    n = results.n_noise
    grid = np.geomspace(metrics.MIN_FALSE_ALARMS / n, 0.999, 60)
    intervals = [metrics.efficiency(label, results.score, float(fap))["ci95"] for fap in grid]
    kept = [(fap, *ci95) for fap, ci95 in zip(grid, intervals) if ci95]
    columns = np.array(kept).reshape(-1, 3).T
    band = dict(zip(("fap", "low", "high"), columns))
    caption = (
        "Higher and further left is better; the band holds the probe's 95% interval, and the gap to the lines is "
        "what is left to gain."
    )
    values = [f"{wording.number(e['value'])} at {p:g}" for p, e in probe.efficiency.items() if e["value"] is not None]
    alt = f"ROC curve of the probe on a logarithmic axis: efficiency {', '.join(values)}."
    draw = partial(plots.roc, probe=probe, limits=limits, band=band, n_noise=n)
    return Picture("roc", "Signals found against false alarms", caption, alt, draw)


def _snr_picture(fap: float, probe: Performance, limits: list[Performance]) -> Picture:
    caption = (
        f"At one false alarm in {1 / fap:,.0f}: how far a line has to be moved to the right to meet the points is "
        "the loudness that the probe loses."
    )
    bins = [b for b in probe.by_snr if b["value"] is not None]
    values = [f"{b['value']:.2f} at SNR {b['snr'][0]:g} to {b['snr'][1]:g}" for b in bins]
    draw = partial(plots.efficiency_vs_snr, probe=probe, limits=limits)
    alt = f"Efficiency in bins of network SNR: {', '.join(values)}."
    return Picture("efficiency_vs_snr", "Signals found against their loudness", caption, alt, draw)


def _score_picture(results: ProbeResults, label: Array | None) -> Picture:
    thresholds: dict[float, float] = {}
    caption = "Look for windows that stand apart on the right: they are the ones to look at first."
    if results.judged and label is not None:
        for fap in (0.1, 0.01, 0.001):
            threshold = metrics.efficiency(label, results.score, fap)["threshold"]
            if threshold is not None:
                thresholds[fap] = threshold
        caption = (
            "Signals right of a threshold are found and noise right of it is a false alarm, of which the line "
            "allows one in so many: look for a tail of noise."
        )
    ends = f"from {results.score.min():.1f} to {results.score.max():.1f}"
    alt = f"Histogram of the statistic, {ends}, with a logarithmic axis of counts."
    draw = partial(plots.scores, score=results.score, label=label, thresholds=thresholds)
    return Picture("scores", "The statistic", caption, alt, draw)


def _calibration_picture(label: Array, results: ProbeResults) -> Picture:
    bins = metrics.calibration(label, results.p)
    caption = (
        "Points on the dashed line mean that of the windows given a probability, that share are signals, as long as "
        f"{wording.percent(results.n_signal / len(results.ids))} of all windows are."
    )
    alt = f"Calibration in ten bins; the mean distance from the diagonal is {bins['ece']:.3f}."
    return Picture("calibration", "Calibration", caption, alt, partial(plots.calibration, bins=bins["bins"]))


def _label_pictures(results: ProbeResults, probe: Performance, limits: list[Performance]) -> list[Picture]:
    """The figure that is quoted, efficiency if all draws have it, against the number of labels."""
    curve, n = wording.by_labels(results), results.figures.get("n_labels")
    quoted = probe.efficiency.get(0.01, {}).get("value")
    if curve and quoted is not None and all(entry.get("efficiency") is not None for entry in curve):
        key, name, whole = "efficiency", "Efficiency at 1 false alarm in 100", quoted
        reached = [(limit.title, limit.efficiency.get(0.01, {}).get("value")) for limit in limits]
    elif curve and probe.auc is not None:
        key, name, whole = "auc", "Area under the ROC", probe.auc["value"]
        reached = [(limit.title, limit.auc["value"] if limit.auc else None) for limit in limits]
    else:
        return []
    caption = "Means and standard deviations over random draws of the labels"
    if isinstance(n, int) and n > curve[-1]["n_labels"]:
        curve = [*curve, {"n_labels": n, key: whole}]
        caption += ", the last point this page's one probe"
    caption += ": the flatter, the fewer labels are needed."
    lines = [(title, value) for title, value in reached if value is not None]
    values = [f"{entry[key]:.3f} with {entry['n_labels']:,} labels" for entry in curve]
    alt = f"{name}: {', '.join(values)}."
    draw = partial(plots.label_curve, curve=curve, key=key, name=name, limits=lines)
    return [Picture("labels", "Fewer labels", caption, alt, draw)]


def _map_pictures(results: ProbeResults, label: Array | None) -> list[Picture]:
    if results.embeddings is None:
        return []
    n = len(results.ids)
    rows = np.sort(np.random.default_rng(0).permutation(n)[:MAP_POINTS])
    found = principal_components(np.asarray(results.embeddings)[rows], results.score[rows])
    if found is None:
        return []
    xy, variance = found
    some = "" if rows.size == n else f" ({rows.size:,} of {n:,} windows)"
    shown = None if label is None else label[rows]
    pictures = []
    if shown is not None and results.judged:
        caption = f"No label went into this map{some}: what stands apart here, pretraining alone has set apart."
        draw = partial(plots.embedding_by_label, xy=xy, variance=variance, label=shown)
        alt = "Scatter plot of the embeddings' first two principal components, signals and noise in two colours."
        pictures.append(Picture("embedding_label", "Embeddings, by class", caption, alt, draw))
    value, name, by = results.score[rows], "Statistic (logit)", "statistic"
    if results.snr_known:
        value, name, by = np.asarray(results.snr, dtype=np.float64)[rows], "Network SNR", "SNR"
        caption = "The same map: loud signals should lie far from the noise, and faint ones shade into it."
    else:
        shown = None
        caption = f"Principal components of the embeddings{some}: windows of a high statistic should lie together."
    alt = f"Scatter plot of the embeddings' first two principal components, coloured by {by}."
    draw = partial(plots.embedding_by_value, xy=xy, variance=variance, value=value, name=name, label=shown)
    pictures.append(Picture(f"embedding_{by.lower()}", f"Embeddings, by {by}", caption, alt, draw))
    return pictures


def principal_components(embeddings: Array, score: Array) -> tuple[Array, Array] | None:
    """First two principal components (N, 2) of standardised embeddings, and their shares of the variance (2,).

    Signs are such that the first rises with the score. None where there are no two directions.
    """
    x = np.asarray(embeddings, dtype=np.float32).reshape(len(embeddings), -1)
    x = x[:, x.std(axis=0) > 1e-6 * np.abs(x.mean(axis=0))] if len(x) > 2 else x[:, :0]
    if x.shape[1] < 2:
        return None
    from sklearn.decomposition import PCA

    model = PCA(2, svd_solver="randomized", random_state=0)
    xy = model.fit_transform((x - x.mean(axis=0)) / x.std(axis=0))
    if np.sum(xy[:, 0] * (score - score.mean())) < 0:
        xy[:, 0] *= -1
    return xy, model.explained_variance_ratio_


def _example_picture(i: int, example: Example, results: ProbeResults) -> Picture:
    band = [results.run.get(key) for key in ("f_low", "f_high")]
    low, high = (float(b) if isinstance(b, int | float) else d for b, d in zip(band, (F_LOW, F_HIGH)))
    draw = partial(plots.example, shown=example, detectors=results.detectors, f_low=low, f_high=high)
    slug = re.sub(r"[^a-z0-9]+", "_", example.title.lower()).strip("_")[:40] or "window"
    alt = f"Whitened strain and Q-transform of each detector: {', '.join(map(str, results.detectors))}."
    return Picture(f"example_{i}_{slug}", example.title, wording.example_caption(example), alt, draw)


def _highest(results: ProbeResults) -> list[tuple[str, list[tuple[str, str]]]]:
    """Of unlabelled windows, those to look at first."""
    if results.judged:
        return []
    order = np.argsort(-results.score, kind="stable")[:10]
    given = [f"{p:.3f}" if p < 0.9995 else "over 0.999" for p in results.p[order]]
    return [(str(results.ids[i]), [(f"{results.score[i]:.2f}", ""), (p, "")]) for i, p in zip(order, given)]
