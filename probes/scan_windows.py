"""The windows of long strain: what an encoder pools of each, made of the local frames that they share.

The GRU, which has learnt from windows, starts anew in each: inside long strain it is another one, and what it gives
there is not what a probe was fitted to.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from gwtwins.encoders.paired import PairedEncoder
from gwtwins.probes.scan_blocks import BlockStore
from gwtwins.strain.errors import InputError
from gwtwins.strain.noise import gaussian_noise

FRAME_UNIT = 1.0 / 8191.0
"""A GRU's frames lie between -1 and 1, and evidence does: those of four detectors, added, still fit into 16 bits.
Integers are added without rounding, and in half the time and memory of float32."""
OCCLUDED = 0.125
"""Seconds on each side of a moment that are taken out of a window at once, to see what the moment tells."""
_AT_A_TIME = 1024  # windows that go through the GRU


@dataclass(frozen=True)
class Frames:
    """What is pooled of W windows: n frames of each, in units of `FRAME_UNIT`."""

    learnt: NDArray[np.int16]
    """(n, W, C)."""
    evidence: NDArray[np.int16]
    """((W - 1) apart + n, M): a GRU makes each window's frames anew, but evidence is the strain's. Window w has the
    rows from ``apart`` w on."""
    apart: int = 1

    def part(self, a: int, b: int) -> Frames:
        """Those of the windows ``a`` to ``b``."""
        n = len(self.learnt)
        return Frames(self.learnt[:, a:b], self.evidence[a * self.apart : (b - 1) * self.apart + n], self.apart)


class Windows:
    """The windows of the strain in a store, one starting at each frame.

    A window is named by the first frame that is pooled; `context` frames before it are its context.
    """

    def __init__(self, store: BlockStore, encoder: PairedEncoder) -> None:
        self.store, self.encoder = store, encoder

    @property
    def context(self) -> int:
        """Frames of a window that are not pooled, at its start."""
        return self.encoder.pool_start

    @property
    def frames(self) -> int:
        """n, frames of a window that are pooled."""
        return round(self.encoder.window / self.encoder.hop) - self.context

    def of(self, first: int, stop: int) -> tuple[list[Frames], NDArray[np.bool_]]:
        """The W windows named by the frames ``first`` to ``stop``, in each of the store's K detectors.

        Returns:
            For each detector what is pooled, learnt frames 0 where it is of no use, and (K, W) bool: all of its n
            frames are good. Those of its context need not be: there is noise in gaps.

        Raises:
            InputError: frames that are not between -1 and 1.
        """
        n, context = self.frames, self.context
        local, good = self.store.frames(first - context, stop + n - 1)
        run = np.concatenate([np.zeros((len(good), 1), np.int64), good[:, context:].cumsum(axis=1)], axis=1)
        ok = run[:, n:] - run[:, :-n] == n
        out = []
        for k, name in enumerate(self.store.detectors):
            d = self.encoder.detectors.index(name)
            self._fill(local[k], d, first - context)
            learnt, evidence = _divided(self.encoder, local[k])
            rows = np.lib.stride_tricks.sliding_window_view(learnt, context + n, axis=0).swapaxes(1, 2)
            wanted = np.flatnonzero(ok[k])
            made: NDArray[np.int16] | None = None
            for a in range(0, wanted.size, _AT_A_TIME):
                part = wanted[a : a + _AT_A_TIME]
                frames = _recurred(self.encoder, np.ascontiguousarray(rows[part]), d)
                if made is None:
                    made = np.zeros((n, stop - first, frames.shape[2]), np.int16)
                made[:, part] = frames
            none = np.zeros((n, stop - first, 1), np.int16)
            out.append(Frames(none if made is None else made, _in_units(self.encoder, evidence[context:])))
        return out, ok

    def occluded(self, tick: int, detectors: Collection[int]) -> dict[int, Frames]:
        """What is left of the window named ``tick`` when one short stretch after the other is taken out of it.

        Returns:
            For each of the encoder's ``detectors`` L windows: in version l of all L local frames those within
            `OCCLUDED` of frame ``tick - context + l`` are at their median over the window, which is noise.
        """
        local, _ = self.store.frames(tick - self.context, tick + self.frames)
        length = local.shape[1]
        near = np.abs(np.arange(length)[:, None] - np.arange(length)) * self.encoder.hop <= OCCLUDED
        found = {}
        for k, name in enumerate(self.store.detectors):
            d = self.encoder.detectors.index(name)
            if d in detectors:
                self._fill(local[k], d, tick - self.context)
                versions = np.where(near[..., None], np.median(local[k], axis=0), local[k])  # (L, L, C')
                found[d] = recurred(self.encoder, versions.astype(np.float32), d)
        return found

    def _fill(self, local: NDArray[np.float32], detector: int, first: int) -> None:
        """Put noise where no frames (L, C) were computed; ``first`` is the number of the first.

        Only contexts reach there: of windows at the start of all strain, or after long gaps.
        """
        missing = np.flatnonzero(np.isnan(local[:, 0]))
        if missing.size:
            noise = self._noise[detector]
            local[missing] = noise[(first + missing) % len(noise)]

    @cached_property
    def _noise(self) -> list[NDArray[np.float32]]:
        """Local frames (L, C) of Gaussian noise in each of the encoder's detectors, a window long."""
        encoder = self.encoder
        band = encoder.rate, 2 * encoder.window, encoder.f_low, encoder.f_high
        noise = gaussian_noise(0, "what comes before the strain", 0, range(1), len(encoder.detectors), *band)[0]
        device = next(encoder.parameters()).device
        with torch.inference_mode():
            local = encoder.local(noise.to(device), torch.arange(len(noise), device=device)).float().cpu().numpy()
        edge = local.shape[1] // 4
        return list(local[:, edge:-edge])


def recurred(encoder: PairedEncoder, local: NDArray[np.float32], detector: int) -> Frames:
    """What is pooled of W windows, from all of their `local` frames (W, L, C').

    Raises:
        InputError: frames that are not between -1 and 1.
    """
    learnt, evidence = _divided(encoder, local)
    rows = _in_units(encoder, evidence[:, encoder.pool_start :])
    return Frames(_recurred(encoder, learnt, detector), rows.reshape(-1, rows.shape[2]), rows.shape[1])


def _divided(encoder: PairedEncoder, local: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Local frames (..., C') as what is learnt and evidence."""
    learnt = local.shape[-1] - encoder.evidence_channels
    return local[..., :learnt], local[..., learnt:]


def _recurred(encoder: PairedEncoder, learnt: NDArray[np.float32], detector: int) -> NDArray[np.int16]:
    """(W, L, width) to (n, W, C)."""
    device = next(encoder.parameters()).device
    with torch.inference_mode():
        which = torch.full((len(learnt),), detector, device=device)
        made = encoder.recur(torch.from_numpy(learnt).to(device), which)[:, encoder.pool_start :]
        return _in_units(encoder, made.float().cpu().numpy().swapaxes(0, 1))


def _in_units(encoder: PairedEncoder, frames: NDArray[np.float32]) -> NDArray[np.int16]:
    if frames.size and not np.abs(frames).max() <= 1.0:  # nor NaN
        fault = "gives frames that are not between -1 and 1"
        raise InputError(f"encoder {encoder.name}", fault, "those of a GRU, and evidence")
    return np.rint(frames * np.float32(1.0 / FRAME_UNIT)).astype(np.int16)
