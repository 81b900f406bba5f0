"""A scan along time: what was analysed of each detector, what was not and why, and the triggers above it.

Half a minute or months: time is cut into columns, and a column shows the share of its time that each state has. Where
the files are far apart, as those of single events are, the time between them is cut short.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import NDArray

from gwtwins.probes.plots import DPI, Theme, style
from gwtwins.probes.scan_result import Candidate, ScanResult
from gwtwins.probes.scan_wording import in_unit, utc
from gwtwins.strain.coverage import Span
from gwtwins.strain.detector_stream import GATED
from gwtwins.strain.segments import EDGE_REASON, SHORT_REASON
from gwtwins.strain.strain_blocks import NO_DATA, NO_FILE

Array = NDArray[np.float64]

WIDE, NARROW = 9.0, 4.2  # inches, on a page and on a phone
NUMBERED = 10  # of the loudest triggers
_COLUMNS, _LINES = 900, 24  # of the picture of a row
_BREAKS = 0.2  # of the axis at most for the time between stretches
_DAY = 86400.0
_LONG = {"s": "seconds", "min": "minutes", "h": "hours"}
# Okabe & Ito's colours, which the colour-blind can tell apart; what is no loss is pale.
KINDS = {
    "no file": (NO_FILE,),
    "no data": (NO_DATA,),
    "vetoed": ("fails ", "hardware injection"),
    "gated": (GATED,),
    "end of a stretch": (EDGE_REASON, SHORT_REASON),
}
"""Why strain was not analysed: kinds, and how the reasons in scan.json begin."""
OTHER = "other reason"
_COLOURS = {"vetoed": "#E69F00", "gated": "#CC79A7", "end of a stretch": "#009E73", OTHER: "#F0E442"}


def kind_of(why: str) -> str:
    """The kind of a reason."""
    return next((kind for kind, starts in KINDS.items() if why.startswith(starts)), OTHER)


class TimeAxis:
    """GPS time laid along an axis in seconds; between stretches far apart less room is left than time has passed."""

    def __init__(self, stretches: Sequence[Span]) -> None:
        self.stretches = list(stretches)
        start, end = (np.array([getattr(s, name) for s in stretches]) for name in ("start", "end"))
        gap = start[1:] - end[:-1]
        searched = float((end - start).sum())
        room = searched * _BREAKS / (1 - _BREAKS)
        self.broken = bool(gap.sum() > room)
        if self.broken:
            gap = np.minimum(gap, room / gap.size)
        self.start: Array = np.insert(np.cumsum((end - start)[:-1] + gap), 0, 0.0)
        """Place of each stretch's start."""
        self.end: Array = self.start + end - start
        self.gps: Array = start
        """GPS time there."""
        self._knots = np.stack([start, end], 1).ravel(), np.stack([self.start, self.end], 1).ravel()

    @property
    def length(self) -> float:
        """Seconds of the axis."""
        return float(self.end[-1])

    def place(self, gps: Array) -> Array:
        """Where GPS times lie on the axis."""
        return np.interp(gps, *self._knots)

    def shares(self, spans: Sequence[Span], columns: int = _COLUMNS) -> Array:
        """(columns,) the share of each column of the axis that spans, which do not overlap, cover."""
        edges = np.linspace(0.0, self.length, columns + 1)
        ordered = sorted(spans, key=lambda s: s.start)
        if not ordered:
            return np.zeros(columns)
        low, high = (self.place(np.array([getattr(s, name) for s in ordered])) for name in ("start", "end"))
        knots = np.stack([low, np.maximum(high, low)], 1).ravel()
        covered = np.concatenate([[0.0], np.cumsum(high - low)])
        total = np.interp(edges, knots, np.stack([covered[:-1], covered[1:]], 1).ravel())
        return np.clip(np.diff(total) / np.diff(edges), 0.0, 1.0)


