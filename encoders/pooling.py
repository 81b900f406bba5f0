"""From a sequence of frames to one vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MeanMaxPool(nn.Module):
    """Mean and maximum over time, side by side: (N, C, T) to (N, 2 C)."""

    expansion = 2

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean(dim=-1), x.amax(dim=-1)], dim=1)


class GeMPool(nn.Module):
    """Generalised mean over time, ``mean(max(x, eps)^p)^(1/p)`` with trainable p: (N, C, T) to (N, C).

    Radenovic et al. 2018, arXiv:1711.02512, eq. 3. It is defined for positive activations; a softplus first keeps
    negative ones from being clamped, which would stop their gradient.
    """

    expansion = 1

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        positive = nn.functional.softplus(x) + self.eps
        return positive.pow(self.p).mean(dim=-1).pow(1.0 / self.p)


POOLINGS: dict[str, type[MeanMaxPool] | type[GeMPool]] = {"mean_max": MeanMaxPool, "gem": GeMPool}
