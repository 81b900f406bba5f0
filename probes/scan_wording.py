"""The words of a scan's page: times, rates, what the loudest trigger is, and how it was all made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lal

from gwtwins.probes.background import REMOVED_SECONDS
from gwtwins.probes.false_alarm_rate import YEAR
from gwtwins.probes.scan_result import Candidate, Network, ScanResult, StatedRate
from gwtwins.strain.coverage import Span

DASH = "\N{EN DASH}"
_UNITS = (("years", YEAR), ("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))
_AROUND = (1.2, 0.4)  # s before and after a trigger whose strain a reader looks at
_LATEST_GPS = 2.0**31  # of lal's clock


def in_unit(seconds: float) -> tuple[float, str]:
    """A length of time in the largest unit of which it has two."""
    unit, length = next(((unit, length) for unit, length in _UNITS if seconds >= 2 * length), _UNITS[-1])
    return seconds / length, unit


def duration(seconds: float) -> str:
    """A length of time to two digits or so, such as "41 s" or "3.2 years"."""
    value, unit = in_unit(seconds)
    text = f"{value:,.0f}" if value >= 10 else f"{value:.1f}".removesuffix(".0")
    return f"{text} {unit}"


def utc(gps: float, digits: int = 0) -> str:
    """UTC of a GPS time, such as 2017-08-14 10:30:43; the GPS time itself beyond the clock's range."""
    whole = math.floor(round(gps, digits))
    if not 0 <= whole < _LATEST_GPS:
        return f"GPS {gps:.{digits}f}"
    year, month, day, hour, minute, second = lal.GPSToUTC(whole)[:6]
    rest = f"{round(gps, digits) - whole:.{digits}f}"[1:] if digits else ""
    return f"{year}-{month:02d}-{day:02d} {hour:02d}:{minute:02d}:{second:02d}{rest}"


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them: "H1, L1 and V1"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def headline(result: ScanResult) -> str:
    """What the loudest trigger is, in a sentence or two."""
    if not result.candidates:
        return f"No trigger in {duration(_searched(result))} of strain of {listed(result.detectors)}."
    loudest = result.candidates[0]
    return f"The loudest trigger, at {utc(loudest.time, 1)} UTC, {_what(loudest)} {_how_rare(loudest, result)}"


def _what(candidate: Candidate) -> str:
    """Which detectors saw it, and what to think of that."""
    seen, on = candidate.seen_in, candidate.network
    if len(on) == 1:
        return f"was recorded by {on[0]} alone: one-detector transients cannot be told from glitches."
    others = [name for name in on if name not in seen]
    if len(seen) > 1:
        faint = f" ({listed(others)} {'add' if len(others) > 1 else 'adds'} little)" if others else ""
        return f"is seen in {listed(seen)}{faint}."
    if seen:
        verb = "were" if len(others) > 1 else "was"
        return f"stands out in {seen[0]} alone though {listed(others)} {verb} on: so do glitches."
    return f"stands out in none of {listed(on)} by itself."


def _how_rare(candidate: Candidate, result: ScanResult) -> str:
    network = result.network_of(candidate.network)
    if candidate.far is None or network is None:
        if len(candidate.network) == 1:
            return "It has no false-alarm rate."
        return "There was too little strain to slide for a false-alarm rate."
    period = duration(YEAR / candidate.far.value)
    if candidate.far.is_limit:
        return f"Nothing as loud is in the time slides: noise does this less often than about once in {period}."
    return f"Noise alone does this about once in {period}."


def summary(result: ScanResult) -> str:
    """What was searched."""
    spans = result.stretches
    first, last = spans[0].start, spans[-1].end
    files = f"{len(result.files):,} file{'s' * (len(result.files) != 1)}" if result.files else "strain"
    hours = ", ".join(f"{name} {duration(_total(spans))}" for name, spans in result.analysed.items())
    parts = f" in {len(spans):,} stretches" if len(spans) > 1 else ""
    return (
        f"Searched: {files} of {listed(result.detectors)}, GPS {first:.0f} to {last:.0f} ({utc(first)} to {utc(last)} "
        f"UTC){parts}. Analysed: {hours}. {len(result.candidates):,} trigger{'s' * (len(result.candidates) != 1)} of a "
        f"statistic of {result.threshold:.2f} and more."
    )


