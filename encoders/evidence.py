"""Evidence for a merger: what whitened signals, laid over the strain at every moment, say of each moment.

A binary of tens of solar masses spends a tenth of a second in the band and crosses most of it. Of its squared SNR the
best of 24 sine-Gaussians holds three tenths, and the best of sixteen whole mergers three quarters (a matched filter):
what is lost when the pieces of a faint signal are weighed one by one is not to be had back by learning. The kernels
start from mergers of the population that is searched (`gwtwins.strain.mergers`) and are not trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gwtwins.encoders.stem import sine_gaussian_pairs

AFTER_MERGER = 0.045
"""Seconds of a kernel after the merger: the ringdown."""
MOST = 15.0
"""Evidence e of a detector counts as MOST tanh(e / MOST): what one detector alone says, a glitch, does not outvote the
others. 15 is what a signal of SNR 6 gives."""
_OVERFLOW = 60.0  # exp of more might; tanh(60 / MOST) is 0.999
_AT_ONCE = 64  # rows: what is between strain and evidence then stays in the cache


@dataclass(frozen=True)
class Site:
    """What is known beforehand of a detector among others. Evidence is added frame by frame, and a signal reaches them
    one after the other."""

    beyond: float
    """Seconds that a frame looks at on either side of itself, so that arrivals in two detectors share a frame."""
    share: float
    """Of P: with a complex amplitude that is normal with variance v in each quadrature the likelihood ratio grows as
    exp(v / (1 + v) P). What a detector is often too deaf to hear, noise may not say much about."""


NEAR = Site(beyond=0.004, share=0.85)
"""Hanford and Livingston, 10 ms apart."""
FAR = Site(beyond=0.0235, share=0.7)
"""Virgo and KAGRA, up to 27 ms from them, of half their reach."""


class MergerEvidence(nn.Module):
    """Strain to the evidence for K mergers in short frames.

    With a quadrature pair (a, b) in which noise has variance 1, P = (a^2 + b^2) / 2 is half the squared SNR, and exp(P)
    the likelihood ratio of a signal of that shape against noise, at its most likely amplitude and phase. A frame's
    evidence e is the logarithm of the mean of exp(share P) over the moments in it and `Site.beyond` it; it is given as
    tanh(e / MOST).

    Args:
        count: K quadrature pairs.
        kernel: samples of each.
        stride: samples between the moments at which they are laid over the strain.
        frame: samples of a frame, a multiple of ``stride``.
        f_low, f_high: Hz.
        rate: samples per second.
    """

    def __init__(
        self, count: int, kernel: int, stride: int, frame: int, f_low: float, f_high: float, rate: float
    ) -> None:
        super().__init__()
        self.count, self.stride, self.frame, self.rate = count, stride, frame, rate
        self.after = min(round(AFTER_MERGER * rate), kernel // 2)
        # Until mergers are given: bursts.
        frequency = torch.logspace(math.log10(f_low), math.log10(f_high), count, dtype=torch.float64)
        pairs = sine_gaussian_pairs(frequency, torch.full((count,), 5.0, dtype=torch.float64), kernel, rate)
        self.weight: Tensor
        self.register_buffer("weight", pairs)  # (2 K, kernel)

    def start_from(self, kernels: Tensor, f_low: float, f_high: float) -> None:
        """Take complex ``kernels`` (K, kernel), merger `after` samples before the end, of any size.

        Noise that is whitened to variance 1 in f_low to f_high, Hz, has rate / (2 (f_high - f_low)) times the PSD of
        independent samples, and that variance behind a kernel of unit energy.
        """
        pairs = torch.cat([kernels.real, kernels.imag]).to(self.weight)
        if pairs.shape != self.weight.shape:
            raise ValueError(f"kernels for {tuple(self.weight.shape)}, not {tuple(pairs.shape)}")
        self.weight.copy_(pairs / pairs.norm(dim=1, keepdim=True) * math.sqrt(2 * (f_high - f_low) / self.rate))

    @torch.no_grad()
    def forward(self, x: Tensor, far: Tensor, first: int, frames: int) -> Tensor:
        """(N, T) to ``frames`` of its frames from ``first`` on, (N, frames, K), between 0 and 1.

        ``far`` (N,) bool tells the rows of `FAR` detectors from those of `NEAR` ones. Before and after the T samples
        there is nothing.
        """
        if not far.any() or far.all():
            return self._at(FAR if len(far) and far[0] else NEAR, x, first, frames)
        out = x.new_empty(len(x), frames, self.count)
        out[far], out[~far] = self._at(FAR, x[far], first, frames), self._at(NEAR, x[~far], first, frames)
        return out

    def _at(self, site: Site, x: Tensor, first: int, frames: int) -> Tensor:
        moments, kernel = self.frame // self.stride, self.weight.shape[1]
        whole, some = divmod(round(site.beyond * self.rate / self.stride), moments)  # frames and moments beyond a frame
        margin = whole + bool(some)
        first, every = first - margin, frames + 2 * margin
        before = kernel - self.after - self.stride // 2  # the merger of a frame's first moment lies half a stride in it
        length = kernel + self.frame - self.stride
        before -= first * self.frame
        x = nn.functional.pad(x, (before, (every - 1) * self.frame + length - before - x.shape[1]))
        # What a frame sees lies together, and all of its moments come out of one product of matrices.
        kernels = self.weight.new_zeros(length, moments, 2 * self.count)
        for i in range(moments):
            kernels[i * self.stride : i * self.stride + kernel, i] = self.weight.T * math.sqrt(0.5 * site.share)
        kernels = kernels.flatten(1)
        out = []
        for part in x.split(_AT_ONCE):
            rows = part.unfold(1, length, self.frame).reshape(len(part) * every, length)
            a, b = (rows @ kernels).view(len(part), every, moments, 2, self.count).unbind(3)
            ratio = torch.addcmul(a * a, b, b).clamp_(max=_OVERFLOW).exp_()  # (n, every, moments, K)
            each = ratio.sum(2)
            total = each[:, margin : margin + frames].clone()
            for k in range(1, whole + 1):
                total += each[:, margin - k : margin - k + frames] + each[:, margin + k : margin + k + frames]
            if some:
                total += ratio[:, :frames, moments - some :].sum(2) + ratio[:, every - frames :, :some].sum(2)
            count = (1 + 2 * whole) * moments + 2 * some
            out.append(total.div_(count).log_().clamp_min_(0.0).div_(MOST).tanh_())
        return torch.cat(out)


def network_evidence(loudest: Tensor) -> Tensor:
    """What K mergers (..., K), each the largest over time of the sum of a network's frames, say of a window.

    Gives (..., K + 1): each one's evidence in natural units, and the logarithm of the sum of their likelihood ratios.
    """
    natural = loudest * MOST
    return torch.cat([natural, torch.logsumexp(natural, -1, keepdim=True)], -1)
