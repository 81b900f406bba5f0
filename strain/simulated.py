"""The simulated source: fresh signals from a waveform bank in fresh noise, for every batch, on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gwtwins.strain import draws
from gwtwins.strain.bank import BankRecipe, WaveformBank
from gwtwins.strain.batch import Batch
from gwtwins.strain.detectors import detector
from gwtwins.strain.errors import InputError
from gwtwins.strain.injection import Injector, draw_extrinsic
from gwtwins.strain.noise import gaussian_noise
from gwtwins.strain.population import Population
from gwtwins.strain.psd import DEFAULT_PSDS
from gwtwins.strain.sources import Source, Window

_EPOCH = 1_260_000_000.0  # GPS seconds; simulated rows fall within the sidereal day after it
_DAY = 86164.0
_TRAIN_SEED, _EVALUATION_SEED = 0, 1  # of the banks: training never sees a waveform it is judged on
_SPLITS = {"labelled": 0, "test": 1}  # steps of the evaluation streams


@dataclass
class SimulationConfig:
    """The simulated source."""

    detectors: str = "H1,L1,V1"
    """Detectors of the network, joined by commas (H1, L1, V1, K1)."""
    population: str = "standard"
    """Population of signals: a shipped name or a YAML file like strain/populations/standard.yaml."""
    psds: str = ""
    """PSD of each detector, joined by commas: pycbc names or ASD files; empty for the O3 ones."""
    bank_size: int = 12_000
    """Waveforms in the training bank, made once by pycbc and kept in $GWTWINS_CACHE or ~/.cache/gwtwins."""
    signal_fraction: float = 0.0
    """Fraction of pretraining rows that carry a signal; 0 for the population's own."""
    curriculum_snr: float = 50.0
    """Upper end of the SNR range at the start of pretraining; it falls to the population's. 0 for no curriculum."""
    curriculum_end: float = 0.6
    """Fraction of the run at which the curriculum reaches the population's SNR range."""
    n_labelled: int = 6_000
    """Labelled rows for the probe, half of them signals."""
    n_test: int = 6_000
    """Test rows, half of them signals; the same whatever the seed of the run."""
    noise: str = ""
    """GWOSC files or a folder, joined by commas, whose off-event strain is the background; empty for Gaussian noise."""
    noise_exclude: str = ""
    """GPS times, joined by commas, whose files give no background (to leave an event's own files out)."""


