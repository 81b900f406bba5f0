"""TensorBoard's embedding projector, filled from a file of embeddings."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gwtwins.probes.embedding_file import EmbeddingFile
from gwtwins.probes.neighbours import Standardiser
from gwtwins.strain.errors import InputError, shown
from gwtwins.strain.progress import progress_bar

MAX_ROWS = 10_000
"""What a browser still turns around smoothly."""
HEADER = ["id", "gps", "label", "snr", "detectors"]
_DIGITS = 4  # of values of variance 1: a third of the file's size, and far below anything to be seen


def projector_folder(file: str | Path) -> Path:
    """The folder ``tb-projector`` beside a file of embeddings.

    Raises:
        InputError: it is there already.
    """
    folder = Path(file).parent / "tb-projector"
    if os.path.lexists(folder):
        raise InputError(folder, "is there already", "it to be moved or deleted before --projector")
    return folder


def sample(n: int, seed: int) -> NDArray[np.int64]:
    """Rows that are shown, ascending: all, or `MAX_ROWS` of them drawn with ``seed``."""
    if n <= MAX_ROWS:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, MAX_ROWS, replace=False))


def write_projector(
    folder: Path, file: EmbeddingFile, seed: int = 0, standard: Standardiser | None = None, progress: bool = True
) -> int:
    """Write a log folder that ``tensorboard --logdir`` opens; the number of rows in it.

    The points are the detectors' embeddings side by side, standardised as for `gwtwins.probes.neighbours`, so that
    the projector's cosine neighbours are the same where all detectors were there; an absent one is at its mean.
    """
    from torch.utils.tensorboard import SummaryWriter

    standard = standard or Standardiser(file, progress)
    rows = sample(len(file), seed)
    n, d, e = file.shape
    points = np.empty((len(rows), d * e))
    present = np.empty((len(rows), d), dtype=bool)
    with progress_bar(n, "projector", "row", progress) as bar:
        for part, embedding, here in file.blocks():
            chosen = slice(*np.searchsorted(rows, (part.start, part.stop)))
            inside = rows[chosen] - part.start
            points[chosen] = standard(embedding[inside], here[inside]).reshape(len(inside), -1)
            present[chosen] = here[inside]
            bar.update(len(embedding))
    metadata = [
        [shown(id), _cell(file.gps[row], 3), _cell(file.label[row], 0), _cell(file.snr[row], 2), names]
        for id, row, names in zip(file.ids(rows), rows, _names(file.detectors, present), strict=True)
    ]
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        with SummaryWriter(str(partial)) as writer:
            writer.add_embedding(points.round(_DIGITS), metadata, metadata_header=HEADER, tag="embeddings")
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return len(rows)


def _names(detectors: tuple[str, ...], present: NDArray[np.bool_]) -> list[str]:
    return [" ".join(np.array(detectors)[here]) for here in present]


def _cell(value: float, digits: int) -> str:
    return "" if np.isnan(value) else f"{value:.{digits}f}"
