"""Evidence for a merger: what whitened signals, laid over the strain at every moment, say of each moment.

A binary of tens of solar masses spends a tenth of a second in the band and crosses most of it. Of its squared SNR the
best of 24 sine-Gaussians holds three tenths, and the best of sixteen whole mergers four fifths (a matched filter): what
is lost when the pieces of a faint signal are weighed one by one is not to be had back by learning. The kernels are
averages of mergers of the population that is searched (`gwtwins.strain.mergers`), and are not trained.

Noise is not the only other explanation: detectors have glitches. What a short burst explains as well, or what is too
loud to be believed of one detector alone, counts for little.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass

import torch
from torch import Tensor, nn

from gwtwins.encoders.stem import sine_gaussian_pairs

AFTER_MERGER = 0.045
"""Seconds of a kernel after the merger: the ringdown."""
MOST = 15.0
"""Evidence e of a detector counts as MOST tanh(e / MOST): what one detector alone says, a glitch, does not outvote the
others. 15 is what a signal of SNR 6 gives."""
BURST_ODDS, MERGER_ODDS = 17.0, 13.5
"""Minus the logarithms of the odds of a glitch, of a given shape at a given moment, against none: one that looks like a
sine-Gaussian, one that looks like a merger. Detection depends on them little: 15 to 19 and 12 to 15 do as well."""
LEFT = 4.0
"""Evidence that no glitch takes away: a signal may look like a burst too, if it is that of heavier black holes than the
kernels are of, and is then seen in several detectors at once."""
AROUND = 0.25
"""Seconds to either side of a frame within which a burst explains what is in it."""
BURST_Q = (3.0, 8.0)
BURST_LENGTH = 0.125
"""Seconds of a burst's kernel."""
BURST_STEP = 0.008
"""Seconds between the moments at which bursts are laid over the strain: only the loudest of them matters."""
_OVERFLOW = 60.0  # exp of more might
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

RULES = (AFTER_MERGER, MOST, BURST_ODDS, MERGER_ODDS, LEFT, AROUND, BURST_STEP, astuple(NEAR), astuple(FAR))
"""What evidence depends on beside kernels: a probe that was fitted by other rules does not fit."""


