"""Noise power spectral densities: named analytic ones, from an ASD file, or measured from data.

All are one-sided, in 1/Hz for strain, and float64: 1e-46 is below what float32 holds.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
from scipy.signal import get_window, welch

from gwtwins.strain.errors import InputError
from gwtwins.strain.small_file import read_text

# The PSDs of the standard population: the O3 low-sensitivity projections of LIGO-T1800545.
DEFAULT_PSDS = {
    "H1": "aLIGOaLIGOO3LowT1800545",
    "L1": "aLIGOaLIGOO3LowT1800545",
    "V1": "AdVO3LowT1800545",
    "K1": "KAGRADesignSensitivityT1600593",
}

_MAX_ASD_BYTES = 16 << 20  # half a million lines


@dataclass(frozen=True)
class PSD:
    """A one-sided power spectral density on a frequency grid."""

    frequency: np.ndarray
    """(F,) float64, Hz, ascending."""
    value: np.ndarray
    """(F,) float64, 1/Hz, positive."""
    name: str = "unnamed"

    def __post_init__(self) -> None:
        frequency, value = np.asarray(self.frequency, float), np.asarray(self.value, float)
        if frequency.ndim != 1 or frequency.shape != value.shape or frequency.size < 2:
            raise InputError(
                self.name,
                f"frequencies {frequency.shape} and values {value.shape}",
                "two equal 1D arrays of at least 2 points",
            )
        if not (np.isfinite(frequency).all() and (np.diff(frequency) > 0).all()):
            raise InputError(self.name, "frequencies are not finite and ascending", "an ascending grid in Hz")
        if not (np.isfinite(value).all() and (value > 0).all()):
            raise InputError(self.name, "a PSD value is not finite and positive", "power in 1/Hz above zero")
        object.__setattr__(self, "frequency", frequency)
        object.__setattr__(self, "value", value)

    def at(self, frequency: np.ndarray) -> np.ndarray:
        """The PSD at ``frequency`` (Hz), interpolated in the logarithm; held constant beyond its ends."""
        return np.exp(np.interp(np.asarray(frequency, float), self.frequency, np.log(self.value)))

    def covers(self, f_low: float, f_high: float) -> bool:
        """Whether the grid reaches over [f_low, f_high] Hz."""
        return bool(self.frequency[0] <= f_low and self.frequency[-1] >= f_high)

    def require(self, f_low: float, f_high: float) -> None:
        """Raise InputError unless the grid reaches over [f_low, f_high] Hz, but for 1 Hz at its upper end."""
        if not self.covers(f_low, f_high - 1.0):
            reach = f"{self.frequency[0]:g}-{self.frequency[-1]:g} Hz"
            raise InputError(self.name, f"PSD reaches over {reach}", f"all of {f_low:g}-{f_high:g} Hz")


def named_psd(name: str, f_low: float = 10.0, f_high: float = 2048.0, df: float = 0.125) -> PSD:
    """An analytic PSD by its pycbc name (``pycbc.psd.get_psd_model_list``), e.g. "aLIGOaLIGOO3LowT1800545"."""
    import pycbc.psd  # seconds of import: only where a name has to be looked up

    known = pycbc.psd.get_psd_model_list()
    if name not in known:
        raise InputError(name, "no PSD of that name", f"a pycbc PSD name such as {DEFAULT_PSDS['H1']}")
    series = pycbc.psd.from_string(name, int(f_high / df) + 1, df, f_low)
    frequency = np.arange(len(series)) * df
    value = np.asarray(series.numpy(), float)
    keep = (frequency >= f_low) & (value > 0) & np.isfinite(value)
    return PSD(frequency[keep], value[keep], name)


def psd_from_asd_file(path: str | Path) -> PSD:
    """A PSD from a text file of two columns: frequency in Hz and amplitude spectral density in 1/sqrt(Hz).

    Raises:
        InputError: absent, over 16 MiB, not such a table, or frequencies that do not ascend.
    """
    # Not by its name: numpy would unpack what ends in .gz, however large it gets, and fetch what looks like a URL.
    text = read_text(path, _MAX_ASD_BYTES, "a text file of frequency and ASD")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file: the shape tells
            table = np.loadtxt(StringIO(text), ndmin=2)
    except ValueError as error:
        raise InputError(path, "is not a table of numbers", "two columns, Hz and 1/sqrt(Hz)") from error
    if table.shape[1] != 2:
        raise InputError(path, f"{table.shape[1]} columns", "two columns, Hz and 1/sqrt(Hz)")
    if (table[:, 1] < 0).any():
        raise InputError(path, "an ASD value is not positive", "two columns, Hz and 1/sqrt(Hz)")
    return PSD(table[:, 0], table[:, 1] ** 2, str(path))


def load_psd(spec: str) -> PSD:
    """A PSD from a pycbc name, or from a path of an ASD file (anything holding a dot or a slash)."""
    return psd_from_asd_file(spec) if names_a_file(spec) else named_psd(spec)


def names_a_file(spec: str) -> bool:
    """Whether :func:`load_psd` takes ``spec`` as a path: no pycbc name holds a dot or a slash."""
    return "." in spec or "/" in spec


def welch_median(strain: np.ndarray, rate: float, segment: float = 4.0, name: str = "welch") -> PSD:
    """Welch's PSD with the median over half-overlapping Hann segments, which a short loud signal hardly moves.

    Args:
        strain: (T,) float64; at least two segments long, and for whitening itself at least 8 s, since a shorter
            estimate whitens the very window it was taken from (standard deviation 1.1 at 4 s).
        rate: samples per second.
        segment: length of a segment in seconds.
    """
    per_segment = int(round(segment * rate))
    if strain.ndim != 1 or strain.size < 2 * per_segment:
        raise InputError(name, f"{strain.size / rate:.1f} s of strain", f"at least {2 * segment:.1f} s for a PSD")
    scale = _scale(strain, name)
    frequency, value = welch(
        strain / scale, rate, "hann", per_segment, per_segment // 2, detrend="linear", average="median"
    )
    return PSD(frequency[1:], np.maximum(value[1:], np.finfo(float).tiny) * scale**2, name)


def measured_from_windows(windows: np.ndarray, rate: float, name: str = "measured") -> PSD:
    """The median over many windows of their Hann-tapered periodograms, corrected for the median's bias.

    Args:
        windows: (N, T) float64 strain; with N below about 100 the result is noisy by 1.2/sqrt(N).
        rate: samples per second.
    """
    if windows.ndim != 2 or windows.shape[0] < 8:
        raise InputError(name, f"windows of shape {windows.shape}", "(N, T) with at least 8 windows")
    scale = _scale(windows, name)
    taper = get_window("hann", windows.shape[1])
    centred = windows / scale - np.mean(windows / scale, axis=1, keepdims=True)
    spectrum = np.fft.rfft(centred * taper, axis=1)
    periodogram = 2.0 * np.abs(spectrum) ** 2 / (rate * np.sum(taper**2))
    value = np.median(periodogram, axis=0) / median_bias(len(windows))
    frequency = np.fft.rfftfreq(windows.shape[1], 1.0 / rate)
    return PSD(frequency[1:], np.maximum(value[1:], np.finfo(float).tiny) * scale**2, name)


def median_bias(n: int) -> float:
    """E[median] / E[mean] of n exponential variables (Allen et al. 2012, Phys. Rev. D 85, 122006, B12)."""
    odd = n if n % 2 else n - 1
    return float(np.sum((-1.0) ** np.arange(odd) / np.arange(1, odd + 1)))


def _scale(strain: np.ndarray, name: str) -> float:
    if not np.isfinite(strain).all():
        raise InputError(name, "a sample is NaN or infinite", "finite strain")
    scale = float(np.sqrt(np.mean((strain / max(np.abs(strain).max(), 1e-300)) ** 2)) * np.abs(strain).max())
    if scale == 0.0:
        raise InputError(name, "all samples are zero", "strain with noise in it")
    return scale
