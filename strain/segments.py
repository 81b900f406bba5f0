"""Stretches of seconds that can be used together, and why the others cannot."""

from __future__ import annotations

import numpy as np

from gwtwins.strain.coverage import Span, merged
from gwtwins.strain.recording import EDGE, MIN_SECONDS

EDGE_REASON = "lost to the filters beside a stretch's end"
SHORT_REASON = f"in a stretch shorter than {MIN_SECONDS:g} s"


def segments(use: np.ndarray, sampling: np.ndarray, gps: int) -> list[tuple[float, float]]:
    """The GPS stretches (start, end) of usable seconds of one sampling.

    One that reaches an end of the arrays goes on beyond them for all that is known: it ends at infinity there.

    Args:
        use: (S,) bool, which seconds can be used.
        sampling: (S,) int, how each second is sampled: a change breaks a stretch.
        gps: GPS time of the first second.
    """
    label = np.where(use, sampling, -1)
    change = np.flatnonzero(np.diff(label)) + 1
    bounds = np.concatenate([[0], change, [label.size]])
    found = []
    for a, b in zip(bounds[:-1], bounds[1:], strict=True):
        if label[a] >= 0:
            start = -np.inf if a == 0 else float(gps + a)
            found.append((start, np.inf if b == label.size else float(gps + b)))
    return found


def long_enough(stretches: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of at least MIN_SECONDS."""
    return [(start, end) for start, end in stretches if end - start >= MIN_SECONDS]


def inner(use: np.ndarray, sampling: np.ndarray) -> np.ndarray:
    """(S - 2,) bool: seconds, without the first and the last, that have a usable neighbour on both sides."""
    label = np.where(use, sampling, -1)
    return use[1:-1] & (label[:-2] == label[1:-1]) & (label[2:] == label[1:-1])


def not_used(reasons: np.ndarray, stretches: list[tuple[float, float]], gps: int) -> list[Span]:
    """The GPS spans of a block that lie in no stretch or within EDGE of the end of one, with the reason.

    Args:
        reasons: (S,) object: why each second cannot be used, "" where it can.
        stretches: GPS (start, end), long enough.
        gps: of the block's first second.
    """
    why = reasons.copy()
    why[why == ""] = SHORT_REASON
    spans = []
    for start, end in stretches:
        low, high = int(max(start - gps, 0)), int(min(max(end - gps, 0), why.size))
        why[low:high] = ""
        for a, b in ((start, start + EDGE), (end - EDGE, end)):
            if gps <= a and b <= gps + why.size:
                spans.append(Span(a, b, EDGE_REASON))
    change = np.flatnonzero(why[1:] != why[:-1]) + 1
    for a, b in zip([0, *change], [*change, why.size], strict=True):
        if why[a]:
            spans.append(Span(float(gps + a), float(gps + b), why[a]))
    return merged(spans)
