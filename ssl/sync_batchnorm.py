"""BatchNorm over the batch of all processes, on the CPU as on GPUs: torch's own SyncBatchNorm runs on GPUs only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


class SyncBatchNorm1d(nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` whose training statistics are those of the rows of all processes.

    The processes may hold different numbers of rows, some of them none. In one process, and in evaluation, it is
    BatchNorm1d itself. Its names in a state dict are the same. Input (N, C) or (N, C, L).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalised over N and L of every process."""
        if not (self.training and distributed.is_initialized() and distributed.get_world_size() > 1):
            return super().forward(x)
        self._check_input_dim(x)
        y, mean, var, n = _Normalise.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats and self.running_mean is not None:
            assert self.running_var is not None and self.num_batches_tracked is not None and self.momentum is not None
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = var * (n / (n - 1).clamp_min(1))  # as torch keeps it
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        return y


def synchronise_batchnorm(module: nn.Module) -> None:
    """Make every BatchNorm1d inside ``module`` one over all processes, in place: parameters and buffers stay."""
    for part in module.modules():
        if type(part) is nn.BatchNorm1d and part.momentum is not None:
            part.__class__ = SyncBatchNorm1d


class _Normalise(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias with the moments of all processes; Ioffe & Szegedy 2015.

    Gradients of weight and bias are this process's share, which DistributedDataParallel adds up; that of x has the
    sums of all processes in it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        dims = [d for d in range(x.ndim) if d != 1]
        c, here = x.shape[1], x.numel() // x.shape[1]
        mean = exact.sum(dims) / max(here, 1)
        squares = (exact - _wide(mean, x)).square().sum(dims)
        # One message of means, squares about them and the count; then Chan, Golub & LeVeque 1979, which unlike sums of
        # squares does not cancel.
        mine = torch.cat([mean, squares, mean.new_tensor([float(here)])])
        each = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
        distributed.all_gather(each, mine)
        means, squared, counts = torch.stack(each).split([c, c, 1], dim=1)  # (W, C), (W, C), (W, 1)
        n = counts.sum()  # stays on the device: a step of a GPU does not wait for it
        mean = (means * counts).sum(0) / n
        var = (squared.sum(0) + (counts * (means - mean).square()).sum(0)) / n
        scale = torch.rsqrt(var + eps)
        y = (exact - _wide(mean, x)) * _wide(scale if weight is None else scale * weight, x)
        if bias is not None:
            y = y + _wide(bias, x)
        ctx.save_for_backward(x, weight, mean, scale, n)
        ctx.dims = dims
        ctx.mark_non_differentiable(mean, var, n)
        return y.to(x.dtype), mean, var, n

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, scale, n = ctx.saved_tensors
        grad = grad.to(mean.dtype)
        normal = (x.to(mean.dtype) - _wide(mean, x)) * _wide(scale, x)
        mine = torch.stack([grad.sum(ctx.dims), (grad * normal).sum(ctx.dims)])  # (2, C)
        every = mine.clone()
        distributed.all_reduce(every)
        first, second = every / n
        inner = grad - _wide(first, x) - normal * _wide(second, x)
        into = (inner * _wide(scale if weight is None else scale * weight, x)).to(x.dtype)
        return into, None if weight is None else mine[1], mine[0] if ctx.needs_input_grad[2] else None, None


def _wide(value: Tensor, like: Tensor) -> Tensor:
    """(C,) along axis 1 of ``like``."""
    return value.view(1, -1, *(1,) * (like.ndim - 2))
