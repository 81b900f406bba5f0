"""A few whitened shapes that stand for a whole population, as kernels for an encoder (`gwtwins.encoders.evidence`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gwtwins.strain.bank import BUFFER, BankRecipe, WaveformBank
from gwtwins.strain.errors import InputError
from gwtwins.strain.population import Population
from gwtwins.strain.psd import DEFAULT_PSDS, PSD
from gwtwins.strain.simulated import SimulatedSource
from gwtwins.strain.sources import Source

SIGNALS, CANDIDATES = 600, 200
"""Waveforms of a bank that are to be stood for, and those of them to choose from."""
_SEED = 5  # of a bank that is made for this alone
_SPAN = 2.0  # s, the period of the correlations; whole signals are cut to it
_ROUNDS, _STEPS = 8, 8  # of averaging, and of the power method in each: what more would add is below 0.001


def mergers_of(source: Source, population: str) -> Callable[..., Tensor]:
    """`merger_kernels` of the signals that an encoder is to find in ``source``, for `PairedEncoder.start_from_mergers`.

    They are of the source's own bank; for recorded data, which have none, of a small one of ``population`` (a shipped
    name or a file), made by pycbc once and kept.
    """
    if isinstance(source, SimulatedSource):
        return partial(merger_kernels, source.bank("train"))
    recipe = BankRecipe(Population.load(population), SIGNALS, _SEED, (DEFAULT_PSDS["H1"],))
    return partial(merger_kernels, WaveformBank.obtain(recipe))


def merger_kernels(
    bank: WaveformBank,
    psd: PSD,
    count: int,
    kernel: int,
    after: int,
    stride: int,
    rate: float,
    f_low: float,
    f_high: float,
) -> Tensor:
    """Shapes that hold most of the squared SNR of a bank's first signals.

    They begin as signals, chosen one after the other: each is the one with which the mean over signals of the best
    kernel's share of the squared SNR grows most. Then, by turns, every signal goes to its best kernel, at its best
    moment, and every kernel becomes the shape that holds most of those that went to it (a gain-shape vector quantiser:
    Sabin & Gray 1984, IEEE Trans. ASSP 32, 474; the shape is the first principal component). A kernel is complex: real
    and imaginary part are a signal at two phases a quarter of a turn apart.

    Args:
        bank: signals of the population, whose plus polarisations are taken.
        psd: of the detector, which whitens them.
        count: K; fewer waveforms than that are repeated.
        kernel: samples; ``after`` of them after the merger.
        stride: samples between the moments at which it is laid over the strain: what falls between them is lost.
        rate: samples per second.
        f_low, f_high: whitened band, Hz.

    Returns:
        (K, kernel) complex64 of unit energy.

    Raises:
        InputError: kernels of more than a second.
    """
    k_low, k_high = max(bank.k_low, int(np.ceil(f_low * BUFFER))), int(np.ceil(min(f_high, rate / 2) * BUFFER))
    held = bank.waveform[:SIGNALS, k_low - bank.k_low : k_high - bank.k_low].float().contiguous()
    k_high = k_low + held.shape[1]
    asd = np.sqrt(psd.at(np.arange(k_low, k_high) / BUFFER))
    spectrum = torch.zeros(len(held), round(BUFFER * rate), dtype=torch.complex64)
    spectrum[:, k_low:k_high] = torch.view_as_complex(held) * torch.from_numpy(asd.min() / asd).float()
    series = torch.fft.ifft(spectrum)  # merger at 0
    span = round(_SPAN * rate)
    if kernel - after > span // 2:
        most = f"at most {span // 2 + after} samples at {rate:g} Hz"
        raise InputError("encoder cnn_gru, merger_kernel", f"{kernel}", most)
    end = max(after, round(0.06 * rate))
    signal = torch.zeros(len(held), span, dtype=torch.complex64)
    signal[:, :end], signal[:, end - span :] = series[:, :end], series[:, end - span :]
    cut = torch.zeros_like(signal)
    cut[:, :after], cut[:, after - kernel :] = signal[:, :after], signal[:, after - kernel :]
    signal, cut = _unit(signal), _unit(cut)
    transform = torch.fft.fft(signal)
    share = _share(transform, cut[:CANDIDATES], stride)[0].mean(2)  # (signals, candidates)
    best, chosen = torch.zeros(len(share)), []
    for _ in range(count):
        gain = torch.maximum(share, best[:, None]).mean(0)
        chosen.append(int(gain.argmax()))
        best = torch.maximum(best, share[:, chosen[-1]])
    kernels, taken = cut[chosen], torch.arange(after - kernel, after)
    for _ in range(_ROUNDS):
        share, place = _share(transform, kernels, stride)
        which = share.argmax(1, keepdim=True)  # (signals, 1, stride)
        moment = place.gather(1, which)[:, 0, :, None]
        seen = signal[:, None].expand(-1, stride, -1).gather(2, (moment + taken) % span)  # (signals, stride, kernel)
        for k in range(count):
            kernels[k, taken] = _principal(seen[which[:, 0] == k], kernels[k, taken])
    return kernels[:, taken]


def _share(transform: Tensor, kernels: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Of the squared SNR of S signals what each of K kernels holds, at the best of its moments, and where this is.

    Signals, of which the Fourier transform is given, and kernels are of unit energy and one period (T samples). Moments
    are ``stride`` samples apart; where among them a signal lies is chance: two of (S, K, stride), one for each way.
    """
    share, place = [], []
    whole = transform.shape[1] // stride * stride
    for one in torch.fft.fft(kernels).conj().split(1):
        size = torch.view_as_real(torch.fft.ifft(transform * one)).square().sum(-1)[:, :whole]
        most = size.unflatten(1, (-1, stride)).max(1)
        share.append(most.values)
        place.append(most.indices * stride + torch.arange(stride))
    return torch.stack(share, 1), torch.stack(place, 1)


def _principal(x: Tensor, start: Tensor) -> Tensor:
    """The unit vector (T,) that holds most of the energy of rows (N, T), by the power method; ``start`` for no rows."""
    if not len(x):
        return start
    for _ in range(_STEPS):
        start = x.T @ (x.conj() @ start)
        start = start / torch.linalg.vector_norm(start)
    return start


def _unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True)
