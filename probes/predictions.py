"""Scores as CSV: predictions.csv and submission.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from numpy.typing import NDArray

from gwtwins.strain.command import write_text
from gwtwins.strain.errors import shown

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def cell(text: str) -> str:
    """Text that a spreadsheet takes for text: what it would run gets an apostrophe; control characters become "?"."""
    return f"'{shown(text)}" if text.startswith(_FORMULA) else shown(text)


def write_scores(
    path: Path,
    ids: Sequence[str],
    probability: NDArray,
    label: NDArray | None = None,
    score: NDArray | None = None,
) -> None:
    """Write ``id,target`` (target: probability, a submission), or with labels ``id,target,score`` (target: label).

    Ids are written as `cell` has them.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [cell(name) for name in ids]
    if label is None or score is None:
        writer.writerow(["id", "target"])
        writer.writerows((name, f"{p:.6f}") for name, p in zip(names, probability, strict=True))
    else:
        writer.writerow(["id", "target", "score"])
        writer.writerows((name, int(y), f"{s:.6f}") for name, y, s in zip(names, label, score, strict=True))
    write_text(path, text.getvalue())
