"""Chunks of one detector's strain, whitened by a filter that follows the noise.

The filter of chunk k comes from the noise up to PSD_REACH on both sides of it. The strain on both sides goes through it
as well, so that there is neither an edge nor a step between chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.fft import irfft, rfft

from gwtwins.strain.coverage import Span, merged
from gwtwins.strain.gating import THRESHOLD, take_out
from gwtwins.strain.psd import PSD
from gwtwins.strain.psd_tracking import SEGMENT, periodograms, starts, typical
from gwtwins.strain.recording import EDGE
from gwtwins.strain.segments import inner, long_enough, not_used, segments
from gwtwins.strain.strain_blocks import NO_FILE, SCALE, StrainBlocks
from gwtwins.strain.strain_index import StrainIndex
from gwtwins.strain.whitening_filter import WhiteningFilter, design_whitening, low_pass

PSD_REACH = 128.0  # s on each side of a chunk from which its PSD comes; detectors drift over minutes
GATED = "gated: an outlier far beyond any signal"

_MARGIN = 4  # s on each side of a chunk in which outliers are looked for
_STEP = 4  # s that one Fourier transform of the whitening gives
_SCALE_REACH = 32.0  # s on each side of a chunk from which the variance comes ...
_SCALE_SEGMENTS = 16  # ... or further, until there are this many periodograms


@dataclass
class Part:
    """One detector's share of a chunk."""

    strain: np.ndarray
    valid: np.ndarray
    psd: PSD | None
    left_out: list[Span]


