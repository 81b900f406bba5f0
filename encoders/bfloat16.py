"""The layers of `cnn_gru` in bfloat16 with gradients of their own: for training on CPUs that multiply it in hardware.

Twice to three times as fast as automatic differentiation in float32. What goes into a product of matrices is rounded
by at most 0.4%; sums, logarithms and weights stay float32. Encoders are evaluated in float32 throughout.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

_WINDOWS = 128  # windows of strain at a time: what is between input and output then stays in the cache


@functools.cache
def fast() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def applies(x: Tensor) -> bool:
    """Whether x is worth it: float32 on such a CPU."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and fast()


class LogPower(torch.autograd.Function):
    """``log(floor + (a^2 + b^2) / 2)`` of K quadrature pairs (a, b): (N, T) and (2 K, kernel) to (N, frames, K).

    The strain gets no gradient. That of the logarithm with respect to a is ``a exp(-output)``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, floor: float) -> Tensor:
        kernel, k = weight.shape[1], weight.shape[0] // 2
        half, matrix = x.bfloat16(), weight.bfloat16().T
        out = x.new_empty(len(x), (x.shape[1] - kernel) // stride + 1, k)
        kept = half.new_empty(*out.shape[:2], 2 * k)
        for i in range(0, len(x), _WINDOWS):
            part = slice(i, i + _WINDOWS)
            rounded, log = kept[part].view(-1, 2 * k), out[part].view(-1, k)
            pair = torch.mm(_rows(half[part], kernel, stride), matrix, out=rounded).float()
            a, b = pair[:, :k], pair[:, k:]
            torch.mul(a, a, out=log).addcmul_(b, b).mul_(0.5).add_(floor).log_()
        ctx.save_for_backward(half, weight, kept, out)
        ctx.stride = stride
        return out

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[None, Tensor, None, None]:
        half, weight, kept, out = ctx.saved_tensors
        kernel, k = weight.shape[1], weight.shape[0] // 2
        total = torch.zeros_like(weight)
        for i in range(0, len(half), _WINDOWS):
            part = slice(i, i + _WINDOWS)
            scale = out[part].neg().exp_().mul_(gradient[0][part]).bfloat16()
            pair = kept[part].unflatten(2, (2, k)) * scale[:, :, None]
            total += pair.view(-1, 2 * k).T @ _rows(half[part], kernel, ctx.stride)
        return None, total, None, None


def _rows(x: Tensor, kernel: int, stride: int) -> Tensor:
    """(N, T) to (N frames, kernel): what each frame sees."""
    return x.unfold(1, kernel, stride).reshape(-1, kernel)


class FrameConvolution(torch.autograd.Function):
    """A convolution over frames with channels last: (N, L, C) and (O, C, kernel) to (N, L', O), zeros beyond the ends.

    With channels last what an output frame sees lies together in memory, and the convolution is a product of matrices.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        n, frames, channels = x.shape
        width, _, kernel = weight.shape
        margin = kernel // 2
        padded = x.new_zeros(n, frames + 2 * margin, channels, dtype=torch.bfloat16)
        padded[:, margin : margin + frames] = x
        after = (frames + 2 * margin - kernel) // stride + 1
        steps = (padded.stride(0), stride * channels, 1)
        rows = padded.as_strided((n, after, kernel * channels), steps).reshape(n * after, -1)
        matrix = weight.transpose(1, 2).reshape(width, -1).bfloat16()
        ctx.save_for_backward(rows, matrix)
        ctx.shape, ctx.stride, ctx.kernel = x.shape, stride, kernel
        return (rows @ matrix.T).float().view(n, after, width)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, matrix = ctx.saved_tensors
        (n, frames, channels), stride, kernel = ctx.shape, ctx.stride, ctx.kernel
        after, margin = gradient[0].shape[1], kernel // 2
        g = gradient[0].reshape(n * after, -1).bfloat16()
        weight = (g.T @ rows).float().view(-1, kernel, channels).transpose(1, 2)
        seen = (g @ matrix).view(n, after, kernel, channels)
        padded = gradient[0].new_zeros(n, max(frames + 2 * margin, kernel - 1 + stride * after), channels)
        for j in range(0, kernel, stride):  # as many taps at once as do not overlap
            last = min(stride, kernel - j)
            padded[:, j : j + stride * after].unflatten(1, (after, stride))[:, :, :last] += seen[:, :, j : j + last]
        return padded[:, margin : margin + frames], weight, None
