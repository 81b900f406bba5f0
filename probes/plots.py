"""The report's pictures: each a small matplotlib figure, readable at the width of a phone, in light or dark.

Colours mean the same thing in all of them: blue is the probe, vermilion signals, grey noise; limits are lines
of their own dash in the text's colour. They can be told apart with any colour vision (Okabe & Ito 2008) and
in print. Nothing that came from outside (ids, file names) is drawn, so nothing is read as mathematics.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from numpy.typing import NDArray

from gwtwins.probes import metrics
from gwtwins.probes.performance import Performance
from gwtwins.probes.qtransform import q_transform
from gwtwins.probes.results import Example

Array = NDArray[np.floating]

WIDTH, HEIGHT = 4.6, 3.6  # inches: text of 9 points is 9 pixels on a phone of 360, 15 on a wide page
DPI = 180
DASHES = ((0, (6, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1.5, 1, 1.5, 1, 1.5)))
ABOVE: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2, "borderaxespad": 0.2}
ENERGY_TOP = 25.0  # of the Q-transform's colours: noise goes beyond it in one tile of 1e11


@dataclass(frozen=True)
class Theme:
    """Colours on a light or dark page."""

    paper: str
    ink: str
    faint: str
    probe: str
    signal: str
    noise: str
    rising: str
    """Colour map whose upper end stands out most."""


LIGHT = Theme("#ffffff", "#1f2933", "#d9dee3", "#0072B2", "#D55E00", "#7b8794", "viridis_r")
DARK = Theme("#171c22", "#e4e7eb", "#3a434d", "#56B4E9", "#FF8A3D", "#8d99a6", "viridis")


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def roc(
    theme: Theme, probe: Performance, limits: Sequence[Performance], band: dict[str, Array], n_noise: int
) -> Figure:
    """Efficiency against false-alarm probability, down to one noise row; ``band`` has fap, low and high."""
    figure, ax = _axes(theme)
    ax.set_xscale("log")
    ax.set_xlim(1 / n_noise, 1)
    ax.set_ylim(0, 1.02)
    few = min(1.0, metrics.MIN_FALSE_ALARMS / n_noise)
    ax.axvspan(1 / n_noise, few, color=theme.faint, alpha=0.45, lw=0)
    text = f"fewer than {metrics.MIN_FALSE_ALARMS}\nfalse alarms"
    ax.text(np.sqrt(few / n_noise), 0.02, text, ha="center", fontsize=7.5, color=theme.ink)
    for dash, limit in _dashed(limits):
        if limit.roc is not None:
            ax.plot(*_from_one(limit.roc, n_noise), color=theme.ink, ls=dash, lw=1.3, label=limit.title)
        else:
            points = [(p, e["value"]) for p, e in limit.efficiency.items() if e["value"] is not None]
            ax.plot(*zip(*points), "D", color=theme.ink, ms=4, mfc=theme.paper, label=limit.title)
    if band["fap"].size:
        ax.fill_between(band["fap"], band["low"], band["high"], color=theme.probe, alpha=0.25, lw=0)
    if probe.roc is not None:
        ax.plot(*_from_one(probe.roc, n_noise), color=theme.probe, lw=1.8, label=probe.title)
    ax.set_xlabel("False-alarm probability (share of noise windows)")
    ax.set_ylabel("Efficiency (share of signals found)")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    _legend(ax, theme, loc="lower right")
    return figure


def efficiency_vs_snr(theme: Theme, probe: Performance, limits: Sequence[Performance]) -> Figure:
    """Efficiency in bins of network SNR: points with 95% intervals, limits as lines."""
    figure, ax = _axes(theme)
    for dash, limit in _dashed(limits):
        bins = [b for b in limit.by_snr if b["value"] is not None]
        if bins:
            x = [np.mean(b["snr"]) for b in bins]
            ax.plot(x, [b["value"] for b in bins], color=theme.ink, ls=dash, lw=1.3, label=limit.title)
    bins = [b for b in probe.by_snr if b["value"] is not None]
    low, value, high = np.array([[b["ci95"][0], b["value"], b["ci95"][1]] for b in bins]).T
    edges = np.array([b["snr"] for b in bins])
    x = edges.mean(axis=1)
    spread = np.maximum([value - low, high - value], 0.0)
    ax.errorbar(x, value, spread, fmt="o", ms=5, lw=1.5, capsize=3, color=theme.probe, label=probe.title)
    ax.set_xlim(edges.min(), edges.max())
    ax.xaxis.set_major_locator(FixedLocator(sorted(set(edges.ravel()))))
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("Network SNR")
    ax.set_ylabel("Efficiency (share of signals found)")
    _legend(ax, theme, loc="lower right")
    return figure


def scores(theme: Theme, score: Array, label: Array | None, thresholds: dict[float, float]) -> Figure:
    """Histogram of the statistic by class on a log axis, with the thresholds of false-alarm probabilities."""
    figure, ax = _axes(theme)
    edges = np.histogram_bin_edges(score, bins=int(np.clip(np.sqrt(score.size), 15, 60))).tolist()
    if label is None:
        parts = [("all windows", score, theme.probe)]
    else:
        parts = [("noise", score[label != 1], theme.noise), ("signals", score[label == 1], theme.signal)]
    for name, values, colour in parts:
        if values.size:
            ax.hist(values, edges, histtype="stepfilled", color=colour, alpha=0.3)
            ax.hist(values, edges, histtype="step", color=colour, lw=1.4, label=f"{name} ({values.size:,})")
    ax.set_yscale("log")
    ax.set_ylim(bottom=0.7)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    for fap, threshold in thresholds.items():
        ax.axvline(threshold, color=theme.ink, lw=0.9)
        text, where = f" 1 in {1 / fap:,.0f}", ax.get_xaxis_transform()
        ax.text(threshold, 1, text, rotation=90, ha="right", va="top", fontsize=7.5, color=theme.ink, transform=where)
    ax.set_xlabel("Statistic (logit of the probe)")
    ax.set_ylabel("Windows per bin")
    _legend(ax, theme, loc="upper right")
    return figure


def calibration(theme: Theme, bins: Sequence[dict[str, Any]]) -> Figure:
    """Share of signals against the probability given, in bins, with 95% intervals."""
    figure, ax = _axes(theme)
    ax.plot([0, 1], [0, 1], color=theme.ink, lw=1, ls=DASHES[0], label="probabilities true")
    kept = [b for b in bins if b["n"]]
    low, value, high = np.array([[b["ci95"][0], b["fraction"], b["ci95"][1]] for b in kept]).T
    x = [b["mean_p"] for b in kept]
    spread = np.maximum([value - low, high - value], 0.0)
    ax.errorbar(x, value, spread, fmt="o", ms=5, lw=1.5, capsize=3, color=theme.probe, label="frozen probe")
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel("Probability given by the probe")
    ax.set_ylabel("Share that are signals")
    _legend(ax, theme, loc="upper left")
    return figure


def label_curve(
    theme: Theme, curve: Sequence[dict[str, Any]], key: str, name: str, limits: Sequence[tuple[str, float]]
) -> Figure:
    """A figure against the number of labels: mean and standard deviation over draws; limits use none."""
    figure, ax = _axes(theme)
    x, value = [entry["n_labels"] for entry in curve], np.array([entry[key] for entry in curve])
    spread = np.array([entry.get(f"{key}_sd") or 0.0 for entry in curve])
    for dash, (title, height) in list(zip(DASHES, limits))[::-1]:
        ax.axhline(height, color=theme.ink, ls=dash, lw=1.3, label=title)
    ax.plot(x, value, color=theme.probe, lw=1)
    ax.errorbar(x, value, spread, fmt="o", ms=5, lw=1.5, capsize=3, color=theme.probe, label="frozen probe")
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(x))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    ax.set_ylim(0 if key == "efficiency" else 0.5, 1.02)
    ax.set_xlabel("Labels")
    ax.set_ylabel(name)
    _legend(ax, theme, loc="lower right")
    return figure


def embedding_by_label(theme: Theme, xy: Array, variance: Array, label: Array) -> Figure:
    """The embeddings' first two principal components (N, 2), signals and noise."""
    figure, ax = _axes(theme)
    colour = np.where(label == 1, theme.signal, theme.noise)
    ax.scatter(xy[:, 0], xy[:, 1], s=_size(len(xy)), c=colour, lw=0, alpha=0.6)
    for name, value in (("signals", theme.signal), ("noise", theme.noise)):
        ax.scatter([], [], s=28, c=value, lw=0, label=name)
    _component_labels(ax, variance)
    _legend(ax, theme, **ABOVE)
    return figure


