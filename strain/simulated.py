"""The simulated source: fresh signals from a waveform bank in fresh noise, for every batch, on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gwtwins.strain import draws
from gwtwins.strain.bank import BankRecipe, WaveformBank
from gwtwins.strain.batch import Batch
from gwtwins.strain.detectors import detector
from gwtwins.strain.errors import InputError
from gwtwins.strain.glitches import add_glitches, snr_range
from gwtwins.strain.injection import Injector, draw_extrinsic
from gwtwins.strain.noise import gaussian_noise
from gwtwins.strain.population import Population
from gwtwins.strain.psd import DEFAULT_PSDS, load_psd
from gwtwins.strain.sources import Choose, Source, Window

_EPOCH = 1_260_000_000.0  # GPS seconds; simulated rows fall within the sidereal day after it
_DAY = 86164.0
_BANK_SEEDS = {"train": 0, "labelled": 1, "test": 3}  # no waveform is in two banks (templates have seed 2)
_SPLITS = ("labelled", "test")


@dataclass
class _Rows:
    """What makes B rows: who is a signal, which waveform, where the random numbers come from."""

    bank: str
    u: Tensor
    """(B, 8) uniforms: seven of `draw_extrinsic`, one for the time of day."""
    index: Tensor
    """(B,) waveform of the bank."""
    is_signal: Tensor
    """(B,) bool."""
    noise: tuple[int, str, int, range]
    """Seed, stream, step and rows of the noise."""
    snr_high: float
    ids: list[str]
    absent: str
    """Stream of which detectors are absent; empty for rows with neither absent detectors nor glitches."""


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
    evaluation_seed: int = 1
    """Seed of the labelled and test rows: 1 for those of every table, others for rows that no choice was made on."""
    noise: str = ""
    """Strain files (GWOSC HDF5, GWF) or folders, joined by commas, whose strain is the background, away from the
    mergers of strain/events.py; empty for Gaussian noise."""
    noise_exclude: str = ""
    """GPS times, joined by commas, whose files give no background (to leave an event's own files out)."""
    noise_avoid: str = ""
    """GPS times, joined by commas, or a text file with one on each line: no background from 8 s before to 2 s after."""
    noise_split: bool = True
    """Whether training, labelled and test rows take background from different seconds (1/2, 1/4 and 1/4 of blocks of
    8 s). If not, each may use all of it: for short data, and where a scan of other files is what counts."""
    glitch_fraction: float = 0.0
    """Probability that a detector's window holds a simulated glitch, in pretraining and labelled rows."""
    glitch_snr: str = "8,100"
    """Lowest and highest SNR of a glitch in its detector, joined by a comma; log-uniform."""
    absent: float = 0.0
    """Probability that a detector is absent from a pretraining or labelled row; one is always left. A signal's network
    SNR stays that in all detectors: an absent one costs sensitivity."""
    test_disturbed: bool = False
    """Whether glitch_fraction and absent hold for test rows too."""


class SimulatedSource(Source):
    """Signals of a population in Gaussian noise of known PSDs, or in real off-event noise.

    A batch's truth also holds ``snr_detector`` (B, D), the optimal SNR in each detector (0 where it is absent, while
    ``snr`` is that in all detectors of the source), ``bank_index`` (B,), and ``glitch_snr`` (B, D), 0 for none. Labels
    are about signals alone.
    """

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
        for name in ("signal_fraction", "curriculum_end", "glitch_fraction", "absent"):
            if not 0 <= getattr(config, name) <= 1:
                raise InputError(f"--{name}", f"{getattr(config, name)}", "0 to 1")
        least_of = {"bank_size": 1, "n_labelled": 0, "n_test": 0, "curriculum_snr": 0, "evaluation_seed": 1}
        for name, least in least_of.items():
            if getattr(config, name) < least:
                raise InputError(f"--{name}", f"{getattr(config, name)}", f"{least} or more")
        self.signal_fraction = config.signal_fraction or self.population.signal_fraction
        named = config.psds.split(",") if config.psds else [DEFAULT_PSDS[name] for name in self.detectors]
        if len(named) != len(self.detectors):
            raise InputError("--psds", f"{len(named)} PSDs for {len(self.detectors)} detectors", "one each")
        self.progress = progress
        self._banks: dict[str, WaveformBank] = {}
        self._injectors: dict[str, Injector] = {}
        self._psd_names = tuple(named)
        self._glitch_snr = snr_range("--glitch_snr", config.glitch_snr)
        self.background = self._open_background()
        split = self.background if config.noise_split else None
        self._noise_of = {role: split.only(role) for role in _BANK_SEEDS} if split else {}
        # A bank holds the PSDs it was made for: with one at hand, nothing here imports pycbc.
        held = next((role for role in _BANK_SEEDS if self._recipe(role).path().exists()), None)
        stored = self.bank(held).psds if held else {psd: load_psd(psd) for psd in set(named)}
        self.psds = {name: stored[psd] for name, psd in zip(self.detectors, named, strict=True)}
        if self.background:  # what an encoder takes along for raw strain is like what it saw
            self.psds = {name: self.background.typical_psd(name) for name in self.detectors}

    def _recipe(self, role: str) -> BankRecipe:
        counts = {"train": self.config.bank_size} | {split: (self.count(split) + 1) // 2 for split in _SPLITS}
        seed = _BANK_SEEDS[role] + (0 if role == "train" else 100 * (self.config.evaluation_seed - 1))
        return BankRecipe(self.population, max(counts[role], 1), seed, self._psd_names)

    def bank(self, role: str) -> WaveformBank:
        """The bank of "train", "labelled" or "test"; made at its first use."""
        if role not in self._banks:
            self._banks[role] = WaveformBank.obtain(self._recipe(role), progress=self.progress)
        return self._banks[role]

    def injector(self, role: str) -> Injector:
        """The injector over the bank of "train", "labelled" or "test"."""
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

    def train_batch(self, seed: int, step: int, rows: range, progress: float = 0.0, batch: int | None = None) -> Batch:
        return self._train(seed, step, rows, progress, "train noise")

    def train_pair(
        self, seed: int, step: int, rows: range, progress: float = 0.0, batch: int | None = None
    ) -> tuple[Batch, Batch]:
        first, second = "train noise", "train second noise"
        return self._train(seed, step, rows, progress, first), self._train(seed, step, rows, progress, second)

    def train_chosen(
        self, seed: int, step: int, rows: range, progress: float, batch: int, choose: Choose
    ) -> tuple[Batch, Tensor]:
        if self.background is not None:
            return super().train_chosen(seed, step, rows, progress, batch, choose)
        made = self._training_rows(seed, step, rows, progress, "train noise")
        which = choose(self._present(made))
        return replace(self._make(made, which=which), label=None), which.to(self.device)

    def _train(self, seed: int, step: int, rows: range, progress: float, noise: str) -> Batch:
        made = self._training_rows(seed, step, rows, progress, noise)
        return replace(self._make(made), label=None)  # pretraining never sees it

    def _training_rows(self, seed: int, step: int, rows: range, progress: float, noise: str) -> _Rows:
        u = draws.hashed_uniform(seed, "train", step, rows, 10)
        return _Rows(
            bank="train",
            u=u[:, 2:],
            index=(u[:, 1] * len(self.bank("train"))).long(),
            is_signal=u[:, 0] < self.signal_fraction,
            noise=(seed, noise, step, rows),
            snr_high=self.snr_high(progress),
            ids=[f"train-{seed}-{step}-{row}" for row in rows],
            absent="train absent",
        )

    def prepare(self, split: str) -> None:
        self.bank(split)

    def count(self, split: str) -> int:
        """Rows of "labelled" and "test"; 0 for the others: unlabelled rows are endless, see `train_batch`."""
        return {"labelled": self.config.n_labelled, "test": self.config.n_test}.get(split, 0)

    def batches(self, split: str, batch_size: int = 512, signal: bool = False) -> Iterator[Batch]:
        """Odd rows of a split are signals, each a waveform of its own; seeds are the evaluation's, not the run's.

        With ``signal`` the batch's truth holds the whitened signals alone too.
        """
        step = _SPLITS.index(split) if split in _SPLITS else 0
        for start in range(0, self.count(split), batch_size):
            rows = range(start, min(start + batch_size, self.count(split)))
            number = torch.tensor(rows)
            made = _Rows(
                bank=split,
                u=draws.uniform(self.config.evaluation_seed, "evaluation", step, rows, 8),
                index=number // 2,
                is_signal=number % 2 == 1,
                noise=(self.config.evaluation_seed, "evaluation noise", step, rows),
                snr_high=self.population.snr.high,
                ids=[f"{split}-{row:06d}" for row in rows],
                absent="" if split == "test" and not self.config.test_disturbed else "evaluation absent",
            )
            yield self._make(made, signal)

    def _make(self, rows: _Rows, keep_signal: bool = False, which: Tensor | None = None) -> Batch:
        """Noise, glitches, and signals added to the rows that have one; zero where a detector is absent.

        With ``which`` (B, V) only these detectors are made of each row.
        """
        n, here = len(rows.ids), rows.is_signal
        present = self._present(rows)
        if which is not None:
            present = present.gather(1, which)
        strain, psd_index = self._noise(rows, None if which is None else which.shape[1])
        gps = _EPOCH + _DAY * rows.u[:, 7]
        truth = {
            "snr": torch.zeros(n, dtype=torch.float64),
            "merger": torch.full((n,), torch.nan, dtype=torch.float64),
            "snr_detector": torch.zeros(present.shape, dtype=torch.float64),
            "bank_index": rows.index,
            "glitch_snr": self._glitches(rows, strain, present),
        }
        if keep_signal:
            truth["signal"] = torch.zeros_like(strain)
        if here.any():
            u, index, start = (x[here].to(self.device) for x in (rows.u, rows.index, gps))
            draw = draw_extrinsic(u, index, self.population.merger, self.population.snr, start, rows.snr_high)
            where = here.to(self.device)
            chosen = None if which is None else which[here].to(self.device)
            signal, snr_detector = self.injector(rows.bank)(draw, psd_index[where], chosen)
            strain[where] += signal
            truth["snr"][here], truth["merger"][here] = draw.snr.cpu(), draw.merger.cpu()
            truth["snr_detector"][here] = snr_detector.cpu()
            if keep_signal:
                truth["signal"][where] = signal
        if not present.all():
            for values in (strain, truth["snr_detector"], *([truth["signal"]] if keep_signal else [])):
                values[~present.to(values.device)] = 0.0
        present = present.to(self.device)
        return Batch(strain, present, gps, here.to(torch.float32).to(self.device), rows.ids, truth)

    def _present(self, rows: _Rows) -> Tensor:
        """(B, D) bool. Where chance takes every detector away, one of them, at random, stays."""
        if not (rows.absent and self.config.absent):
            return torch.ones(len(rows.ids), len(self.detectors), dtype=torch.bool)
        seed, _, step, numbers = rows.noise
        uniform = draws.hashed_uniform if rows.bank == "train" else draws.uniform
        u = uniform(seed, rows.absent, step, numbers, len(self.detectors))
        return (u >= self.config.absent) | (u == u.amax(dim=1, keepdim=True))

    def _glitches(self, rows: _Rows, strain: Tensor, present: Tensor) -> Tensor:
        """Add glitches to ``strain`` in place; their SNRs (B, D)."""
        if not (rows.absent and self.config.glitch_fraction):
            return torch.zeros(present.shape, dtype=torch.float64)
        seed, stream, step, numbers = rows.noise  # as noise: another noise draw has other glitches
        w, fraction, draw = self.shape, self.config.glitch_fraction, (seed, f"{stream} glitches", step, numbers)
        return add_glitches(strain, present, fraction, self._glitch_snr, draw, w.rate, w.f_low, w.f_high)

    def _noise(self, rows: _Rows, windows: int | None = None) -> tuple[Tensor, Tensor]:
        """Noise (B, D, T), or so many windows of each row, and which PSD of the table whitened each detector (B, D)."""
        w, n = self.shape, len(self.detectors)
        seed, stream, step, numbers = rows.noise
        if self.background is not None:
            noise = self._noise_of.get(rows.bank, self.background)
            strain, psd_index = noise.draw(self.detectors, seed, stream, step, numbers, w.samples)
        else:
            normal = draws.seeded_normal if rows.bank == "train" else draws.normal
            band = w.rate, w.seconds, w.f_low, w.f_high
            strain = gaussian_noise(seed, stream, step, numbers, windows or n, *band, normal)
            psd_index = torch.arange(n).expand(len(numbers), n)
        return strain.to(self.device), psd_index.to(self.device)

    def _open_background(self) -> Any:
        if not self.config.noise:
            return None
        from gwtwins.strain.real_noise import RealNoise, gps_times

        w, config = self.shape, self.config
        exclude = gps_times("--noise_exclude", config.noise_exclude)
        avoid = gps_times("--noise_avoid", config.noise_avoid)
        return RealNoise.from_spec(config.noise, exclude, w.rate, w.f_low, w.f_high, avoid)

    def describe(self) -> dict[str, Any]:
        """The configuration, with the population written out."""
        psds = dict(zip(self.detectors, self._psd_names, strict=True))
        background = {"background": self.background.describe()} if self.background else {}
        for role, part in self._noise_of.items():
            background["background"][f"{role}_seconds"] = {name: part.seconds(name) for name in self.detectors}
        signals = {"psds": psds, "population": asdict(self.population)}
        return {"source": "simulated", **background, **asdict(self.config), **signals}
