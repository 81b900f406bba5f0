"""The first layer: trainable sine-Gaussian quadrature pairs, and the logarithm of each pair's power.

What two detectors agree on is neither sign nor phase: the plus responses of Hanford and Livingston are
anti-correlated and Virgo's is nearly independent. The power of a quadrature pair forgets both, and keeps when and at
what frequency.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gwtwins.encoders import bfloat16


def sine_gaussian_pairs(frequency: Tensor, q: Tensor, kernel: int, rate: float) -> Tensor:
    """Cosine and sine Gaussians, (2 K, kernel) float32, each of unit energy: unit variance on white noise.

    exp(-(t / s)^2 / 2) cos(2 pi f t) with s = q / (2 pi f), first the K cosines, then the K sines.

    Args:
        frequency: (K,) Hz.
        q: (K,) quality factors.
        kernel: samples.
        rate: samples per second.
    """
    t = (torch.arange(kernel, dtype=torch.float64) - (kernel - 1) / 2) / rate
    s = (q / (2 * math.pi * frequency)).double()[:, None]
    envelope = torch.exp(-0.5 * (t / s) ** 2)
    angle = 2 * math.pi * frequency.double()[:, None] * t
    pairs = torch.cat([envelope * torch.cos(angle), envelope * torch.sin(angle)])
    return (pairs / pairs.norm(dim=1, keepdim=True)).float()


class LogPowerStem(nn.Module):
    """Strain to log power in K bands: ``log(floor + (a^2 + b^2) / 2)`` of K trainable quadrature pairs (a, b).

    Power is in units of the noise's own, 1 on average. A faint signal shows best in the power P itself, and the
    logarithm keeps loud ones in bounds: of what P says of a small addition to Gaussian noise, log(3 + P) says 97% (its
    squared correlation with P), and log(0.1 + P), which dwells on quiet moments, 77%.

    Output length: ``T // stride`` frames of ``stride / rate`` seconds (one sample counts as one more where
    ``kernel - stride`` is odd).

    Args:
        bands: K_q bands per quality factor, log-spaced over [f_low, f_high].
        q: quality factors; K is ``bands * len(q)``.
        kernel, stride: samples.
        floor: of the power.
        sine_gaussian: start from sine-Gaussians; otherwise from random numbers of the same energy (an ablation).
        f_low, f_high: Hz.
        rate: samples per second.
    """

    def __init__(
        self,
        bands: int,
        q: tuple[float, ...],
        kernel: int,
        stride: int,
        f_low: float,
        f_high: float,
        rate: float,
        floor: float = 3.0,
        sine_gaussian: bool = True,
    ) -> None:
        super().__init__()
        frequency = torch.logspace(math.log10(f_low), math.log10(f_high), bands, dtype=torch.float64)
        pairs = sine_gaussian_pairs(
            frequency.repeat(len(q)), torch.tensor(q, dtype=torch.float64).repeat_interleave(bands), kernel, rate
        )
        if not sine_gaussian:
            pairs = torch.randn(pairs.shape)
            pairs = pairs / pairs.norm(dim=1, keepdim=True)
        self.floor, self.stride, self.padding = floor, stride, (kernel - stride) // 2 + (kernel - stride) % 2
        self.weight = nn.Parameter(pairs[:, None])  # (2 K, 1, kernel)

    @property
    def channels(self) -> int:
        """K, the bands of the output."""
        return self.weight.shape[0] // 2

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, T) to (N, K, T / stride)."""
        if self.training and not x.requires_grad and bfloat16.applies(x):
            padded = nn.functional.pad(x[:, 0], (self.padding, self.padding))
            return bfloat16.LogPower.apply(padded, self.weight[:, 0], self.stride, self.floor).transpose(1, 2)
        pair = nn.functional.conv1d(x, self.weight, stride=self.stride, padding=self.padding)
        a, b = pair.chunk(2, dim=1)  # (N, K, frames) each
        return torch.log(self.floor + 0.5 * (a * a + b * b))
