"""A population of signals: which binaries, how loud, where in the window. A small YAML that users can replace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from gwtwins.strain.errors import InputError

POPULATIONS = Path(__file__).parent / "populations"
_INTRINSIC = ("mass1", "mass2", "spin1z", "spin2z")
# Frequency-domain models of the dominant mode with aligned spins: only these turn by inclination and phase afterwards.
DOMINANT_MODE = ("IMRPhenomXAS", "IMRPhenomD", "SEOBNRv4_ROM", "SEOBNRv5_ROM", "TaylorF2", "IMRPhenomXAS_NRTidalv2")
_KEYS = {"name", "approximant", "f_lower", *_INTRINSIC, "merger", "snr", "signal_fraction"}


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
        numbers = isinstance(values, list) and all(type(v) in (int, float) and np.isfinite(v) for v in values)
        if length is None or not numbers or len(values) != length or values[0] >= values[1]:
            raise InputError(where, f"{node!r}", expected + " with low < high")
        if kind == "power_law" and values[0] <= 0:
            raise InputError(where, f"low = {values[0]}", "a power law that starts above 0")
        return cls(*map(float, values))


@dataclass(frozen=True)
class Population:
    """Distributions of aligned-spin binaries and of their loudness and place in the window."""

    name: str
    approximant: str
    f_lower: float
    """Hz, where waveforms start and from where the network SNR is counted."""
    mass1: Distribution
    mass2: Distribution
    """Detector-frame solar masses; each pair is sorted so that mass1 >= mass2."""
    spin1z: Distribution
    spin2z: Distribution
    merger: Distribution
    """Seconds from the window's start to the merger at the geocentre."""
    snr: Distribution
    """Optimal network SNR of the whole signal above f_lower."""
    signal_fraction: float = 0.5
    """Fraction of pretraining rows that carry a signal (evaluation rows: exactly half)."""

    @classmethod
    def load(cls, name_or_path: str) -> Population:
        """A shipped population by name ("standard") or any YAML file of the same form.

        Raises:
            InputError: no such file, unknown or missing keys, a value out of range.
        """
        path = Path(name_or_path)
        if not path.suffix:
            path = POPULATIONS / f"{name_or_path}.yaml"
        try:
            node = yaml.safe_load(path.read_text())
        except OSError as error:
            shipped = ", ".join(sorted(p.stem for p in POPULATIONS.glob("*.yaml")))
            raise InputError(
                f"population {name_or_path}", "no such file", f"a YAML file, or one of: {shipped}"
            ) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(path, "not a YAML file", "keys like those of populations/standard.yaml") from error
        if not isinstance(node, dict) or set(node) != _KEYS:
            unlike = sorted(set(node) ^ _KEYS) if isinstance(node, dict) else []
            raise InputError(path, f"keys missing or unknown: {unlike}", f"exactly {sorted(_KEYS)}")
        drawn = {k: Distribution.parse(f"{path}, {k}", node[k]) for k in (*_INTRINSIC, "merger", "snr")}
        if node["approximant"] not in DOMINANT_MODE:
            raise InputError(f"{path}, approximant", f"{node['approximant']!r}", f"one of {', '.join(DOMINANT_MODE)}")
        fraction, f_lower = node["signal_fraction"], node["f_lower"]
        if not (type(fraction) in (int, float) and 0 < fraction <= 1):
            raise InputError(f"{path}, signal_fraction", f"{fraction!r}", "above 0 and at most 1")
        if not (type(f_lower) in (int, float) and 5 <= f_lower <= 100):
            raise InputError(f"{path}, f_lower", f"{f_lower!r}", "5 to 100 Hz")
        for key in ("mass1", "mass2"):
            if not 0.5 <= drawn[key].low < drawn[key].high <= 1000:
                raise InputError(f"{path}, {key}", "masses out of range", "0.5 to 1000 solar masses")
        for key in ("spin1z", "spin2z"):
            if not -1 < drawn[key].low < drawn[key].high < 1:
                raise InputError(f"{path}, {key}", "spins out of range", "above -1 and below 1")
        if drawn["snr"].low < 0:
            raise InputError(f"{path}, snr", f"low = {drawn['snr'].low:g}", "0 or more")
        return cls(
            name=str(node["name"]),
            approximant=str(node["approximant"]),
            f_lower=float(f_lower),
            signal_fraction=float(fraction),
            **drawn,
        )

    def intrinsic(self, seed: int, count: int) -> np.ndarray:
        """``count`` binaries, (count, 4) float64: mass1 >= mass2 (solar masses), spin1z, spin2z."""
        u = torch.from_numpy(np.random.Generator(np.random.Philox(seed)).random((count, 4)))
        drawn = [getattr(self, key).quantile(u[:, i]).numpy() for i, key in enumerate(_INTRINSIC)]
        heavy, light = np.maximum(drawn[0], drawn[1]), np.minimum(drawn[0], drawn[1])
        return np.stack([heavy, light, drawn[2], drawn[3]], axis=1)