def at_once(analysed: dict[str, list[Span]]) -> list[list[Span]]:
    """The time in which exactly 1, 2, ... of the detectors were analysed."""
    edges = sorted({edge for spans in analysed.values() for s in spans for edge in (s.start, s.end)})
    step = dict.fromkeys(edges, 0)
    for spans in analysed.values():
        for s in spans:
            step[s.start] += 1
            step[s.end] -= 1
    out: list[list[Span]] = [[] for _ in analysed]
    on = 0
    for low, high in zip(edges, edges[1:]):
        on += step[low]
        if on:
            out[on - 1].append(Span(low, high))
    return out


def timeline(theme: Theme, result: ScanResult, width: float = WIDE) -> Figure:
    """The triggers' statistic above a bar for each detector, and one for how many of them there were at once."""
    axis, d = TimeAxis(result.stretches), len(result.analysed)
    rows = 0.3 * (d + (d > 1))
    figure = Figure(figsize=(width, 3.1 + rows), dpi=DPI, facecolor=theme.paper, layout="constrained")
    main, bars = figure.subplots(2, 1, sharex=True, height_ratios=[2.0, rows])
    for ax in (main, bars):
        style(ax, theme)
    times = axis.place(np.array([c.time for c in result.candidates])).tolist()
    places = list(zip(times, [c.stat for c in result.candidates]))
    marks = draw_candidates(main, theme, result.candidates, places)
    main.axhline(result.threshold, color=theme.ink, lw=0.8, ls=(0, (6, 2)))
    main.margins(y=0.14)
    main.set_ylabel("Statistic")
    main.tick_params(labelbottom=False)
    keys = _draw_rows(bars, theme, axis, result)
    bars.set_xlim(0, axis.length)
    _label_time(bars, axis, width)
    if axis.broken:
        for at in (axis.end[:-1] + axis.start[1:]) / 2:
            main.axvline(at, color=theme.noise, lw=0.7, ls=(0, (1, 2)))
    columns = 4 if width > 6 else 2
    figure.legend(
        handles=[*marks, *keys],
        loc="outside lower center",
        ncols=columns,
        fontsize=8.5,
        labelcolor=theme.ink,
        facecolor=theme.paper,
        edgecolor="none",
    )
    return figure


