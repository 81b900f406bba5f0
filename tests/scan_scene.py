"""What the tests of the scan look at: strain files with a merger, and a run whose probe can find it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gwosc_writer import GPS_START, coloured_noise, detector_asd, write_gwosc
from gwtwins.encoders.paired import PairedEncoder
from gwtwins.encoders.weights import save_encoder
from gwtwins.probes import scan_blocks
from gwtwins.probes.features import fingerprint
from gwtwins.probes.linear import LinearProbe
from gwtwins.probes.scan_blocks import BlockStore, Grid, compute_blocks
from gwtwins.probes.scan_windows import Windows
from gwtwins.strain import draws
from gwtwins.strain.coverage import Span
from gwtwins.strain.injection import draw_extrinsic
from gwtwins.strain.noise import gaussian_noise
from gwtwins.strain.population import Distribution
from gwtwins.strain.simulated import SimulatedSource, SimulationConfig
from gwtwins.strain.sources import Window
from gwtwins.strain.strain_index import StrainIndex
from gwtwins.strain.streaming import Chunk

RATE = 1024  # Hz, of the files and of the encoder
DETECTORS = ("H1", "L1", "V1")
ARRIVAL = {"H1": 0.0, "L1": -0.007, "V1": 0.013}  # s after the geocentre
SNR = 30.0  # in each detector
AROUND = 2.0  # s of noise before and after a window


def chirp(seconds: int, merger: float, snr: float = SNR) -> np.ndarray:
    """Strain (T,) of a 30+30 Msun inspiral (leading order) that ends ``merger`` seconds after the first sample."""
    chirp_mass = 26.1 * 4.925e-6  # s
    tau = np.maximum(merger - np.arange(seconds * RATE) / RATE, 1e-4)
    phase = -2 * (tau / (5 * chirp_mass)) ** (5 / 8)
    frequency = (5 / (256 * tau)) ** (3 / 8) * chirp_mass ** (-5 / 8) / np.pi
    shape = np.where((frequency > 18) & (frequency < 200) & (tau > 1e-3), tau**-0.25 * np.cos(phase), 0.0)
    spectrum, f = np.fft.rfft(shape) / RATE, np.fft.rfftfreq(shape.size, 1 / RATE)
    power = 4 * np.sum(np.abs(spectrum[f >= 20] / detector_asd(f[f >= 20])) ** 2) / seconds
    return shape * snr / np.sqrt(power)


def write_strain(
    folder: Path,
    detector: str,
    seconds: int,
    merger: float | None,
    gps: int = GPS_START,
    seed: int = 0,
    snr: float = SNR,
    **vetoes: object,
) -> Path:
    """A file of coloured noise with a signal at GPS ``merger``."""
    strain = coloured_noise(seconds, RATE, seed + 10 * DETECTORS.index(detector))
    if merger is not None:
        strain = strain + chirp(seconds, merger - gps + ARRIVAL[detector], snr)
    path = folder / f"{detector[0]}-{detector}_TEST-{gps}-{seconds}.hdf5"
    return write_gwosc(path, strain, RATE, detector, gps, **vetoes)  # type: ignore[arg-type]


def tiny_encoder() -> PairedEncoder:
    """Untrained, its sine-Gaussian stem aside."""
    torch.manual_seed(0)
    return PairedEncoder("cnn_gru", {"width": 16, "hidden": 16, "embedding": 32}).eval()


def rows_in_noise(
    encoder: PairedEncoder, seed: int, n: int, low: float, high: float
) -> tuple[torch.Tensor, np.ndarray]:
    """Whitened strain (n, 3, T) of a window with AROUND seconds on either side; the first half have a signal."""
    source = SimulatedSource(
        SimulationConfig(bank_size=64, n_labelled=64, n_test=64), Window(float(RATE)), progress=False
    )
    strain = gaussian_noise(seed, "noise", 0, range(n), 3, RATE, 2.0 + 2 * AROUND, 20.0, 500.0)
    u, half = draws.uniform(seed, "rows", 0, range(n), 8), n // 2
    gps = GPS_START + 86164 * u[:half, 7]
    index = (u[:half, 7] * 64).long()
    draw = draw_extrinsic(u[:half, :7], index, Distribution(1.2, 1.9), Distribution(low, high), gps)
    first = round(AROUND * RATE)
    signal = source.injector("train")(draw, torch.arange(3).expand(half, 3))[0]
    strain[:half, :, first : first + 2 * RATE] += signal
    return strain, draw.merger.numpy()


def shown(encoder: PairedEncoder, strain: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (B, D, E) and what the detectors show together (B, J), of the windows that rows have around them."""
    first = round(AROUND * RATE)
    with torch.inference_mode():
        embedding, together = encoder.network(strain[:, :, first : first + encoder.samples])
    assert together is not None
    return embedding.numpy(), together.numpy()


def fitted_probe(
    encoder: PairedEncoder, kind: str = "coherent", snr: tuple[float, float] = (20.0, 50.0), n: int = 400
) -> LinearProbe:
    """A probe that tells signals from noise: loud ones, if the encoder is untrained."""
    strain, _ = rows_in_noise(encoder, 3, n, *snr)
    embeddings, together = shown(encoder, strain)
    label = (np.arange(n) < n // 2).astype(int)
    about = encoder.detectors, fingerprint(encoder), together, encoder.evidence
    return LinearProbe.fit(embeddings, None, label, None, kind, 0, *about)


def save_run(folder: Path) -> Path:
    """The tiny encoder and its probe as a run's folder."""
    encoder = tiny_encoder()
    save_encoder(encoder, folder, {})
    (folder / "probe").mkdir()
    fitted_probe(encoder).save(folder / "probe" / "probe.safetensors")
    return folder


def blocks_of_whitened(
    monkeypatch: pytest.MonkeyPatch,
    encoder: PairedEncoder,
    folder: Path,
    strain: dict[str, np.ndarray],
    gps: float,
    valid: dict[str, np.ndarray] | None = None,
    batch: int = 16,
) -> tuple[Windows, list[int]]:
    """The windows of whitened strain (T,) of each detector from ``gps`` on, and the numbers of the blocks."""
    names = tuple(strain)
    x = np.stack([strain[name] for name in names]).astype(np.float32)
    there = np.ones(x.shape, bool) if valid is None else np.stack([valid[name] for name in names])
    chunk = Chunk(gps, float(RATE), names, np.where(there, x, 0), there, (None,) * len(names), [])

    def stream(*_: Any, **__: Any) -> Iterator[Chunk]:
        yield chunk

    replaced: Callable[..., Iterator[Chunk]] = stream
    monkeypatch.setattr(scan_blocks, "stream_conditioned", replaced)
    grid = Grid.of(encoder)
    store = BlockStore(folder, grid, names)
    numbers = grid.blocks_of([Span(gps, gps + x.shape[1] / RATE)])
    list(compute_blocks(StrainIndex(()), encoder, store, numbers, batch))
    return Windows(store, encoder), numbers
