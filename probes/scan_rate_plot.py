"""How often a statistic is reached: by the triggers of a scan, and by its background of time slides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gwtwins.probes.false_alarm_rate import YEAR, rate
from gwtwins.probes.plots import ABOVE, DPI, HEIGHT, WIDTH, Theme, style
from gwtwins.probes.scan_result import Candidate, Network
from gwtwins.probes.scan_timeline import draw_candidates
from gwtwins.probes.scan_wording import duration

_UNITS = (("hour", 3600.0, 2 * 3600.0), ("day", 86400.0, 20 * 86400.0), ("year", YEAR, np.inf))
"""Of the rate: name, seconds, and up to how much searched time it suits."""


def cumulative_rate(theme: Theme, network: Network, candidates: Sequence[Candidate]) -> Figure:
    """Rate of triggers of a statistic or more, as found and as slid, with the slid one's 68% interval.

    Args:
        theme: colours.
        network: one with a background.
        candidates: the triggers of this network, the loudest first.
    """
    unit, length = next((name, seconds) for name, seconds, most in _UNITS if network.searched < most)
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor=theme.paper, layout="constrained")
    ax = figure.add_subplot()
    style(ax, theme)
    count = np.zeros(0, np.int64) if network.count is None else network.count
    total = np.cumsum(count[::-1])[::-1]
    edges = network.low + network.bin * np.arange(total.size + 1)
    rates = [rate(int(n), network.slid) for n in total]
    bounds = np.array([(r.value, r.low, r.high) for r in rates if r is not None]).reshape(-1, 3) * length / YEAR
    if total.size:
        value, least, most = bounds.T
        least, most = (np.append(ends, ends[-1]) for ends in (least, most))
        ax.fill_between(edges, least, most, step="post", color=theme.probe, alpha=0.25, lw=0)
        ax.stairs(value, edges, baseline=None, color=theme.probe, lw=1.6, label="noise (time slides)")
    floor = length / network.slid
    ax.axhline(floor, color=theme.ink, lw=0.9, ls=(0, (6, 2)), label=f"floor, one in {duration(network.slid)}")
    if network.searched:
        places = [(c.stat, (k + 1) * length / network.searched) for k, c in enumerate(candidates)]
        draw_candidates(ax, theme, candidates, places)
    ax.set_yscale("log")
    ax.set_ylim(bottom=floor / 2)
    ax.margins(x=0.06)
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}" if y >= 1 else f"{y:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("Statistic")
    ax.set_ylabel(f"Triggers per {unit} of this or more")
    ax.legend(labelcolor=theme.ink, facecolor=theme.paper, edgecolor="none", fontsize=8.5, **ABOVE)
    return figure
