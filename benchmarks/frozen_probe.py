"""Probes on frozen features: fitted on draws of few labels, and their scores of the test rows and of noise alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from gwtwins.benchmarks.detection_sources import NoiseOnly
from gwtwins.encoders.paired import PairedEncoder
from gwtwins.probes.evaluate import fit_probe
from gwtwins.probes.features import Features, embed
from gwtwins.probes.linear import LinearProbe, labelled_subset
from gwtwins.strain.simulated import SimulatedSource, SimulationConfig
from gwtwins.strain.sources import Window

Array = NDArray[np.floating]

POOL = 6_000
"""Labelled rows that smaller numbers of labels are drawn from, however many there are."""
_NOISE_AT_ONCE = 10_000  # rows whose features are held


def open_rows(config: SimulationConfig, encoder: PairedEncoder | None = None, device: str = "cpu") -> SimulatedSource:
    """The simulated source with the window that an encoder takes (2 s at 2048 Hz for none)."""
    window = Window()
    if encoder:
        window = Window(encoder.rate, encoder.window, encoder.f_low, encoder.f_high)
    return SimulatedSource(config, window, device)


def drawn_labels(ids: list[str], label: NDArray[np.integer], n: int, draw: int, seed: int) -> NDArray[np.int64]:
    """Which ``n`` rows are given labels in a draw: the same for every row of the benchmark, others for each seed."""
    pool = max(n, min(POOL, len(ids)))
    return labelled_subset(ids[:pool], n, 1000 * seed + draw, label[:pool])


def draws_of(n: int, draws: int) -> int:
    """How often ``n`` labels are drawn: once where that is all there are to draw from, `POOL` or more."""
    return draws if n < POOL else 1


def fit_probes(train: Features, n: int, draws: int, seed: int, kind: str) -> list[LinearProbe]:
    """A probe for each draw of ``n`` labels."""
    assert train.label is not None
    chosen = [drawn_labels(train.ids, train.label, n, draw, seed) for draw in range(draws_of(n, draws))]
    return [fit_probe(train, rows, kind, seed) for rows in chosen]


class Scorer(Protocol):
    """What gives a row a score: a `LinearProbe`, above all."""

    def decision(self, embeddings: Array, present: None, together: Array | None) -> Array:
        """(N,) of embeddings (N, D, E) and what detectors show together (N, J)."""


def score_test(probes: Sequence[Scorer], test: Features) -> Array:
    """(P, N) scores of the test rows."""
    return _scores(probes, test)


def score_noise(
    probes: Sequence[Scorer], encoder: PairedEncoder, source: SimulatedSource, rows: int, device: str = "cpu"
) -> Array:
    """(P, M) scores of ``rows`` noise-only rows, made, embedded and let go in pieces."""
    pieces: Iterable[range] = (range(i, min(i + _NOISE_AT_ONCE, rows)) for i in range(0, rows, _NOISE_AT_ONCE))
    parts = [_scores(probes, embed(encoder, NoiseOnly(source, piece), "test", device=device)) for piece in pieces]
    return np.concatenate(parts, axis=1) if parts else np.empty((len(probes), 0))


def _scores(probes: Sequence[Scorer], features: Features) -> Array:
    return np.stack([p.decision(features.embeddings, None, features.together) for p in probes]).astype(np.float32)


def parameters(encoder: torch.nn.Module) -> int:
    """Trained numbers of an encoder; a shared one counts once."""
    return sum(p.numel() for p in encoder.parameters())
