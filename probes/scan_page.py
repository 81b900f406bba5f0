"""The page of a scan: ``scan.html``, which holds its pictures and needs nothing else.

python -m gwtwins.probes.scan_page OUT        draw it anew from the folder that scan_strain.py wrote
"""

from __future__ import annotations

import sys
import time
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from gwtwins.probes import page, scan_wording
from gwtwins.probes.page import Picture
from gwtwins.probes.scan_rate_plot import cumulative_rate
from gwtwins.probes.scan_result import SEEN, Candidate, Network, ScanResult, read_scan
from gwtwins.probes.scan_timeline import NARROW, WIDE, timeline
from gwtwins.strain.errors import InputError, run_command

PAGE = "scan.html"
LISTED = 10  # triggers in the table; the others stand in triggers.csv
_NETWORKS = 4  # pictures of the background
_FILES = 1000  # names of strain files
_STATISTICS = 4  # of the statistic along time


def write_page(out: Path) -> Path:
    """Write ``out/scan.html`` from what a finished scan left in ``out``; the path of the page.

    Raises:
        InputError: ``out`` does not hold a finished scan.
    """
    result = read_scan(out)
    plots = result.folder / "plots"
    plots.mkdir(exist_ok=True)
    coverage_columns, coverage_rows = scan_wording.coverage_table(result)
    network_columns, network_rows = scan_wording.network_table(result.networks)
    shown = [(c, path) for c in result.candidates if (path := result.plot(f"trigger-{c.number}.png"))]
    triggers = scan_wording.trigger_rows(result.candidates[:LISTED], result.detectors)
    anchors = {c.number: f"trigger-{c.number}" for c, _ in shown}
    statistics, left = _statistics(result)
    page.render_page(
        result.folder / PAGE,
        "scan_page.html",
        title=f"Scan {result.folder.resolve().name}",
        headline=scan_wording.headline(result),
        summary=scan_wording.summary(result),
        detectors=result.detectors,
        triggers=[{**row, "anchor": anchors.get(row["number"])} for row in triggers],
        trigger_words=_trigger_words(result),
        notes=scan_wording.notes(result),
        timeline=page.drawn(_timeline(result), plots),
        coverage_columns=coverage_columns,
        coverage_rows=coverage_rows,
        rates=[page.drawn(_rates(network, result), plots) for network in _with_background(result)],
        network_columns=network_columns,
        network_rows=network_rows,
        unslid=scan_wording.unslid(result.networks),
        pictures=[_strain(candidate, path, result) for candidate, path in shown],
        statistics=statistics,
        statistics_left=left,
        made=scan_wording.made(result),
        files=result.files,
        files_shown=result.files[:_FILES],
        written=f"Written by gwtwins {metadata.version('gwtwins')} on {time.strftime('%Y-%m-%d %H:%M %Z')}.",
    )
    return result.folder / PAGE


def _trigger_words(result: ScanResult) -> str:
    count = len(result.candidates)
    some = f"The {LISTED} loudest of {count:,}; all are in triggers.csv." if count > LISTED else "All triggers."
    return (
        f"{some} Under a detector stands by how much the statistic, a log-odds, would fall had that detector heard "
        f"noise; {SEEN:g} or more is called seen."
    )


def _timeline(result: ScanResult) -> Picture:
    shares = ", ".join(
        f"{name} {scan_wording.duration(sum(s.end - s.start for s in spans))}"
        for name, spans in result.analysed.items()
    )
    caption = (
        "Above, the triggers over the threshold (dashed): filled where two detectors or more saw one, numbered as in "
        "the table. Below, each detector; where a colour fills part of a bar, it held for that share of the time."
    )
    alt = f"Timeline of the scan: triggers, and what was analysed of each detector ({shares}) and what was not."
    return Picture(
        "timeline",
        "Along time",
        caption,
        alt,
        partial(timeline, result=result, width=WIDE),
        partial(timeline, result=result, width=NARROW),
    )


def _with_background(result: ScanResult) -> list[Network]:
    """Networks worth a picture: those that were searched, the longest first."""
    return [n for n in result.networks if n.slid and n.searched][:_NETWORKS]


def _rates(network: Network, result: ScanResult) -> Picture:
    names = " ".join(network.names)
    candidates = [c for c in result.candidates if c.network == network.names]
    caption = (
        "Markers far to the right of the line are louder than what noise does as often; the band holds 68%. In the "
        "slides each signal's strain in one detector still meets the noise of the others, which lifts the line's end."
    )
    loudest = f"up to {network.loudest:.1f}" if network.loudest is not None else "with no trigger"
    found = f"up to {candidates[0].stat:.1f}" if candidates else "none"
    alt = f"Cumulative rate of triggers against the statistic for {names}: time slides {loudest}, triggers {found}."
    draw = partial(cumulative_rate, network=network, candidates=candidates)
    return Picture(f"rate-{'-'.join(network.names)}", names, caption, alt, draw)


def _strain(candidate: Candidate, path: Path, result: ScanResult) -> dict[str, Any]:
    title = f"Trigger {candidate.number}, {scan_wording.utc(candidate.time, 1)} UTC"
    caption = scan_wording.trigger_caption(candidate, result)
    alt = f"Whitened strain and Q-transform of each detector around trigger {candidate.number}."
    return page.stored(path, f"trigger-{candidate.number}", title, caption, alt)


def _statistics(result: ScanResult) -> tuple[list[dict[str, Any]], str]:
    """The pictures of the statistic along the stretches that hold the loudest triggers; a word on the others."""
    holding = [s for c in result.candidates for s in result.stretches if s.start <= c.time < s.end]
    spans = list(dict.fromkeys([*holding, *result.stretches]))
    paths = [path for s in spans if (path := result.plot(f"statistic-{s.start:.0f}.png"))]
    shown = []
    for path in paths[:_STATISTICS]:
        caption = "Each window stands at its middle; grey: nothing searched."
        alt = f"The statistic of every window along time, {path.stem}."
        shown.append(page.stored(path, path.stem, "", caption, alt))
    left = len(paths) - len(shown)
    return shown, f"The statistic along {left:,} more stretches is in the folder plots." if left else ""


def redraw(argv: list[str] | None = None) -> int:
    """Draw the page of a finished scan anew; the exit status."""
    given = sys.argv[1:] if argv is None else argv
    if len(given) != 1 or given[0].startswith("-"):
        raise InputError("gwtwins.probes.scan_page", f"{len(given)} arguments", "the folder of a finished scan")
    print(f"page: {write_page(Path(given[0]))}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(redraw))
