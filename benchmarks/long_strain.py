"""Hours of simulated strain with signals of known SNR in it, written to files block by block.

Noise is white noise drawn in blocks of a minute and filtered by the square root of the detector's PSD; signals are
pycbc's IMRPhenomXAS, projected by pycbc's detectors and added to the raw strain. Nothing of gwtwins' conditioning takes
part in it, and memory does not depend on the length.

The noise is cyclic over the length asked for (in whole blocks): copies of a file follow on each other without a step.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.signal import oaconvolve

from gwtwins.strain.command import write_text
from gwtwins.strain.draws import row_generator
from gwtwins.strain.errors import InputError
from gwtwins.strain.population import Distribution, Population
from gwtwins.strain.psd import DEFAULT_PSDS, PSD, load_psd

Array = NDArray[np.float64]

BLOCK = 64
"""Seconds of strain that are held at a time."""
GPS_START = 1_262_304_000
"""Of the simulated strain: a whole number of the scan's blocks."""
FILE_SECONDS = 4096
"""Length of a GWOSC file."""
LOUDNESS = (Distribution(4.0, 8.0), Distribution(8.0, 16.0))
"""Network SNR of the injections, which take turns: half of them are below 8."""
JITTER = 5.0
"""Seconds by which an injection is off its place, either way."""
FLAGS = ("DATA", "CBC_CAT1", "CBC_CAT2", "CBC_CAT3")

_FADE_IN = (5.0, 10.0)  # Hz over which the noise fades in: the design curves begin at 10 Hz
_HALF_FILTER = 4  # s on each side of the colouring filter
_SPAN, _BEFORE = 64, 60  # s of a signal, and of it before the merger; 8+8 Msun take 20 s from 15 Hz
_START = (15.0, 18.0)  # Hz over which a signal fades in, below the 20 Hz from which its SNR counts
_F_MAX = 1024.0  # Hz
_FINE = 4  # points per sample of 1 / (2 * _F_MAX) in the search for a signal's peak
_MARGIN = 20.0  # s at the ends of the strain without a merger


@dataclass(frozen=True)
class Injection:
    """A binary's signal in the strain."""

    time: float
    """Merger (largest amplitude) at the geocentre, GPS s."""
    snr: float
    """Optimal network SNR from 20 Hz on, with respect to the PSDs that the noise was made of."""
    reach: float
    """Mpc at which its network SNR would be 1."""
    mass1: float
    mass2: float
    """Detector-frame solar masses."""
    spin1z: float
    spin2z: float
    ra: float
    dec: float
    psi: float
    inclination: float
    phase: float

    @property
    def distance(self) -> float:
        """Mpc."""
        return self.reach / self.snr


def design_psds(detectors: Sequence[str]) -> dict[str, PSD]:
    """The standard population's PSD of each detector."""
    return {name: load_psd(DEFAULT_PSDS[name]) for name in detectors}


def snr_density(snr: Array) -> Array:
    """Probability density of the injections' SNR."""
    each = [np.where((snr >= d.low) & (snr < d.high), 1.0 / (d.high - d.low), 0.0) for d in LOUDNESS]
    return np.mean(each, axis=0)


def draw_injections(
    population: Population, psds: dict[str, PSD], seed: int, start: float, seconds: float, every: float
) -> list[Injection]:
    """Binaries of the population, one in about ``every`` seconds, isotropic, of `LOUDNESS`."""
    places = np.arange(start + _MARGIN + JITTER, start + seconds - _MARGIN - JITTER, every)
    intrinsic = population.intrinsic(seed, len(places))
    found = []
    for i, (place, binary) in enumerate(zip(places, intrinsic, strict=True)):
        u = row_generator(seed, "injection", 0, i).random(7)
        loudness = LOUDNESS[i % len(LOUDNESS)]
        mass1, mass2, spin1z, spin2z = map(float, binary)
        unit = Injection(
            time=float(place + JITTER * (2 * u[0] - 1)),
            snr=loudness.low + u[1] * (loudness.high - loudness.low),
            reach=1.0,
            mass1=mass1,
            mass2=mass2,
            spin1z=spin1z,
            spin2z=spin2z,
            ra=2 * np.pi * u[2],
            dec=float(np.arcsin(2 * u[3] - 1)),
            psi=np.pi * u[4],
            inclination=float(np.arccos(2 * u[5] - 1)),
            phase=2 * np.pi * u[6],
        )
        frequency, spectrum = projected(unit, tuple(psds), _F_MAX, population.approximant)
        snr = optimal_snr(frequency, spectrum, list(psds.values()), population.f_lower)
        found.append(dataclasses.replace(unit, reach=float(np.linalg.norm(snr))))
    return found


