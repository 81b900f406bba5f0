"""A population of signals: which binaries, how loud, where in the window. A small YAML that users can replace."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gwtwins.strain.errors import InputError
from gwtwins.strain.small_file import read_yaml

POPULATIONS = Path(__file__).parent / "populations"
_INTRINSIC = ("mass1", "mass2", "spin1z", "spin2z")
# Frequency-domain models of the dominant mode with aligned spins: only these turn by inclination and phase afterwards.
DOMINANT_MODE = ("IMRPhenomXAS", "IMRPhenomD", "SEOBNRv4_ROM", "SEOBNRv5_ROM", "TaylorF2", "IMRPhenomXAS_NRTidalv2")
# Spins that tilt, or higher modes: a bank of these holds whole draws, inclination and phase among them.
WHOLE_DRAWS = ("IMRPhenomXPHM", "IMRPhenomXP", "IMRPhenomXHM")
_KEYS = {"name", "approximant", "f_lower", "mass1", "mass2", "merger", "snr", "signal_fraction"}


@dataclass(frozen=True)
class Distribution:
    """One number's distribution: uniform, or a power law p(x) ~ x^exponent, between two ends."""

    low: float
    high: float
    exponent: float = 0.0

    def quantile(self, u: Tensor, high: Tensor | float | None = None) -> Tensor:
        """Values at the quantiles ``u`` in [0, 1), any shape; ``high`` replaces the upper end (a curriculum)."""
        top = self.high if high is None else high
        if self.exponent == -1.0:
            return self.low * (top / self.low) ** u
        n = self.exponent + 1.0
        return (self.low**n + u * (top**n - self.low**n)) ** (1.0 / n)

    @classmethod
    def parse(cls, where: str, node: Any) -> Distribution:
        """From YAML: ``{uniform: [low, high]}`` or ``{power_law: [low, high, exponent]}``."""
        expected = "{uniform: [low, high]} or {power_law: [low, high, exponent]}"
        if not (isinstance(node, dict) and len(node) == 1):
            raise InputError(where, f"{node!r}", expected)
        kind, values = next(iter(node.items()))
        length = {"uniform": 2, "power_law": 3}.get(kind)
        numbers = isinstance(values, list) and all(type(v) in (int, float) and abs(v) < 1e300 for v in values)
        if length is None or not numbers or len(values) != length or values[0] >= values[1]:
            raise InputError(where, f"{node!r}", expected + " with low < high")
        if kind == "power_law" and values[0] <= 0:
            raise InputError(where, f"low = {values[0]}", "a power law that starts above 0")
        return cls(*map(float, values))


