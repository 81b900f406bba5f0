"""Objectives on pairs of projected views: lightly's losses, in float32, on the global batch.

Barlow Twins (Zbontar et al. 2021, arXiv:2103.03230): the cross-correlation matrix C (P, P) of the two views'
projections, each dimension standardised over the batch, is driven towards the identity,

    L = sum_i (1 - C_ii)^2 + lambda sum_i sum_{j != i} C_ij^2 .
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lightly.loss import BarlowTwinsLoss, NTXentLoss, VICRegLoss
from lightly.models.modules.heads import BarlowTwinsProjectionHead, SimCLRProjectionHead, VICRegProjectionHead
from torch import Tensor, nn

from gwtwins.ssl.distributed import gathered
from gwtwins.strain.errors import InputError


@dataclass
class ObjectiveConfig:
    """What is optimised."""

    objective: str = "barlow"
    """barlow (Barlow Twins), vicreg (VICReg) or ntxent (SimCLR's NT-Xent)."""
    projector: int = 256
    """Width of the projector's layers and of its output."""
    lambda_param: float = 5e-3
    """Barlow Twins' weight of the redundancy term."""
    temperature: float = 0.1
    """NT-Xent's temperature."""


class Objective(nn.Module):
    """Projector and loss. ``forward(first, second)`` takes embeddings (N, E) and gives the loss, a scalar.

    It is computed in float32, or in float64 where the embeddings are. In several processes the projections of all are
    gathered first (differentiably): lightly's own ``gather_distributed`` standardises by each process's batch alone,
    which is another loss.
    """

    def __init__(self, config: ObjectiveConfig, embedding_dim: int) -> None:
        super().__init__()
        if config.objective not in OBJECTIVES:
            raise InputError(f"--objective {config.objective}", "not an objective", ", ".join(OBJECTIVES))
        if not (config.projector >= 1 and config.lambda_param >= 0 and config.temperature > 0):
            fault = f"projector {config.projector}, lambda {config.lambda_param}, temperature {config.temperature}"
            raise InputError("objective", fault, "projector >= 1, lambda-param >= 0, temperature > 0")
        head, loss = OBJECTIVES[config.objective]
        self.config = config
        self.projector = head(embedding_dim, config.projector)
        self.loss = loss(config)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The loss and the two gathered projections (N, P) it was computed on."""
        with torch.autocast(first.device.type, enabled=False):
            exact = torch.promote_types(first.dtype, torch.float32)
            a, b = gathered(self.projector(first.to(exact)), self.projector(second.to(exact)))
            return self.loss(a, b), (a, b)


OBJECTIVES = {
    "barlow": (
        lambda e, p: BarlowTwinsProjectionHead(e, p, p),
        lambda config: BarlowTwinsLoss(lambda_param=config.lambda_param),
    ),
    "vicreg": (lambda e, p: VICRegProjectionHead(e, p, p), lambda config: VICRegLoss()),
    "ntxent": (
        lambda e, p: SimCLRProjectionHead(e, p, p),
        lambda config: NTXentLoss(temperature=config.temperature),
    ),
}


@torch.no_grad()
def correlation_terms(first: Tensor, second: Tensor) -> dict[str, float | Tensor]:
    """What Barlow Twins looks at, for any objective, from projections (N, P).

    Returns ``invariance`` sum_i (1 - C_ii)^2 and ``redundancy`` sum_{i != j} C_ij^2, both raw; ``floor``, the
    redundancy P (P - 1) / (N - 1) that independent dimensions show with N rows alone; ``mean_diagonal`` of C;
    and ``matrix`` C (P, P) itself.
    """
    n, p = first.shape
    a, b = ((z.float() - z.float().mean(0)) / z.float().std(0, unbiased=False).clamp_min(1e-6) for z in (first, second))
    c = a.T @ b / n
    diagonal = c.diagonal()
    return {
        "invariance": float((1 - diagonal).square().sum()),
        "redundancy": float(c.square().sum() - diagonal.square().sum()),
        "floor": p * (p - 1) / max(n - 1, 1),
        "mean_diagonal": float(diagonal.mean()),
        "matrix": c.cpu(),
    }


@torch.no_grad()
def effective_rank(embedding: Tensor) -> float:
    """exp of the entropy of the normalised singular values of centred embeddings (N, E).

    Roy & Vetterli 2007, "The effective rank": 1 for a collapsed representation, E for an isotropic one.
    """
    s = torch.linalg.svdvals(embedding.double() - embedding.double().mean(0))
    p = s / s.sum().clamp_min(1e-300)
    return float(torch.exp(-(p * torch.log(p.clamp_min(1e-300))).sum()))
