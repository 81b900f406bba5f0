"""The default encoder: sine-Gaussian stem, log power, a small CNN, a bidirectional GRU, pooling, an embedding.

Beside what is learnt, its frames carry the evidence for a few whole mergers, finer in time, for what the detectors show
together: a sum over detectors before the loudest moment is taken (`evidence`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gwtwins.encoders import bfloat16
from gwtwins.encoders.evidence import MergerEvidence, network_evidence
from gwtwins.encoders.pooling import POOLINGS
from gwtwins.encoders.registry import bounded, register
from gwtwins.encoders.stem import LogPowerStem
from gwtwins.strain.conditioning import check_band
from gwtwins.strain.errors import InputError

_AT_ONCE = 8192  # frames of the stem, in evaluation: what is between the convolutions then stays in the cache


@dataclass(frozen=True)
class CnnGruConfig:
    """Arguments of `cnn_gru`."""

    rate: float = bounded(1024.0, 256.0, 16384.0)
    """Samples per second it works at; faster input is decimated (it is band-limited)."""
    window: float = bounded(2.0, 0.5, 64.0)
    """Seconds of strain."""
    bands: int = bounded(24, 4, 256)
    """Bands of the stem for each quality factor."""
    q: tuple[float, ...] = bounded((5.0,), 1.0, 100.0)
    """Quality factors of the stem's sine-Gaussians."""
    f_low: float = bounded(25.0, 5.0, 1000.0)
    """Lowest band, Hz."""
    f_high: float = bounded(480.0, 20.0, 8000.0)
    """Highest band, Hz."""
    kernel: int = bounded(128, 8, 4096)
    """Samples of the stem's filters."""
    stride: int = bounded(16, 1, 1024)
    """Samples between frames."""
    power_floor: float = bounded(3.0, 0.01, 100.0)
    """What is added to the power, in units of the noise's own, before its logarithm is taken."""
    stem: str = field(default="sine_gaussian", metadata={"choices": ("sine_gaussian", "random")})
    """How the stem's filters start."""
    width: int = bounded(48, 4, 1024)
    """Channels of the convolutions."""
    strides: tuple[int, ...] = bounded((4, 1, 2), 1, 64)
    """Frames that each convolution moves on by, one number a convolution: so that the GRU takes few steps."""
    conv_kernel: int = bounded(5, 1, 31)
    """Frames each convolution sees."""
    hidden: int = bounded(64, 4, 1024)
    """Units of the GRU in each direction."""
    pooling: str = field(default="mean_max", metadata={"choices": tuple(POOLINGS)})
    """How frames become one vector."""
    pool_from: float = bounded(1.125, 0.0, 64.0)
    """Seconds into a window from which frames are pooled, the others give context: mergers lie near a window's end."""
    embedding: int = bounded(128, 4, 8192)
    """Numbers in the embedding."""
    mergers: int = bounded(16, 0, 256)
    """Whole mergers whose evidence the frames carry; 0 for none."""
    merger_kernel: int = bounded(256, 8, 4096)
    """Samples of each."""
    merger_stride: int = bounded(4, 1, 64)
    """Samples between the moments at which they are laid over the strain."""
    merger_frames: int = bounded(8, 1, 64)
    """Frames of evidence in each of the GRU's."""
    glitch_bursts: int = bounded(12, 0, 64)
    """Frequencies of the bursts that may explain what looks like a merger; 0: evidence knows of noise alone."""


