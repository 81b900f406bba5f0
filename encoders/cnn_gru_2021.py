"""The public 2021 encoder of Barlow Twins on detector pairs: convolutions and a GRU on the waveform itself.

It is here to be compared with: a row in every table, with its own recipe in ``configs/g2net_2021.yaml``.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gwtwins.encoders.registry import bounded, register
from gwtwins.strain.errors import InputError

_RATE = 2048.0  # Hz
_WINDOW = 2.0  # seconds

# (input width, output width, kernel, GeM pooling or 1), widths in units of `width` and 0 the strain itself.
# The GRU runs after the first seven, over 58 steps; the last two work on its output.
_BEFORE_GRU = (
    (0, 1, 64, 1),
    (1, 1, 32, 2),
    (1, 1, 32, 1),
    (1, 1, 32, 4),
    (1, 2, 32, 1),
    (2, 2, 16, 6),
    (2, 4, 16, 1),
)
_AFTER_GRU = ((4, 4, 16, 4), (4, 4, 1, 1))


@dataclass(frozen=True)
class CnnGru2021Config:
    """Arguments of :class:`CnnGru2021`; the defaults are the published model."""

    embedding: int = bounded(2048, 2, 16384)
    """Numbers in the embedding."""
    width: int = bounded(64, 4, 256)
    """Channels of the first convolution; the last ones have 4 times as many, each GRU direction 2 times."""
    gem_power: float = bounded(3.0, 1.0, 16.0)
    """Exponent with which the GeM pooling starts; it is learned, one for each pooling."""
    pool_after: str = dataclasses.field(default="conv", metadata={"choices": ("conv", "silu")})
    """Where GeM pools: "conv", on the convolution's output as published, or "silu", after norm and SiLU."""


class GeM1d(nn.Module):
    """Generalised mean over windows of k samples: y = (mean of max(x, eps)^p)^(1/p), with p learned.

    p = 1 is the average and p to infinity the maximum (Radenovic et al. 2018, arXiv:1711.02512, eq. 3). A
    power needs a positive base, so every value below ``eps`` counts as ``eps``, as in the published model: on
    a signed input this is a half-wave rectification, and values below ``eps`` pass no gradient.

    Computed from logarithms, because eps^p leaves float32 at p = 6.4 (1e-38) and its root then has no finite
    gradient; and in float32 even under lower precision. p is held at 1 or above: the published one is free to
    reach 0, where the formula divides by it.

    (N, C, T) to (N, C, floor(T / k)).
    """

    def __init__(self, kernel: int, power: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.kernel, self.eps = kernel, eps
        self.power = nn.Parameter(torch.full((1,), power))

    def forward(self, x: Tensor) -> Tensor:
        """Pool ``x`` (N, C, T), leaving out a last incomplete window; the dtype is kept."""
        exact = torch.promote_types(x.dtype, torch.float32)
        count = x.shape[-1] // self.kernel
        windows = x[..., : count * self.kernel].to(exact).unflatten(-1, (count, self.kernel))
        power = self.power.clamp(min=1.0).to(exact)
        logs = torch.logsumexp(power * windows.clamp(min=self.eps).log(), dim=-1) - math.log(self.kernel)
        return (logs / power).exp().to(x.dtype)  # (N, C, T / k)

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}, eps={self.eps:g}"


@register("cnn_gru_2021", CnnGru2021Config)
class CnnGru2021(nn.Module):
    """Seven convolutions, a bidirectional GRU, two more convolutions and a linear layer, on 2 s at 2048 Hz.

    Layout of the model published with "Self Supervised Learning for Gravitational Waves"
    (https://sidml.github.io/Self-Supervised-Learning-for-Gravitational-Waves), which took it from a public 1D
    CNN for the G2Net data of 2021. No convolution pads:

    ====================  ========  ======  ====  =====
    layer                 channels  kernel  GeM   steps
    ====================  ========  ======  ====  =====
    input                 1                       4096
    conv 1                64        64            4033
    conv 2                64        32      2     2001
    conv 3                64        32            1970
    conv 4                64        32      4     484
    conv 5                128       32            453
    conv 6                128       16      6     73
    conv 7, no SiLU       256       16            58
    GRU, both directions  2 x 128                 58
    conv 8                256       16      4     10
    conv 9                256       1             10
    flatten, linear       2048
    ====================  ========  ======  ====  =====

    After each convolution come GeM where the table has one, then BatchNorm, then SiLU. The published model
    counts 8,105,220 parameters: 2,563,840 in the convolutions and their norms, 4 in the poolings, 296,448 in
    the GRU and 5,244,928 in the linear layer. This one has 8,104,452: the five convolutions whose output goes
    straight into BatchNorm have no bias, since BatchNorm takes it out again. The other departure is GeM's
    exponent, held at 1 or above.

    The published recipe feeds it strain divided by 1e-21 and band-passed to 20-600 Hz; whitened windows do as
    well, the first BatchNorm setting the scale.
    """

    rate: float = _RATE
    """Samples per second of the windows it takes."""
    window: float = _WINDOW
    """Seconds of the windows it takes."""

    def __init__(self, config: CnnGru2021Config | None = None) -> None:
        super().__init__()
        self.config = config = config or CnnGru2021Config()
        self.embedding_dim = config.embedding
        self.samples = steps = round(_RATE * _WINDOW)
        *first, last = _BEFORE_GRU
        blocks = [_block(config, *row) for row in first]
        self.before = nn.Sequential(*blocks, _block(config, *last, silu=False))
        self.gru = nn.GRU(4 * config.width, 2 * config.width, batch_first=True, bidirectional=True)
        self.after = nn.Sequential(*(_block(config, *row) for row in _AFTER_GRU))
        for _, _, kernel, pool in (*_BEFORE_GRU, *_AFTER_GRU):
            steps = (steps - kernel + 1) // pool
        self.project = nn.Linear(4 * config.width * steps, config.embedding)

    def forward(self, x: Tensor) -> Tensor:
        """Embed whitened or band-passed windows: (N, 1, 4096) to (N, E).

        Raises:
            InputError: windows of another shape; the linear layer holds the window's length.
        """
        if x.ndim != 3 or x.shape[1] != 1 or x.shape[2] != self.samples:
            expected = f"(N, 1, {self.samples}): {_WINDOW:g} s at {_RATE:g} Hz"
            raise InputError("encoder cnn_gru_2021", f"windows of shape {tuple(x.shape)}", expected)
        x = self.before(x)  # (N, 4 width, 58)
        x = self.gru(x.transpose(1, 2))[0].transpose(1, 2)  # (N, 4 width, 58)
        x = self.after(x)  # (N, 4 width, 10)
        return self.project(x.flatten(1))  # (N, E)


def _block(
    config: CnnGru2021Config, inputs: int, outputs: int, kernel: int, pool: int, silu: bool = True
) -> nn.Sequential:
    """Convolution, BatchNorm and SiLU, with GeM before the norm or after the SiLU."""
    channels = outputs * config.width
    pools_first = pool > 1 and config.pool_after == "conv"
    # BatchNorm takes a bias away again, unless the clamp of GeM lies between the two.
    conv = nn.Conv1d(inputs * config.width or 1, channels, kernel, bias=pools_first)
    layers: list[nn.Module] = [conv]
    if pools_first:
        layers.append(GeM1d(pool, config.gem_power))
    layers.append(nn.BatchNorm1d(channels))
    if silu:
        layers.append(nn.SiLU())
    if pool > 1 and not pools_first:
        layers.append(GeM1d(pool, config.gem_power))
    return nn.Sequential(*layers)