def draw_candidates(
    ax: Axes, theme: Theme, candidates: Sequence[Candidate], places: Sequence[tuple[float, float]]
) -> list[Line2D]:
    """Triggers at ``places``, those that two detectors or more have seen filled, the loudest numbered; the key."""
    handles = []
    for together, marker, name in ((True, "v", "seen in two or more"), (False, "o", "in one or none")):
        rows = [at for c, at in zip(candidates, places) if (len(c.seen_in) > 1) == together]
        if rows:
            (line,) = ax.plot(*zip(*rows), marker, color=theme.signal, label=f"trigger {name}")
            line.set(markersize=5.5 if len(candidates) < 200 else 3.0)
            line.set_markerfacecolor(theme.signal if together else "none")
            handles.append(line)
    for candidate, at in zip(candidates, places):
        if candidate.number > NUMBERED:
            break
        ax.annotate(
            str(candidate.number),
            at,
            (0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=theme.signal,
        )
    return handles


def _draw_rows(ax: Axes, theme: Theme, axis: TimeAxis, result: ScanResult) -> list[Patch]:
    """The bars, from above: each detector's, and that of how many at once; what their colours mean."""
    colours = {**_COLOURS, "no file": theme.faint, "no data": theme.noise}
    found: dict[str, str] = {}
    names = list(result.detectors)
    for row, name in enumerate(names):
        states = {"analysed": result.analysed[name]}
        for kind in (*KINDS, OTHER):
            states[kind] = [s for s in result.left_out.get(name, []) if kind_of(s.why) == kind]
        shown = {kind: spans for kind, spans in states.items() if spans}
        tints = {kind: theme.probe if kind == "analysed" else colours[kind] for kind in shown}
        found |= tints
        _draw_row(ax, theme, axis, row, [(spans, to_rgb(tints[kind])) for kind, spans in shown.items()])
    ordered = [kind for kind in ("analysed", *KINDS, OTHER) if kind in found]
    keys = [Patch(color=found[kind], label=kind) for kind in ordered]
    if len(names) > 1:
        paper, ink = np.array(to_rgb(theme.paper)), np.array(to_rgb(theme.ink))
        counts = [(n, spans) for n, spans in enumerate(at_once(result.analysed), 1) if spans][::-1]
        tints_of = {n: tuple(paper + (ink - paper) * (0.1 + 0.6 * n / len(names))) for n, _ in counts}
        _draw_row(ax, theme, axis, len(names), [(spans, tints_of[n]) for n, spans in counts])
        keys += [Patch(color=tints_of[n], label=f"{n} detector{'s' * (n > 1)} at once") for n, _ in counts]
        names.append("at once")
    ax.set_ylim(len(names) - 0.45, -0.55)
    ax.yaxis.set_major_locator(FixedLocator(list(range(len(names)))))
    ax.set_yticklabels(names, color=theme.ink)
    ax.grid(False)
    ax.tick_params(axis="y", length=0)
    return keys


def _draw_row(
    ax: Axes, theme: Theme, axis: TimeAxis, row: int, states: Sequence[tuple[list[Span], tuple[float, ...]]]
) -> None:
    """One bar: in each column the states' shares on top of each other, the first below."""
    within = axis.shares(axis.stretches)  # a column at a stretch's end is filled or left empty, not half
    share = np.where(within > 0.5, 1 / np.maximum(within, 0.5), 0.0)
    tops = np.cumsum([axis.shares(spans) * share for spans, _ in states], axis=0) + 1e-9  # (states, columns)
    height = (np.arange(_LINES)[:, None, None] + 0.5) / _LINES
    which = (height > tops[None]).sum(axis=1)[::-1]  # (lines, columns); past the last state: nothing
    palette = np.array([*(colour for _, colour in states), to_rgb(theme.paper)])
    extent = (0.0, axis.length, row + 0.34, row - 0.34)
    ax.imshow(palette[which], extent=extent, aspect="auto", interpolation="nearest", origin="upper")


def _label_time(ax: Axes, axis: TimeAxis, width: float) -> None:
    """Ticks in a unit that suits, or at the starts of stretches where the axis has breaks."""
    between = " " if width > 6 else "\n"
    if not axis.broken:
        length, unit = in_unit(axis.length)
        scale = axis.length / length
        steps = ax.xaxis.get_major_locator()
        places = np.array([t for t in steps.tick_values(0, length) if 0 <= t <= length])  # type: ignore[attr-defined]
        every = 1 if width > 6 else 2
        ax.xaxis.set_major_locator(FixedLocator((places[::every] * scale).tolist()))
        ax.set_xticklabels([f"{t:g}" for t in places[::every]])
        began = f"GPS {axis.gps[0]:.0f},{between}{utc(axis.gps[0])} UTC"
        ax.set_xlabel(f"{_LONG.get(unit, unit).capitalize()} after {began}")
        return
    days = axis.gps[-1] - axis.gps[0] > 3 * _DAY
    apart = axis.length * (0.9 if days else 1.4) / width
    kept: list[int] = []
    for i, place in enumerate(axis.start):
        if not kept or place - axis.start[kept[-1]] > apart and axis.length - place > 0.9 * apart:
            kept.append(i)
    ax.xaxis.set_major_locator(FixedLocator(axis.start[kept].tolist()))
    ax.xaxis.set_minor_locator(NullLocator())
    words = [utc(gps).replace(" ", "\n") for gps in axis.gps[kept]]
    ax.set_xticklabels([text.split("\n")[0] if days else text for text in words], ha="left")
    ax.set_xlabel(f"Starts of stretches (UTC);{between}time between them is not to scale")