def notes(result: ScanResult) -> list[str]:
    """What a reader must know about the rates, and what the scan noted about the files."""
    found: list[str] = []
    loudest = result.candidates[0] if result.candidates else None
    network = result.network_of(loudest.network) if loudest else None
    if loudest and loudest.far and network:
        expected = loudest.far.value * network.searched / YEAR
        least = "fewer than " if loudest.far.is_limit else ""
        found.append(
            f"In the {duration(network.searched)} that {' '.join(network.names)} were searched together, noise gives "
            f"{least}{_count(expected)} triggers as loud as the loudest on average."
        )
    floors = [n for n in result.networks if n.slid]
    if floors:
        longest = max(floors, key=lambda n: n.slid)
        found.append(
            f"The slides of {' '.join(longest.names)} add up to {duration(longest.slid)}: no rate below one in that "
            "time can be told."
        )
    else:
        found.append("There is no background: it takes two detectors at the same time, and some ten seconds of them.")
    return found + [str(note) for note in result.report.get("notes", [])]


def rate_cell(far: StatedRate | None) -> tuple[str, str]:
    """A rate as (how often, its 68% interval)."""
    if far is None:
        return "", ""
    once = f"once in {duration(YEAR / far.value)}"
    if far.is_limit:
        return f"rarer than {once}", ""
    low, high = (duration(YEAR / end) if end > 0 else "never" for end in (far.high, far.low))
    return once, f"{low} to {high}"


def trigger_rows(candidates: Sequence[Candidate], detectors: Sequence[str]) -> list[dict[str, Any]]:
    """The table of triggers: number, times, statistic, what each detector adds, who saw it, and both rates."""
    return [
        {
            "number": c.number,
            "gps": f"{c.time:.3f}",
            "utc": utc(c.time, 1),
            "stat": f"{c.stat:.2f}",
            "parts": [f"{c.part[name]:+.1f}" if name in c.part else "" for name in detectors],
            "seen": " ".join(c.seen_in) or "none",
            "rates": [rate_cell(c.far), rate_cell(c.far_inclusive)],
        }
        for c in candidates
    ]


def trigger_caption(candidate: Candidate, result: ScanResult) -> str:
    """What the trigger is, how rare, and where a detector was not looked at."""
    what = _what(candidate)
    away = [_why_away(name, candidate, result) for name in result.detectors if name not in candidate.part]
    low, high = candidate.time - _AROUND[0], candidate.time + _AROUND[1]
    gaps = [
        f"{name} from {s.start - candidate.time:+.1f} to {s.end - candidate.time:+.1f} s: {s.why}"
        for name in candidate.part
        for s in result.left_out.get(name, [])
        if s.start < high and s.end > low
    ]
    words = [
        f"Statistic {candidate.stat:.1f}; it {what}",
        _how_rare(candidate, result),
        *away,
        f"Strain that was left out: {'; '.join(gaps)}." if gaps else "",
    ]
    return " ".join(word for word in words if word)


def _why_away(name: str, candidate: Candidate, result: ScanResult) -> str:
    end = candidate.start + result.window
    near = [s for s in result.left_out.get(name, []) if s.start < end + 1 and s.end > candidate.start - 1]
    inside = [s for s in near if s.start < end and s.end > candidate.start]
    reasons = list(dict.fromkeys(s.why for s in inside or near))
    return f"{name} counts as noise here: {', '.join(reasons) or 'not all of the window was recorded well'}."


