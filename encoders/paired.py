"""One encoder for Hanford and Livingston, one for Virgo and KAGRA, of the same architecture, or one for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gwtwins.encoders import registry
from gwtwins.encoders.evidence import MergerEvidence
from gwtwins.strain.conditioning import F_HIGH, F_LOW, Conditioner
from gwtwins.strain.errors import InputError
from gwtwins.strain.noise import gaussian_noise
from gwtwins.strain.psd import PSD

_NOISE_ROWS = 256  # windows: the mean of what a detector shows in noise is then good to 0.06 standard deviations

BRANCH = {"H1": "hl", "L1": "hl", "V1": "v", "K1": "v"}


@dataclass(frozen=True)
class NoiseReference:
    """What whitened Gaussian noise looks like to an encoder, on average."""

    embedding: Tensor
    """(D, E)."""
    together: Tensor | None
    """(2^D, J) what is shown together by each set of detectors, bit d of the index for detector d; None where the
    encoder makes no frames."""


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
        self.name, self.detectors, self.shared = name, tuple(detectors), shared
        self.psds, self.f_low, self.f_high = dict(psds or {}), f_low, f_high
        self.hl = registry.build(name, args)
        self.v = self.hl if shared else registry.build(name, args)
        # Those left at their defaults too: what is saved must not change with the defaults.
        self.args: dict[str, Any] = asdict(self.hl.config)  # type: ignore[call-overload]
        self.rate: float = self.hl.rate  # type: ignore[assignment]
        self.window: float = self.hl.window  # type: ignore[assignment]
        self.embedding_dim: int = self.hl.embedding_dim  # type: ignore[assignment]
        if not 0 < f_low < f_high:
            raise InputError(f"encoder {name}", f"band {f_low:g}-{f_high:g} Hz", "0 < f_low < f_high")
        if f_high > self.rate / 2:
            raise InputError(f"encoder {name}", f"works at {self.rate:g} Hz", f"at least twice f_high = {f_high:g} Hz")
        self._reference: tuple[object, NoiseReference] | None = None
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
        return self._by_branch(lambda branch, rows, _: branch(rows), x, detector)

    @property
    def frames(self) -> bool:
        """Whether the encoder makes frames in time, so that detectors can be compared moment by moment."""
        return hasattr(self.hl, "sequence")

    @property
    def hop(self) -> float:
        """Seconds between the frames of `sequence`.

        Raises:
            InputError: the encoder makes no frames.
        """
        hop = getattr(self.hl, "hop", None)
        if hop is None:
            raise InputError(f"encoder {self.name}", "embeds whole windows, without frames in time", "cnn_gru")
        return hop

    @property
    def evidence(self) -> int:
        """How many of the numbers that detectors show together, the last ones, are evidence for mergers; 0 for none."""
        module = getattr(self.hl, "evidence", None)
        return module.count + 1 if isinstance(module, MergerEvidence) else 0

    @property
    def evidence_channels(self) -> int:
        """How many channels of `local` and `sequence`, the last ones, hold evidence: of each merger at some moments."""
        hl: Any = self.hl
        return hl.config.mergers * hl.config.merger_frames if self.evidence else 0

    def start_from_mergers(self, kernels: Callable[..., Tensor]) -> None:
        """Take mergers for the evidence, whitened by the PSD of the first detector of each branch that has one.

        ``kernels(psd, count, samples, samples after the merger, stride, rate, f_low, f_high)`` gives (count, samples).
        """
        started: list[MergerEvidence] = []
        for name in self.detectors:
            branch: Any = self.v if BRANCH[name] == "v" else self.hl
            module = getattr(branch, "evidence", None)
            if isinstance(module, MergerEvidence) and name in self.psds and module not in started:
                started.append(module)
                shape = module.count, module.weight.shape[1], module.after, module.stride
                band = self.f_low, self.f_high
                module.start_from(kernels(self.psds[name], *shape, self.rate, *band), *band)

    def local(self, x: Tensor, detector: Tensor) -> Tensor:
        """What can be said of each frame of rows of single detectors (N, T), of any length: frames (N, L, C').

        Frame l stands for ``[l, l + 1) * hop`` seconds; the rate is the encoder's own; ``detector`` (N,) indexes
        `detectors`. Windows that overlap share these.

        Raises:
            InputError: the encoder makes no frames.
        """
        if not self.frames:
            raise InputError(f"encoder {self.name}", "embeds whole windows, without frames in time", "cnn_gru")
        rows = x[:, None].float().contiguous()
        return self._by_branch(lambda branch, rows, far: branch.local(rows, far), rows, detector)

    def recur(self, local: Tensor, detector: Tensor) -> Tensor:
        """The frames (N, L, C) of windows, from their `local` frames (N, L, C'); the GRU starts anew in each."""
        return self._by_branch(lambda branch, rows, _: branch.recur(rows), local, detector)

    def sequence(self, x: Tensor, detector: Tensor) -> Tensor:
        """Frames (N, L, C) of rows of single detectors (N, T): of a window those from `pool_start` on are pooled.

        Raises:
            InputError: the encoder makes no frames.
        """
        return self.recur(self.local(x, detector), detector)

    @property
    def pool_start(self) -> int:
        """Frames of a window before the first that is pooled: they give context alone."""
        return getattr(self.hl, "pool_start", 0)

    def encode_stretch(self, x: Tensor, detector: Tensor) -> Tensor:
        """(N, T) rows of single detectors at the encoder's own rate, of any length, to (N, E).

        Pooled over all of their frames: pretraining must not learn where in a window to look, or what long strain
        shows would not be what windows show.
        """
        if not self.frames:
            return self.encode(x, detector)
        rows = x[:, None].float().contiguous()
        return self._by_branch(lambda branch, x, _: branch.embed(branch.sequence(x)), rows, detector)

    @torch.no_grad()
    def noise_reference(self) -> NoiseReference:
        """What whitened Gaussian noise looks like on average; kept until the weights change."""
        state = [*self.parameters(), *self.buffers()]
        device = state[0].device
        version = (str(device), tuple((tensor.data_ptr(), _version(tensor)) for tensor in state))
        if self._reference is None or self._reference[0] != version:
            modes = {module: module.training for module in self.modules()}
            self.eval()  # BatchNorm would learn from it
            try:
                self._reference = version, self._measure_noise(device)
            finally:
                for module, training in modes.items():
                    module.training = training
        return self._reference[1]

    def _measure_noise(self, device: torch.device) -> NoiseReference:
        d = len(self.detectors)
        band = self.rate, self.window, self.f_low, self.f_high
        noise = gaussian_noise(0, "absent detectors", 0, range(_NOISE_ROWS), d, *band).to(device)  # (R, D, T)
        each = [torch.full((_NOISE_ROWS,), i, device=device) for i in range(d)]
        if not self.frames:
            parts = [self.encode(noise[:, i], each[i]) for i in range(d)]
            return NoiseReference(torch.stack([part.float().mean(dim=0) for part in parts]), None)
        start = self.pool_start
        sequences = [self.sequence(noise[:, i], each[i])[:, start:].float() for i in range(d)]  # (R, L, C) each
        pooled = [self._embed(s, which).float().mean(dim=0) for s, which in zip(sequences, each, strict=True)]
        together = []
        for present in range(1 << d):
            total = torch.zeros_like(sequences[0])
            for i in range(d):
                if present >> i & 1:
                    total += sequences[i]
            together.append(self.hl.pooled(total).mean(dim=0))  # type: ignore[operator]
        return NoiseReference(torch.stack(pooled), torch.stack(together))

    def network(self, strain: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Embeddings (B, D, E), and what the detectors show together, (B, J): all that a probe looks at.

        The frames of all detectors are added before they are pooled over time: a maximum over time of the sum is
        large where the detectors see something at the same moment, and an embedding of each by itself cannot say so.
        The light travel time, 27 ms at most, is less than a frame. The last `evidence` of these numbers say how much
        speaks for a merger. None instead of (B, J) where the encoder makes no frames.

        An absent detector has the mean embedding of noise, and what the others show together is moved by what noise
        in it would add on average: noise has then the same mean in every network. The mean over a probe's labelled
        rows would say something else, since half of these are signals.

        Raises:
            InputError: wrong shape.
        """
        self._check(strain)
        b, d, _ = strain.shape
        here = torch.ones(b, d, dtype=torch.bool, device=strain.device) if present is None else present
        which = torch.arange(d, device=strain.device).expand(b, d)[here]
        quiet = self.noise_reference()
        embedding = quiet.embedding.expand(b, -1, -1).clone()
        if quiet.together is None:
            embedding[here] = self.encode(strain[here], which).float()
            return embedding, None
        rows = self.decimate(strain[here])[:, None].float().contiguous()
        sequence = self._by_branch(lambda branch, x, far: branch.window_frames(x, far), rows, which)  # (N, L, C)
        sequence = sequence.float()
        embedding[here] = self._embed(sequence, which).float()
        frames = sequence.new_zeros(b, d, *sequence.shape[1:])
        frames[here] = sequence
        together = self.hl.pooled(frames.sum(dim=1))  # type: ignore[operator]
        network = (here.long() << torch.arange(d, device=here.device)).sum(dim=1)
        return embedding, together + (quiet.together[-1] - quiet.together[network])

    def _embed(self, sequence: Tensor, detector: Tensor) -> Tensor:
        """Frames (N, L, C) to embeddings (N, E)."""
        return self._by_branch(lambda branch, s, _: branch.embed(s), sequence, detector)

    def _by_branch(self, function: Callable[[Any, Tensor, Tensor], Tensor], x: Tensor, detector: Tensor) -> Tensor:
        """``function(encoder of its detector, rows, far)`` for rows x (N, ...); far (N,) bool: those of V1 and K1."""
        far = torch.tensor([BRANCH[name] == "v" for name in self.detectors], device=x.device)[detector]
        if self.shared:
            return function(self.hl, x, far)
        if far.all() or not far.any():
            return function(self.v if far.all() else self.hl, x, far)
        first, second = function(self.hl, x[~far], far[~far]), function(self.v, x[far], far[far])
        out = first.new_empty(len(x), *first.shape[1:])
        out[~far], out[far] = first, second
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
        self._check(strain)
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

    def _check(self, strain: Tensor) -> None:
        if strain.ndim != 3 or strain.shape[1] != len(self.detectors):
            expected = f"(B, {len(self.detectors)}, T) for {' '.join(self.detectors)}"
            raise InputError("strain", f"shape {tuple(strain.shape)}", expected)

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


def _version(tensor: Tensor) -> int:
    """How often it was written to; tensors made in inference mode do not count, and are not trained."""
    return 0 if tensor.is_inference() else tensor._version