def projected(
    injection: Injection, detectors: Sequence[str], f_max: float, approximant: str = "IMRPhenomXAS"
) -> tuple[Array, NDArray[np.complex128]]:
    """What D detectors measure of the binary at 1 Mpc, its merger at the geocentre at time 0.

    Returns:
        frequencies (F,) in Hz, 1/64 Hz apart, and spectra (D, F) in strain seconds.
    """
    from pycbc.detector import Detector
    from pycbc.waveform import get_fd_waveform

    n = round(f_max * _SPAN)
    frequency = np.arange(n) / _SPAN
    polarisations = get_fd_waveform(
        approximant=approximant,
        mass1=injection.mass1,
        mass2=injection.mass2,
        spin1z=injection.spin1z,
        spin2z=injection.spin2z,
        f_lower=_START[0],
        f_final=f_max,
        delta_f=1 / _SPAN,
        distance=1.0,
        inclination=injection.inclination,
        coa_phase=injection.phase,
    )
    plus, cross = np.zeros((2, n), complex)
    for out, series in zip((plus, cross), polarisations, strict=True):
        out[: min(n, len(series))] = series.numpy()[:n]
    # Of the dominant mode both polarisations have one envelope; cross vanishes edge on.
    peak = np.argmax(np.abs(np.fft.ifft(plus, _FINE * n))) * _SPAN / (_FINE * n)
    fade = np.sin(np.pi / 2 * np.clip((frequency - _START[0]) / (_START[1] - _START[0]), 0, 1)) ** 2
    rows = []
    for name in detectors:
        detector = Detector(name)
        f_plus, f_cross = detector.antenna_pattern(injection.ra, injection.dec, injection.psi, injection.time)
        delay = detector.time_delay_from_earth_center(injection.ra, injection.dec, injection.time)
        shift = np.exp(2j * np.pi * frequency * (peak - delay))
        rows.append((f_plus * plus + f_cross * cross) * fade * shift)
    return frequency, np.stack(rows)


def optimal_snr(frequency: Array, spectrum: NDArray[np.complex128], psds: Sequence[PSD], f_low: float) -> Array:
    """(D,) optimal SNR of ``spectrum`` (D, F), strain seconds, from ``f_low`` Hz on, in noise of D PSDs."""
    inside = frequency >= f_low
    step = frequency[1] - frequency[0]
    power = [np.sum(np.abs(row[inside]) ** 2 / psd.at(frequency[inside])) for row, psd in zip(spectrum, psds)]
    return np.sqrt(4 * step * np.array(power))


