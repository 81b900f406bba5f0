"""A binary's signal as pycbc makes and projects it, on a long grid and by other means than the bank's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from pycbc.detector import Detector
from pycbc.types import FrequencySeries
from pycbc.waveform import get_fd_waveform

from gwtwins.strain.bank import BUFFER, F_KEEP, WaveformBank
from gwtwins.strain.psd import PSD

SPAN = 64.0  # seconds, six times the longest signal of the standard population
F_MAX = 1024.0  # Hz
N = int(SPAN * F_MAX)
FREQUENCY = np.arange(N) / SPAN
_FINE = 16  # points per 1 / F_MAX in the search for the peak


@dataclass
class Reference:
    """Plus and cross polarisation at 1 Mpc, (N,) complex strain seconds, peak amplitude of the face-on one at 0."""

    plus: np.ndarray
    cross: np.ndarray

    def projected(self, name: str, ra: float, dec: float, psi: float, gps: float) -> tuple[np.ndarray, float]:
        """The spectrum that a detector measures, and its delay behind the geocentre in seconds."""
        detector = Detector(name)
        f_plus, f_cross = detector.antenna_pattern(ra, dec, psi, gps)
        return f_plus * self.plus + f_cross * self.cross, detector.time_delay_from_earth_center(ra, dec, gps)


def reference(parameters: np.ndarray, inclination: float = 0.0, phase: float = 0.0, f_lower: float = 20.0) -> Reference:
    """IMRPhenomXAS of (mass1, mass2, spin1z, spin2z) at 1 Mpc."""
    facing = _fd(parameters, 0.0, 0.0, f_lower)[0]
    envelope = np.abs(np.fft.ifft(facing, _FINE * N))
    peak = int(np.argmax(envelope)) / (_FINE * F_MAX)
    shift = np.exp(2j * np.pi * FREQUENCY * peak)
    plus, cross = _fd(parameters, inclination, phase, f_lower)
    return Reference(plus * shift, cross * shift)


def _fd(parameters: np.ndarray, inclination: float, phase: float, f_lower: float) -> tuple[np.ndarray, np.ndarray]:
    mass1, mass2, spin1z, spin2z = map(float, parameters)
    series = get_fd_waveform(
        approximant="IMRPhenomXAS",
        mass1=mass1,
        mass2=mass2,
        spin1z=spin1z,
        spin2z=spin2z,
        f_lower=f_lower,
        f_final=F_MAX,
        delta_f=1 / SPAN,
        distance=1.0,
        inclination=inclination,
        coa_phase=phase,
    )
    plus, cross = (np.zeros(N, complex), np.zeros(N, complex))
    for out, one in zip((plus, cross), series):
        n = min(N, len(one))
        out[:n] = one.numpy()[:n]
    return plus, cross


def stored(bank: WaveformBank, row: int) -> np.ndarray:
    """What the bank holds of a waveform, (F,) complex128 strain seconds."""
    return bank.waveform[row].to(torch.float64).numpy() @ [1, 1j] * float(bank.scale[row])


def merger_offset(bank: WaveformBank, row: int) -> float:
    """Seconds by which the bank's merger comes after this module's.

    The peak is flat, and its place depends on how long the sudden start at f_lower has room to ring (8 to 64 s).
    """
    common = reference(bank.parameters[row]).plus[:: int(SPAN / BUFFER)]  # k / BUFFER Hz
    product = np.zeros(int(BUFFER * F_KEEP), complex)
    product[bank.k_low :] = stored(bank, row) * np.conj(common[bank.k_low : product.size])
    frequency = np.arange(product.size) / BUFFER
    product *= np.where(frequency > 30, frequency, 0) ** (7 / 3)  # as sharp as it can be
    points = 1 << 17  # 30 us apart, of a correlation that is smooth over 0.5 ms
    correlation = np.abs(np.fft.ifft(product, points))
    n = int(np.argmax(correlation))
    left, top, right = correlation[n - 1], correlation[n], correlation[(n + 1) % points]
    offset = (n + 0.5 * (left - right) / (left - 2 * top + right)) * BUFFER / points
    return (offset + BUFFER / 2) % BUFFER - BUFFER / 2


def whitened(spectrum: np.ndarray, psd: PSD, rate: float, times: int, f_low: float, f_high: float) -> np.ndarray:
    """The first ``times`` samples of a spectrum's whitened strain, for noise of variance 1 in the band."""
    band = (FREQUENCY >= f_low) & (FREQUENCY < f_high)
    white = np.zeros(int(SPAN * rate) // 2 + 1, complex)
    white[:N] = np.where(band, spectrum / np.sqrt(psd.at(FREQUENCY) * (f_high - f_low)), 0.0)
    return np.fft.irfft(white, int(SPAN * rate))[:times] * rate


def series(spectrum: np.ndarray) -> FrequencySeries:
    """As pycbc wants it, with the bin of F_MAX."""
    return FrequencySeries(np.append(spectrum, 0.0), delta_f=1 / SPAN)