class MergerEvidence(nn.Module):
    """Strain to the evidence for K mergers in short frames.

    With a quadrature pair (a, b) in which noise has variance 1, P = (a^2 + b^2) / 2 is half the squared SNR, and exp(P)
    the likelihood ratio of a signal of that shape against noise, at its most likely amplitude and phase. A frame's
    evidence against noise is the logarithm of the mean of exp(share P) over the moments in it and `Site.beyond` it.

    A glitch may explain as much. The likelihood ratio of noise with glitches against noise alone is 1 + exp(g), where g
    is the larger, within `AROUND`, of two: share P of the loudest sine-Gaussian less `BURST_ODDS`, and the evidence for
    the likeliest merger less `MERGER_ODDS`. What remains, e = evidence - log(1 + exp(g)), but not less than `LEFT` or
    the evidence itself if that is less, is given as tanh(e / MOST).

    Args:
        count: K quadrature pairs.
        kernel: samples of each.
        stride: samples between the moments at which they are laid over the strain.
        frame: samples of a frame, a multiple of ``stride``.
        f_low, f_high: Hz.
        rate: samples per second.
        bursts: frequencies of the sine-Gaussians; 0 for evidence against noise without glitches.
    """

    def __init__(
        self,
        count: int,
        kernel: int,
        stride: int,
        frame: int,
        f_low: float,
        f_high: float,
        rate: float,
        bursts: int = 0,
    ) -> None:
        super().__init__()
        self.count, self.stride, self.frame, self.rate = count, stride, frame, rate
        self.after = min(round(AFTER_MERGER * rate), kernel // 2)
        # Until mergers are given: bursts.
        frequency = torch.logspace(math.log10(f_low), math.log10(f_high), count, dtype=torch.float64)
        pairs = sine_gaussian_pairs(frequency, torch.full((count,), 5.0, dtype=torch.float64), kernel, rate)
        self.weight: Tensor
        self.register_buffer("weight", pairs)  # (2 K, kernel)
        frequency = torch.logspace(math.log10(f_low), math.log10(f_high), bursts, dtype=torch.float64)
        q = torch.tensor(BURST_Q, dtype=torch.float64).repeat_interleave(bursts)
        self.burst: Tensor
        pairs = sine_gaussian_pairs(frequency.repeat(len(BURST_Q)), q, round(BURST_LENGTH * rate), rate)
        self.register_buffer("burst", pairs, persistent=False)  # (2 B, samples), of unit energy

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
        at = self._against_glitches if self.burst.numel() else self.against_noise
        return torch.cat([at(site, part, first, frames).div_(MOST).tanh_() for part in x.split(_AT_ONCE)])

    def _against_glitches(self, site: Site, x: Tensor, first: int, frames: int) -> Tensor:
        """As `against_noise`, less what glitches explain."""
        around = round(AROUND * self.rate / self.frame)
        begin = max(first - around, min(first, 0))  # where there is no strain there is no glitch
        end = min(first + frames + around, max(first + frames, -(-x.shape[1] // self.frame)))
        wanted = slice(first - begin, first - begin + frames)
        e = self.against_noise(site, x, begin, end - begin)
        g = site.share * self.loudest_burst(x, begin, end - begin) - BURST_ODDS
        g = torch.maximum(g, e.amax(2) - MERGER_ODDS)
        g = nn.functional.max_pool1d(g[:, None], 2 * around + 1, 1, around)[:, 0, wanted]
        e = e[:, wanted]
        return torch.maximum(e - nn.functional.softplus(g)[..., None], e.clamp_max(LEFT))

    def against_noise(self, site: Site, x: Tensor, first: int, frames: int) -> Tensor:
        """(N, T) to evidence in natural units of ``frames`` frames from ``first`` on, (N, frames, K), at least 0.

        Beyond `_OVERFLOW` it is too small, by the logarithm of the number of moments at most.
        """
        moments, kernel = self.frame // self.stride, self.weight.shape[1]
        whole, some = divmod(round(site.beyond * self.rate / self.stride), moments)  # frames and moments beyond a frame
        margin = whole + bool(some)
        before = kernel - self.after - self.stride // 2  # the merger of a frame's first moment lies half a stride in it
        pairs = self.weight * math.sqrt(0.5 * site.share)
        a, b = self._laid(pairs, x, before, first - margin, frames + 2 * margin, moments)
        power = torch.addcmul(a * a, b, b)  # (N, frames and margins, moments, K)
        count = (1 + 2 * whole) * moments + 2 * some
        most = _around(power, whole, some, torch.amax, torch.maximum)
        total = _around(power.clamp_max_(_OVERFLOW).exp_(), whole, some, torch.sum, torch.add)
        return torch.maximum(total.log_(), most).sub_(math.log(count)).clamp_min_(0.0)

    def loudest_burst(self, x: Tensor, first: int, frames: int) -> Tensor:
        """(N, T) to half the squared SNR of the loudest sine-Gaussian in ``frames`` frames from ``first`` on."""
        moments = max(1, round(self.frame / (BURST_STEP * self.rate)))
        scale = self.weight[0].norm()  # that of the mergers, whose noise has variance 1
        before = self.burst.shape[1] // 2 - self.frame // moments // 2
        a, b = self._laid(self.burst * (scale * math.sqrt(0.5)), x, before, first, frames, moments)
        return torch.addcmul(a * a, b, b).amax(dim=(2, 3))

    def _laid(self, pairs: Tensor, x: Tensor, before: int, first: int, frames: int, moments: int) -> tuple[Tensor, ...]:
        """Cosines and sines of ``pairs`` (2 P, kernel) over rows (N, T): two of (N, frames, moments, P).

        A frame's first kernel begins ``before`` samples before the frame.
        """
        count, kernel = pairs.shape
        step = self.frame // moments
        length = kernel + (moments - 1) * step
        before -= first * self.frame
        x = nn.functional.pad(x, (before, (frames - 1) * self.frame + length - before - x.shape[1]))
        # What a frame sees lies together, and all of its moments come out of one product of matrices.
        kernels = pairs.new_zeros(length, moments, count)
        for i in range(moments):
            kernels[i * step : i * step + kernel, i] = pairs.T
        rows = x.unfold(1, length, self.frame).reshape(len(x) * frames, length)
        return (rows @ kernels.flatten(1)).view(len(x), frames, moments, 2, count // 2).unbind(3)


def _around(
    x: Tensor, whole: int, some: int, over: Callable[..., Tensor], join: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Of x (N, frames, moments, K) what each frame has with ``whole`` frames and ``some`` moments more on either side,
    as far as these are all there; ``over`` an axis, and ``join``, say how it is put together."""
    margin = whole + bool(some)
    frames = x.shape[1] - 2 * margin
    each = over(x, 2)
    out = each[:, margin : margin + frames]
    for k in range(1, whole + 1):
        out = join(out, join(each[:, margin - k : margin - k + frames], each[:, margin + k : margin + k + frames]))
    if some:
        before, after = x[:, :frames, x.shape[2] - some :], x[:, x.shape[1] - frames :, :some]
        out = join(out, join(over(before, 2), over(after, 2)))
    return out


def network_evidence(loudest: Tensor) -> Tensor:
    """What K mergers (..., K), each the largest over time of the sum of a network's frames, say of a window.

    Gives (..., K + 1): each one's evidence in natural units, and the logarithm of the sum of their likelihood ratios.
    """
    natural = loudest * MOST
    return torch.cat([natural, torch.logsumexp(natural, -1, keepdim=True)], -1)
