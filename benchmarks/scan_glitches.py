"""How well the scan's statistic tells a glitch of one detector from a signal that reaches all of them.

    python benchmarks/scan_glitches.py               1,000 glitches, 400 signals; about 2 minutes
    python benchmarks/scan_glitches.py --quick       100 and 60
    python benchmarks/scan_glitches.py --weights runs/x --noise strain/ --json x.json

Every row is 6 s of real strain of H1, L1 and V1, cut from the files independently for each detector, away from the
known mergers. Glitches (`gwtwins.strain.glitches`: blips, sine-Gaussians, chirplets, scattering arches) of SNR 8 to
100, log-uniform, go into one detector drawn at random; signals of the standard population, all of network SNR 10 with
respect to that strain's PSDs, into all three. The statistic of a row is that of its loudest window. Windows start as
far apart as the scan's, each is embedded by itself, and what exceeds 50 standard deviations is gated: a window that
touches a gate is not looked at in that detector. The table says which fraction of the glitches outranks the median
signal, with Wilson's 95% interval.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gwtwins.benchmarks.long_strain import GPS_START, Injection, draw_injections, optimal_snr, projected
from gwtwins.encoders.paired import PairedEncoder
from gwtwins.encoders.weights import find_encoder, find_weights, load_encoder
from gwtwins.probes.features import fingerprint
from gwtwins.probes.linear import LinearProbe
from gwtwins.probes.metrics import wilson
from gwtwins.probes.scan import step_of
from gwtwins.strain.draws import uniform
from gwtwins.strain.errors import InputError, run_command
from gwtwins.strain.gating import HALF_WIDTH, THRESHOLD, holes_around, loud_stretches
from gwtwins.strain.glitches import KINDS, PARAMETERS, Glitches, draw_glitches, whitened_glitches
from gwtwins.strain.population import Distribution, Population
from gwtwins.strain.psd import PSD
from gwtwins.strain.real_noise import RealNoise

Array = NDArray[np.float64]

DETECTORS = ("H1", "L1", "V1")
DATA = Path(os.environ.get("GWTWINS_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data") / "gwosc"
LOUDNESS = Distribution(8.0, 100.0, exponent=-1.0)
"""SNR of the glitches."""
EDGES = (8.0, 15.0, 30.0, 60.0, 100.0)
"""Of the bins in SNR."""
NETWORK_SNR = 10.0
"""Of the signals."""
STRIDE = 0.1
"""Seconds between windows, made whole frames as by the scan."""
SECONDS = 6.0
"""Of a row; the transient is in its middle."""
QUICK = {"glitches": 100, "signals": 60}
_SPREAD = 1.0  # s over which a transient's middle is drawn: no place among the frames is preferred
_ROWS = 32  # at a time
_BATCH = 256  # windows at a time
_WAVE_SPAN = 64  # s: what `long_strain.projected` gives


@dataclass
class Rows:
    """Makes rows of real noise with something in them and gives their statistic."""

    noise: RealNoise
    encoder: PairedEncoder
    probe: LinearProbe
    seed: int

    @property
    def samples(self) -> int:
        """Of a row."""
        return round(SECONDS * self.encoder.rate)

    def draw(self, stream: str, rows: range) -> tuple[Tensor, Tensor]:
        """Noise (B, D, T) and the PSDs (B, D) that signals in it are whitened by."""
        return self.noise.draw(DETECTORS, self.seed, f"noise of {stream}", 0, rows, self.samples)

    def middles(self, stream: str, rows: range) -> Array:
        """(B,) seconds from a row's start to the middle of what is put there."""
        u = uniform(self.seed, f"time of {stream}", 0, rows, 1)[:, 0].numpy()
        return SECONDS / 2 + _SPREAD * (u - 0.5)

    def loudest(self, strain: Tensor) -> Array:
        """(B,) the statistic of the loudest window of each row of ``strain`` (B, D, T), gated as the scan does."""
        good = self._gated(strain)
        b, d, _ = strain.shape
        hop = round(self.encoder.hop * self.encoder.rate)
        size, step = self.encoder.samples, step_of(STRIDE, self.encoder.hop) * hop
        windows = strain.unfold(2, size, step).transpose(1, 2)  # (B, W, D, T)
        there = good.unfold(2, size, step).all(-1).transpose(1, 2).flatten(0, 1)  # (B W, D)
        stat = np.full(len(there), -np.inf)
        for some in torch.nonzero(there.any(1))[:, 0].split(_BATCH):
            rows = torch.zeros(len(some), len(self.encoder.detectors), size)
            present = torch.zeros(rows.shape[:2], dtype=torch.bool)
            which = [self.encoder.detectors.index(name) for name in DETECTORS]
            rows[:, which] = windows[some // windows.shape[1], some % windows.shape[1]]
            present[:, which] = there[some]
            with torch.inference_mode():
                embedding, together = self.encoder.network(rows, present)
            both = None if together is None else together.double().numpy()
            stat[some.numpy()] = self.probe.decision(embedding.double().numpy(), present.numpy(), both)
        return stat.reshape(b, -1).max(axis=1)

    def _gated(self, strain: Tensor) -> Tensor:
        """Take what is too loud out of ``strain``, in place; (B, D, T) bool, which samples are left."""
        rate, good = self.encoder.rate, torch.ones(strain.shape, dtype=torch.bool)
        width = round(HALF_WIDTH * rate)
        for i, j in np.argwhere(strain.abs().amax(dim=2).numpy() > THRESHOLD):
            found = loud_stretches(strain[i, j].numpy().astype(np.float64), rate, sigma=1.0)
            for a, b in holes_around(found, self.samples, width, width):
                strain[i, j, a:b] = 0.0
                good[i, j, a:b] = False
        return good

    @property
    def _band(self) -> tuple[float, float]:
        return self.encoder.f_low, self.encoder.f_high

    def of_glitches(self, count: int) -> tuple[Array, Glitches, NDArray[np.int64]]:
        """Statistics (N,), what the glitches are, and the number of the detector each is in."""
        u = uniform(self.seed, "glitches", 0, range(count), PARAMETERS + 1)
        glitches = draw_glitches(u[:, :PARAMETERS], LOUDNESS, 1.0)
        glitches.time = torch.from_numpy(self.middles("glitches", range(count)))
        where = (len(DETECTORS) * u[:, PARAMETERS]).long()
        stats = []
        for rows in _batches(count):
            strain, _ = self.draw("glitches", rows)
            some = Glitches(**{key: value[rows.start : rows.stop] for key, value in vars(glitches).items()})
            waves = whitened_glitches(some, self.encoder.rate, SECONDS, *self._band)
            strain[torch.arange(len(rows)), where[rows.start : rows.stop]] += waves
            stats.append(self.loudest(strain))
        return np.concatenate(stats), glitches, where.numpy()

    def of_signals(self, count: int, population: Population) -> Array:
        """Statistics (N,) of coherent signals of `NETWORK_SNR`."""
        psds = self.noise.psd_table()
        typical = {name: self.noise.typical_psd(name) for name in DETECTORS}
        drawn = draw_injections(population, typical, self.seed + 1, GPS_START, 60.0 + 20.0 * count, 20.0)[:count]
        stats = []
        for rows in _batches(count):
            strain, index = self.draw("signals", rows)
            middle = self.middles("signals", rows)
            for i, row in enumerate(rows):
                strain[i] += self.whitened_signal(drawn[row], [psds[p] for p in index[i].tolist()], middle[i])
            stats.append(self.loudest(strain))
        return np.concatenate(stats)

    def whitened_signal(self, one: Injection, psds: Sequence[PSD], merger: float) -> Tensor:
        """The signal (D, T) as it looks in whitened strain, ``merger`` seconds into the row, at `NETWORK_SNR`."""
        f_low, f_high = self._band
        frequency, spectrum = projected(one, DETECTORS, self.encoder.rate / 2)
        snr = np.linalg.norm(optimal_snr(frequency, spectrum, psds, f_low))
        gain = np.where((frequency >= f_low) & (frequency < f_high), self.encoder.rate, 0.0) * NETWORK_SNR / snr
        white = np.zeros((len(psds), round(_WAVE_SPAN * self.encoder.rate) // 2 + 1), complex)
        for row, given, psd in zip(white, spectrum, psds, strict=True):
            row[: frequency.size] = given * gain / np.sqrt((f_high - f_low) * psd.at(frequency))
        white[:, : frequency.size] *= np.exp(-2j * np.pi * frequency * merger)
        wave = np.fft.irfft(white, round(_WAVE_SPAN * self.encoder.rate))  # what came before the row is at its end
        return torch.from_numpy(wave[:, : self.samples].astype(np.float32))

    def of_noise(self, count: int) -> Array:
        """Statistics (N,) of rows with nothing added."""
        return np.concatenate([self.loudest(self.draw("nothing", rows)[0]) for rows in _batches(count)])


def _batches(count: int) -> list[range]:
    return [range(a, min(a + _ROWS, count)) for a in range(0, count, _ROWS)]


def outranked(louder: NDArray[np.bool_]) -> dict[str, Any]:
    """The fraction and its 95% interval."""
    total, count = louder.size, int(louder.sum())
    low, high = wilson(count, total)
    fraction = count / total if total else None
    return {"louder": count, "of": total, "fraction": fraction, "ci95": [float(low), float(high)] if total else None}


def figures(rows: Rows, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed."""
    signals = rows.of_signals(args.signals, Population.load("standard"))
    stat, glitches, where = rows.of_glitches(args.glitches)
    nothing = rows.of_noise(args.signals)
    median = float(np.median(signals))
    louder, kind, snr = stat > median, glitches.kind.numpy(), glitches.snr.numpy()
    cells = {"all": outranked(louder)}
    cells |= {name: outranked(louder[kind == k]) for k, name in enumerate(KINDS)}
    for low, high in zip(EDGES[:-1], EDGES[1:], strict=True):
        cells[f"SNR {low:g}-{high:g}"] = outranked(louder[(snr >= low) & (snr < high)])
    cells |= {f"in {name}": outranked(louder[where == d]) for d, name in enumerate(DETECTORS)}
    return {
        "median_signal": median,
        "signals": quantiles(signals),
        "glitches": quantiles(stat),
        "noise": quantiles(nothing),
        "outrank": cells,
        "noise_seconds": {name: rows.noise.seconds(name) for name in DETECTORS},
    }


def quantiles(stat: Array) -> dict[str, float]:
    """Of a set of statistics."""
    return {f"{100 * q:g}%": float(np.quantile(stat, q)) for q in (0.05, 0.5, 0.95, 0.99)}


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ["| glitches | louder than the median signal | fraction | 95% interval |", "|---|---|---|---|"]
    for name, cell in found["outrank"].items():
        if cell["of"]:
            low, high = cell["ci95"]
            share = f"{100 * cell['fraction']:.1f}% | {100 * low:.1f}-{100 * high:.1f}%"
            lines.append(f"| {name} | {cell['louder']} of {cell['of']} | {share} |")
    lines += ["", "| statistic of the loudest window | 5% | median | 95% | 99% |", "|---|---|---|---|---|"]
    named = {"signals": f"signals of network SNR {NETWORK_SNR:g}", "glitches": "glitches", "noise": "noise alone"}
    for key, name in named.items():
        lines.append(f"| {name} | " + " | ".join(f"{value:.2f}" for value in found[key].values()) + " |")
    return "\n".join(lines)


def benchmark(args: argparse.Namespace) -> int:
    """Draw, rank, print; the exit status."""
    if args.quick:
        vars(args).update(QUICK)
    if args.glitches < 1 or args.signals < 1:
        raise InputError("scan_glitches.py", "nothing to rank", "at least one glitch and one signal")
    weights = find_encoder(args.weights or "gwtwins/small")
    encoder = load_encoder(weights, "cpu")
    fitted = args.probe or str(find_weights(weights).parent / "probe")
    probe = LinearProbe.load(fitted)
    probe.check_encoder(fingerprint(encoder), encoder.detectors, fitted)
    noise = RealNoise.from_spec(args.noise, rate=encoder.rate, f_low=encoder.f_low, f_high=encoder.f_high)
    found = figures(Rows(noise, encoder, probe, args.seed), args)
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in found["noise_seconds"].items())
    print(f"encoder: {weights}, probe: {fitted}")
    print(f"{args.glitches} glitches and {args.signals} signals in real noise ({seconds})\n")
    print(table(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glitches", type=int, default=1000)
    parser.add_argument("--signals", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK}, whatever else is said")
    parser.add_argument("--noise", default=str(DATA), help="GWOSC files of H1, L1 and V1; $GWTWINS_DATA/gwosc")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", default="", help="encoder; the shipped one if empty")
    parser.add_argument("--probe", default="", help="its probe; the one beside the weights if empty")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here too")
    raise SystemExit(run_command(lambda: benchmark(parser.parse_args())))


if __name__ == "__main__":
    main()
