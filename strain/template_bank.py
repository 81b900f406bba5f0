"""A template bank of stated minimal match, placed by the stochastic method (Harry, Allen & Sathyaprakash 2009).

Draws from the population are taken one after the other, and each that no template so far resembles becomes a template.
The match of two waveforms is the largest overlap of their whitened, normalised spectra over relative time and phase
(Owen 1996). The draws that were not chosen keep their nearest template: they are samples of the prior in its cell.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from gwtwins.strain.bank import BUFFER, BankRecipe, WaveformBank, cache_folder
from gwtwins.strain.errors import InputError
from gwtwins.strain.hdf5_file import attribute, open_hdf5, plain_array
from gwtwins.strain.population import Population
from gwtwins.strain.progress import progress_bar
from gwtwins.strain.psd import PSD, load_psd

FORMAT = "gwtwins-templates-2"
_SEGMENT = 16  # bins of 1 / BUFFER Hz that are summed before the Fourier transform: it then spans 0.25 s of lags
_LAGS = 1024  # points over these 0.25 s; a parabola goes between them
_CANDIDATES = 8  # templates of the largest rough overlap that are looked at closely
_BLOCK = 256  # draws compared at once
_ROWS = 4  # draws whose overlaps with every template stay in the cache
_STEEP = -1.0  # of the masses of the draws for a search bank
_DRAW_SEED = 4  # of these: no waveform is in the evaluation's banks too


def whitened_segments(bank: WaveformBank, psd: PSD, f_low: float, f_high: float) -> Tensor:
    """Whitened spectra of unit norm inside the band, (S, N, 16) complex64: S segments of 4 Hz."""
    k_low, k_high = max(bank.k_low, int(np.ceil(f_low * BUFFER))), int(np.ceil(f_high * BUFFER))
    held = bank.waveform[:, k_low - bank.k_low : k_high - bank.k_low].float().contiguous()
    asd = np.sqrt(psd.at(np.arange(k_low, k_high) / BUFFER))
    white = torch.view_as_complex(held) * torch.from_numpy(asd.min() / asd).float()
    white = white / torch.linalg.vector_norm(white, dim=1, keepdim=True)
    white = torch.nn.functional.pad(white, (0, -white.shape[1] % _SEGMENT))
    return white.view(len(white), -1, _SEGMENT).transpose(0, 1).contiguous()


def match(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Matches (..., ) of pairs of `whitened_segments` a, b (S, ..., 16), and the seconds by which b is to be delayed.

    Accurate to 0.001 where the match is above 0.9 (lags then are a few milliseconds).
    """
    overlap = _overlap((a * b.conj()).sum(-1).movedim(0, -1), _LAGS)
    n = overlap.argmax(-1, keepdim=True)
    left, top, right = (overlap.gather(-1, (n + k) % _LAGS) for k in (-1, 0, 1))
    offset = 0.5 * (left - right) / (left - 2 * top + right).clamp(max=-1e-12)
    lag = ((n + offset) / _LAGS).squeeze(-1)
    lag = lag - lag.round()  # of the 0.25 s, in [-0.5, 0.5]
    peak = (top - 0.25 * (left - right) * offset).squeeze(-1)
    # Summing over a segment lets an overlap fade as sinc(lag): that is undone.
    return (peak / torch.sinc(lag)).clamp(max=1.0), lag * (BUFFER / _SEGMENT)


def nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each of A waveforms the best matching of B: its index, match and lag as `match` has them, each (A,)."""
    found = []
    turned = b.conj().transpose(1, 2).contiguous().resolve_conj()  # (S, 16, B)
    for rows in a.split(_ROWS, dim=1):
        product = torch.bmm(rows.contiguous(), turned).permute(1, 2, 0)  # (rows, B, S)
        rough = _overlap(product, _LAGS // 4).amax(-1)  # lags 1 ms apart: up to 4% too low
        best = rough.topk(min(_CANDIDATES, b.shape[1]), dim=1).indices  # (rows, 8)
        matches, lags = match(rows[:, :, None], b[:, best])
        top = matches.argmax(1, keepdim=True)
        found.append(tuple(x.gather(1, top)[:, 0] for x in (best, matches, lags)))
    index, value, lag = (torch.cat(part) for part in zip(*found, strict=True))
    return index, value, lag


def _overlap(product: Tensor, lags: int) -> Tensor:
    series = torch.fft.ifft(product, n=lags)
    return series.real.square().addcmul_(series.imag, series.imag).sqrt_() * lags  # thrice as fast as abs()


@dataclass(frozen=True)
class TemplateBank:
    """Which of N draws from a population are templates, and which template stands for each draw."""

    chosen: Tensor
    """(C,) int64, draws that are templates."""
    nearest: Tensor
    """(N,) int64 in [0, C), the template that matches each draw best."""
    match: Tensor
    """(N,) float32, how well."""
    lag: Tensor
    """(N,) float32, seconds by which that template is then delayed behind the draw, merger behind merger."""

    def __len__(self) -> int:
        return len(self.chosen)

    @classmethod
    def place(
        cls, pool: WaveformBank, psd: PSD, f_low: float, f_high: float, minimal_match: float, progress: bool = False
    ) -> TemplateBank:
        """Choose templates from the draws in ``pool`` until every draw has one of at least ``minimal_match``."""
        segments = whitened_segments(pool, psd, f_low, f_high)
        n = segments.shape[1]
        chosen: list[int] = []
        with progress_bar(2 * n, "template bank", "draw", progress) as bar:
            for block in torch.arange(n).split(_BLOCK):
                open_ = block
                if chosen:
                    open_ = block[nearest(segments[:, block], segments[:, chosen])[1] < minimal_match]
                accepted: list[int] = []
                for i in open_.tolist():
                    here = segments[:, accepted] if accepted else None
                    if here is None or match(segments[:, i : i + 1], here)[0].max() < minimal_match:
                        accepted.append(i)
                chosen += accepted
                bar.update(len(block))
            best = []
            for block in torch.arange(n).split(_BLOCK):
                best.append(nearest(segments[:, block], segments[:, chosen]))
                bar.update(len(block))
        index, value, lag = (torch.cat(part) for part in zip(*best, strict=True))
        return cls(torch.tensor(chosen), index, value, lag)

    @classmethod
    def obtain(
        cls,
        recipe: BankRecipe,
        pool: WaveformBank,
        psd: PSD,
        f_low: float,
        f_high: float,
        minimal_match: float,
        progress: bool = True,
    ) -> TemplateBank:
        """The bank among the draws of ``recipe``, which are in ``pool``: from the cache, else placed now and kept."""
        about = [FORMAT, recipe.key(), f_low, f_high, minimal_match, _SEGMENT, _LAGS]
        curve = hashlib.sha256(np.stack([psd.frequency, psd.value]).tobytes()).hexdigest()
        key = hashlib.sha256(json.dumps([*about, curve]).encode()).hexdigest()[:16]
        path = cache_folder() / f"{FORMAT.removeprefix('gwtwins-')}-{key}.hdf5"
        if not path.exists():
            cls.place(pool, psd, f_low, f_high, minimal_match, progress).save(path)
        return cls.load(path)

    def save(self, path: Path) -> None:
        """Write the bank in one atomic step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            with h5py.File(partial, "w") as file:
                file.attrs["format"] = np.bytes_(FORMAT)
                for name in ("chosen", "nearest", "match", "lag"):
                    file[name] = getattr(self, name).numpy()
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> TemplateBank:
        """Read a stored bank.

        Raises:
            InputError: absent, not a template bank, or not whole.
        """
        layout = "a template bank written by gwtwins (delete it to have it placed again)"
        with open_hdf5(path, layout) as file:
            if attribute(file, "format", "S") != FORMAT.encode():
                raise InputError(path, "is not a template bank of this version", layout)
            chosen = plain_array(file, "chosen", path, layout, "i8", (-1,))
            nearest = plain_array(file, "nearest", path, layout, "i8", (-1,))
            match, lag = (plain_array(file, name, path, layout, "f4", nearest.shape) for name in ("match", "lag"))
        for name, index, end in (("chosen", chosen, nearest.size), ("nearest", nearest, chosen.size)):
            if not index.size or index.min() < 0 or index.max() >= end:
                raise InputError(path, f"{name} points to what is not there", layout)
        if not (np.isfinite(match).all() and np.isfinite(lag).all()):
            raise InputError(path, "a match or a lag is not finite", layout)
        return cls(*map(torch.from_numpy, (chosen, nearest, match, lag)))


def subset(bank: WaveformBank, rows: Tensor) -> WaveformBank:
    """The bank of some of a bank's waveforms."""
    return replace(
        bank,
        parameters=bank.parameters[rows.numpy()],
        waveform=bank.waveform[rows],
        scale=bank.scale[rows],
        power=bank.power[rows],
    )


def search_bank(
    population: Population,
    psds: tuple[str, ...],
    f_low: float,
    f_high: float,
    minimal_match: float = 0.97,
    draws: int = 8192,
    progress: bool = True,
) -> WaveformBank:
    """The waveforms of a bank that covers ``population`` in the first of ``psds``, where it has been placed.

    Of the standard population's draws 98% have a match of at least 0.97 with one of the templates. Light binaries need
    many more templates than a population of uniform masses has draws there: the draws to choose from have masses
    p(m) ~ 1 / m over the same ranges.
    """
    steep = {key: replace(getattr(population, key), exponent=_STEEP) for key in ("mass1", "mass2")}
    recipe = BankRecipe(replace(population, **steep), draws, _DRAW_SEED, psds)
    pool = WaveformBank.obtain(recipe, progress=progress)
    psd = pool.psds[load_psd(psds[0]).name]
    placed = TemplateBank.obtain(recipe, pool, psd, f_low, f_high, minimal_match, progress)
    return subset(pool, placed.chosen)
