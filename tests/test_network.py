"""What a network of detectors shows: each by itself, all at the same moment, and those that are absent."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gwtwins.encoders.paired import PairedEncoder
from gwtwins.encoders.weights import load_encoder
from gwtwins.probes.evaluate import fit_probe
from gwtwins.probes.features import embed
from gwtwins.strain.errors import InputError
from gwtwins.strain.noise import gaussian_noise
from gwtwins.strain.simulated import SimulatedSource, SimulationConfig
from gwtwins.strain.sources import Window

SMALL = {"width": 8, "hidden": 8, "embedding": 16}
MIXED = torch.tensor([[True, True, True], [True, False, True], [False, False, True], [False, False, False]])


def small(**changed: Any) -> PairedEncoder:
    return PairedEncoder("cnn_gru", {**SMALL, **changed.pop("args", {})}, **changed).eval()


@pytest.fixture(scope="module")
def shipped() -> PairedEncoder:
    return load_encoder("gwtwins/small").eval()


def noise(rows: int, seconds: float = 2.0, detectors: int = 3, seed: int = 4) -> Tensor:
    """Whitened noise (B, D, T) at 1024 Hz."""
    return gaussian_noise(seed, "test", 0, range(rows), detectors, 1024.0, seconds, 20.0, 500.0)


def pulse(time: float, snr: float) -> Tensor:
    """A sine-Gaussian of 120 Hz and Q 9 at ``time`` s of a window, of optimal SNR ``snr`` in `noise`."""
    t = torch.arange(2048) / 1024.0 - time
    wave = torch.exp(-0.5 * (2 * math.pi * 120.0 * t / 9.0) ** 2) * torch.cos(2 * math.pi * 120.0 * t)
    return wave * snr / math.sqrt(2 * 480.0 / 1024.0 * float(wave.square().sum()))


# Embeddings, and the sum of frames


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("pooling", ["mean_max", "gem"])
@pytest.mark.parametrize("samples", [2048, 4096])
@torch.no_grad()
def test_the_embeddings_are_those_of_forward(shared: bool, pooling: str, samples: int) -> None:
    encoder, x = small(shared=shared, args={"pooling": pooling}), torch.randn(4, 3, samples)
    embedding, _ = encoder.network(x)
    assert torch.allclose(embedding, encoder(x), atol=1e-6)
    embedding, _ = encoder.network(x.masked_fill(~MIXED[..., None], math.nan), MIXED)
    assert torch.allclose(embedding[MIXED], encoder(x, MIXED)[MIXED], atol=1e-6)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("pooling", ["mean_max", "gem"])
@torch.no_grad()
def test_together_is_the_pool_of_the_sum_of_the_detectors_frames(shared: bool, pooling: str) -> None:
    encoder, x = small(shared=shared, args={"pooling": pooling}), noise(4)
    _, together = encoder.network(x.masked_fill(~MIXED[..., None], math.nan), MIXED)
    quiet = encoder.noise_reference()[1]
    assert together is not None and quiet is not None
    for row, present, found in zip(x, MIXED, together, strict=True):
        total = torch.zeros(32, 16)
        for d, branch in enumerate((encoder.hl, encoder.hl, encoder.v)):
            total += branch.sequence(row[d][None, None])[0] if present[d] else quiet[d]
        expected = encoder.hl.pool(total.T[None])[0]
        assert torch.allclose(found, expected, atol=1e-5)
        if pooling == "mean_max":
            assert torch.allclose(found, torch.cat([total.mean(dim=0), total.amax(dim=0)]), atol=1e-5)


@torch.no_grad()
def test_a_pulse_at_one_moment_in_two_detectors_stands_out_of_one_at_two_moments(shipped: PairedEncoder) -> None:
    """SNR 8 in each of Hanford and Livingston, 10 ms apart or 1 s."""
    background = noise(32)
    one, two = background.clone(), background.clone()
    one[:, 0] += pulse(1.40, 8.0)
    two[:, 0] += pulse(0.41, 8.0)
    for windows in (one, two):
        windows[:, 1] += pulse(1.41, 8.0)

    def loudest(windows: Tensor) -> Tensor:
        together = shipped.network(windows)[1]
        assert together is not None
        return together.chunk(2, dim=1)[1].mean(dim=1)  # the maxima over time, mean over channels

    at_once, apart, nothing = loudest(one), loudest(two), loudest(background)
    assert (at_once > apart).float().mean() >= 0.95
    assert (at_once - nothing).mean() > 2.0 * (apart - nothing).mean() > 0.0


@torch.no_grad()
def test_a_detectors_embedding_does_not_depend_on_the_others_and_together_does(shipped: PairedEncoder) -> None:
    x, y = noise(4), noise(4, seed=5)
    y[:, 0] = x[:, 0]
    (first, both), (other, both_other) = shipped.network(x), shipped.network(y)
    assert both is not None and both_other is not None
    assert torch.allclose(first[:, 0], other[:, 0], atol=1e-6)
    assert (both - both_other).abs().amax(dim=1).min() > 0.1


@pytest.mark.parametrize("shape", [(3, 2048), (1, 2, 2048), (1, 3, 2047), (1, 3, 0)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="strain"):
        small().network(torch.zeros(shape))


def test_an_encoder_of_whole_windows_has_embeddings_only() -> None:
    encoder = PairedEncoder("cnn_gru_2021", {"width": 4, "embedding": 16}).eval()
    assert not encoder.frames and small().frames
    x = torch.randn(4, 3, 4096)
    with torch.no_grad():
        embedding, together = encoder.network(x, MIXED)
        assert together is None and torch.allclose(embedding[MIXED], encoder(x, MIXED)[MIXED], atol=1e-6)
        assert torch.equal(embedding[~MIXED], encoder.noise_reference()[0].expand(4, -1, -1)[~MIXED])
    with pytest.raises(InputError, match="without frames in time; expected cnn_gru"):
        _ = encoder.hop


# Absent detectors


@torch.no_grad()
def test_an_absent_detector_shows_what_noise_shows_on_average(shipped: PairedEncoder) -> None:
    quiet, quiet_frame = shipped.noise_reference()
    assert quiet_frame is not None and quiet.shape == (3, 128) and quiet_frame.shape == (3, 128)
    x = noise(128, detectors=1).expand(-1, 3, -1)
    embedding = shipped(x)
    # The mean of 256 windows against that of 128 others: 0.11 standard deviations of a window, in 384 numbers.
    off = (embedding.mean(dim=0) - quiet).abs() / embedding.std(dim=0)
    assert off.square().mean().sqrt() < 0.2
    found, together = shipped.network(torch.full((2, 3, 2048), math.nan), torch.zeros(2, 3, dtype=torch.bool))
    assert together is not None and torch.equal(found[0], quiet)
    assert torch.allclose(together[0], quiet_frame.sum(dim=0).repeat(2), atol=1e-5)  # mean and maximum of a constant


def test_what_an_absent_detector_shows_is_the_same_every_time() -> None:
    torch.manual_seed(1)
    encoder = small()
    with torch.inference_mode():
        first = encoder.noise_reference()
    torch.manual_seed(1)
    other = small()
    torch.randn(7)
    for a, b in zip(first, other.noise_reference(), strict=True):
        assert a is not None and b is not None and torch.equal(a, b)
    embedding, together = encoder.network(noise(4), MIXED)  # one made in inference mode can be trained through
    assert together is not None
    (embedding.sum() + together.sum()).backward()
    assert encoder.hl.head.weight.grad is not None


@pytest.mark.parametrize(("kind", "tolerance"), [("concat", 0.15), ("coherent", 0.8)])
def test_noise_in_fewer_detectors_looks_like_noise(
    shipped: PairedEncoder, cache: Any, kind: str, tolerance: float
) -> None:
    """The median statistic moves by less than ``tolerance`` for each detector that is absent.

    It is about -1.8, and noise scatters by 0.9. The maximum over time of the summed frames is lower where fewer
    detectors fluctuate, which moves `coherent` more.
    """
    source = SimulatedSource(SimulationConfig(bank_size=64, n_labelled=300, n_test=64), Window(), progress=False)
    train = embed(shipped, source, "labelled", progress=False)
    probe = fit_probe(train, np.arange(300), kind, 0)

    def statistic(present: list[bool]) -> np.ndarray:
        with torch.inference_mode():
            embedding, together = shipped.network(noise(256), torch.tensor(present).expand(256, 3))
        assert together is not None
        return probe.decision(embedding.numpy(), None, together.numpy())

    median = float(np.median(statistic([True] * 3)))
    assert median < -1.0
    for present in ([True, True, False], [False, True, True], [True, False, False], [False, False, True]):
        assert abs(np.median(statistic(present)) - median) < tolerance * present.count(False)


# Frames of long strain


@torch.no_grad()
def test_frames_of_long_strain_are_the_windows_own_where_the_convolutions_do_not_reach_its_ends(
    shipped: PairedEncoder,
) -> None:
    """Before the GRU: 3 frames (0.19 s) at the start and 2 (0.13 s) at the end feel that a window ends there."""
    long, window = noise(2, 16.0, 1), 2048
    step = round(shipped.hop * shipped.rate)
    convolved = shipped.hl.cnn(shipped.hl.stem(long))
    for frame in (1, 40, 223):
        cut = long[..., frame * step : frame * step + window]
        alone, inside = shipped.hl.cnn(shipped.hl.stem(cut)), convolved[..., frame : frame + 32]
        assert torch.allclose(alone[..., 3:-2], inside[..., 3:-2], atol=1e-4)
        assert not torch.allclose(alone, inside, atol=0.1)


@torch.no_grad()
def test_frames_of_long_strain_are_nearly_the_windows_own_away_from_its_ends() -> None:
    """An untrained GRU forgets within a second. (A trained one need not: its backward half may have learnt where in
    the window signals end.)"""
    encoder, long = small(), noise(2, 16.0, 1)[:, 0]
    which, step = torch.zeros(2, dtype=torch.long), round(encoder.hop * encoder.rate)
    frames = encoder.sequence(long, which)
    assert frames.shape == (2, 256, 16) and encoder.hop == 0.0625
    for frame in (0, 1, 77, 224):
        off = encoder.sequence(long[:, frame * step : frame * step + 2048], which) - frames[:, frame : frame + 32]
        assert off[:, 8:-8].abs().max() < 0.02  # half a second from the ends
        assert off[:, 14:-14].abs().max() < 0.002


@torch.no_grad()
def test_the_shipped_encoders_forward_half_forgets_within_a_second(shipped: PairedEncoder) -> None:
    long, half = noise(4, 16.0, 1)[:, 0], 64
    which, step = torch.zeros(4, dtype=torch.long), round(shipped.hop * shipped.rate)
    frames = shipped.sequence(long, which)
    off = torch.stack(
        [
            shipped.sequence(long[:, frame * step : frame * step + 2048], which) - frames[:, frame : frame + 32]
            for frame in range(3, 224, 20)
        ]
    )[..., :half]
    rms = off.square().mean(dim=(0, 1, 3)).sqrt()  # of each frame of a window; frames have values of 0.6
    assert rms[0] > 0.1 and rms[16:-2].max() < 0.03 and rms[24:-2].max() < 0.005


@torch.no_grad()
def test_unshared_branches_make_their_own_frames() -> None:
    encoder, x = small(shared=False), noise(6)[:, 0]
    which = torch.tensor([0, 2, 1, 2, 2, 0])
    found = encoder.sequence(x, which)
    for row, d, frames in zip(x, which.tolist(), found, strict=True):
        assert torch.allclose(frames, (encoder.v if d == 2 else encoder.hl).sequence(row[None, None])[0], atol=1e-6)