def embedding_by_value(
    theme: Theme, xy: Array, variance: Array, value: Array, name: str, label: Array | None = None
) -> Figure:
    """The same map with points coloured by ``value`` (N,); rows without one, noise, are grey."""
    figure, ax = _axes(theme)
    coloured = np.isfinite(value) & (np.ones(len(xy), dtype=bool) if label is None else label == 1)
    if not coloured.all():
        rest = xy[~coloured]
        ax.scatter(rest[:, 0], rest[:, 1], s=_size(len(xy)), c=theme.noise, lw=0, alpha=0.35, label="noise")
        _legend(ax, theme, **ABOVE, markerscale=2.5)
    drawn, shade = xy[coloured], value[coloured]
    low, high = np.percentile(shade, [1, 99])
    options = {"cmap": theme.rising, "vmin": low, "vmax": high, "alpha": 0.8, "lw": 0}
    points = ax.scatter(drawn[:, 0], drawn[:, 1], s=_size(len(xy)), c=shade, **options)
    bar = figure.colorbar(points, ax=ax, pad=0.02, aspect=30)
    if bar.solids is not None:
        bar.solids.set_alpha(1.0)
    _style_bar(bar, theme)
    bar.set_label(name, color=theme.ink)
    _component_labels(ax, variance)
    return figure


