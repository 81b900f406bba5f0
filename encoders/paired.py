"""One encoder for Hanford and Livingston, one for Virgo and KAGRA, of the same architecture, or one for all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gwtwins.encoders import registry
from gwtwins.strain.conditioning import F_HIGH, F_LOW, Conditioner
from gwtwins.strain.errors import InputError
from gwtwins.strain.psd import PSD

BRANCH = {"H1": "hl", "L1": "hl", "V1": "v", "K1": "v"}


class PairedEncoder(nn.Module):
    """Whitened (or raw) strain of D detectors to one embedding per detector.

    Args:
        name, args: encoder and its arguments, see `registry`.
        detectors: names in the order of the strain's detector axis.
        shared: whether ``hl`` and ``v`` are the same module.
        psds: a PSD per detector, for strain that is not whitened yet; may be empty.
        f_low, f_high: the whitened band in Hz.
    """

    def __init__(
        self,
        name: str,
        args: dict[str, Any] | None = None,
        detectors: tuple[str, ...] = ("H1", "L1", "V1"),
        shared: bool = True,
        psds: dict[str, PSD] | None = None,
        f_low: float = F_LOW,
        f_high: float = F_HIGH,
    ) -> None:
        super().__init__()
        for detector in detectors:
            if detector not in BRANCH:
                raise InputError(f"detector {detector}", "is not known", " ".join(BRANCH))
        self.name, self.args, self.detectors, self.shared = name, dict(args or {}), tuple(detectors), shared
        self.psds, self.f_low, self.f_high = dict(psds or {}), f_low, f_high
        self.hl = registry.build(name, self.args)
        self.v = self.hl if shared else registry.build(name, self.args)
        self.rate: float = self.hl.rate  # type: ignore[assignment]
        self.window: float = self.hl.window  # type: ignore[assignment]
        self.embedding_dim: int = self.hl.embedding_dim  # type: ignore[assignment]
        if not 0 < f_low < f_high:
            raise InputError(f"encoder {name}", f"band {f_low:g}-{f_high:g} Hz", "0 < f_low < f_high")
        if f_high > self.rate / 2:
            raise InputError(f"encoder {name}", f"works at {self.rate:g} Hz", f"at least twice f_high = {f_high:g} Hz")
        self._conditioners: dict[tuple[int, str], Conditioner] = {}

    @property
    def samples(self) -> int:
        """Samples of a window at the encoder's own rate."""
        return round(self.rate * self.window)

    def decimate(self, strain: Tensor) -> Tensor:
        """Windows (..., T) at any whole multiple of the encoder's rate, brought to it by taking every k-th sample.

        Nothing aliases: whitened strain has no power above f_high, which is below half of the encoder's rate.
        """
        k, rest = divmod(strain.shape[-1], self.samples)
        if k == 0 or rest:
            expected = f"{self.window:g} s at a multiple of {self.rate:g} Hz: {self.samples}, {2 * self.samples}, ..."
            raise InputError("strain", f"{strain.shape[-1]} samples a window", expected)
        return strain[..., ::k] if k > 1 else strain

    def encode(self, x: Tensor, detector: Tensor) -> Tensor:
        """Rows of single detectors (N, T) to (N, E); ``detector`` (N,) indexes `detectors`."""
        x = self.decimate(x)[:, None].float().contiguous()
        if self.shared:
            return self.hl(x)
        is_v = torch.tensor([BRANCH[name] == "v" for name in self.detectors], device=x.device)[detector]
        if is_v.all():
            return self.v(x)
        if not is_v.any():
            return self.hl(x)
        first, second = self.hl(x[~is_v]), self.v(x[is_v])
        out = first.new_empty(len(x), first.shape[1])
        out[~is_v], out[is_v] = first, second
        return out

    def forward(self, strain: Tensor, present: Tensor | None = None, whitened: bool = True) -> Tensor:
        """Embeddings (B, D, E) float32; zero for absent detectors.

        Args:
            strain: (B, D, T) windows, D in the order of `detectors`; T any whole multiple of the encoder's rate.
            present: (B, D) bool, all by default.
            whitened: False for raw strain, which is then conditioned with the encoder's own PSDs.

        Raises:
            InputError: wrong shape, or raw strain for an encoder that carries no PSDs.
        """
        if strain.ndim != 3 or strain.shape[1] != len(self.detectors):
            expected = f"(B, {len(self.detectors)}, T) for {' '.join(self.detectors)}"
            raise InputError("strain", f"shape {tuple(strain.shape)}", expected)
        if not whitened:
            strain = self._condition(strain)
        b, d, t = strain.shape
        index = torch.arange(d, device=strain.device).expand(b, d)
        if present is None or bool(present.all()):
            return self.encode(strain.reshape(b * d, t), index.reshape(-1)).reshape(b, d, -1)
        out = torch.zeros(b, d, self.embedding_dim, device=strain.device)
        if present.any():
            out[present] = self.encode(strain[present], index[present]).float()
        return out

    def _condition(self, strain: Tensor) -> Tensor:
        missing = [name for name in self.detectors if name not in self.psds]
        if missing:
            raise InputError("raw strain", f"the encoder carries no PSD of {' '.join(missing)}", "whitened strain")
        key = (strain.shape[-1], str(strain.device))
        if key not in self._conditioners:
            rate = strain.shape[-1] / self.window
            psds = [self.psds[name] for name in self.detectors]
            conditioner = Conditioner(psds, rate, self.window, self.rate, self.f_low, self.f_high)
            self._conditioners[key] = conditioner.to(strain.device)
        return self._conditioners[key](strain)