def coverage_table(result: ScanResult) -> tuple[list[str], list[tuple[str, list[tuple[str, str]]]]]:
    """Column titles, and a row for what was analysed and for each reason why not, with a cell for each detector."""
    whole = _total(result.stretches) or 1.0

    def row(title: str, spans: dict[str, list[Span]]) -> tuple[str, list[tuple[str, str]]]:
        seconds = [_total(spans.get(name, [])) for name in result.detectors]
        return title, [
            (duration(s), f"{100 * s / whole:.1f}%" if s > 5e-4 * whole else "under 0.1%") if s else ("", "")
            for s in seconds
        ]

    reasons = {s.why: 0.0 for spans in result.left_out.values() for s in spans}
    for spans in result.left_out.values():
        for s in spans:
            reasons[s.why] += s.end - s.start
    rows = [row("Analysed", result.analysed)]
    for why in sorted(reasons, key=lambda why: -reasons[why]):
        chosen = {name: [s for s in spans if s.why == why] for name, spans in result.left_out.items()}
        rows.append(row(why[:1].upper() + why[1:], chosen))
    return list(result.detectors), rows


def network_table(networks: Sequence[Network]) -> tuple[list[str], list[tuple[str, list[tuple[str, str]]]]]:
    """Column titles, and a row for each set of detectors: searched, slid, its triggers, the loudest of them."""
    columns = ["Searched", "Slid", "Slid triggers", "Loudest of them"]
    rows = []
    for n in networks:
        searched = (duration(n.searched) if n.searched else "", "")
        if not n.slid:
            rows.append((" ".join(n.names), [searched, ("", ""), ("", ""), ("", "")]))
            continue
        loudest = f"{n.loudest:.2f}" if n.loudest is not None else ""
        rows.append((" ".join(n.names), [searched, (duration(n.slid), ""), (f"{n.triggers:,}", ""), (loudest, "")]))
    return columns, rows


def unslid(networks: Sequence[Network]) -> list[str]:
    """For each reason why networks have no background, a sentence."""
    reasons = dict.fromkeys(n.why_none for n in networks if not n.slid)
    named = {why: ", ".join(" ".join(n.names) for n in networks if not n.slid and n.why_none == why) for why in reasons}
    return [f"No background for {names} ({why})." for why, names in named.items()]


def made(result: ScanResult) -> list[tuple[str, str]]:
    """How the scan was made: term and text, of what scan.json holds."""
    report, config = result.report, dict(result.report["config"])
    encoder, probe = (node if isinstance(node := report.get(key), dict) else {} for key in ("encoder", "probe"))
    background, windows = report["background"], report["windows"]
    flags = config.get("required_flags") or "DATA, CBC_CAT1 and CBC_CAT2, as far as the files have them"
    stages = report.get("seconds_by_stage") or {}
    trained = [str(encoder[key]) for key in ("objective", "views") if encoder.get(key)]
    found = [
        ("Command", report.get("command")),
        ("Encoder", " ".join([str(config.get("weights", "")), f"({', '.join(trained)})" if trained else ""]).strip()),
        ("Probe", f"{config.get('probe', '')} ({probe.get('features')} features, {probe.get('n_labels')} labels)"),
        ("Windows", f"{windows.get('count'):,} of {result.window:g} s, one every {config.get('stride'):g} s"),
        ("Data quality", flags),
        (
            "Triggers",
            f"statistic of {result.threshold:.3f} and more, the loudest within {config.get('apart'):g} s; the mean "
            f"statistic of Gaussian noise is {report.get('statistic_of_noise'):.2f}",
        ),
        (
            "Background",
            f"{background.get('slides'):,} time slides of {config.get('slide'):g} s and its multiples in "
            f"{background.get('stretches'):,} stretch{'es' * (background.get('stretches') != 1)}; intervals hold 68%",
        ),
        ("Own seconds", f"a candidate's own are those within {REMOVED_SECONDS:g} s of its merger"),
        ("Time", f"{report.get('seconds')} s; " + ", ".join(f"{name} {value} s" for name, value in stages.items())),
        ("Versions", ", ".join(f"{name} {value}" for name, value in (report.get("versions") or {}).items())),
        ("Licence of the weights", encoder.get("licence")),
    ]
    return [(term, str(text)[:2000]) for term, text in found if text]


def _count(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def _searched(result: ScanResult) -> float:
    return sum(network.searched for network in result.networks)


def _total(spans: Sequence[Span]) -> float:
    return sum(span.end - span.start for span in spans)
