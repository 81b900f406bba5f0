"""The k-nearest-neighbour probe: nothing is fitted, so it shows how the embeddings themselves lie."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gwtwins.probes.features import FeatureMap
from gwtwins.strain.errors import InputError

Array = NDArray[np.floating]

TEMPERATURE = 0.1
"""A neighbour of cosine similarity s votes with exp(s / 0.1): lightly's value; 0.07 in arXiv:1805.01978."""
MAX_K = 1000
BLOCK = 1 << 24
"""Elements of a block of features (64 MiB)."""


def default_k(n: int) -> int:
    """Neighbours to ask of ``n`` labelled rows: the square root, 20 at most."""
    return max(1, min(20, round(math.sqrt(n))))


class KnnProbe:
    """Weighted vote of the k labelled rows of the largest cosine similarity, on standardised features.

    The score is log((W1 + 1) / (W0 + 1)), W1 and W0 being the summed votes for signal and noise and 1 the
    vote of a row at right angles: unbounded in practice, and unanimous votes still differ by how near the
    voters are.
    """

    def __init__(self, k: int | None = None, kind: str = "concat"):
        if k is not None and not 1 <= k <= MAX_K:
            raise InputError("k", str(k), f"1 to {MAX_K}")
        self.k, self.features = k, FeatureMap(kind)

    def fit(
        self,
        embeddings: Array,
        present: NDArray[np.bool_] | None,
        label: ArrayLike,
        rows: NDArray[np.integer] | None = None,
        together: Array | None = None,
    ) -> KnnProbe:
        """Remember the labelled ``rows`` (all by default) of embeddings (N, D, E), which are not copied."""
        self._index = np.arange(len(embeddings)) if rows is None else np.sort(np.asarray(rows))
        if not self._index.size:
            raise InputError("labels", "no labelled rows", "at least one")
        self._x, self._together = embeddings, together
        self._present = (
            np.ones(embeddings.shape[:2], dtype=bool) if present is None else np.asarray(present, dtype=bool)
        )
        self._signal = np.asarray(label)[self._index] == 1
        self.k = min(self.k or default_k(self._index.size), self._index.size)
        self.features.fit(embeddings, self._present, self._index, together)
        return self

    def decision(
        self, embeddings: Array, present: NDArray[np.bool_] | None = None, together: Array | None = None
    ) -> Array:
        """Score (N,) float64 of embeddings (N, D, E). Memory does not grow with the labelled rows."""
        out = np.empty(len(embeddings))
        step = max(64, BLOCK // self.features.n_features)
        for start in range(0, out.size, step):
            part = slice(start, start + step)
            here = None if present is None else present[part]
            query = _unit(self.features.transform(embeddings[part], here, None if together is None else together[part]))
            similarity, signal = self._nearest(query, min(step, 4096))
            vote = np.exp(similarity / TEMPERATURE)
            out[part] = np.log1p((vote * signal).sum(axis=1)) - np.log1p((vote * ~signal).sum(axis=1))
        return out

    def _nearest(self, query: Array, step: int) -> tuple[Array, NDArray[np.bool_]]:
        """Similarity (Q, k) float64 of the k nearest labelled rows, and whether each is a signal."""
        k = self.k or 1
        best = np.empty((len(query), 0), dtype=np.float32)
        signal = np.empty((len(query), 0), dtype=bool)
        for start in range(0, self._index.size, step):
            rows = self._index[start : start + step]
            together = None if self._together is None else self._together[rows]
            key = _unit(self.features.transform(self._x[rows], self._present[rows], together))
            labels = np.broadcast_to(self._signal[start : start + step], (len(query), rows.size))
            best = np.concatenate([best, query @ key.T], axis=1)
            signal = np.concatenate([signal, labels], axis=1)
            if best.shape[1] > k:
                top = np.argpartition(best, -k, axis=1)[:, -k:]
                best, signal = np.take_along_axis(best, top, axis=1), np.take_along_axis(signal, top, axis=1)
        return best.astype(np.float64), signal


def _unit(x: Array) -> Array:
    """Rows of length 1, in place; a row of zeros stays one."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    x /= np.where(length > 0, length, 1.0)
    return x