class DetectorStream:
    """One detector, whitened chunk by chunk; the arguments are `stream_conditioned`'s."""

    def __init__(
        self, index: StrainIndex, name: str, rate: int, f_low: float, f_high: float, seconds: int, gated: bool
    ) -> None:
        self.name, self.rate, self.f_low, self.f_high = name, rate, f_low, f_high
        self.seconds, self.gated = seconds, gated
        self.blocks = StrainBlocks(index, name, f_low, f_high, seconds)
        self.inner_rate = self.blocks.rate
        self.reach = int(np.ceil(PSD_REACH / seconds))
        # The resampling filter's share of the edge, left free at every rate: all whiten with the same length.
        resampling = low_pass(16 * self.inner_rate, f_high, self.inner_rate - f_high).size // 2 / (16 * self.inner_rate)
        self.half_seconds = EDGE - resampling

    def forget(self, upcoming: int) -> None:
        """Let go of what chunks from ``upcoming`` on do not need."""
        self.blocks.forget(upcoming - self.reach - 1)

    def whitened(self, k: int) -> Part:
        """Chunk k.

        Raises:
            InputError: a file is at fault.
        """
        low, n = k * self.seconds, self.seconds * self.rate
        nothing = np.zeros(n, np.float32), np.zeros(n, bool), None
        reasons = self.blocks.reasons(k)
        if (reasons == NO_FILE).all():
            return Part(*nothing, [Span(float(low), float(low + self.seconds), NO_FILE)])
        use, sampling = self.blocks.usable(k - 1, k + 1)
        stretches = long_enough(segments(use, sampling, low - self.seconds))
        here = [(a, b) for a, b in stretches if a < low + self.seconds and b > low]
        left_out = not_used(reasons, here, low)
        if not here:
            return Part(*nothing, left_out)
        whitening = self.whitening(k)
        white, gates = self._whiten(k, whitening.taps * SCALE, stretches)
        left_out = merged([*left_out, *gates])
        valid = np.ones(n, bool)
        for span in left_out:
            valid[max(round((span.start - low) * self.rate), 0) : round((span.end - low) * self.rate)] = False
        white[~valid] = 0.0
        return Part(white, valid, whitening.psd, left_out)

    # ---- the noise

    def _spectra(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Periodograms (N, F) that begin in block k, usable ones only, and the GPS times of their middles (N,)."""
        use, sampling = self.blocks.usable(k - 1, k + 1)
        first = self.seconds - 1
        clean = inner(use, sampling)[first : first + self.seconds + SEGMENT - 1]
        at = starts(clean, k * self.seconds)
        if not at.size:
            return np.zeros((0, SEGMENT * self.inner_rate // 2 + 1), np.float32), np.zeros(0)
        more = self.blocks.strain(k + 1)[: (SEGMENT - 1) * self.inner_rate]
        power = periodograms(np.concatenate([self.blocks.strain(k), more]), self.inner_rate, at)
        return power, k * self.seconds + at + SEGMENT / 2

    def whitening(self, k: int) -> WhiteningFilter:
        """The filter of chunk k, at the working rate."""
        around = [self.blocks.kept("spectra", j, self._spectra) for j in range(k - self.reach, k + self.reach + 1)]
        power, middle = np.concatenate([a[0] for a in around]), np.concatenate([a[1] for a in around])
        away = np.maximum(k * self.seconds - middle, middle - (k + 1) * self.seconds)
        power, away = power[away <= PSD_REACH], away[away <= PSD_REACH]
        spacing = 1.0 / SEGMENT
        value, kept = typical(power, int(self.f_low / spacing), int(self.f_high / spacing))
        frequency = np.arange(1, value.size) * spacing
        measured = PSD(frequency, value[1:] * SCALE**2, f"{self.name} around {k * self.seconds}")
        whitening = design_whitening(measured, self.inner_rate, self.f_low, self.f_high, self.half_seconds)
        # The variance that the filter leaves, from the moments nearest: its median is blind to signals and glitches.
        near = kept & (away <= max(_SCALE_REACH, np.sort(away[kept])[min(int(kept.sum()), _SCALE_SEGMENTS) - 1]))
        gain = np.abs(rfft(whitening.taps * SCALE, SEGMENT * self.inner_rate)) ** 2
        variance = np.median(power[near][:, 1:] @ gain[1:]) * spacing
        return whitening.scaled(float(1.0 / np.sqrt(variance)))

    # ---- the strain

    def _whiten(self, k: int, taps: np.ndarray, stretches: list[tuple[float, float]]) -> tuple[np.ndarray, list[Span]]:
        """(n,) float32 whitened strain of the chunk and the GPS spans of its gates."""
        reach = (2 * _MARGIN + 1) * self.inner_rate // 2  # half a second more than the margin
        before, after = self.blocks.strain(k - 1)[-reach:], self.blocks.strain(k + 1)[:reach]
        x = np.concatenate([before, self.blocks.strain(k), after])
        low, high = k * self.seconds, (k + 1) * self.seconds
        white = self._filtered(x, taps)
        gates: list[Span] = []
        if self.gated:
            fits = np.zeros(white.size, bool)
            for start, end in stretches:
                bounds = (np.array([start + EDGE, end - EDGE]) - (low - _MARGIN)) * self.rate
                a, b = np.clip(bounds, 0, white.size).astype(int)
                fits[a:b] = True
            if (np.abs(white[fits]) > THRESHOLD).any():
                x, gates = self._gate(x, low - _MARGIN - 0.5, taps, stretches)
                white = self._filtered(x, taps)
        here = [g for g in gates if g.end > low and g.start < high]
        cut = _MARGIN * self.rate
        spans = [Span(max(g.start, float(low)), min(g.end, float(high)), GATED) for g in here]
        return white[cut:-cut].astype(np.float32), spans

    def _filtered(self, x: np.ndarray, taps: np.ndarray) -> np.ndarray:
        """Strain through the filter and at the result's rate, without the half second at each end."""
        size = (_STEP + 1) * self.inner_rate
        windows = np.lib.stride_tricks.sliding_window_view(x, size)[:: _STEP * self.inner_rate]
        gain = rfft(np.roll(np.pad(taps, (0, size - taps.size)), -(taps.size // 2))).real
        n = (_STEP + 1) * self.rate
        if self.rate != self.inner_rate:
            gain[-1] *= 0.5  # half the working rate is no longer half the rate: its amplitude is on both sides
        spectrum = rfft(windows) * gain
        white = irfft(spectrum[:, : n // 2 + 1], n) * (self.rate / self.inner_rate)
        return white[:, self.rate // 2 : -self.rate // 2].reshape(-1)

    def _gate(
        self, x: np.ndarray, gps: float, taps: np.ndarray, stretches: list[tuple[float, float]]
    ) -> tuple[np.ndarray, list[Span]]:
        """``x`` from ``gps`` on with its outliers filled in, stretch by stretch, and the spans of the gates."""
        x, gates = x.copy(), []
        spoilt = EDGE - self.half_seconds
        for start, end in stretches:
            bounds = (np.array([start + spoilt, end - spoilt]) - gps) * self.inner_rate
            a, b = np.clip([np.ceil(bounds[0]), np.floor(bounds[1])], 0, x.size).astype(int)
            if b - a <= taps.size:
                continue
            x[a:b], holes = take_out(x[a:b], taps, self.inner_rate)
            for first, stop in holes:
                gates.append(Span(gps + (a + first) / self.inner_rate, gps + (a + stop) / self.inner_rate, GATED))
        return x, gates
