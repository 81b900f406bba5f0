"""Which seconds of its files a scan looked at, and why not at the others."""

from __future__ import annotations

from collections.abc import Sequence

from gwtwins.probes.scan_blocks import BlockStore
from gwtwins.strain.coverage import Span, merged
from gwtwins.strain.strain_index import StrainIndex


def coverage(
    store: BlockStore, numbers: Sequence[int], index: StrainIndex
) -> tuple[dict[str, list[Span]], dict[str, list[Span]]]:
    """For each detector what was analysed of the files' time, and what was left out, with the reason."""
    out: dict[str, list[Span]] = {name: [] for name in store.detectors}
    for number in numbers:
        for name, span in store.left_out(number):
            out[name].append(span)
    analysed: dict[str, list[Span]] = {}
    left_out: dict[str, list[Span]] = {}
    for name, spans in out.items():
        analysed[name], left_out[name] = [], []
        for whole in index.spans:
            inside = [
                Span(max(s.start, whole.start), min(s.end, whole.end), s.why)
                for s in spans
                if s.start < whole.end and s.end > whole.start
            ]
            left_out[name] += merged(inside)
            begin = whole.start
            for span in sorted(inside, key=lambda s: s.start):
                if span.start > begin:
                    analysed[name].append(Span(begin, span.start))
                begin = max(begin, span.end)
            if whole.end > begin:
                analysed[name].append(Span(begin, whole.end))
    return analysed, left_out
