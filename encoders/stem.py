"""The first layer: trainable sine-Gaussian quadrature pairs, and the logarithm of each pair's power.

What two detectors agree on is neither sign nor phase: the plus responses of Hanford and Livingston are
anti-correlated and Virgo's is nearly independent. The power of a quadrature pair forgets both, and keeps when and at
what frequency.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

# Power is in units of the noise's own (1 on average); the floor keeps the logarithm from dwelling on quiet moments.
POWER_FLOOR = 0.1


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
    """Strain to log power in K bands: ``log(0.1 + (a^2 + b^2) / 2)`` of K trainable quadrature pairs (a, b).

    Output length: ``T // stride`` frames of ``stride / rate`` seconds (one sample counts as one more where
    ``kernel - stride`` is odd).

    Args:
        bands: K_q bands per quality factor, log-spaced over [f_low, f_high].
        q: quality factors; K is ``bands * len(q)``.
        kernel, stride: samples.
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
        self.stride, self.padding = stride, (kernel - stride) // 2 + (kernel - stride) % 2
        self.weight = nn.Parameter(pairs[:, None])  # (2 K, 1, kernel)

    @property
    def channels(self) -> int:
        """K, the bands of the output."""
        return self.weight.shape[0] // 2

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, T) to (N, K, T / stride)."""
        if self.training and x.device.type == "cpu" and not x.requires_grad and _fast_bfloat16():
            padded = nn.functional.pad(x[:, 0], (self.padding, self.padding))
            return _LogPower.apply(padded, self.weight[:, 0], self.stride).transpose(1, 2)
        pair = nn.functional.conv1d(x, self.weight, stride=self.stride, padding=self.padding)
        a, b = pair.chunk(2, dim=1)  # (N, K, frames) each
        return torch.log(POWER_FLOOR + 0.5 * (a * a + b * b))


class _LogPower(torch.autograd.Function):
    """The stem's output (N, frames, K) as one product of matrices in bfloat16, which rounds a sample by at most 0.4%.

    Three times as fast as automatic differentiation of the convolution: the strain itself needs no gradient, and that
    of log(floor + (a^2 + b^2) / 2) with respect to a is a exp(-output).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        rows = x.bfloat16().unfold(1, weight.shape[1], stride)  # (N, frames, kernel)
        n, frames, kernel = rows.shape
        rows = rows.reshape(n * frames, kernel)
        pair = (rows @ weight.bfloat16().T).float()  # (N frames, 2 K)
        k = pair.shape[1] // 2
        power = pair[:, :k] * pair[:, :k]
        power.addcmul_(pair[:, k:], pair[:, k:]).mul_(0.5).add_(POWER_FLOOR)
        out = power.log_()
        ctx.save_for_backward(rows, pair, out)
        return out.view(n, frames, k)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[None, Tensor, None]:
        rows, pair, out = ctx.saved_tensors
        k = out.shape[1]
        scale = torch.exp(-out).mul_(gradient[0].reshape(-1, k))
        both = torch.cat([pair[:, :k] * scale, pair[:, k:] * scale], dim=1)
        return None, (both.bfloat16().T @ rows).float(), None


@functools.cache
def _fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
