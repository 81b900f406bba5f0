"""A bank of intrinsic waveforms: made once by pycbc, stored in one HDF5, turned into signals on the device.

An aligned-spin, dominant-mode waveform needs only its plus polarisation seen face on: inclination, phase, sky and
distance multiply it by one complex number per detector (see `injection`). Of one with tilted spins or higher modes both
polarisations are held, as seen at the inclination and phase that were drawn with it. Each waveform is generated whole,
however long it lasts in the band, and then cut to a few seconds around its merger, never wrapped. The bank holds
no PSD's influence; the PSDs that a run needs travel in the same file, so that training from it imports no pycbc.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial, reduce
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import scipy.fft
import torch
from torch import Tensor

from gwtwins.strain.errors import InputError
from gwtwins.strain.hdf5_file import attribute, open_hdf5, plain_array, stored_member
from gwtwins.strain.population import Population
from gwtwins.strain.processes import usable_cores
from gwtwins.strain.progress import progress_bar
from gwtwins.strain.psd import PSD, load_psd, names_a_file

FORMAT = "gwtwins-bank-2"
BUFFER = 4.0  # seconds held of each waveform, the period of the circular buffer it is shifted in
BEFORE_MERGER = 3.0  # seconds of it before the merger; the rest is room for shifts and ringdown
AFTER_MERGER = 0.5
START_TAPER = 0.25  # seconds over which the cut inspiral is faded in
F_KEEP = 640.0  # Hz: waveforms are stored up to here, SNRs counted up to F_NYQUIST
F_NYQUIST = 1024.0
POWER_EDGES = np.geomspace(10.0, F_NYQUIST, 322)  # Hz, 48 bins an octave, for the SNR of whole signals
_CHUNK = 500  # waveforms per task
_MAX_PSDS = 64  # in a bank
_G_MSUN_C3 = 4.925490947641267e-06  # seconds, GM_sun/c^3


@dataclass(frozen=True)
class BankRecipe:
    """All that decides what a bank holds; two equal recipes are the same bank."""

    population: Population
    count: int
    seed: int
    psds: tuple[str, ...]
    """PSD names or ASD files, stored with the bank."""

    def key(self) -> str:
        """A name for the recipe: 16 hexadecimal digits."""
        intrinsic = asdict(self.population)
        for extrinsic in ("name", "snr", "merger", "signal_fraction"):
            intrinsic.pop(extrinsic)
        layout = [FORMAT, BUFFER, BEFORE_MERGER, START_TAPER, F_KEEP]
        text = json.dumps([layout, intrinsic, self.count, self.seed, sorted({*map(_psd_key, self.psds)})])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def path(self) -> Path:
        """Where the bank is kept; another version of the format has another place."""
        return cache_folder() / f"{FORMAT.removeprefix('gwtwins-')}-{self.key()}.hdf5"


def _psd_key(spec: str) -> str:
    """A PSD's name; for a file its contents too, which may be edited, or differ where a path is relative."""
    if not names_a_file(spec):
        return spec
    psd = load_psd(spec)
    return f"{spec} {hashlib.sha256(np.stack([psd.frequency, psd.value]).tobytes()).hexdigest()}"


