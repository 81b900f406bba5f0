"""Which seconds of recorded strain were analysed, and why the others were not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gwtwins.strain.gwosc import DEFAULT_REQUIRED
from gwtwins.strain.recording import MIN_SECONDS, Conditioned, Recording, gap_seconds


@dataclass(frozen=True)
class Span:
    """A stretch of GPS time."""

    start: float
    end: float
    why: str = ""
    """Why it was not analysed; empty where it was."""


def analysed(pieces: Sequence[Conditioned]) -> list[Span]:
    """The stretches that ``pieces`` of one detector cover, gates taken out, ascending and apart."""
    spans = []
    for piece in pieces:
        begin = piece.gps_start
        for low, high in sorted(piece.gates):
            if low > begin:
                spans.append(Span(begin, low))
            begin = max(begin, high)
        if piece.gps_end > begin:
            spans.append(Span(begin, piece.gps_end))
    return merged(spans)


def left_out(recording: Recording, pieces: Sequence[Conditioned]) -> list[Span]:
    """The stretches of ``recording`` that its whitened ``pieces`` do not cover, each with the reason."""
    reasons = _reasons(recording)
    spans = []
    for low, high in _between(recording.gps_start, recording.gps_end, [(p.gps_start, p.gps_end) for p in pieces]):
        second = int(low - recording.gps_start)
        while recording.gps_start + second < high:
            begin = recording.gps_start + second
            spans.append(Span(max(low, begin), min(high, begin + 1.0), reasons[second]))
            second += 1
    spans += [Span(low, high, "gated: an outlier far beyond any signal") for p in pieces for low, high in p.gates]
    return merged(spans)


def merged(spans: Sequence[Span]) -> list[Span]:
    """The spans in order of time, those that touch or overlap and have the same reason made one."""
    out: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.start, s.end)):
        if out and span.why == out[-1].why and span.start <= out[-1].end + 1e-3:
            out[-1] = Span(out[-1].start, max(out[-1].end, span.end), span.why)
        else:
            out.append(span)
    return out


def _reasons(recording: Recording) -> list[str]:
    """For each second, why it was not analysed if it was not."""
    gap = gap_seconds(recording.strain, recording.rate)
    use = recording.good & recording.injection_free & ~gap
    change = np.flatnonzero(np.diff(np.concatenate([[False], use, [False]]).astype(int)))
    reasons = ["lost to the filters beside a stretch's end"] * recording.seconds
    for a, b in zip(change[::2], change[1::2], strict=True):
        if b - a < MIN_SECONDS:
            reasons[a:b] = [f"in a stretch shorter than {MIN_SECONDS:g} s"] * int(b - a)
    for second in np.flatnonzero(~use):
        failed = [n for n in DEFAULT_REQUIRED if n in recording.flags and not recording.flags[n][second]]
        if gap[second]:
            reasons[second] = "no data"
        elif not recording.good[second]:
            reasons[second] = "fails " + (" and ".join(failed) or "data quality")
        else:
            reasons[second] = "hardware injection"
    return reasons


def _between(low: float, high: float, spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """What of [low, high] lies in none of ``spans``."""
    rest = []
    for start, end in sorted(spans):
        if start > low:
            rest.append((low, start))
        low = max(low, end)
    return [*rest, (low, high)] if high > low else rest
