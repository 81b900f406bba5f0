"""Pictures of a scan: the statistic along time, and the strain around each loud trigger."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from gwtwins.probes.plots import DPI, ENERGY_TOP, LIGHT, Theme, style
from gwtwins.probes.qtransform import q_transform
from gwtwins.probes.triggers import Series, StrainBetween, Trigger
from gwtwins.strain.coverage import Span

Array = NDArray[np.float64]

BEFORE, AFTER = 1.2, 0.4  # seconds shown around a merger: 10+10 Msun is at 45 Hz 1.2 s before it
_MARGIN = 0.5  # seconds more on each side go into the Q-transform, whose energies fall off at its ends
_NUMBERED, _MARKED = 5, 30  # of the loudest triggers, in the picture of the statistic


def statistic(
    series: Series,
    triggers: Sequence[Trigger],
    threshold: float,
    analysed: dict[str, list[Span]],
    span: Span,
    theme: Theme = LIGHT,
) -> Figure:
    """The statistic along time, and what was analysed.

    A window stands at its middle, a trigger at its merger.

    Args:
        series: all windows of the scan; those within ``span`` are drawn.
        triggers: all of the scan, the loudest first; a trigger's number is its place among them.
        threshold: of the triggers.
        analysed: for each detector the stretches that were.
        span: GPS time of the picture.
    """
    d = len(analysed)
    figure = Figure(figsize=(9.0, 3.3 + 0.22 * d), dpi=DPI, facecolor=theme.paper, layout="constrained")
    main, bars = figure.subplots(2, 1, sharex=True, height_ratios=[3.0, 0.22 * d])
    style(main, theme)
    style(bars, theme)
    delay = series.window / 2
    start = series.start
    inside = (start >= span.start) & (start < span.end)
    time, stat = start[inside] + delay - span.start, series.stat[inside]
    for low, high in _unseen(time - delay, series.window, span.end - span.start):
        main.axvspan(low, high, color=theme.faint, alpha=0.55, lw=0)
    # A line must not bridge what was not analysed.
    breaks = np.flatnonzero(np.diff(time) > 1.5 * series.stride) + 1
    main.plot(np.insert(time, breaks, np.nan), np.insert(stat, breaks, np.nan), color=theme.probe, lw=1.0)
    main.axhline(threshold, color=theme.ink, lw=0.8, ls=(0, (6, 2)))
    for number, trigger in enumerate(triggers[:_MARKED], 1):
        at = trigger.time - span.start
        if not span.start <= trigger.time < span.end:
            continue
        main.plot(at, trigger.stat, "v", color=theme.signal, ms=5 if number <= _NUMBERED else 3.5)
        if number <= _NUMBERED:
            main.annotate(
                str(number),
                (at, trigger.stat),
                (0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=8.5,
                color=theme.signal,
            )
    main.margins(y=0.12)
    main.set_ylabel("Statistic (logit)")
    _label_bars(bars, analysed, span, theme)
    bars.set_xlim(0, span.end - span.start)
    bars.set_xlabel(f"Seconds after GPS {span.start:.0f}")
    return figure


def trigger(
    shown: Trigger,
    number: int,
    strain_between: StrainBetween,
    detectors: Sequence[str],
    f_low: float,
    f_high: float,
    theme: Theme = LIGHT,
) -> Figure:
    """For each detector the whitened strain above its Q-transform, all over the same time, from the trigger.

    One above the other: what the detectors have at the same moment stands in one line.
    """
    d = len(detectors)
    figure, panels = _stack(d, theme)
    low, high = shown.time - BEFORE - _MARGIN, shown.time + AFTER + _MARGIN
    cuts = {name: strain_between(name, low, high) for name in detectors}
    loudest = [np.abs(_middle(*cut)).max(where=np.isfinite(_middle(*cut)), initial=0.0) for cut in cuts.values()]
    reach = max(5.0, 1.05 * max(loudest))
    image = None
    for (wave, tiles), name in zip(panels, detectors, strict=True):
        wave.set(ylim=(-reach, reach), ylabel="Noise σ")
        wave.yaxis.set_major_locator(FixedLocator([0, float(f"{0.8 * reach:.1g}")]))
        wave.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
        own = f"{name} adds {shown.part[name]:+.1f}" if name in shown.part else f"{name}: not looked at here"
        wave.set_title(own, loc="left", fontsize=9, pad=3, color=theme.ink)
        tiles.set(yscale="log", ylim=(f_low, f_high), ylabel="Hz")
        tiles.yaxis.set_major_locator(FixedLocator([f for f in (20, 50, 100, 200, 500) if f_low <= f <= f_high]))
        tiles.yaxis.set_minor_locator(NullLocator())
        tiles.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        tiles.grid(False)
        strain, rate = cuts[name]
        if not np.isfinite(_middle(strain, rate)).any():
            wave.text(0.5, 0.5, "no data", transform=wave.transAxes, ha="center", va="center", color=theme.ink)
            continue
        time = np.arange(strain.size) / rate - BEFORE - _MARGIN
        wave.plot(time, strain, color=theme.ink, lw=0.45)
        q = q_transform(np.nan_to_num(strain), rate, f_low=f_low, f_high=f_high)
        shown_columns = slice(None, None, max(1, q.time.size // 1024))
        energy = np.where(np.isfinite(strain), q.energy, np.nan)[:, shown_columns]
        image = tiles.pcolormesh(
            time[shown_columns], q.frequency, energy, vmin=0, vmax=ENERGY_TOP, cmap="viridis", shading="nearest"
        )
        for ax in (wave, tiles):
            ax.axvline(0, color=theme.signal, lw=0.8, alpha=0.9)
    panels[0][0].set_xlim(-BEFORE, AFTER)
    panels[-1][1].set_xlabel("Seconds from the trigger")
    panels[-1][1].tick_params(labelbottom=True)
    title = f"Trigger {number}: GPS {shown.time:.2f}, statistic {shown.stat:.2f}"
    figure.suptitle(title, fontsize=10, color=theme.ink)
    if image is not None:
        bar = figure.colorbar(
            image, ax=[ax for pair in panels for ax in pair], pad=0.015, aspect=18, shrink=0.4, extend="max"
        )
        bar.outline.set_visible(False)  # type: ignore[operator]
        bar.ax.tick_params(colors=theme.ink, labelsize=8, width=0.6)
        bar.set_label("Energy (noise: 1)", color=theme.ink, fontsize=8.5)
    return figure


def _stack(d: int, theme: Theme) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """For each of ``d`` detectors a panel of strain and one of its Q-transform, over one axis of time."""
    close = ConstrainedLayoutEngine(h_pad=0.02, hspace=0.0)
    figure = Figure(figsize=(5.0, 0.9 + 1.75 * d), dpi=DPI, facecolor=theme.paper, layout=close)
    axes = figure.subplots(2 * d, 1, sharex=True, height_ratios=[0.5, 1.1] * d).tolist()
    for ax in axes:
        style(ax, theme)
        ax.yaxis.label.set_fontsize(8.5)
        ax.tick_params(labelbottom=False)
    return figure, list(zip(axes[::2], axes[1::2], strict=True))


def _middle(strain: Array, rate: float) -> Array:
    """``strain`` (T,) without the margins."""
    return strain[round(_MARGIN * rate) : strain.size - round(_MARGIN * rate)]


def _unseen(start: Array, window: float, length: float) -> list[tuple[float, float]]:
    """The stretches of [0, length] that no window lies on."""
    begin, end = np.append(start, length), np.insert(start + window, 0, 0.0)
    return [(float(low), float(high)) for low, high in zip(end, begin) if high > low + 1e-3]


def _label_bars(ax: Axes, analysed: dict[str, list[Span]], span: Span, theme: Theme) -> None:
    """A row for each detector, filled where it was analysed."""
    for row, spans in enumerate(analysed.values()):
        ranges = [(s.start - span.start, s.end - s.start) for s in spans if s.end > span.start and s.start < span.end]
        ax.broken_barh(ranges, (row - 0.32, 0.64), color=theme.noise, lw=0)
    ax.set_ylim(len(analysed) - 0.45, -0.55)
    ax.yaxis.set_major_locator(FixedLocator(list(range(len(analysed)))))
    ax.set_yticklabels(list(analysed), color=theme.ink)
    ax.grid(False)
    ax.tick_params(axis="y", length=0)