def example(theme: Theme, shown: Example, detectors: Sequence[str], f_low: float, f_high: float) -> Figure:
    """Whitened strain and its Q-transform, one above the other for each detector, over the same time."""
    strain = np.asarray(shown.strain, dtype=np.float64)
    time = np.arange(strain.shape[-1]) / shown.rate
    reach = max(5.0, 1.05 * float(np.abs(strain).max(initial=0.0)))
    q = q_transform(strain, shown.rate, f_low=f_low, f_high=f_high)
    step = max(1, q.time.size // 1024)
    figure, panels, bar_ax = _stack(theme, len(detectors))
    image = None
    for (wave, tiles), name, x, energy in zip(panels, detectors, strain, q.energy):
        wave.set(xlim=(0, time[-1]), ylim=(-reach, reach), ylabel="Noise σ")
        wave.text(0, 1.03, name, transform=wave.transAxes, weight="bold", fontsize=9.5, color=theme.ink)
        wave.tick_params(labelbottom=False, bottom=False)
        wave.yaxis.set_major_locator(FixedLocator([0, round(0.8 * reach)]))
        tiles.set(xlim=(0, time[-1]), ylim=(f_low, f_high), yscale="log", ylabel="Hz")
        ticks = [f for f in (20, 50, 100, 200, 500, 1000) if f_low <= f <= f_high]
        tiles.yaxis.set(major_locator=FixedLocator(ticks), minor_locator=NullLocator())
        tiles.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        tiles.grid(False)
        if not np.any(x):
            wave.text(0.5, 0.5, "no data", transform=wave.transAxes, ha="center", va="center", color=theme.ink)
            continue
        wave.plot(time, x, color=theme.ink, lw=0.45)
        image = tiles.pcolormesh(
            q.time[::step], q.frequency, energy[:, ::step], vmin=0, vmax=ENERGY_TOP, cmap="viridis"
        )
        if shown.merger is not None:
            top = wave.get_xaxis_transform()
            wave.plot(shown.merger, 1.06, "v", ms=5, color=theme.signal, transform=top, clip_on=False)
    panels[-1][1].set_xlabel("Time in the window (s)")
    panels[-1][1].tick_params(labelbottom=True)
    if image is not None:
        bar = figure.colorbar(image, cax=bar_ax, orientation="horizontal", extend="max")
        _style_bar(bar, theme)
        bar.set_label("Energy (noise average = 1)", color=theme.ink, fontsize=8.5)
    else:
        bar_ax.remove()
    return figure


def _stack(theme: Theme, d: int) -> tuple[Figure, list[tuple[Axes, Axes]], Axes]:
    """For each of ``d`` detectors a strain and a Q-transform panel close together; and room for a colour bar."""
    strain, tiles, close, apart, left, right, top, bottom = 0.55, 1.15, 0.05, 0.3, 0.52, 0.12, 0.25, 0.95
    width, height = 4.4, top + d * (strain + close + tiles) + (d - 1) * apart + bottom  # all in inches
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=theme.paper)

    def panel(y: float, tall: float, inset: float = 0.0) -> Axes:
        across = width - left - right - 2 * inset
        ax = figure.add_axes(((left + inset) / width, y / height, across / width, tall / height))
        style(ax, theme)
        ax.yaxis.label.set_fontsize(8.5)
        return ax

    panels, y = [], height - top
    for _ in range(d):
        wave = panel(y - strain, strain)
        y -= strain + close + tiles
        panels.append((wave, panel(y, tiles)))
        panels[-1][1].tick_params(labelbottom=False)
        y -= apart
    return figure, panels, panel(0.4, 0.08, inset=0.4)


