"""The probe's statistic along time: windows slid over long whitened strain of several detectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from gwtwins.encoders.paired import PairedEncoder
from gwtwins.probes.linear import LinearProbe
from gwtwins.strain.errors import InputError
from gwtwins.strain.noise import gaussian_noise
from gwtwins.strain.progress import progress_bar
from gwtwins.strain.recording import Conditioned

Array = NDArray[np.float64]

# Of a stride: GPS times of 1e9 s in float64 are multiples of 1e-7 s, and a window is not lost to such an error.
_ROUNDING = 1e-3
_REFERENCE_ROWS = 256  # windows of noise: the mean of what a detector adds is then good to 0.06


@dataclass
class Series:
    """The statistic of N windows in the order of time, D detectors."""

    start: Array
    """(N,) GPS time of each window's first sample."""
    stat: Array
    """(N,) the probe's logit."""
    part: Array
    """(N, D) what each detector's embedding adds to it beyond what noise would; NaN where the detector is absent."""
    base: float
    """The statistic of noise: without products of detectors (`concat`) stat = base + sum of the parts."""
    detectors: tuple[str, ...]
    """The encoder's."""
    window: float
    """Seconds."""
    stride: float
    """Seconds between the starts of windows that follow on each other."""

    def __len__(self) -> int:
        return self.start.size

    @property
    def present(self) -> NDArray[np.bool_]:
        """(N, D): which detectors the window was looked at in."""
        return np.isfinite(self.part)

    @property
    def p(self) -> Array:
        """(N,) probability of a signal at the odds of the probe's labelled rows, far better than nature's."""
        return expit(self.stat)

    def windows_by_network(self) -> dict[str, int]:
        """How many windows were looked at with which detectors, such as {"H1 L1": 290}."""
        patterns, count = np.unique(self.present, axis=0, return_counts=True)
        names = [" ".join(np.array(self.detectors)[pattern]) for pattern in patterns]
        return {name: int(n) for name, n in zip(names, count, strict=True)}


def join_pieces(pieces: Sequence[Conditioned]) -> list[Conditioned]:
    """Pieces that follow on each other without a break made one, so that windows may cross from one to the next.

    Returns them by detector and time. A joined piece has the PSD of its first part.
    """
    joined: list[Conditioned] = []
    for piece in sorted(pieces, key=lambda p: (p.detector, p.source, p.gps_start)):
        last = joined[-1] if joined else piece
        follows = abs(piece.gps_start - last.gps_end) < 0.5 / piece.rate
        if joined and follows and (last.detector, last.source) == (piece.detector, piece.source):
            strain = np.concatenate([last.strain, piece.strain])
            joined[-1] = replace(last, strain=strain, gates=[*last.gates, *piece.gates])
        else:
            joined.append(piece)
    return joined


def window_table(
    pieces: Sequence[Conditioned], detectors: Sequence[str], window: float, stride: float, at_least: int
) -> tuple[Array, NDArray[np.int64]]:
    """Where windows can lie, and which piece holds each in each detector.

    Windows start at whole multiples of ``stride`` in GPS time, whatever the files: detectors whose files begin
    at different seconds share them, and the same strain gives the same windows in any company. A window that
    touches a gate is not looked at in that detector: the hole is quieter than any noise the encoder has seen.
    Where files overlap, the first holds the window.

    Args:
        pieces: whitened strain, at one rate.
        detectors: D names.
        window, stride: seconds.
        at_least: detectors a window must be there in.

    Returns:
        start (N,) GPS seconds, ascending, and piece (N, D): index into ``pieces``, -1 where absent.
    """
    first = [int(np.ceil(piece.gps_start / stride - _ROUNDING)) for piece in pieces]
    stop = [int(np.floor((piece.gps_end - window) / stride + _ROUNDING)) + 1 for piece in pieces]
    spans = [np.arange(a, b) for a, b in zip(first, stop, strict=True)]
    tick = np.unique(np.concatenate([np.zeros(0, np.int64), *spans]))
    where = np.full((tick.size, len(detectors)), -1)
    for i in reversed(range(len(pieces))):
        row, column = np.searchsorted(tick, spans[i]), list(detectors).index(pieces[i].detector)
        begin = spans[i] * stride
        clear = np.ones(row.size, bool)
        for a, b in pieces[i].gates:
            clear &= (begin + window <= a) | (begin >= b)
        where[row[clear], column] = i
    enough = (where >= 0).sum(axis=1) >= at_least
    return tick[enough] * stride, where[enough]