def strain_blocks(
    psds: dict[str, PSD],
    rate: int,
    seed: int,
    start: float,
    seconds: int,
    injections: Sequence[Injection] = (),
) -> Iterator[Array]:
    """Strain (D, T) of D detectors from GPS ``start`` on, `BLOCK` seconds at a time, ``seconds`` in all.

    Args:
        psds: of each detector, the noise's.
        rate: samples per second.
        seed: of the noise.
        start: GPS time of the first sample, s.
        seconds: length.
        injections: signals that are added, in the order of time.
    """
    count = -(-seconds // BLOCK)
    noise = [_noise(name, psd, rate, seed, count) for name, psd in psds.items()]
    waiting = list(injections)
    held: list[tuple[int, Array]] = []  # (first sample, (D, T)) of the signals that reach into the block
    for k in range(count):
        a, b = k * BLOCK * rate, min((k + 1) * BLOCK, seconds) * rate
        strain = np.stack([next(blocks)[: b - a] for blocks in noise])
        while waiting and (waiting[0].time - start - _BEFORE) * rate < b:
            held.append(signal(waiting.pop(0), tuple(psds), rate, start))
        for first, wave in held:
            low, high = max(a, first), min(b, first + wave.shape[1])
            if low < high:
                strain[:, low - a : high - a] += wave[:, low - first : high - first]
        held = [(first, wave) for first, wave in held if first + wave.shape[1] > b]
        yield strain


def signal(injection: Injection, detectors: Sequence[str], rate: int, start: float) -> tuple[int, Array]:
    """The signal's strain (D, T) at ``rate`` samples per second, and its first sample counted from GPS ``start``."""
    frequency, spectrum = projected(injection, detectors, min(rate / 2, _F_MAX))
    place = (injection.time - start - _BEFORE) * rate
    first = int(np.floor(place))
    whole = np.zeros((len(detectors), _SPAN * rate // 2 + 1), complex)
    whole[:, : frequency.size] = spectrum / injection.distance
    whole[:, : frequency.size] *= np.exp(-2j * np.pi * frequency * (_BEFORE + (place - first) / rate))
    return first, np.fft.irfft(whole, _SPAN * rate) * rate


def _noise(name: str, psd: PSD, rate: int, seed: int, count: int) -> Iterator[Array]:
    """Blocks of Gaussian noise (T,) of the PSD, one after the other; the last goes on into the first."""
    half = _HALF_FILTER * rate
    frequency = np.fft.rfftfreq(2 * half, 1 / rate)
    fade = np.sin(np.pi / 2 * np.clip((frequency - _FADE_IN[0]) / (_FADE_IN[1] - _FADE_IN[0]), 0, 1)) ** 2
    # White noise of variance 1 has the one-sided PSD 2 / rate.
    taps = np.roll(np.fft.irfft(np.sqrt(psd.at(frequency) * rate / 2) * fade), half)
    taps = np.append(taps, taps[0]) * np.hanning(2 * half + 1)

    def white(block: int) -> Array:
        return row_generator(seed, f"noise of {name}", 0, block % count).standard_normal(BLOCK * rate)

    before, here = white(-1)[-half:], white(0)
    for k in range(count):
        after = white(k + 1)
        yield oaconvolve(np.concatenate([before, here, after[:half]]), taps, mode="valid")
        before, here = here[-half:], after


def write_mlgwsc(
    path: Path, blocks: Iterator[Array], detectors: Sequence[str], rate: int, start: float, seconds: int
) -> Path:
    """Strain in the MLGWSC-1 layout: a group for each detector and in it one segment, float32, named by its start."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with h5py.File(partial, "w") as file:
        rows = []
        for name in detectors:
            dataset = file.create_dataset(f"{name}/{start:.0f}", (seconds * rate,), np.float32)
            dataset.attrs.update(delta_t=1.0 / rate, start_time=float(start))
            rows.append(dataset)
        at = 0
        for strain in blocks:
            for dataset, row in zip(rows, strain, strict=True):
                dataset[at : at + row.size] = row
            at += strain.shape[1]
    os.replace(partial, path)
    return path


def write_gwosc(
    folder: Path,
    blocks: Iterator[Array],
    detectors: Sequence[str],
    rate: int,
    start: int,
    seconds: int,
    dtype: str = "float64",
) -> list[Path]:
    """Strain in GWOSC's HDF5 layout, a file of each detector, compressed as theirs are, all seconds of good quality."""
    if seconds > FILE_SECONDS:
        raise InputError("GWOSC file", f"{seconds} s", f"up to {FILE_SECONDS} s")
    names = [f"{name[0]}-{name}_SIMULATED-{start}-{seconds}.hdf5" for name in detectors]
    partial = [folder / f".{name}.{os.getpid()}.tmp" for name in names]
    files = [h5py.File(path, "w") for path in partial]
    for file, name in zip(files, detectors, strict=True):
        layout = {"chunks": (2048,), "compression": "gzip", "compression_opts": 1}
        dataset = file.create_dataset("strain/Strain", (seconds * rate,), dtype, **layout)
        dataset.attrs.update(Npoints=seconds * rate, Xstart=start, Xspacing=1.0 / rate, Xunits="second")
        mask = file.create_dataset("quality/simple/DQmask", data=np.full(seconds, (1 << len(FLAGS)) - 1, np.uint32))
        mask.attrs["Xspacing"] = 1.0
        file["quality/simple/DQShortnames"] = np.array([flag.encode() for flag in FLAGS])
        file["meta/Detector"], file["meta/GPSstart"], file["meta/Duration"] = name, start, seconds
    at = 0
    for strain in blocks:
        for file, row in zip(files, strain, strict=True):
            file["strain/Strain"][at : at + row.size] = row
        at += strain.shape[1]
    for file in files:
        file.close()
    for path, name in zip(partial, names, strict=True):
        os.replace(path, folder / name)
    return [folder / name for name in names]


def save_injections(path: Path, injections: Sequence[Injection]) -> None:
    """The truth, as JSON."""
    rows = [{**dataclasses.asdict(one), "distance": one.distance} for one in injections]
    write_text(path, json.dumps(rows, indent=1) + "\n")
