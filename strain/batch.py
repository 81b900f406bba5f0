"""What flows from the data to the encoders: one batch of whitened windows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass
class Batch:
    """Windows of B moments in D detectors, T samples each.

    ``truth`` is what a simulation knows and a recording does not; it is for figures, never for training:
    ``snr`` (B,) network SNR, 0 for noise; ``merger`` (B,) seconds from the window's start to the merger at the
    geocentre; ``signal`` (B, D, T) the whitened signal alone, only where it was asked for.
    """

    strain: Tensor
    """(B, D, T) float32, whitened to unit noise variance; zero where a detector is not present."""
    present: Tensor
    """(B, D) bool: which detectors recorded this window."""
    gps: Tensor
    """(B,) float64, GPS seconds of the first sample."""
    label: Tensor | None
    """(B,) float32, 1 signal and 0 noise; None where unknown."""
    id: list[str]
    """B names, unique within a source."""
    truth: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.strain.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return replace(
            self,
            strain=self.strain.to(device),
            present=self.present.to(device),
            gps=self.gps.to(device),
            label=None if self.label is None else self.label.to(device),
            truth={name: value.to(device) for name, value in self.truth.items()},
        )
