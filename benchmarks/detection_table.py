"""The detection benchmark's table, in Markdown and JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gwtwins.benchmarks.detection_figures import FIGURES, REPLICATES, Judged, difference, over_seeds
from gwtwins.benchmarks.detection_rows import ROWS
from gwtwins.benchmarks.detection_training import NO_COUNT, TOLERANCE
from gwtwins.strain.command import write_text

_TITLES = {
    "auc": "AUC",
    "efficiency_0.01": "Efficiency at 1% false alarms",
    "efficiency_0.001": "Efficiency at 0.1% false alarms",
}
_DIGITS = {"auc": 4, "efficiency_0.01": 3, "efficiency_0.001": 3}
SIGNIFICANT = 2.0  # standard errors from which a difference is printed in bold
Results = dict[str, list["Result"]]


@dataclass
class Result:
    """All that one row reached with one seed."""

    node: dict[str, Any]
    replicates: dict[str, NDArray[np.floating]]

    def joined(self, other: Result) -> Result:
        """With the label counts of another part of the same row and seed; costs are those of the last."""
        by_labels = {**self.node["by_labels"], **other.node["by_labels"]}
        seconds = max(self.node["seconds"] or 0.0, other.node["seconds"] or 0.0)
        node = {**self.node, "by_labels": by_labels, "seconds": seconds}
        return Result(node, {**self.replicates, **other.replicates})


def judged(results: list[Result], count: str) -> list[Judged]:
    """Of each seed what it reached with ``count`` labels, where it has been made."""
    nothing = np.full((len(FIGURES), REPLICATES), np.nan)
    found = [(r.node["by_labels"].get(count), r.replicates.get(count, nothing)) for r in results]
    return [Judged(figures, replicates) for figures, replicates in found if figures]


def write_table(out: Path, results: Results, settings: dict[str, Any], against: str) -> str:
    """Write table.md and table.json into ``out``; the Markdown."""
    blocks = [heading(results, settings)]
    node: dict[str, Any] = {"settings": settings, "rows": {}}
    for group in dict.fromkeys(row.group for row in ROWS.values()):
        here = {name: found for name, found in results.items() if ROWS[name].group == group}
        if not here:
            continue
        blocks += [f"## {group[0].upper()}{group[1:]}", costs(here)]
        blocks += [f"**{_TITLES[figure]}**\n\n{figures(here, figure)}" for figure in FIGURES]
        base = against if against in here else next(iter(here))  # groups have test rows of their own
        if len(here) > 1:
            blocks.append(f"### Minus `{base}`, on the same test rows\n\n{_DIFFERENCES}")
            blocks += [f"**{_TITLES[figure]}**\n\n{differences(here, figure, base)}" for figure in FIGURES[:2]]
        for name, found in here.items():
            node["rows"][name] = {
                "title": ROWS[name].title,
                "group": group,
                "against": base,
                **summary(found, here[base]),
            }
    text = "\n\n".join(blocks) + "\n"
    write_text(out / "table.json", json.dumps(node, indent=1) + "\n")
    write_text(out / "table.md", text)
    return text


_DIFFERENCES = (
    "One standard error: of the test rows, which both share (paired bootstrap), and of training and draws of labels. "
    f"Bold from {SIGNIFICANT:g} of them on. Rows that need no labels are compared with the most labels of the other."
)


def heading(results: Results, settings: dict[str, Any]) -> str:
    """What the table is of."""
    seeds = max((len(found) for found in results.values()), default=0)
    budget = f"{settings['steps']:,} steps" if settings["steps"] else f"{settings['minutes']:g} minutes"
    return (
        f"{settings['test_rows']:,} test rows, half of them signals; {settings['noise_rows']:,} noise-only rows for "
        f"0.1% (dense, optimum, known: noise among the test rows). Budget of each training: {budget} (supervised with "
        "few labels: of each of the four that it takes, and "
        f"the sum is shown). Mean ± standard deviation over training seeds (at most {seeds}); "
        f"numbers of labels are drawn {settings['label_draws']} times below 6,000 (supervised: 3 times), and the mean "
        "is taken first."
    )


def costs(results: Results) -> str:
    """What the training of each row took."""
    lines = ["| | seeds | steps | training, s | parameters | samples/s |", "|---|---|---|---|---|---|"]
    late = []
    for name, found in results.items():
        nodes = [r.node for r in found]
        steps, seconds, samples = (_means(nodes, key) for key in ("steps", "seconds", "samples"))
        rate = samples / seconds if samples and seconds and "untrained" not in name else None
        shares = [node.get("share_of_budget", 1.0) for node in nodes]
        late += [f"`{name}` ({share:.2f})" for share in shares if abs(share - 1) > TOLERANCE][:1]
        cells = [f"{len(nodes)}", _whole(steps), _whole(seconds), _whole(_means(nodes, "parameters")), _whole(rate)]
        lines.append(f"| {ROWS[name].title} (`{name}`) | {' | '.join(cells)} |")
    if late:
        low, high = 1 - TOLERANCE, 1 + TOLERANCE
        lines += ["", f"Not within {low:g} to {high:g} of the budget: {', '.join(late)}."]
    return "\n".join(lines)


def _means(nodes: list[dict[str, Any]], key: str) -> float | None:
    values = [node[key] for node in nodes if node.get(key) is not None]
    return mean(values) if len(values) == len(nodes) else None


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def counts_of(results: Results) -> list[str]:
    """The columns: label counts from few to many, then what needs none."""
    found = {count for some in results.values() for r in some for count in r.node["by_labels"]}
    return sorted(found, key=lambda count: (count == NO_COUNT, int(count) if count != NO_COUNT else 0))


def figures(results: Results, figure: str) -> str:
    """A figure of each row, by labels."""
    counts = counts_of(results)
    rows = []
    for name, found in results.items():
        cells = [_cell(over_seeds(judged(found, count), figure), _DIGITS[figure]) for count in counts]
        rows.append((ROWS[name].title, cells))
    return _columns(counts, rows)


def differences(results: Results, figure: str, against: str) -> str:
    """How much more of a figure each row of a group has than ``against``, by labels."""
    counts = counts_of(results)
    rows = []
    for name, found in results.items():
        if name != against:
            compared = [_compared(found, results[against], count, figure) for count in counts]
            rows.append((ROWS[name].title, [_signed(one, _DIGITS[figure]) for one in compared]))
    return _columns(counts, rows)


def _compared(found: list[Result], others: list[Result], count: str, figure: str) -> dict[str, float] | None:
    most = max((c for r in others for c in r.node["by_labels"] if c != NO_COUNT), key=int, default=NO_COUNT)
    mine, theirs = judged(found, count), judged(others, most if count == NO_COUNT else count)
    return difference(mine, theirs, figure) if mine and theirs else None


def _columns(counts: list[str], rows: list[tuple[str, list[str]]]) -> str:
    titles = ["no labels, or endless" if count == NO_COUNT else f"{int(count):,} labels" for count in counts]
    lines = [f"| | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    return "\n".join([*lines, *(f"| {title} | {' | '.join(cells)} |" for title, cells in rows)])


def _cell(found: tuple[float, float | None] | None, digits: int) -> str:
    if found is None:
        return ""
    value, spread = found
    return f"{value:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def _signed(found: dict[str, float] | None, digits: int) -> str:
    if found is None or not np.isfinite(found["error"]):
        return ""
    text = f"{found['value']:+.{digits}f} ± {found['error']:.{digits}f}"
    return f"**{text}**" if abs(found["value"]) > SIGNIFICANT * found["error"] else text


def summary(found: list[Result], others: list[Result]) -> dict[str, Any]:
    """A row as JSON: its figures over seeds, each seed's own, and how they compare with those of another row."""
    by_labels: dict[str, Any] = {}
    for count in counts_of({"": found}):
        entry: dict[str, Any] = {}
        for figure in FIGURES:
            pair = over_seeds(judged(found, count), figure)
            entry[figure] = None if pair is None else {"mean": pair[0], "sd": pair[1]}
            less = _compared(found, others, count, figure)
            finite = less is not None and bool(np.isfinite(less["error"]))
            entry[f"{figure}_minus"] = less if finite else None
        by_labels[count] = entry
    return {"by_labels": by_labels, "seeds": [r.node for r in found]}
