"""A probe written on frames says what the probe says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from gwtwins.encoders.paired import PairedEncoder
from gwtwins.encoders.weights import load_encoder
from gwtwins.probes.features import fingerprint
from gwtwins.probes.frame_weights import frame_weights
from gwtwins.probes.linear import LinearProbe
from gwtwins.strain.errors import InputError
from gwtwins.strain.noise import gaussian_noise

SMALL = {"width": 8, "hidden": 8, "embedding": 16}
ROWS = 120


def windows(detectors: int, seed: int = 0) -> torch.Tensor:
    """Noise (N, D, T), every second row twice as loud: something for a probe to learn."""
    x = gaussian_noise(seed, "test", 0, range(ROWS), detectors, 1024.0, 2.0, 20.0, 500.0)
    x[1::2] *= 2.0
    return x


def fitted(encoder: PairedEncoder, kind: str) -> LinearProbe:
    with torch.inference_mode():
        embedding, together = encoder.network(windows(len(encoder.detectors)))
    both = None if together is None else together.numpy()
    label, own = np.arange(ROWS) % 2, encoder.detectors
    about = own, fingerprint(encoder), both, encoder.evidence
    return LinearProbe.fit(embedding.numpy(), None, label, None, kind, 0, *about)


def pooled_frames(encoder: PairedEncoder, x: torch.Tensor) -> list[np.ndarray]:
    """Of each detector (N, L, C), float64."""
    with torch.inference_mode():
        which = [torch.full((len(x),), d) for d in range(x.shape[1])]
        sequences = [encoder.sequence(x[:, d], which[d]) for d in range(x.shape[1])]
    return [sequence[:, encoder.pool_start :].double().numpy() for sequence in sequences]


def evidence_of(total: np.ndarray, learnt: int, mergers: int = 16) -> np.ndarray:
    """(N, K + 1) of the detectors' added frames (N, L, C): each merger's, and that of all of them, in natural units."""
    natural = 15.0 * total[:, :, learnt:].reshape(len(total), -1, mergers).max(axis=1)
    return np.concatenate([natural, logsumexp(natural, axis=1, keepdims=True)], axis=1)


@pytest.mark.parametrize("kind", ["concat", "coherent"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("detectors", [("H1", "L1", "V1"), ("V1", "H1"), ("K1",)])
@pytest.mark.parametrize("pool_from", [0.0, 1.0])
def test_the_statistic_of_the_pooled_frames_is_the_probes_decision(
    kind: str, shared: bool, detectors: tuple[str, ...], pool_from: float
) -> None:
    encoder = PairedEncoder("cnn_gru", SMALL | {"pool_from": pool_from}, detectors, shared=shared).eval()
    probe = fitted(encoder, kind)
    weights = frame_weights(encoder, probe)
    x = windows(len(detectors), seed=1)
    with torch.inference_mode():
        embedding, together = encoder.network(x)
    each = pooled_frames(encoder, x)
    assert together is not None and each[0].shape == (ROWS, round(16 - pool_from / 0.125), 16 + 128)
    stat = np.full(ROWS, weights.base)
    for frames, mean, maximum in zip(each, weights.own_mean, weights.own_max, strict=True):
        stat += frames[:, :, :16].mean(axis=1) @ mean + frames[:, :, :16].max(axis=1) @ maximum
    total = np.sum(each, axis=0)
    stat += total[:, :, :16].mean(axis=1) @ weights.both_mean + total[:, :, :16].max(axis=1) @ weights.both_max
    stat += evidence_of(total, 16) @ weights.evidence
    decision = probe.decision(embedding.numpy(), None, together.numpy())
    assert decision.std() > 0.5
    np.testing.assert_allclose(stat, decision, atol=3e-5)  # an untrained encoder's small spread, in float32
    np.testing.assert_allclose(stat, _in_float64(encoder, probe, each), atol=1e-9)


def _in_float64(encoder: PairedEncoder, probe: LinearProbe, each: list[np.ndarray]) -> np.ndarray:
    """Pool, head, standardise, weigh, one after the other."""

    def pool(frames: np.ndarray) -> np.ndarray:
        return np.concatenate([frames[:, :, :16].mean(axis=1), frames[:, :, :16].max(axis=1)], axis=1)

    heads = [(encoder.v if name in ("V1", "K1") else encoder.hl).head for name in encoder.detectors]
    own = [
        pool(frames) @ head.weight.detach().double().numpy().T + head.bias.detach().double().numpy()
        for frames, head in zip(each, heads, strict=True)
    ]
    state = probe.features.state
    z = ((np.stack(own, axis=1) - state["mean"]) * state["inverse"]).reshape(ROWS, -1)
    if probe.features.kind == "coherent":
        total = np.sum(each, axis=0)
        both = np.concatenate([pool(total), evidence_of(total, 16)], axis=1)
        z = np.concatenate([z, (both - state["together_mean"]) * state["together_inverse"]], axis=1)
    return z @ probe.coef + probe.intercept


@pytest.mark.parametrize("kind", ["concat", "coherent"])
def test_with_the_shipped_encoder_it_is_the_decision_to_a_millionth(kind: str) -> None:
    encoder = load_encoder("gwtwins/small").eval()
    probe = fitted(encoder, kind)
    weights, x = frame_weights(encoder, probe), windows(3, seed=1)
    with torch.inference_mode():
        embedding, together = encoder.network(x)
    each = np.stack(pooled_frames(encoder, x), axis=1)
    assert together is not None
    each, total = each[..., :128], each.sum(axis=1)
    stat = weights.base + evidence_of(total, 128) @ weights.evidence
    total = total[..., :128]
    stat += total.mean(axis=1) @ weights.both_mean + total.max(axis=1) @ weights.both_max
    stat += np.einsum("ndc,dc->n", each.mean(axis=2), weights.own_mean)
    stat += np.einsum("ndc,dc->n", each.max(axis=2), weights.own_max)
    decision = probe.decision(embedding.numpy(), None, together.numpy())
    np.testing.assert_allclose(stat, decision, rtol=1e-6, atol=2e-6)


def test_features_of_each_detector_alone_give_no_weight_to_the_sum() -> None:
    encoder = PairedEncoder("cnn_gru", SMALL).eval()
    concat = frame_weights(encoder, fitted(encoder, "concat"))
    coherent = frame_weights(encoder, fitted(encoder, "coherent"))
    assert not concat.both_mean.any() and not concat.both_max.any() and not concat.evidence.any()
    assert coherent.both_mean.all() and coherent.both_max.all() and coherent.evidence.all()
    assert coherent.own_mean.shape == (3, 16) and coherent.both_max.shape == (16,)
    assert concat.evidence.shape == coherent.evidence.shape == (17,)


def test_features_that_never_varied_weigh_nothing() -> None:
    encoder = PairedEncoder("cnn_gru", SMALL).eval()
    probe = fitted(encoder, "coherent")
    probe.features.state["inverse"][:] = 0.0
    probe.features.state["together_inverse"][:] = 0.0
    weights = frame_weights(encoder, probe)
    assert weights.base == probe.intercept
    each = weights.own_mean, weights.own_max, weights.both_mean, weights.both_max, weights.evidence
    assert not any(w.any() for w in each)


@pytest.mark.parametrize(
    ("name", "args", "rate"),
    [("cnn_gru", {**SMALL, "pooling": "gem"}, 1024), ("cnn_gru_2021", {"width": 4, "embedding": 16}, 2048)],
)
def test_encoders_that_do_not_pool_by_mean_and_maximum_are_refused(name: str, args: dict[str, Any], rate: int) -> None:
    encoder = PairedEncoder(name, args).eval()
    with torch.inference_mode():
        embedding = encoder(torch.randn(40, 3, 2 * rate)).numpy()
    probe = LinearProbe.fit(embedding, None, np.arange(40) % 2, detectors=encoder.detectors)
    with pytest.raises(InputError, match="cnn_gru with pooling mean_max"):
        frame_weights(encoder, probe)
