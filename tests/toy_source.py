"""A source of loud, quick windows for the tests of views and pretraining: bursts in white noise."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gwtwins.strain import draws
from gwtwins.strain.batch import Batch
from gwtwins.strain.psd import PSD
from gwtwins.strain.sources import Source


class ToySource(Source):
    """Half of the rows hold a burst of 20-150 Hz at one time in every detector, the noise differs.

    Args:
        detectors: names along axis D.
        loud: amplitude of the bursts, in units of the noise.
        absent: a detector is away in the rows of which this is a divisor; 0 for never.
        fresh: whether a second noise draw can be had.
    """

    spec, rate, window, f_low, f_high = "toy", 512.0, 1.0, 20.0, 200.0

    def __init__(
        self, detectors: tuple[str, ...] = ("H1", "L1", "V1"), loud: float = 10.0, absent: int = 0, fresh: bool = True
    ) -> None:
        self.detectors, self.loud, self.absent, self.fresh_noise = detectors, loud, absent, fresh
        self.psds = {name: PSD(np.array([1.0, 1000.0]), np.array([1e-46, 1e-46]), name) for name in detectors}

    @property
    def samples(self) -> int:
        return round(self.rate * self.window)

    def signal(self, seed: int, step: int, rows: Iterable[int]) -> Tensor:
        """(B, 1, T): the bursts alone."""
        u = draws.uniform(seed, "toy signal", step, rows, 4)
        time = torch.arange(self.samples, dtype=torch.float64) / self.rate - 0.2 - 0.6 * u[:, 1:2]
        frequency = 20.0 * 7.5 ** u[:, 2:3]
        burst = torch.exp(-((time / 0.05) ** 2)) * torch.cos(2 * math.pi * (frequency * time + u[:, 3:4]))
        return (self.loud * (u[:, :1] < 0.5) * burst)[:, None].float()

    def train_batch(
        self, seed: int, step: int, rows: range, progress: float = 0.0, batch: int | None = None, noise: str = "one"
    ) -> Batch:
        b, d = len(rows), len(self.detectors)
        strain = draws.normal(seed, f"toy noise {noise}", step, rows, d * self.samples).view(b, d, -1)
        strain = strain + self.signal(seed, step, rows)
        present = torch.ones(b, d, dtype=torch.bool)
        if self.absent:
            for i, row in enumerate(rows):
                present[i, row % d] = row % self.absent != 0
        strain = strain * present[..., None]
        return Batch(strain, present, torch.zeros(b, dtype=torch.float64), None, [f"{step}-{row}" for row in rows])

    def train_pair(
        self, seed: int, step: int, rows: range, progress: float = 0.0, batch: int | None = None
    ) -> tuple[Batch, Batch]:
        if not self.fresh_noise:
            return super().train_pair(seed, step, rows, progress, batch)
        return self.train_batch(seed, step, rows), self.train_batch(seed, step, rows, noise="two")

    def count(self, split: str) -> int:
        return 0

    def describe(self) -> dict[str, Any]:
        return {"source": "toy"}
