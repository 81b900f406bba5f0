"""The report's words and tables: the headline, figures with their intervals, and how it was all made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gwtwins.probes.performance import Performance, evidence_performance
from gwtwins.probes.results import Example, ProbeResults, shown_fap
from gwtwins.strain.command import plain

_HUNDREDS = {0.1: "ten", 0.01: "a hundred", 0.001: "a thousand"}
DASH = "\N{EN DASH}"

HINTS = {
    "Best detected": "a track that rises into the merger at the same time in every detector",
    "Loudest missed": "what hides it: a merger at the window's edge, or power in one detector only",
    "Worst missed": "what hides it: a merger at the window's edge, or power in one detector only",
    "Worst false alarm": "a chance track, or a glitch that one detector sees and the others do not",
}
"""What to look for in an example, by its title."""


def headline(results: ProbeResults, probe: Performance, limits: Sequence[Performance]) -> str:
    """The result in one sentence."""
    n = results.figures.get("n_labels")
    who = f"With {n:,} labels the frozen probe" if isinstance(n, int) else "The frozen probe"
    if not results.judged:
        return f"The frozen probe scored {len(results.ids):,} windows; without labels nothing can be judged."
    fap = shown_fap(results)
    found = probe.efficiency.get(fap, {}).get("value") if fap else None
    if fap is None or found is None:
        if probe.auc is None:
            return f"{who} scored {len(results.ids):,} windows."
        value = number(probe.auc["value"])
        return f"{who} ranks a signal above a noise window with probability {value} (area under the ROC)."
    text = f"{who} finds {percent(found)} of the signals at one false alarm in {_HUNDREDS[fap]}"
    for limit in limits[:1]:
        reached = limit.efficiency.get(fap, {}).get("value")
        if reached is not None:
            name = {
                "matched-filter bank": "a matched-filter bank finds",
                "signal known exactly": "with each signal known exactly it would be",
            }.get(limit.title, f"{limit.title}:")
            text += f"; {name} {percent(reached)}"
    return text + "."


def summary(results: ProbeResults) -> str:
    """What was tested, in one sentence: a share of signals belongs beside every figure."""
    detectors = ", ".join(map(str, results.detectors))
    if results.label is None:
        above = int((results.p > 0.5).sum())
        return (
            f"{above:,} of them are given a probability above one half. Detectors {detectors}. In an unlabelled "
            "recording nearly all windows are noise, so such a probability overstates what it can be sure of."
        )
    share = results.n_signal / max(1, len(results.ids))
    return (
        f"Tested on {len(results.ids):,} windows of {detectors} that it has not seen: {results.n_signal:,} "
        f"signals and {results.n_noise:,} noise windows, so {percent(share)} carry a signal."
    )


def figure_table(
    results: ProbeResults, probe: Performance, limits: Sequence[Performance]
) -> tuple[list[str], list[tuple[str, list[tuple[str, str]]]], list[str]]:
    """Column titles; a row of (value, interval) cells for each statistic; notes on what could not be stated."""
    knn, shown, notes, faps = results.figures.get("knn_auc"), [probe, *limits], [], []
    if knn is not None:
        shown.insert(1, Performance("nearest neighbours", auc=knn if isinstance(knn, dict) else {"value": knn}))
    alone = evidence_performance(results)
    if alone:
        shown.insert(1, alone)
    for fap in sorted({p for one in shown for p in one.efficiency}, reverse=True):
        entry = probe.efficiency.get(fap, {})
        if entry.get("value") is None and entry.get("reason"):
            notes.append(f"Efficiency at 1 false alarm in {1 / fap:,.0f} is not stated: {entry['reason']}.")
        else:
            faps.append(fap)
    columns = ["Area under the ROC", *[f"Efficiency at 1 in {1 / fap:,.0f}" for fap in faps]]
    rows = [
        (one.title.capitalize(), [_cell(one.auc), *[_cell(one.efficiency.get(fap)) for fap in faps]])
        for one in shown
    ]
    return columns, [row for row in rows if any(value for value, _ in row[1])], notes


def snr_table(
    probe: Performance, limits: Sequence[Performance]
) -> tuple[list[str], list[tuple[str, list[tuple[str, str]]]]]:
    """Efficiency in bins of SNR: columns, and rows as in `figure_table` with the number of signals first."""
    shown = [limit for limit in limits if limit.by_snr]
    rows = []
    for i, b in enumerate(probe.by_snr):
        cells = [(f"{b['n']:,}", ""), _cell(b)]
        cells += [_cell(limit.by_snr[i] if i < len(limit.by_snr) else None) for limit in shown]
        rows.append((f"{b['snr'][0]:g}{DASH}{b['snr'][1]:g}", cells))
    return ["Signals", probe.title.capitalize(), *[limit.title.capitalize() for limit in shown]], rows


def label_table(results: ProbeResults) -> tuple[list[str], list[tuple[str, list[tuple[str, str]]]]]:
    """Means and standard deviations over draws of few labels: columns, and rows as in `figure_table`."""
    rows = []
    for entry in by_labels(results):
        cells = [(f"{entry.get('draws', 1)}", "")]
        for key in ("auc", "efficiency"):
            spread = entry.get(f"{key}_sd")
            value = entry.get(key)
            cells.append(("", "") if value is None else (number(value), f"\u00b1 {spread:.3f}" if spread else ""))
        rows.append((f"{entry['n_labels']:,}", cells))
    return ["Draws", "Area under the ROC", "Efficiency at 1 in 100"], rows


def by_labels(results: ProbeResults) -> list[dict[str, Any]]:
    """The entries of ``figures["by_labels"]``, by rising number of labels."""
    entries = results.figures.get("by_labels") or []
    return sorted((e for e in entries if e.get("auc") is not None), key=lambda e: e["n_labels"])


def made(results: ProbeResults) -> list[tuple[str, str]]:
    """How it was made: term and description."""
    run, figures = results.run, results.figures
    probe, encoder = _dict(figures.get("linear_probe")), _dict(run.get("encoder"))
    context, seconds = _dict(figures.get("context")), figures.get("seconds")
    seconds = _dict(seconds).get("total") if isinstance(seconds, dict) else seconds
    labels = _join(
        _phrase("{:,} labelled windows", figures.get("n_labels")),
        _phrase("--frac {}", figures.get("frac")),
        _phrase("{} features", probe.get("features") or figures.get("features")),
        _phrase("strength C = {:.3g} by cross-validation among them", probe.get("c")),
        _phrase("seed {}", probe.get("seed", context.get("seed"))),
    )
    architecture = _join(
        encoder.get("name"),
        _listed(encoder.get("args")),
        "one for all detectors" if run.get("shared") is True else None,
        "one for H1 and L1, one for V1 and K1" if run.get("shared") is False else None,
        _phrase("embedding {}", run.get("embedding")),
    )
    band = run.get("f_low"), run.get("f_high")
    window = _join(
        _phrase("{:g} s", run.get("window")),
        _phrase("{:g} Hz", run.get("rate")),
        _phrase("whitened between {0[0]:g} and {0[1]:g} Hz", band if None not in band else None),
        _listed(run.get("psds")),
    )
    steps = f"{run['steps']:,} steps" if isinstance(run.get("steps"), int) else None
    pretraining = _join(
        run.get("objective"),
        _phrase("{} views", run.get("views")),
        steps,
        _phrase("{} rows a step", run.get("batch")),
        _phrase("seed {}", run.get("seed")),
        _phrase("{:.0f} s", run.get("seconds")),
    )
    learnt, tested = _data(run.get("data")), _data(context.get("data"))
    found = [
        ("Command", results.command),
        ("Labels", labels),
        ("Encoder", architecture),
        ("Windows", window),
        ("Pretraining", pretraining),
        ("Pretraining data", learnt),
        ("Tested on", "other rows of the same" if same_data(run.get("data"), context.get("data")) else tested),
        ("Time", _phrase("{:.0f} s for embedding, fitting and testing", seconds)),
        ("Versions", _listed(figures.get("versions") or run.get("versions"))),
        ("Licence of the weights", run.get("licence")),
    ]
    return [(term, str(text)[:600]) for term, text in found if text]


def same_data(learnt: Any, tested: Any) -> bool:
    """Whether two descriptions of data (`Source.describe`) are of the same.

    Simulated ones are, if they are of one population, and of the same detectors, PSDs and background; recorded ones
    wherever they lie.
    """
    decisive = ("source", "population", "psds", "detectors", "noise", "background")
    learnt, tested = plain(_dict(learnt)), plain(_dict(tested))
    if learnt.get("source") == tested.get("source") == "simulated":
        return all(learnt.get(key) == tested.get(key) for key in decisive)
    return {**learnt, "spec": ""} == {**tested, "spec": ""}


def example_caption(example: Example) -> str:
    """What the window is and what to look for."""
    what = "noise" if example.title == "Worst false alarm" else "a window"
    if example.snr is not None:
        what = f"a signal of network SNR {example.snr:.1f}"
    elif example.merger is not None:
        what = "a signal"
    if example.merger is not None:
        what += " that merges at the triangles"
    text = f"{what[0].upper()}{what[1:]}, statistic {example.score:.1f}, id {example.id}."
    hint = HINTS.get(example.title)
    return text + (f" Look for {hint}." if hint else "")


def number(value: float) -> str:
    """Three digits, four where three would round to 1 and four do not."""
    return f"{value:.4f}" if 0.9995 <= value < 0.99995 else f"{value:.3f}"


def percent(value: float) -> str:
    """Whole percents that never round to none or all."""
    if 0 < value < 0.01 or 0.99 < value < 1:
        return "less than 1%" if value < 0.5 else "more than 99%"
    return f"{100 * value:.0f}%"


def _cell(entry: dict[str, Any] | None) -> tuple[str, str]:
    if not entry or entry.get("value") is None:
        return "", ""
    ci95 = entry.get("ci95")
    return number(entry["value"]), f"{number(ci95[0])}{DASH}{number(ci95[1])}" if ci95 else ""


def _phrase(form: str, value: Any) -> str | None:
    """``form`` with the value in it, as plain text where the value is not of the kind expected."""
    if value is None or value == "":
        return None
    try:
        return form.format(value)
    except (ValueError, TypeError):
        return str(value)


def _join(*parts: Any) -> str:
    return "; ".join(str(part) for part in parts if part)


def _data(node: Any) -> str:
    """A data fingerprint in a line: what is simple in it; a population by name."""
    if not isinstance(node, dict):
        return "" if node is None else str(node)
    simple = [str(node["source"])] if node.get("source") else []
    for key, value in node.items():
        if isinstance(value, dict) and "name" in value:
            value = value["name"]
        if key != "source" and isinstance(value, str | int | float) and value != "":
            simple.append(f"{key.replace('_', ' ')} {value}")
    return ", ".join(simple)


def _dict(node: Any) -> dict[str, Any]:
    return node if isinstance(node, dict) else {}


def _listed(node: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in _dict(node).items())
