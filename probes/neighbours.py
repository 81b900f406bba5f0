"""Nearest neighbours of a window among the embeddings of a file, by cosine similarity."""

from __future__ import annotations

import csv
import difflib
import io
import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from gwtwins.probes.embedding_file import EmbeddingFile
from gwtwins.probes.predictions import cell
from gwtwins.strain.command import write_text
from gwtwins.strain.errors import InputError, shown
from gwtwins.strain.progress import progress_bar

MAX_COUNT = 10_000
_SAME_TIME = 1e-3  # s: GPS times are printed to the millisecond
_COMPARED = 10_000  # ids an unknown one is compared with, half a second's worth


@dataclass(frozen=True)
class Match:
    """One window: of the query (rank 0, similarity 1) or near it."""

    rank: int
    id: str
    gps: float | None
    """GPS seconds of the first sample; None where unknown."""
    similarity: float
    """Cosine, -1 to 1."""
    detectors: str
    """Those that it shares with the query, joined by spaces: what the similarity was taken over."""
    label: int | None
    """1 signal, 0 noise; None where unknown."""
    snr: float | None


class Standardiser:
    """Brings each dimension of each detector's embedding to mean 0 and variance 1 over the rows of a file.

    Dimensions that never vary become 0. Read blockwise: memory does not grow with the rows.
    """

    def __init__(self, file: EmbeddingFile, progress: bool = True) -> None:
        _, d, e = file.shape
        scalers = [StandardScaler() for _ in range(d)]
        with progress_bar(len(file), "standardising", "row", progress) as bar:
            for _, embedding, present in file.blocks():
                for k in np.flatnonzero(present.any(axis=0)):
                    scalers[k].partial_fit(embedding[present[:, k], k])
                bar.update(len(embedding))
        self.mean = np.stack([getattr(s, "mean_", np.zeros(e)) for s in scalers]).astype(np.float32)
        self.scale = np.stack([getattr(s, "scale_", np.ones(e)) for s in scalers]).astype(np.float32)

    def __call__(self, embedding: NDArray[np.float32], present: NDArray[np.bool_]) -> NDArray[np.float32]:
        """(B, D, E) float32 of ``embedding`` (B, D, E); zero where ``present`` (B, D) is false."""
        return np.where(present[..., None], (embedding - self.mean) / self.scale, np.float32(0.0))


def find_window(file: EmbeddingFile, named: str) -> int:
    """The row of an id, or of the window that a GPS time lies in (the one whose middle is nearest, if several).

    Raises:
        InputError: there is none; the nearest ids are named.
    """
    ids = file.ids(range(len(file)))
    if named in ids:
        return ids.index(named)
    try:
        gps = float(named)
    except ValueError:
        raise InputError(named, f"no window of this id in {file.where}", _like(named, ids)) from None
    known = np.flatnonzero(np.isfinite(file.gps))
    away = np.abs(file.gps[known] - gps)
    if known.size and away.min() <= _SAME_TIME:
        return int(known[np.argmin(away)])
    middle = np.abs(file.gps[known] + file.window / 2 - gps)
    if known.size and middle.min() <= file.window / 2:
        return int(known[np.argmin(middle)])
    near = [f"{ids[row]} ({file.gps[row]:.3f})" for row in known[np.argsort(away)[:3]]]
    expected = f"one near it: {', '.join(near)}" if near else f"an id{_like(named, ids)[3:]}: its windows have no times"
    raise InputError(named, f"no window of this id or time in {file.where}", expected)