@register("cnn_gru", CnnGruConfig)
class CnnGru(nn.Module):
    """(N, 1, T) whitened strain of one detector to (N, E) embeddings; T is ``rate * window``."""

    def __init__(self, config: CnnGruConfig) -> None:
        super().__init__()
        c = config
        self.config, self.rate, self.window, self.embedding_dim = c, c.rate, c.window, c.embedding
        check_band(c.f_low, c.f_high, c.rate, "encoder cnn_gru, f_low to f_high")
        if not c.stride <= c.kernel <= round(c.rate * c.window):
            fault = f"kernel {c.kernel}, stride {c.stride}, {c.window:g} s at {c.rate:g} Hz"
            raise InputError("encoder cnn_gru", fault, "stride <= kernel <= samples of the window")
        self.hop = c.stride * math.prod(c.strides) / c.rate
        """Seconds from one frame of `sequence` to the next."""
        self.pool_start = round(c.pool_from / self.hop)
        """Frames of a window before the first that is pooled."""
        if self.pool_start >= round(c.window / self.hop):
            fault = f"pool_from {c.pool_from:g} s, frames of {self.hop:g} s"
            raise InputError("encoder cnn_gru", fault, f"a frame or more within the window of {c.window:g} s")
        if c.conv_kernel % 2 == 0:
            raise InputError("encoder cnn_gru", f"conv_kernel {c.conv_kernel}", "an odd number of frames")
        self.stem = LogPowerStem(
            c.bands, c.q, c.kernel, c.stride, c.f_low, c.f_high, c.rate, c.power_floor, c.stem == "sine_gaussian"
        )
        blocks: list[nn.Module] = [nn.BatchNorm1d(self.stem.channels)]
        channels = self.stem.channels
        for step in c.strides:
            conv = nn.Conv1d(channels, c.width, c.conv_kernel, step, c.conv_kernel // 2, bias=False)
            blocks += [conv, nn.BatchNorm1d(c.width), nn.ReLU(inplace=True)]
            channels = c.width
        self.cnn = nn.Sequential(*blocks)
        self.gru = nn.GRU(channels, c.hidden, batch_first=True, bidirectional=True)
        self.pool = POOLINGS[c.pooling]()
        self.head = nn.Linear(2 * c.hidden * self.pool.expansion, c.embedding)
        self.learnt = 2 * c.hidden
        """Channels of `sequence` that are the GRU's; evidence follows, `merger_frames` times `mergers`."""
        self.evidence: MergerEvidence | None = None
        if c.mergers:
            fine, rest = divmod(round(self.hop * c.rate), c.merger_frames)
            if rest or fine % c.merger_stride or c.merger_kernel > c.rate * c.window:
                fault = f"merger_frames {c.merger_frames}, merger_stride {c.merger_stride}, kernel {c.merger_kernel}"
                parts = f"merger_frames parts of a frame's {self.hop * c.rate:g} samples, each of whole strides"
                expected = f"{parts}, and kernels within the window"
                raise InputError("encoder cnn_gru", fault, expected)
            band = c.f_low, c.f_high, c.rate
            self.evidence = MergerEvidence(c.mergers, c.merger_kernel, c.merger_stride, fine, *band, c.glitch_bursts)

    def local(self, x: Tensor, far: Tensor | None, first: int = 0) -> Tensor:
        """(N, 1, T) of any length to what can be said of each frame by itself, (N, L, C').

        First what the convolutions make of it, then the evidence in the frame of rows that come from ``far`` (N,) or
        near detectors (`gwtwins.encoders.evidence`), 0 in frames before the ``first``; None where it is not wanted.
        """
        learnt = self.convolved(x)
        if self.evidence is None or far is None:
            return learnt
        frames, each = learnt.shape[1] - first, self.config.merger_frames
        fine = self.evidence(x[:, 0], far, first * each, frames * each)  # (N, frames merger_frames, K)
        fine = fine.unflatten(1, (frames, each)).flatten(2)
        return torch.cat([learnt, nn.functional.pad(fine, (0, 0, first, 0))], 2)

    def convolved(self, x: Tensor) -> Tensor:
        """(N, 1, T) of any length to what the convolutions make of it, (N, L, width), frame by frame.

        Frame l stands for ``[l, l + 1) * hop`` seconds and sees 0.4 s more on either side.

        What a convolution that moves on by four frames says of a signal depends on how it lies between them. In
        training that varies from row to row; in evaluation it is the mean over the four ways.
        """
        frames = self.stem(x)
        if not self.training:
            return self._averaged(frames)
        if not bfloat16.applies(frames):
            return self.cnn(frames).transpose(1, 2)
        frames = frames.transpose(1, 2)
        for layer in self.cnn:
            frames = _on_frames(layer, frames)
        return frames

    def _averaged(self, frames: Tensor) -> Tensor:
        """The stem's frames (N, K, F) to (N, L, C'), the mean over all places where the first convolution may begin."""
        layers: list[Any] = list(self.cnn)
        normal, pairs = layers[0], zip(layers[1::3], layers[2::3], strict=True)
        (first, weight, bias), *others = [(conv, *_with_norm(conv, norm)) for conv, norm in pairs]
        ways, reach = first.stride[0], first.kernel_size[0] // 2
        length = frames.shape[2]
        after = -(-length // ways)
        begin = ways // 2  # so that the mean place is the frame's own, to half a frame
        margins = reach + begin, reach - begin + ways * after - length
        means = []
        for part in [frames] if torch.compiler.is_compiling() else frames.split(max(1, _AT_ONCE // length)):
            dense = nn.functional.conv1d(nn.functional.pad(normal(part), margins), weight, bias).relu_()
            each = dense.unflatten(2, (after, ways)).permute(0, 3, 1, 2).flatten(0, 1)  # (N ways, C, after)
            for conv, w, b in others:
                each = nn.functional.conv1d(each, w, b, conv.stride, conv.padding).relu_()
            means.append(each.unflatten(0, (-1, ways)).mean(dim=1).transpose(1, 2))
        return torch.cat(means)

    def recur(self, local: Tensor) -> Tensor:
        """`local` frames (N, L, C') to frames that know of each other, (N, L, C); evidence stays as it is.

        The GRU starts anew at either end. It has learnt from stretches as long as a window: what it remembers of
        longer ones is of no use.
        """
        learnt, evidence = local[..., : self.config.width], local[..., self.config.width :]
        if self.training and bfloat16.applies(local):
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):  # threads would share the cache
                made = self.gru(learnt)[0].float()
        else:
            made = self.gru(learnt)[0]
        return torch.cat([made, evidence], 2) if evidence.shape[2] else made

    def sequence(self, x: Tensor, far: Tensor | None = None) -> Tensor:
        """(N, 1, T) to frames in time, (N, L, C), with evidence as `local` has it."""
        return self.recur(self.local(x, far))

    def window_frames(self, x: Tensor, far: Tensor) -> Tensor:
        """Windows (N, 1, T) to those of their frames that are pooled, (N, L', C)."""
        return self.recur(self.local(x, far, self.pool_start))[:, self.pool_start :]

    def embed(self, sequence: Tensor) -> Tensor:
        """Frames (N, L, C), with evidence or without, to embeddings (N, E), which are made of what is learnt alone."""
        return self.head(self.pool(sequence[..., : self.learnt].transpose(1, 2)))

    def pooled(self, sequence: Tensor) -> Tensor:
        """Frames with evidence (N, L, C), of a detector or added over several, to one vector, (N, J).

        The pooled frames of the GRU; then each merger's largest evidence over time, and that of all of them.
        """
        learnt = self.pool(sequence[..., : self.learnt].transpose(1, 2))
        if self.evidence is None:
            return learnt
        fine = sequence[..., self.learnt :].unflatten(2, (-1, self.config.mergers))  # (N, L, merger_frames, K)
        return torch.cat([learnt, network_evidence(fine.amax(dim=(1, 2)))], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Windows (N, 1, T) to (N, E)."""
        return self.embed(self.sequence(x)[:, self.pool_start :])


def _on_frames(layer: nn.Module, frames: Tensor) -> Tensor:
    """A layer of `CnnGru.cnn` on frames with channels last (N, L, C), in bfloat16."""
    if isinstance(layer, nn.Conv1d):
        return bfloat16.FrameConvolution.apply(frames, layer.weight, layer.stride[0])
    if isinstance(layer, nn.ReLU):
        return layer(frames)
    n, length, channels = frames.shape
    return layer(frames.reshape(n * length, channels)).view(n, length, channels)


def _with_norm(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution and the normalisation after it, in evaluation."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return conv.weight * scale[:, None, None], norm.bias - norm.running_mean * scale