def cache_folder() -> Path:
    """Where banks are kept: ``$GWTWINS_CACHE``, else ``gwtwins`` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("GWTWINS_CACHE") or Path(home) / "gwtwins")


@dataclass
class WaveformBank:
    """N waveforms at 1 Mpc, frequency domain, merger at the start of a circular 4 s buffer.

    Plus polarisations seen face on; of whole draws both polarisations, as seen from where they were drawn.
    """

    parameters: np.ndarray
    """(N, 4) or (N, 10), see `Population.intrinsic`."""
    waveform: Tensor
    """(N, F, 2) float16, real and imaginary part in units of `scale`, at k / BUFFER Hz for k in [k_low, k_low + F)."""
    k_low: int
    scale: Tensor
    """(N,) float64, strain seconds per unit of `waveform`."""
    power: Tensor
    """(N, P) float64, integral of |h(f)|^2 over each bin of POWER_EDGES for the whole waveform, strain^2 s."""
    psds: dict[str, PSD]
    cross: Tensor | None = None
    """(N, F, 2) float16 in units of `scale`: the cross polarisation of whole draws."""
    cross_power: Tensor | None = None
    """(N, 2, P) float64, integrals of |hx(f)|^2 and of Re h+(f) hx(f)* as in `power`."""

    def __len__(self) -> int:
        return len(self.parameters)

    def sigma(self, psd: PSD) -> Tensor:
        """(N,) float64: optimal SNR of each whole plus polarisation at 1 Mpc, with unit antenna pattern."""
        return torch.sqrt(4.0 * self.power @ self._weight(psd))

    def products(self, psd: PSD) -> Tensor:
        """(N, 3) float64: the inner products (h+|h+), (hx|hx) and (h+|hx) of whole draws, whose SNR they make up."""
        assert self.cross_power is not None
        return 4.0 * torch.cat([self.power[:, None], self.cross_power], 1) @ self._weight(psd)

    @staticmethod
    def _weight(psd: PSD) -> Tensor:
        fine = np.geomspace(POWER_EDGES[0], POWER_EDGES[-1], 8 * (len(POWER_EDGES) - 1) + 1)
        return torch.from_numpy((1.0 / psd.at(np.sqrt(fine[1:] * fine[:-1]))).reshape(-1, 8).mean(1))

    @classmethod
    def obtain(cls, recipe: BankRecipe, workers: int | None = None, progress: bool = True) -> WaveformBank:
        """The bank of ``recipe``: from the cache if it is there, else made now and kept there."""
        path = recipe.path()
        if not path.exists():
            make_bank(recipe, path, workers, progress)
        return cls.load(path)

    @classmethod
    def load(cls, path: str | Path) -> WaveformBank:
        """Read a stored bank.

        Raises:
            InputError: absent, not a bank, or not whole.
        """
        path, layout = Path(path), "a waveform bank written by gwtwins (delete it to have it made again)"
        with open_hdf5(path, layout) as file:
            if attribute(file, "format", "S") != FORMAT.encode():
                raise InputError(path, "is not a waveform bank of this version", layout)
            k_low = attribute(file, "k_low", "iu")
            if not isinstance(k_low, int | np.integer) or not 0 <= k_low < F_KEEP * BUFFER:
                raise InputError(path, f"k_low is {k_low}", layout)
            held, both = partial(plain_array, file, path=path, layout=layout), "cross" in file
            parameters = held("parameters", dtype="f8", shape=(-1, 10 if both else 4))
            n, bins = len(parameters), len(POWER_EDGES) - 1
            shape = (n, int(F_KEEP * BUFFER) - int(k_low), 2)
            bank = cls(
                parameters=parameters,
                waveform=torch.from_numpy(held("waveform", dtype="f2", shape=shape)),
                k_low=int(k_low),
                scale=torch.from_numpy(held("scale", dtype="f8", shape=(n,))),
                power=torch.from_numpy(held("power", dtype="f8", shape=(n, bins))),
                psds=_stored_psds(file, path, layout),
                cross=torch.from_numpy(held("cross", dtype="f2", shape=shape)) if both else None,
                cross_power=torch.from_numpy(held("cross_power", dtype="f8", shape=(n, 2, bins))) if both else None,
            )
        numbers = [torch.from_numpy(parameters), bank.waveform, bank.scale, bank.power, bank.cross, bank.cross_power]
        if not n or not all(x.isfinite().all() for x in numbers if x is not None):
            raise InputError(path, "holds no waveform, or NaN or infinity", layout)
        if (bank.scale <= 0).any() or (bank.power < 0).any():
            raise InputError(path, "a scale or a power is negative", layout)
        if not all(bank.sigma(psd).isfinite().all() for psd in bank.psds.values()):
            raise InputError(path, "powers or PSDs that leave no finite SNR", layout)
        return bank


def _stored_psds(file: h5py.File, path: Path, layout: str) -> dict[str, PSD]:
    group, psds = stored_member(file, "psds", path, layout), {}
    if not isinstance(group, h5py.Group) or len(group) > _MAX_PSDS:
        raise InputError(path, "psds is not a group of a few", layout)
    for member in group:
        node = stored_member(group, member, path, layout)
        given = attribute(node, "name", "S")
        if not isinstance(given, bytes) or not isinstance(node, h5py.Group):
            raise InputError(path, f"psds/{member} is not a named PSD", layout)
        name = given.decode("utf-8", "replace")
        frequency, value = (plain_array(node, column, path, layout, "f8", (-1,)) for column in ("frequency", "value"))
        psds[name] = replace(PSD(frequency, value, f"{path}, psds/{member}"), name=name)
    return psds


def make_bank(recipe: BankRecipe, path: Path, workers: int | None = None, progress: bool = True) -> None:
    """Generate a bank with pycbc in ``workers`` processes and write it to ``path`` in one atomic step."""
    from pycbc.waveform import fd_approximants

    if recipe.population.approximant not in fd_approximants():
        expected = "a frequency-domain approximant of pycbc such as IMRPhenomXAS"
        raise InputError(f"approximant {recipe.population.approximant}", "is not known", expected)
    parameters = recipe.population.intrinsic(recipe.seed, recipe.count)
    chunks = [parameters[i : i + _CHUNK] for i in range(0, len(parameters), _CHUNK)]
    psds = [load_psd(name) for name in sorted(set(recipe.psds))]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    k_low, k_high = int(recipe.population.f_lower * BUFFER), int(F_KEEP * BUFFER)
    try:
        with h5py.File(unfinished, "w") as file:
            # Text of fixed length: see `gwtwins.strain.hdf5_file.attribute`.
            file.attrs.update(format=np.bytes_(FORMAT), k_low=k_low, recipe=np.bytes_(json.dumps(asdict(recipe))))
            file["parameters"] = parameters
            shape = (recipe.count, k_high - k_low, 2)
            waveform = file.create_dataset("waveform", shape, "f2")
            scale = file.create_dataset("scale", (recipe.count,), "f8")
            power = file.create_dataset("power", (recipe.count, len(POWER_EDGES) - 1), "f8")
            if recipe.population.whole_draws:
                cross = file.create_dataset("cross", shape, "f2")
                cross_power = file.create_dataset("cross_power", (recipe.count, 2, len(POWER_EDGES) - 1), "f8")
            for i, psd in enumerate(psds):
                group = file.create_group(f"psds/{i}")
                group.attrs["name"] = np.bytes_(psd.name.encode())
                group["frequency"], group["value"] = psd.frequency, psd.value
            bar = progress_bar(recipe.count, "waveforms", "waveform", progress)
            start = 0
            for held, scales, powers in _in_parallel(recipe.population, chunks, workers):
                stop = start + len(held)
                waveform[start:stop], scale[start:stop], power[start:stop] = held[:, 0], scales, powers[:, 0]
                if recipe.population.whole_draws:
                    cross[start:stop], cross_power[start:stop] = held[:, 1], powers[:, 1:]
                bar.update(len(held))
                start = stop
            bar.close()
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


Chunk = tuple[np.ndarray, np.ndarray, np.ndarray]


def _in_parallel(population: Population, chunks: list[np.ndarray], workers: int | None) -> Iterator[Chunk]:
    workers = workers or min(usable_cores(), 8)
    populations = [population] * len(chunks)
    # A process takes seconds to import pycbc: not worth it for a few thousand waveforms at under 1 ms each.
    if workers == 1 or len(chunks) < 8:
        yield from map(_chunk, populations, chunks)
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        yield from pool.map(_chunk, populations, chunks)


def _chunk(population: Population, parameters: np.ndarray) -> Chunk:
    """Of B binaries: P polarisations (B, P, F, 2), their common scale (B,), and power spectra (B, 1 or 3, P')."""
    k_low, k_high = int(population.f_lower * BUFFER), int(F_KEEP * BUFFER)
    n, both = len(parameters), population.whole_draws
    held = np.empty((n, 1 + both, k_high - k_low, 2), np.float16)
    scale = np.empty(n)
    power = np.empty((n, 3 if both else 1, len(POWER_EDGES) - 1))
    for i, row in enumerate(parameters):
        whole, df = polarisations(population, row)
        frequency = np.arange(whole.shape[1]) * df
        squares = [np.abs(h) ** 2 for h in whole] + ([(whole[0] * whole[1].conj()).real] if both else [])
        for j, square in enumerate(squares):
            power[i, j] = np.histogram(frequency, POWER_EDGES, weights=square * df)[0]
        cuts = [_cut_around_merger(h, df)[k_low:k_high] for h in whole]
        # Leaves float16 six digits below the peak before it loses precision.
        scale[i] = max(np.abs(cut).max() for cut in cuts) / 1024.0
        for j, cut in enumerate(cuts):
            held[i, j, :, 0], held[i, j, :, 1] = (cut / scale[i]).real, (cut / scale[i]).imag
    return held, scale, power


_COLUMNS = ("mass1", "mass2", "spin1z", "spin2z")
_WHOLE_COLUMNS = ("mass1", "mass2", *(f"spin{i}{axis}" for i in (1, 2) for axis in "xyz"), "inclination", "coa_phase")


def polarisations(population: Population, parameters: np.ndarray) -> tuple[np.ndarray, float]:
    """The face-on plus polarisation at 1 Mpc of one binary, (1, F), or of a whole draw plus and cross, (2, F).

    Returns complex128 strain seconds at k df up to F_NYQUIST, the merger (peak amplitude) at time 0; and df in Hz.
    """
    from pycbc.waveform import get_fd_waveform

    columns = _WHOLE_COLUMNS if population.whole_draws else _COLUMNS
    binary = dict(zip(columns, map(float, parameters), strict=True))
    df = 1.0 / _duration(binary["mass1"], binary["mass2"], population.f_lower)
    made = get_fd_waveform(
        approximant=population.approximant,
        **binary,
        f_lower=population.f_lower,
        f_final=F_NYQUIST,
        delta_f=df,
        distance=1.0,
    )
    whole = np.zeros((1 + population.whole_draws, int(F_NYQUIST / df)), complex)
    for out, one in zip(whole, made, strict=False):
        n = min(len(out), len(one))
        out[:n] = one.numpy()[:n]
    # Approximants differ in what they put at time 0: measure the peak, by a parabola through the largest samples.
    # Amplitudes are flat there, and a sudden start at f_lower rings for as long as there is room: 64 s of the same
    # waveform mostly peak 0.1 to 0.2 ms later, and up to 0.8 ms elsewhere.
    envelope = reduce(np.hypot, [np.abs(scipy.fft.ifft(h)) for h in whole])
    n = int(np.argmax(envelope))
    left, top, right = envelope[n - 1], envelope[n], envelope[(n + 1) % len(envelope)]
    peak = (n + 0.5 * (left - right) / (left - 2 * top + right)) / F_NYQUIST
    # Written so for the last bit: numpy rounds other products of the same numbers otherwise, and a bank that is made
    # again shall be the same bank.
    return np.stack([h * np.exp(2j * np.pi * np.arange(len(h)) * df * peak) for h in whole]), df


def _duration(mass1: float, mass2: float, f_lower: float) -> float:
    """A power of two of seconds that holds the whole signal: 0PN chirp time (Sathyaprakash & Schutz 2009) and room."""
    total = (mass1 + mass2) * _G_MSUN_C3
    eta = mass1 * mass2 / (mass1 + mass2) ** 2
    chirp = 5.0 / (256.0 * eta) * total * (np.pi * total * f_lower) ** (-8.0 / 3.0)
    return float(2 ** np.ceil(np.log2(max(1.4 * chirp + 2.0, 2 * BUFFER))))


def _cut_around_merger(whole: np.ndarray, df: float) -> np.ndarray:
    """Keep BEFORE_MERGER to AFTER_MERGER of the whole waveform; back to frequencies at 1 / BUFFER Hz."""
    analytic = scipy.fft.ifft(whole)  # complex samples at F_NYQUIST Hz: the band has positive frequencies only
    n_before, n_after, n_taper = (int(t * F_NYQUIST) for t in (BEFORE_MERGER, AFTER_MERGER, START_TAPER))
    before = analytic[-n_before:].copy()
    before[:n_taper] *= np.sin(0.5 * np.pi * np.arange(n_taper) / n_taper) ** 2
    buffer = np.zeros(int(BUFFER * F_NYQUIST), complex)
    buffer[:n_after], buffer[-n_before:] = analytic[:n_after], before
    # Discrete to continuous: the spectrum of the buffer times the duration of one of its samples, against the whole's.
    return scipy.fft.fft(buffer) * df * len(whole) / F_NYQUIST
