"""Rows that the simulated source does not give by itself: noise alone, and a fixed set to be gone over again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
import torch

from gwtwins.strain import draws
from gwtwins.strain.batch import Batch
from gwtwins.strain.glitches import add_glitches, snr_range
from gwtwins.strain.noise import gaussian_noise
from gwtwins.strain.simulated import SimulatedSource, SimulationConfig, _Rows
from gwtwins.strain.sources import Source, Window

_STREAM = "noise-only rows"  # none of the source's own


class NoiseOnly(Source):
    """The noise-only rows ``rows``, with the background of a simulated source's test rows."""

    def __init__(self, source: SimulatedSource, rows: range) -> None:
        self.source, self.rows = source, rows
        self.spec, self.detectors, self.psds = source.spec, source.detectors, source.psds
        self.rate, self.window, self.f_low, self.f_high = source.rate, source.window, source.f_low, source.f_high
        background = source.background
        self.background = background.only("test") if background and source.config.noise_split else background
        config = source.config
        self.seed = config.evaluation_seed  # whatever the seed of a run
        disturbed = config.test_disturbed and config.glitch_fraction
        self.glitches = (config.glitch_fraction, snr_range("--glitch_snr", config.glitch_snr)) if disturbed else None

    def count(self, split: str) -> int:
        return len(self.rows)

    def batches(self, split: str, batch_size: int = 512) -> Iterator[Batch]:
        d, band = len(self.detectors), (self.rate, self.window, self.f_low, self.f_high)
        for start in range(0, len(self.rows), batch_size):
            rows = self.rows[start : start + batch_size]
            if self.background is None:
                # Generators of 32 bits, in a third of the time: of 100,000 rows one or two are drawn twice.
                strain = gaussian_noise(self.seed, _STREAM, 0, rows, d, *band, draws.seeded_normal)
            else:
                strain, _ = self.background.draw(
                    self.detectors, self.seed, _STREAM, 0, rows, round(self.rate * self.window)
                )
            n, device = len(rows), self.source.device
            present = torch.ones(n, d, dtype=torch.bool)
            if self.glitches:
                draw = (self.seed, f"{_STREAM} glitches", 0, rows)
                add_glitches(strain, present, *self.glitches, draw, self.rate, self.f_low, self.f_high)
            gps = torch.zeros(n, dtype=torch.float64)
            yield Batch(
                strain.to(device),
                present.to(device),
                gps,
                torch.zeros(n, device=device),
                [f"noise-{row}" for row in rows],
            )


class FixedRows(SimulatedSource):
    """The case of a recording: ``n`` rows with their noise, in a new order every time they have all been seen.

    Their SNRs are the population's from the start: a recording knows no curriculum.
    """

    fresh_noise = False

    def __init__(self, n: int, config: SimulationConfig, window: Window, device: str = "cpu") -> None:
        super().__init__(config, window, device)
        self.n = n

    def _training_rows(self, seed: int, step: int, rows: range, progress: float, noise: str) -> _Rows:
        seen = step * len(rows) + np.arange(len(rows))
        order = {epoch: self._order(seed, epoch) for epoch in {*(seen // self.n).tolist()}}
        numbers = [int(order[k // self.n][k % self.n]) for k in seen.tolist()]
        return super()._training_rows(seed, 0, cast(range, numbers), 1.0, noise)  # any row numbers will do

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        return draws.row_generator(seed, "order of fixed rows", epoch, 0).permutation(self.n)