def _dashed(limits: Sequence[Performance]) -> list[tuple[Any, Performance]]:
    """The limits with their dashes, the highest first as it is on the axes."""
    return list(zip(DASHES, limits))[::-1]


def _from_one(curve: tuple[Array, Array], n_noise: int) -> tuple[Array, Array]:
    """A ROC from one false alarm on: a logarithmic axis has no room for none."""
    x, y = curve
    first = max(0, int(np.searchsorted(x, 1.000001 / n_noise, side="right")) - 1)
    return np.maximum(x[first:], 1 / n_noise), y[first:]


def _axes(theme: Theme) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor=theme.paper, layout="constrained")
    ax = figure.add_subplot()
    style(ax, theme)
    return figure, ax


def style(ax: Axes, theme: Theme) -> None:
    """Thin axes at the left and below, a faint grid behind the data, all in the theme's colours."""
    ax.set_facecolor(theme.paper)
    ax.tick_params(colors=theme.ink, which="both", labelsize=8.5, width=0.6, length=3)
    ax.tick_params(which="minor", length=1.5)
    for side, spine in ax.spines.items():
        spine.set_color(theme.ink)
        spine.set_linewidth(0.6)
        spine.set_visible(side in ("left", "bottom"))
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set_color(theme.ink)
        axis.label.set_fontsize(9.5)
    ax.grid(color=theme.faint, lw=0.5)
    ax.set_axisbelow(True)


def _legend(ax: Axes, theme: Theme, **options: Any) -> None:
    ax.legend(
        labelcolor=theme.ink, facecolor=theme.paper, edgecolor="none", framealpha=0.8, fontsize=8.5, **options
    )


def _style_bar(bar: Any, theme: Theme) -> None:
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=theme.ink, labelsize=8, width=0.6)


def _component_labels(ax: Axes, variance: Array) -> None:
    ax.set_xlabel(f"First principal component ({100 * variance[0]:.0f}% of the variance)")
    ax.set_ylabel(f"Second ({100 * variance[1]:.0f}%)")


def _size(n: int) -> float:
    """Area of a point so that few are seen and many do not hide each other."""
    return float(np.clip(3e4 / max(n, 1), 3.0, 25.0))
