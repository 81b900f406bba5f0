"""What a network of detectors shows: each by itself, all at the same moment, and those that are absent."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gwtwins.encoders.evidence import network_evidence
from gwtwins.encoders.paired import PairedEncoder
from gwtwins.encoders.weights import load_encoder
from gwtwins.probes.evaluate import fit_probe
from gwtwins.probes.features import embed
from gwtwins.strain.errors import InputError
from gwtwins.strain.noise import gaussian_noise
from gwtwins.strain.simulated import SimulatedSource, SimulationConfig
from gwtwins.strain.sources import Window

SMALL = {"width": 8, "hidden": 8, "embedding": 16}
FAR = torch.tensor([False, False, True])  # which of H1, L1, V1 is far from the others
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
@pytest.mark.parametrize("pool_from", [0.0, 1.0])
@torch.no_grad()
def test_together_is_the_pool_of_the_sum_of_the_pooled_frames(shared: bool, pooling: str, pool_from: float) -> None:
    """Of all detectors exactly; of some, moved by a constant of which are absent."""
    encoder, x = small(shared=shared, args={"pooling": pooling, "pool_from": pool_from, "mergers": 5}), noise(4)
    start = round(pool_from / 0.125)
    assert encoder.pool_start == start

    def plainly(row: Tensor, present: list[bool]) -> Tensor:
        branches = (encoder.hl, encoder.hl, encoder.v)
        seen = [b.sequence(row[d][None, None], FAR[d : d + 1])[0] for d, b in enumerate(branches) if present[d]]
        total = torch.stack(seen).sum(dim=0)[start:]  # (L, C)
        assert total.shape == (16 - start, 16 + 8 * 5)
        learnt, evidence = total[:, :16], total[:, 16:].reshape(-1, 5)
        both = network_evidence(evidence.amax(dim=0))
        assert encoder.evidence == len(both) == 6
        if pooling == "mean_max":
            return torch.cat([learnt.mean(dim=0), learnt.amax(dim=0), both])
        return torch.cat([encoder.hl.pool(learnt.T[None])[0], both])

    whole = encoder.network(x)[1]
    assert whole is not None
    for row, found in zip(x, whole, strict=True):
        assert torch.allclose(found, plainly(row, [True] * 3), atol=1e-5)
    for present in ([True, False, True], [False, False, True]):
        here = torch.tensor(present).expand(4, 3)
        part = encoder.network(x.masked_fill(~here[..., None], math.nan), here)[1]
        assert part is not None
        offset = torch.stack([found - plainly(row, present) for row, found in zip(x, part, strict=True)])
        assert torch.allclose(offset, offset[:1].expand(4, -1), atol=1e-5) and offset.abs().max() > 1e-3
        for row in range(4):  # whatever else is in the batch
            alone = encoder.network(x[row : row + 1], here[:1])[1]
            assert alone is not None and torch.allclose(alone[0], part[row], atol=1e-5)


@torch.no_grad()
def test_what_comes_at_one_moment_in_two_detectors_stands_out_of_what_comes_at_two_moments(
    shipped: PairedEncoder,
) -> None:
    """SNR 8 in each of Hanford and Livingston, 10 ms apart or 1 s: in what is learnt a pulse, in evidence a merger."""

    def merger(at: float, snr: float) -> Tensor:
        kernel = shipped.hl.evidence.weight[0]
        x = torch.zeros(2048)
        end = round(at * 1024) + shipped.hl.evidence.after
        x[end - len(kernel) : end] = kernel / kernel.norm() * snr * math.sqrt(1024 / 960)
        return x

    background = noise(32)
    for shape, evidence in ((pulse, False), (merger, True)):
        loudest = []
        for first in (1.40, 0.41, None):
            windows = background.clone()
            if first is not None:
                windows[:, 0] += shape(first, 8.0)
                windows[:, 1] += shape(1.41, 8.0)
            together = shipped.network(windows)[1]
            assert together is not None
            # The learnt maxima over time, their mean over channels; or the evidence for all mergers.
            learnt = together[:, : -shipped.evidence].chunk(2, dim=1)[1].mean(dim=1)
            loudest.append(together[:, -1] if evidence else learnt)
        at_once, apart, nothing = loudest
        assert (at_once > apart).float().mean() >= 0.95
        assert (at_once - nothing).mean() > 1.8 * (apart - nothing).mean() > 0.0


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
        assert torch.equal(embedding[~MIXED], encoder.noise_reference().embedding.expand(4, -1, -1)[~MIXED])
    with pytest.raises(InputError, match="without frames in time; expected cnn_gru"):
        _ = encoder.hop


# Absent detectors


@torch.no_grad()
def test_an_absent_detector_shows_what_noise_shows_on_average(shipped: PairedEncoder) -> None:
    quiet = shipped.noise_reference()
    assert quiet.together is not None and quiet.embedding.shape == (3, 128) and quiet.together.shape == (8, 256 + 17)
    x = noise(128, detectors=1).expand(-1, 3, -1)
    embedding = shipped(x)
    # The mean of 256 windows against that of 128 others: 0.11 standard deviations of a window, in 384 numbers.
    off = (embedding.mean(dim=0) - quiet.embedding).abs() / embedding.std(dim=0)
    assert off.square().mean().sqrt() < 0.2
    found, together = shipped.network(torch.full((2, 3, 2048), math.nan), torch.zeros(2, 3, dtype=torch.bool))
    assert together is not None and torch.equal(found[0], quiet.embedding)
    assert torch.allclose(together, quiet.together[-1].expand(2, -1), atol=1e-5)  # no detector at all: noise in each


@pytest.mark.parametrize("encoder", ["untrained", "unshared", "shipped"])
@torch.no_grad()
def test_noise_has_the_same_mean_in_every_network(encoder: str, request: pytest.FixtureRequest) -> None:
    """Of what the detectors show together; without the offsets it is off by up to 20 standard deviations."""
    made = request.getfixturevalue("shipped") if encoder == "shipped" else small(shared=encoder == "untrained")
    x = noise(256)
    whole = made.network(x)[1]
    assert whole is not None
    for network in range(8):
        present = torch.tensor([bool(network >> d & 1) for d in range(3)])
        part = made.network(x, present.expand(256, 3))[1]
        assert part is not None
        off = (part.mean(dim=0) - whole.mean(dim=0)) / whole.std(dim=0)
        assert off.square().mean().sqrt() < 0.2  # two means of 256 windows: 0.09


def test_what_an_absent_detector_shows_is_the_same_every_time() -> None:
    torch.manual_seed(1)
    encoder = small()
    with torch.inference_mode():
        first = encoder.noise_reference()
    torch.manual_seed(1)
    other = small()
    torch.randn(7)
    for a, b in zip(vars(first).values(), vars(other.noise_reference()).values(), strict=True):
        assert torch.equal(a, b)
    embedding, together = encoder.network(noise(4), MIXED)  # one made in inference mode can be trained through
    assert together is not None
    (embedding.sum() + together.sum()).backward()
    assert encoder.hl.head.weight.grad is not None


def _optimiser_step(encoder: PairedEncoder) -> None:
    encoder(noise(2)).square().sum().backward()
    torch.optim.AdamW(encoder.parameters(), lr=0.1).step()


@pytest.mark.parametrize(
    "change",
    [
        _optimiser_step,
        lambda encoder: encoder.load_state_dict(small().state_dict()),
        lambda encoder: encoder.hl.cnn[0].running_mean.add_(0.5),
        lambda encoder: encoder.train()(3.0 * noise(2)),
        lambda encoder: setattr(encoder.hl.head, "bias", torch.nn.Parameter(torch.ones(16))),
    ],
    ids=["a step", "other weights", "a buffer", "statistics", "another tensor"],
)
def test_the_noise_reference_follows_the_weights(change: Any) -> None:
    encoder = small()
    before = encoder.noise_reference()
    assert encoder.noise_reference() is before  # measured once
    change(encoder)
    after = encoder.noise_reference()
    assert after is not before and not torch.allclose(after.embedding, before.embedding, atol=1e-3)
    fresh = small()
    fresh.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(after.embedding, fresh.noise_reference().embedding)


def test_the_noise_reference_is_that_of_eval_mode_and_leaves_modes_and_statistics_alone() -> None:
    encoder = PairedEncoder("cnn_gru", SMALL).train()
    part = next(module for module in encoder.modules() if isinstance(module, torch.nn.BatchNorm1d)).eval()
    state = {key: value.clone() for key, value in encoder.state_dict().items()}
    quiet = encoder.noise_reference()
    assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())
    assert not part.training and all(module.training for module in encoder.modules() if module is not part)
    torch.testing.assert_close(quiet.embedding, copy.deepcopy(encoder).eval().noise_reference().embedding)


def test_an_encoder_made_in_inference_mode_has_a_noise_reference_too() -> None:
    torch.manual_seed(2)
    with torch.inference_mode():
        encoder = small()
        embedding = encoder.network(noise(4), MIXED)[0]
    torch.manual_seed(2)
    assert torch.allclose(embedding[~MIXED], small().noise_reference().embedding.expand(4, -1, -1)[~MIXED])


@pytest.mark.parametrize("kind", ["concat", "coherent"])
def test_noise_in_fewer_detectors_looks_like_noise(shipped: PairedEncoder, cache: Any, kind: str) -> None:
    """The median statistic moves by less than 0.2, whichever detectors are absent. It is about -1.8, and noise scatters
    by 0.9."""
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
    for network in range(7):
        present = [bool(network >> d & 1) for d in range(3)]
        assert abs(np.median(statistic(present)) - median) < 0.2


# Frames of long strain


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("samples", [896, 1792, 2048, 5120])
@torch.no_grad()
def test_a_stretch_of_any_length_is_pooled_over_all_of_its_frames(shared: bool, samples: int) -> None:
    encoder, x = small(shared=shared), noise(6, 6.0)[:, 0, :samples]
    which = torch.tensor([0, 2, 1, 2, 2, 0])
    found = encoder.encode_stretch(x, which)
    for row, d, embedding in zip(x, which.tolist(), found, strict=True):
        branch = encoder.v if d == 2 else encoder.hl
        frames = branch.sequence(row[None, None])[0, :, :16]  # embeddings are made of what is learnt
        assert len(frames) == samples // 128
        expected = branch.head(torch.cat([frames.mean(dim=0), frames.amax(dim=0)]))
        assert torch.allclose(embedding, expected, atol=1e-6)
    if samples == 2048:
        assert not torch.allclose(found, encoder.encode(x, which), atol=1e-3)  # a window's is of its later frames


@torch.no_grad()
def test_a_stretch_is_a_window_where_whole_windows_are_pooled_or_no_frames_are_made() -> None:
    x, which = torch.randn(4, 4096), torch.tensor([0, 1, 2, 2])
    whole = small(args={"pool_from": 0.0, "rate": 2048.0})
    assert torch.allclose(whole.encode_stretch(x, which), whole.encode(x, which), atol=1e-6)
    frameless = PairedEncoder("cnn_gru_2021", {"width": 4, "embedding": 16}).eval()
    assert torch.equal(frameless.encode_stretch(x, which), frameless.encode(x, which))


@pytest.mark.parametrize("shared", [True, False])
@torch.no_grad()
def test_windows_of_long_strains_local_frames_are_the_windows(shared: bool) -> None:
    """Before the GRU 3 frames (0.38 s) at the start and 2 (0.25 s) at the end feel that a window ends there. The others
    can be made once for all windows that hold them."""
    encoder, long = small(shared=shared), noise(4, 16.0, 1)[:, 0]
    which = torch.tensor([0, 2, 1, 2])
    convolved = encoder.local(long, which)
    assert convolved.shape == (4, 128, 8 + 128)
    for frame in (1, 40, 111):
        cut = long[:, frame * 128 : frame * 128 + 2048]
        alone, inside = encoder.local(cut, which), convolved[:, frame : frame + 16]
        assert torch.allclose(alone[:, 3:-2], inside[:, 3:-2], atol=1e-4)
        assert not torch.allclose(alone, inside, atol=0.02)
        assert torch.equal(encoder.recur(alone, which), encoder.sequence(cut, which))


@torch.no_grad()
def test_frames_of_long_strain_are_nearly_the_windows_own_away_from_its_ends() -> None:
    """An untrained GRU forgets within a second."""
    encoder, long = small(), noise(2, 16.0, 1)[:, 0]
    which, step = torch.zeros(2, dtype=torch.long), round(encoder.hop * encoder.rate)
    frames = encoder.sequence(long, which)
    assert frames.shape == (2, 128, 16 + 128) and encoder.hop == 0.125
    for frame in (0, 1, 77, 112):
        off = encoder.sequence(long[:, frame * step : frame * step + 2048], which) - frames[:, frame : frame + 16]
        assert off[:, 6:-6].abs().max() < 0.02  # 0.75 s from the ends


@torch.no_grad()
def test_unshared_branches_make_their_own_frames() -> None:
    encoder, x = small(shared=False), noise(6)[:, 0]
    which = torch.tensor([0, 2, 1, 2, 2, 0])
    found = encoder.sequence(x, which)
    for row, d, frames in zip(x, which.tolist(), found, strict=True):
        own = (encoder.v if d == 2 else encoder.hl).sequence(row[None, None], FAR[d : d + 1])[0]
        assert torch.allclose(frames, own, atol=1e-6)