def _like(named: str, ids: Sequence[str]) -> str:
    order = sorted(ids)
    at = max(0, bisect_left(order, named) - _COMPARED // 2)
    akin = difflib.get_close_matches(named, order[at : at + _COMPARED], 3, 0.0)
    return f"one such as {', '.join(akin)}"


def nearest(
    file: EmbeddingFile, row: int, count: int = 10, standard: Standardiser | None = None, progress: bool = True
) -> tuple[Match, list[Match]]:
    """The window of ``row`` and the ``count`` rows most like it, the most alike first.

    The cosine similarity of the standardised embeddings of the detectors that both have, side by side; rows that
    share no detector with it are left out. Memory does not grow with the rows.
    """
    if not 1 <= count <= MAX_COUNT:
        raise InputError("--count", str(count), f"1 to {MAX_COUNT}")
    standard = standard or Standardiser(file, progress)
    embedding, present = file.read(slice(row, row + 1))
    query, mine = standard(embedding, present)[0], present[0]  # (D, E), (D,)
    square = (query**2).sum(axis=1)  # (D,)
    best, similarity = np.empty(0, np.int64), np.empty(0)
    with progress_bar(len(file), "comparing", "row", progress) as bar:
        for rows, embedding, present in file.blocks():
            z = standard(embedding, present)
            both = present & mine  # (B, D)
            dot = (np.einsum("bde,de->bd", z, query) * both).sum(axis=1)
            length = np.sqrt((np.square(z).sum(axis=2) * both).sum(axis=1) * (square * both).sum(axis=1))
            cosine = np.divide(dot, length, out=np.zeros(len(z)), where=length > 0).clip(-1.0, 1.0)
            here = np.arange(rows.start, rows.stop)
            able = both.any(axis=1) & (here != row)
            best, similarity = np.concatenate([best, here[able]]), np.concatenate([similarity, cosine[able]])
            top = np.argsort(-similarity, kind="stable")[:count]
            best, similarity = best[top], similarity[top]
            bar.update(len(z))
    found = [_match(file, 0, row, 1.0, mine)]
    for rank, (other, value) in enumerate(zip(best, similarity, strict=True), 1):
        present = file.read(slice(other, other + 1))[1][0]
        found.append(_match(file, rank, int(other), float(value), mine & present))
    return found[0], found[1:]


def _match(file: EmbeddingFile, rank: int, row: int, similarity: float, shared: NDArray[np.bool_]) -> Match:
    gps, label, snr = (None if np.isnan(x[row]) else float(x[row]) for x in (file.gps, file.label, file.snr))
    names = " ".join(np.array(file.detectors)[shared])
    return Match(rank, file.ids([row])[0], gps, similarity, names, None if label is None else int(label), snr)


def table(query: Match, found: Sequence[Match]) -> str:
    """For the terminal: the query, then a row for each neighbour."""
    columns = [["", "id", "GPS (s)", "similarity", "in common", "label", "SNR"]]
    for m in (query, *found):
        cells = [str(m.rank or ""), shown(m.id), _number(m.gps, 3), f"{m.similarity:.4f}"]
        columns.append([*cells, m.detectors, _number(m.label, 0), _number(m.snr, 1)])
    columns[1][0] = "of"
    wide = [max(len(line[i]) for line in columns) for i in range(7)]
    left = (1, 4)
    return "\n".join(
        "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, wide))).rstrip()
        for line in columns
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def write_csv(path: Path, found: Sequence[Match]) -> None:
    """rank,id,gps,similarity,detectors,label,snr; an id that a spreadsheet would run gets an apostrophe in front."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "id", "gps", "similarity", "detectors", "label", "snr"])
    for m in found:
        gps = "" if m.gps is None else f"{m.gps:.6f}"
        label, snr = ("" if x is None else x for x in (m.label, m.snr))
        writer.writerow([m.rank, cell(m.id), gps, f"{m.similarity:.6f}", m.detectors, label, snr])
    _write(path, text.getvalue())


def write_json(path: Path, query: Match, found: Sequence[Match], about: dict[str, Any]) -> None:
    """``about``, ``query`` and ``neighbours`` as JSON."""
    node = {**about, "query": vars(query), "neighbours": [vars(m) for m in found]}
    _write(path, json.dumps(node, indent=2, allow_nan=False) + "\n")


def _write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise InputError(path, "may not be written", "a file in a folder that is there") from error