class SimulatedSource(Source):
    """Signals of a population in Gaussian noise of known PSDs, or in real off-event noise."""

    spec = "simulated"
    fresh_noise = True

    def __init__(self, config: SimulationConfig, window: Window, device: str = "cpu", progress: bool = True) -> None:
        self.config, self.shape, self.device = config, window, device
        self.detectors = tuple(config.detectors.split(","))
        for name in self.detectors:
            detector(name)
        if len(set(self.detectors)) != len(self.detectors):
            raise InputError("--detectors", config.detectors, "each detector once")
        self.rate, self.window, self.f_low, self.f_high = window.rate, window.seconds, window.f_low, window.f_high
        self.population = Population.load(config.population)
        for name, value in (("signal_fraction", config.signal_fraction), ("curriculum_end", config.curriculum_end)):
            if not 0 <= value <= 1:
                raise InputError(f"--{name}", f"{value}", "0 to 1")
        self.signal_fraction = config.signal_fraction or self.population.signal_fraction
        named = config.psds.split(",") if config.psds else [DEFAULT_PSDS[name] for name in self.detectors]
        if len(named) != len(self.detectors):
            raise InputError("--psds", f"{len(named)} PSDs for {len(self.detectors)} detectors", "one each")
        self.progress = progress
        self._banks: dict[str, WaveformBank] = {}
        self._injectors: dict[str, Injector] = {}
        self._psd_names = tuple(named)
        self.background = self._open_background()
        stored = self.bank("train").psds
        self.psds = {name: stored[psd] for name, psd in zip(self.detectors, named, strict=True)}

    def bank(self, role: str) -> WaveformBank:
        """The bank of "train" or of "evaluation"; made at its first use."""
        if role not in self._banks:
            wanted = (self.config.n_labelled + self.config.n_test + 1) // 2
            count, seed = (self.config.bank_size, _TRAIN_SEED) if role == "train" else (wanted, _EVALUATION_SEED)
            recipe = BankRecipe(self.population, count, seed, self._psd_names)
            self._banks[role] = WaveformBank.obtain(recipe, progress=self.progress)
        return self._banks[role]

    def injector(self, role: str) -> Injector:
        """The injector over the bank of "train" or "evaluation"."""
        if role not in self._injectors:
            psds = self.background.psd_table() if self.background else list(self.psds.values())
            w, merger = self.shape, self.population.merger
            self._injectors[role] = Injector(
                self.bank(role), self.detectors, psds, w.rate, w.seconds, w.f_low, w.f_high, merger, self.device
            )
        return self._injectors[role]

    def snr_high(self, progress: float) -> float:
        """Upper end of the SNR range when the fraction ``progress`` of the run is over: a straight fall."""
        final, start = self.population.snr.high, self.config.curriculum_snr
        if start <= final or self.config.curriculum_end == 0:
            return final
        return start + (final - start) * min(progress / self.config.curriculum_end, 1.0)

    def train_batch(
        self, seed: int, step: int, rows: range, progress: float = 0.0, batch: int | None = None
    ) -> Batch:
        return self._train(seed, step, rows, progress, "train")

    def train_pair(
        self, seed: int, step: int, rows: range, progress: float = 0.0, batch: int | None = None
    ) -> tuple[Batch, Batch]:
        first = self._train(seed, step, rows, progress, "train")
        return first, self._train(seed, step, rows, progress, "train", noise_stream="train second noise")

    def _train(
        self, seed: int, step: int, rows: range, progress: float, stream: str, noise_stream: str | None = None
    ) -> Batch:
        u = draws.uniform(seed, stream, step, rows, 10)
        is_signal = u[:, 0] < self.signal_fraction
        index = (u[:, 1] * len(self.bank("train"))).long()
        ids = [f"{stream}-{seed}-{step}-{row}" for row in rows]
        batch = self._assemble(
            "train", u[:, 2:], index, is_signal, seed, noise_stream or f"{stream} noise", step, rows, ids, progress
        )
        batch.label = None  # pretraining never sees it
        return batch

    def count(self, split: str) -> int:
        """Rows of "labelled" and "test"; 0 for the others: unlabelled rows are endless, see `train_batch`."""
        return {"labelled": self.config.n_labelled, "test": self.config.n_test}.get(split, 0)

    def batches(self, split: str, batch_size: int = 512, signal: bool = False) -> Iterator[Batch]:
        """Odd rows of a split are signals, each a waveform of its own; seeds are the evaluation's, not the run's.

        With ``signal`` the batch's truth holds the whitened signals alone too.
        """
        if split not in _SPLITS:
            return
        total = self.count(split)
        offset = 0 if split == "labelled" else (self.config.n_labelled + 1) // 2
        for start in range(0, total, batch_size):
            rows = range(start, min(start + batch_size, total))
            number = torch.tensor(list(rows))
            u = draws.uniform(_EVALUATION_SEED, "evaluation", _SPLITS[split], rows, 8)
            ids = [f"{split}-{row:06d}" for row in rows]
            index = (offset + number // 2) % len(self.bank("evaluation"))
            yield self._assemble(
                "evaluation", u, index, number % 2 == 1, _EVALUATION_SEED, "evaluation noise", _SPLITS[split], rows, ids, 1.0, signal
            )

    def _assemble(
        self,
        role: str,
        u: Tensor,
        index: Tensor,
        is_signal: Tensor,
        seed: int,
        noise_stream: str,
        step: int,
        rows: range,
        ids: list[str],
        progress: float,
        keep_signal: bool = False,
    ) -> Batch:
        w, n_detectors = self.shape, len(self.detectors)
        strain, psd_index = self._noise(seed, noise_stream, step, rows)
        gps = _EPOCH + _DAY * u[:, 7]
        snr, merger = torch.zeros(len(rows), dtype=torch.float64), torch.full((len(rows),), torch.nan).double()
        snr_detector = torch.zeros(len(rows), n_detectors, dtype=torch.float64)
        signals = torch.zeros(0)
        if is_signal.any():
            high = self.snr_high(progress)
            draw = draw_extrinsic(
                u[is_signal].to(self.device),
                index[is_signal].to(self.device),
                self.population.merger,
                self.population.snr,
                gps[is_signal].to(self.device),
                high,
            )
            where = is_signal.to(self.device)
            signals, each = self.injector(role)(draw, psd_index[where])
            strain[where] += signals
            snr[is_signal], merger[is_signal] = draw.snr.cpu(), draw.merger.cpu()
            snr_detector[is_signal] = each.cpu()
        truth = {"snr": snr, "merger": merger, "snr_detector": snr_detector, "bank_index": index}
        if keep_signal:
            alone = torch.zeros_like(strain)
            alone[is_signal.to(self.device)] = signals
            truth["signal"] = alone
        present = torch.ones(len(rows), n_detectors, dtype=torch.bool, device=self.device)
        label = is_signal.to(torch.float32).to(self.device)
        return Batch(strain, present, gps, label, ids, truth)

    def _noise(self, seed: int, stream: str, step: int, rows: range) -> tuple[Tensor, Tensor]:
        """Noise (B, D, T) and which PSD of the table whitened each row and detector (B, D)."""
        w, n = self.shape, len(self.detectors)
        if self.background is not None:
            strain, psd_index = self.background.draw(self.detectors, seed, stream, step, rows, w.samples)
        else:
            strain = gaussian_noise(seed, stream, step, rows, n, w.rate, w.seconds, w.f_low, w.f_high)
            psd_index = torch.arange(n).expand(len(rows), n)
        return strain.to(self.device), psd_index.to(self.device)

    def _open_background(self) -> Any:
        if not self.config.noise:
            return None
        from gwtwins.strain.real_noise import RealNoise

        w = self.shape
        exclude = [float(t) for t in self.config.noise_exclude.split(",") if t]
        return RealNoise.from_spec(self.config.noise, exclude, w.rate, w.f_low, w.f_high)

    def describe(self) -> dict[str, Any]:
        """The configuration, with the population written out."""
        psds = dict(zip(self.detectors, self._psd_names, strict=True))
        return {"source": "simulated", **asdict(self.config), "psds": psds, "population": asdict(self.population)}