@dataclass(frozen=True)
class Population:
    """Distributions of binaries and of their loudness and place in the window."""

    name: str
    approximant: str
    f_lower: float
    """Hz, where waveforms start and from where the network SNR is counted."""
    mass1: Distribution
    mass2: Distribution
    """Detector-frame solar masses; each pair is sorted so that mass1 >= mass2."""
    spin1z: Distribution
    spin2z: Distribution
    """Aligned spins; of `whole_draws` the magnitudes, in directions spread evenly (the YAML's ``spin1``, ``spin2``)."""
    merger: Distribution
    """Seconds from the window's start to the merger at the geocentre."""
    snr: Distribution
    """Optimal network SNR of the whole signal above f_lower."""
    signal_fraction: float = 0.5
    """Fraction of pretraining rows that carry a signal (evaluation rows: exactly half)."""

    @property
    def whole_draws(self) -> bool:
        """Whether inclination and phase belong to a waveform, and cannot be turned afterwards."""
        return self.approximant in WHOLE_DRAWS

    @classmethod
    def load(cls, name_or_path: str) -> Population:
        """A shipped population by name ("standard") or any YAML file of the same form.

        Raises:
            InputError: no such file, unknown or missing keys, a value out of range.
        """
        path = Path(name_or_path)
        if not path.suffix:
            path = POPULATIONS / f"{name_or_path}.yaml"
        if not os.path.exists(path):
            shipped = ", ".join(sorted(p.stem for p in POPULATIONS.glob("*.yaml")))
            raise InputError(f"population {name_or_path}", "no such file", f"a YAML file, or one of: {shipped}")
        node = read_yaml(path, "a YAML file with keys like those of populations/standard.yaml")
        whole = isinstance(node, dict) and node.get("approximant") in WHOLE_DRAWS
        spins = ("spin1", "spin2") if whole else ("spin1z", "spin2z")
        keys = _KEYS | set(spins)
        if not isinstance(node, dict) or set(node) != keys:
            unlike = sorted(set(node) ^ keys) if isinstance(node, dict) else []
            raise InputError(path, f"keys missing or unknown: {unlike}", f"exactly {sorted(keys)}")
        drawn = {k: Distribution.parse(f"{path}, {k}", node[k]) for k in ("mass1", "mass2", *spins, "merger", "snr")}
        if node["approximant"] not in DOMINANT_MODE + WHOLE_DRAWS:
            expected = f"one of {', '.join(DOMINANT_MODE + WHOLE_DRAWS)}"
            raise InputError(f"{path}, approximant", f"{node['approximant']!r}", expected)
        fraction, f_lower = node["signal_fraction"], node["f_lower"]
        if not (type(fraction) in (int, float) and 0 < fraction <= 1):
            raise InputError(f"{path}, signal_fraction", f"{fraction!r}", "above 0 and at most 1")
        if not (type(f_lower) in (int, float) and 5 <= f_lower <= 100):
            raise InputError(f"{path}, f_lower", f"{f_lower!r}", "5 to 100 Hz")
        for key in ("mass1", "mass2"):
            if not 0.5 <= drawn[key].low < drawn[key].high <= 1000:
                raise InputError(f"{path}, {key}", "masses out of range", "0.5 to 1000 solar masses")
        for key in spins:
            if not -1 < drawn[key].low < drawn[key].high < 1 or (whole and drawn[key].low < 0):
                expected = "magnitudes from 0 to below 1" if whole else "above -1 and below 1"
                raise InputError(f"{path}, {key}", "spins out of range", expected)
        if drawn["snr"].low < 0:
            raise InputError(f"{path}, snr", f"low = {drawn['snr'].low:g}", "0 or more")
        return cls(
            name=str(node["name"]),
            approximant=str(node["approximant"]),
            f_lower=float(f_lower),
            signal_fraction=float(fraction),
            spin1z=drawn.pop(spins[0]),
            spin2z=drawn.pop(spins[1]),
            **drawn,
        )

    def intrinsic(self, seed: int, count: int) -> np.ndarray:
        """``count`` binaries, (count, 4) float64: mass1 >= mass2 (solar masses), spin1z, spin2z.

        Of `whole_draws` (count, 10): mass1, mass2, spin 1 as x y z, spin 2 as x y z, inclination and phase (radians).
        """
        columns = 10 if self.whole_draws else 4
        u = torch.from_numpy(np.random.Generator(np.random.Philox(seed)).random((count, columns)))
        drawn = [getattr(self, key).quantile(u[:, i]).numpy() for i, key in enumerate(_INTRINSIC)]
        heavy, light = np.maximum(drawn[0], drawn[1]), np.minimum(drawn[0], drawn[1])
        if not self.whole_draws:
            return np.stack([heavy, light, drawn[2], drawn[3]], axis=1)
        v = u.numpy()
        spins = [drawn[2 + i][:, None] * _directions(v[:, 4 + 2 * i], v[:, 5 + 2 * i]) for i in range(2)]
        inclination, phase = np.arccos(2 * v[:, 8] - 1), 2 * np.pi * v[:, 9]
        return np.column_stack([heavy, light, *spins, inclination, phase])


def _directions(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Unit vectors (N, 3), spread evenly, from uniforms (N,)."""
    z, azimuth = 2 * u - 1, 2 * np.pi * v
    flat = np.sqrt(1 - z**2)
    return np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), z], axis=1)
