"""The statistic of every window of long strain, from the frames that an encoder pools.

A window's statistic is a weighted sum of the mean and the maximum over time of its frames, of each detector and of all
detectors' frames added (see `gwtwins.probes.frame_weights`). Means over time, and constants that stand for absent
detectors, come out of the sum over detectors; what is left of it is one maximum over time of the detectors' added
frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from gwtwins.encoders.evidence import network_evidence
from gwtwins.encoders.paired import PairedEncoder
from gwtwins.probes.frame_weights import frame_weights
from gwtwins.probes.linear import LinearProbe
from gwtwins.probes.scan_windows import FRAME_UNIT, Frames, recurred
from gwtwins.strain.noise import gaussian_noise

Array = NDArray[np.float64]

_CHUNK = 512  # windows at a time: one frame of each, 0.1 MB, stays in the cache
_NOISE_ROWS = 256  # windows of noise in each detector: the constants are then good to about 0.05


@dataclass(frozen=True)
class FrameStatistic:
    """What it takes to turn frames of D detectors into the statistic of windows.

    Frames have C channels that are learnt, then the evidence of K mergers at each of some moments.
    """

    detectors: tuple[str, ...]
    """The encoder's D."""
    frames: int
    """n, of a window: those that an encoder pools. What comes before them in the encoder's own windows is context."""
    hop: float
    """Seconds from one frame to the next."""
    mean: Array
    """(D, C) weights on the mean over time."""
    maximum: Array
    """(D, C) weights on the maximum over time."""
    together: NDArray[np.float32]
    """(C,) weights on the maximum over time of the sum over detectors."""
    evidence: NDArray[np.float32]
    """(K + 1,) weights on the `network_evidence` of the sum over detectors; empty for an encoder without."""
    constant: Array
    """(2^D,) for each set of present detectors, bit d of the index for detector d. Such that noise has the same mean
    statistic in each of them: the probe's, of bare windows of all detectors."""

    @classmethod
    def of(cls, encoder: PairedEncoder, probe: LinearProbe) -> FrameStatistic:
        """The statistic of ``probe``.

        Raises:
            InputError: the encoder makes no frames, or pools them otherwise than by mean and maximum.
        """
        weights = frame_weights(encoder, probe)
        n = round(encoder.window / encoder.hop) - encoder.pool_start
        rest = cls(
            encoder.detectors,
            n,
            encoder.hop,
            weights.own_mean + weights.both_mean,
            weights.own_max,
            weights.both_max.astype(np.float32),
            weights.evidence.astype(np.float32),
            np.zeros(1 << len(encoder.detectors)),
        )
        bare, noise = noise_frames(encoder)
        mean = weights.base + rest._means(bare)[-1]
        return replace(rest, constant=mean - rest._means(noise))

    @property
    def of_noise(self) -> float:
        """The mean statistic of Gaussian noise: with no detector at all, each is taken to hear it."""
        return float(self.constant[0])

    def own(self, windows: Frames, detector: int) -> NDArray[np.float32]:
        """(W,) what the detector's W windows add by themselves."""
        frames = windows.learnt
        on_maximum = (self.maximum[detector] * FRAME_UNIT).astype(np.float32)
        out = np.empty(frames.shape[1], np.float32)
        for rows, peak in _loudest([frames]):
            out[rows] = peak.astype(np.float32) @ on_maximum
        on_sum = (self.mean[detector] * (FRAME_UNIT / self.frames)).astype(np.float32)
        for a in range(0, len(out), _CHUNK):
            out[a : a + _CHUNK] += frames[:, a : a + _CHUNK].sum(axis=0, dtype=np.float32) @ on_sum
        return out

    def combined(
        self,
        frames: Sequence[Frames],
        own: NDArray[np.float32],
        ok: NDArray[np.bool_],
        which: Sequence[int],
        shift: Sequence[int] | None = None,
        at_least: int = 1,
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """The statistic of L windows, one a frame, of K detectors, moved against each other in a ring.

        Args:
            frames: of K detectors, L windows each.
            own: (K, L) of `own`.
            ok: (K, L) bool: the detector was recording well during the window.
            which: K indices into `detectors`.
            shift: K numbers of windows: window w is made of detector k's window w + shift[k], modulo L.
            at_least: detectors a window must be there in.

        Returns:
            stat (L,), -inf where too few detectors were on, and the set of present detectors (L,).
        """
        moved = [0] * len(which) if shift is None else [int(s) for s in shift]
        length = own.shape[1]
        here = np.stack([np.roll(row, -s) for row, s in zip(ok, moved, strict=True)])
        bits = np.array([1 << d for d in which], np.uint8)
        present = (here * bits[:, None]).sum(axis=0, dtype=np.uint8)
        enough = here.sum(axis=0) >= at_least
        stat = self.constant[present]
        for row, k_here, s in zip(own, here, moved, strict=True):
            stat += np.where(k_here, np.roll(row, -s), np.float32(0.0))
        if self._looks_together:
            change = np.flatnonzero((present[1:] != present[:-1]) | (enough[1:] != enough[:-1])) + 1
            seams = {-s % length for s in moved}  # where a detector's windows begin anew
            for a, b in pairwise(sorted({0, *seams, *change.tolist(), length})):
                if enough[a]:
                    on = [k for k in range(len(which)) if here[k, a]]
                    begin = [(a + moved[k]) % length for k in on]
                    strips = [frames[k].part(p, p + b - a) for k, p in zip(on, begin, strict=True)]
                    stat[a:b] += self._together(strips)
        return np.where(enough, stat, -np.inf).astype(np.float32), present

    def of_window(self, frames: dict[int, Frames]) -> float:
        """The statistic of one window, from that of each detector that is present, by its number."""
        return float(self.of_versions(frames)[0])

    def of_versions(self, frames: dict[int, Frames]) -> Array:
        """The statistic (W,) of W windows with one set of detectors, from those of each, by its number."""
        stat = sum((self.own(rows, d).astype(np.float64) for d, rows in frames.items()), start=np.zeros(1))
        if frames and self._looks_together:
            stat = stat + self._together(list(frames.values()))
        return stat + float(self.constant[sum(1 << d for d in frames)])

    @property
    def _looks_together(self) -> bool:
        return bool(self.together.any() or self.evidence.any())

    def _together(self, strips: Sequence[Frames]) -> NDArray[np.float32]:
        """(W,) what the windows ``strips`` of some detectors, added, add to the statistic."""
        on_maximum = self.together * np.float32(FRAME_UNIT)
        out = np.empty(strips[0].learnt.shape[1], np.float32)
        for rows, peak in _loudest([s.learnt for s in strips]):
            out[rows] = peak.astype(np.float32) @ on_maximum
        if self.evidence.size:
            for rows, peak in _loudest_evidence(strips, self.evidence.size - 1):
                out[rows] += network_evidence(torch.from_numpy(peak * np.float32(FRAME_UNIT))).numpy() @ self.evidence
        return out

    def _means(self, noise: Sequence[Frames]) -> Array:
        """(2^D,) what windows of each detector add to the constant on average, in each set of detectors."""
        own = [np.mean(self.own(frames, d), dtype=np.float64) for d, frames in enumerate(noise)]
        out = np.zeros(1 << len(noise))
        for network in range(1, out.size):
            on = [d for d in range(len(noise)) if network >> d & 1]
            together = self._together([noise[d] for d in on])
            out[network] = sum(own[d] for d in on) + np.mean(together, dtype=np.float64)
        return out


def _loudest(strips: Sequence[NDArray[np.int16]]) -> Iterator[tuple[slice, NDArray[np.int16]]]:
    """The maximum over time of the sum of up to four strips (n, W, C): of some windows at a time, (w, C).

    What is given is overwritten by the next.
    """
    n, windows, channels = strips[0].shape
    added, loudest = np.empty((2, min(_CHUNK, windows), channels), np.int16)
    for a in range(0, windows, _CHUNK):
        b = min(a + _CHUNK, windows)
        frame, peak = added[: b - a], loudest[: b - a]
        peak.fill(np.iinfo(np.int16).min)
        for t in range(n):
            x = strips[0][t, a:b]
            for other in strips[1:]:
                x = np.add(x, other[t, a:b], out=frame)
            np.maximum(peak, x, out=peak)
        yield slice(a, b), peak


def _loudest_evidence(strips: Sequence[Frames], mergers: int) -> Iterator[tuple[slice, NDArray[np.int16]]]:
    """The maximum over time of the sum of up to four strips' evidence: of some windows at a time, (w, mergers)."""
    n, windows, _ = strips[0].learnt.shape
    apart = strips[0].apart
    for a in range(0, windows, _CHUNK):
        b = min(a + _CHUNK, windows)
        first, *others = (s.part(a, b).evidence for s in strips)
        added = np.add(first, others[0]) if others else first
        for other in others[1:]:
            added += other
        each = added.reshape(len(added), -1, mergers).max(axis=1)
        last = (b - a - 1) * apart + 1
        peak = each[:last:apart].copy()
        for t in range(1, n):
            np.maximum(peak, each[t : t + last : apart], out=peak)
        yield slice(a, b), peak


def noise_frames(encoder: PairedEncoder) -> tuple[list[Frames], list[Frames]]:
    """What is pooled of windows of whitened Gaussian noise in each of the encoder's detectors.

    Twice: of bare windows, which is what a probe is fitted to, and of the same windows with noise around them, as in
    long strain. Convolutions see zeros beyond the ends of the former.
    """
    device = next(encoder.parameters()).device
    names, band = encoder.detectors, (encoder.rate, 2 * encoder.window, encoder.f_low, encoder.f_high)
    strain = gaussian_noise(0, "noise of a scan", 0, range(_NOISE_ROWS), len(names), *band)
    frames = round(encoder.window / encoder.hop)
    first = frames // 2
    begin = round(first * encoder.hop * encoder.rate)
    bare, around = [], []
    with torch.inference_mode():
        for d in range(len(names)):
            which = torch.full((_NOISE_ROWS,), d, device=device)
            x = strain[:, d].to(device)
            alone = encoder.local(x[:, begin : begin + encoder.samples], which).float().cpu().numpy()
            inside = encoder.local(x, which)[:, first : first + frames].float().cpu().numpy()
            bare.append(recurred(encoder, alone, d))
            around.append(recurred(encoder, np.ascontiguousarray(inside), d))
    return bare, around