def scan(
    encoder: PairedEncoder,
    probe: LinearProbe,
    pieces: Sequence[Conditioned],
    stride: float,
    at_least: int = 1,
    batch: int = 512,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Series:
    """Embed a window every ``stride`` seconds and weigh it with the probe.

    A detector that is absent from a window counts as one that heard noise, see `noise_reference`.

    Args:
        encoder: frozen, in eval mode.
        probe: fitted to this encoder.
        pieces: whitened strain at the encoder's rate, see `join_pieces`; detectors that the encoder knows.
        stride: seconds between windows.
        at_least: detectors that a window must be there in.
        batch: windows at a time.
        progress: a bar with windows/s and the time left on stderr.

    Raises:
        InputError: no window fits, a detector the encoder does not know, or strain at another rate.
    """
    detectors = encoder.detectors
    for piece in pieces:
        if piece.detector not in detectors:
            expected = f"strain of the encoder's detectors: {' '.join(detectors)}"
            raise InputError(piece.source, f"is of {piece.detector}", expected)
        if piece.rate != encoder.rate:
            raise InputError(piece.source, f"strain at {piece.rate:g} Hz", f"the encoder's {encoder.rate:g} Hz")
    start, where = window_table(pieces, detectors, encoder.window, stride, at_least)
    if not start.size:
        fault = f"no {encoder.window:g} s in which {at_least} detector{'s' * (at_least > 1)} recorded well"
        raise InputError("strain", fault, "longer or better stretches, or fewer detectors asked for")
    series = Series(
        start,
        np.empty(start.size),
        np.full(where.shape, np.nan),
        float("nan"),
        detectors,
        encoder.window,
        stride,
    )
    reference = noise_reference(encoder, device)  # (D, E)
    coef = probe.coef[: reference.size].reshape(reference.shape)  # of the detectors' own features
    quiet = _own(probe, reference[None]) * coef  # (1, D, E)
    series.base = float(probe.decision(reference[None])[0])
    with torch.inference_mode(), progress_bar(start.size, "scanning", "window", progress) as bar:
        for begin in range(0, start.size, batch):
            rows = slice(begin, begin + batch)
            strain = torch.from_numpy(_cut(pieces, start[rows], where[rows], encoder.samples))  # (B, D, T)
            present = where[rows] >= 0
            embedding = encoder(strain.to(device), torch.from_numpy(present).to(device)).float().cpu().numpy()
            if not np.isfinite(embedding).all():
                raise InputError("encoder", "gives embeddings that are not finite", "finite weights")
            embedding = np.where(present[..., None], embedding, reference)
            series.stat[rows] = probe.decision(embedding)
            series.part[rows] = np.where(present, (_own(probe, embedding) * coef - quiet).sum(axis=2), np.nan)
            bar.update(len(embedding))
    return series


def noise_reference(encoder: PairedEncoder, device: torch.device | str = "cpu") -> NDArray[np.float32]:
    """Mean embedding (D, E) of whitened Gaussian noise in each detector: what an absent detector is taken to be.

    The probe's own word for an absent detector is the mean over its labelled rows, and half of these are signals:
    noise in fewer detectors then looks more like a signal. In LIGO and Virgo noise its median statistic was -2.0
    with all three, -0.7 without H1, -0.2 without L1 and +1.2 in V1 alone; with this reference it is -2.0, -1.9, -1.9
    and -1.7, and on simulated signals the probabilities are nearer to the truth in every such network.
    """
    rows = range(_REFERENCE_ROWS)
    band = encoder.rate, encoder.window, encoder.f_low, encoder.f_high
    noise = gaussian_noise(0, "absent detectors", 0, rows, len(encoder.detectors), *band)
    with torch.inference_mode():
        return encoder(noise.to(device)).float().mean(dim=0).cpu().numpy()


def _own(probe: LinearProbe, embedding: NDArray[np.float32]) -> NDArray[np.floating]:
    """The detectors' own standardised features (B, D, E), without products."""
    return probe.features.transform(embedding)[:, : embedding[0].size].reshape(embedding.shape)


def strain_between(pieces: Sequence[Conditioned], detector: str, low: float, high: float) -> tuple[Array, float]:
    """The detector's strain (T,) from GPS ``low`` to ``high``, NaN where there is none, and its rate."""
    mine = [piece for piece in pieces if piece.detector == detector]
    rate = pieces[0].rate
    out = np.full(round((high - low) * rate), np.nan)
    for piece in reversed(mine):
        first = round((piece.gps_start - low) * rate)
        a, b = max(first, 0), min(first + piece.strain.size, out.size)
        if a < b:
            out[a:b] = piece.strain[a - first : b - first]
    return out, rate


def _cut(pieces: Sequence[Conditioned], start: Array, where: NDArray[np.int64], samples: int) -> NDArray[np.float32]:
    """Windows (B, D, samples) float32, zero where a detector is absent."""
    out = np.zeros((*where.shape, samples), np.float32)
    for i in np.unique(where[where >= 0]):
        row, column = np.nonzero(where == i)
        windows = np.lib.stride_tricks.sliding_window_view(pieces[i].strain, samples)
        sample = np.rint((start[row] - pieces[i].gps_start) * pieces[i].rate).astype(int)
        out[row, column] = windows[sample.clip(0, len(windows) - 1)]
    return out
