"""Frozen means frozen, an embedding belongs to its row, and features say what they claim to."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from gwtwins.encoders.evidence import RULES
from gwtwins.encoders.paired import PairedEncoder
from gwtwins.probes.features import FeatureMap, embed, fingerprint
from gwtwins.strain.batch import Batch
from gwtwins.strain.errors import InputError
from gwtwins.strain.sources import Source

N, T, E = 23, 64, 5
QUIET = -0.25  # what the little encoder shows of an absent detector


class Windows(Source):
    """N windows of noise in the given detectors; the last window lacks its last detector."""

    def __init__(self, detectors: tuple[str, ...] = ("H1", "L1", "V1"), labelled: bool = True, announced: int = N):
        self.spec, self.detectors, self.labelled, self.announced = "windows", detectors, labelled, announced
        self.strain = torch.randn(N, len(detectors), T, generator=torch.Generator().manual_seed(1))
        self.present = torch.ones(N, len(detectors), dtype=torch.bool)
        self.present[-1, -1] = False

    def count(self, split: str) -> int:
        return self.announced

    def batches(self, split: str, batch_size: int = 512) -> Iterator[Batch]:
        for start in range(0, N, batch_size):
            rows = torch.arange(start, min(start + batch_size, N))
            label = (rows % 2).float()
            truth = {"snr": 8.0 * label, "merger": 1.5 + 0.01 * rows} if self.labelled else {}
            yield Batch(
                self.strain[rows],
                self.present[rows],
                1e9 + rows.double(),
                label if self.labelled else None,
                [f"row{i}" for i in rows.tolist()],
                truth,
            )


class Tiny(nn.Module):
    """A paired encoder in little, with what a careless probe would change: BatchNorm and dropout."""

    detectors, evidence = ("H1", "L1", "V1"), 0

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.drop = nn.Linear(T, E), nn.BatchNorm1d(E), nn.Dropout(0.5)

    def forward(self, strain: Tensor, present: Tensor | None = None, whitened: bool = True) -> Tensor:
        b, d, _ = strain.shape
        out = self.drop(self.norm(self.linear(strain.flatten(0, 1)))).reshape(b, d, E)
        return out if present is None else out * present[..., None]

    def network(self, strain: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        embedding = torch.where(present[..., None], self(strain, present), QUIET)
        return embedding, embedding.sum(dim=1).square()


class Frameless(Tiny):
    """One that embeds whole windows."""

    def network(self, strain: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        return super().network(strain, present)[0], None


def test_embedding_leaves_every_tensor_and_mode_as_it_was() -> None:
    encoder = Tiny().train()
    encoder.drop.eval()
    before = copy.deepcopy(encoder.state_dict())
    features = embed(encoder, Windows(), "test", batch_size=10, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert encoder.training and encoder.norm.training and not encoder.drop.training
    assert features.encoder == fingerprint(encoder)


def test_an_embedding_depends_on_its_own_window_only() -> None:
    encoder, source = Tiny().eval(), Windows()
    features = embed(encoder.train(), source, "test", batch_size=10, progress=False)
    with torch.no_grad():
        expected, both = encoder.eval().network(source.strain, source.present)
    assert both is not None and features.together is not None
    np.testing.assert_allclose(features.embeddings, expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(features.together, both.numpy(), atol=1e-5)
    assert features.embeddings.dtype == np.float32 and features.embeddings.shape == (N, 3, E)
    assert features.together.dtype == np.float32 and features.together.shape == (N, E)
    again = embed(encoder, source, "test", 7, progress=False)
    assert again.together is not None
    np.testing.assert_allclose(features.embeddings, again.embeddings, atol=1e-6)
    np.testing.assert_allclose(features.together, again.together, atol=1e-5)
    assert np.all(features.embeddings[-1, -1] == QUIET) and not features.present[-1, -1]


def test_an_encoder_without_frames_shows_nothing_of_the_detectors_together() -> None:
    features = embed(Frameless(), Windows(), "test", batch_size=10, progress=False)
    assert features.together is None and features.embeddings.shape == (N, 3, E)


def test_labels_truth_and_names_stay_with_their_rows() -> None:
    features = embed(Tiny(), Windows(), "test", batch_size=10, progress=False)
    assert features.ids == [f"row{i}" for i in range(N)] and len(features) == N
    assert features.label is not None and features.label.tolist() == [i % 2 for i in range(N)]
    assert features.snr is not None and features.merger is not None
    np.testing.assert_array_equal(features.snr, 8.0 * features.label)
    np.testing.assert_allclose(features.merger, 1.5 + 0.01 * np.arange(N))
    np.testing.assert_array_equal(features.gps, 1e9 + np.arange(N))
    unlabelled = embed(Tiny(), Windows(labelled=False), "test", progress=False)
    assert unlabelled.label is None and unlabelled.snr is None and unlabelled.merger is None


def test_an_encoder_that_changes_itself_is_found_out() -> None:
    class Restless(Tiny):
        def forward(self, strain: Tensor, present: Tensor | None = None, whitened: bool = True) -> Tensor:
            self.norm.running_mean += 1e-6
            return super().forward(strain, present)

    with pytest.raises(RuntimeError, match="not frozen"):
        embed(Restless(), Windows(), "test", progress=False)


def test_a_bad_embedding_names_its_row() -> None:
    source = Windows()
    source.strain[17, 1, 3] = torch.nan
    encoder = Tiny().train()
    with pytest.raises(InputError, match="row17: its embedding is not finite"):
        embed(encoder, source, "test", batch_size=10, progress=False)
    assert encoder.training  # handed back as it came after a failure too


def test_detectors_take_their_places_and_missing_ones_are_absent() -> None:
    encoder, whole, part = Tiny(), Windows(), Windows(("L1", "H1"))
    part.strain, part.present = whole.strain[:, [1, 0]], whole.present[:, [1, 0]]
    full = embed(encoder, whole, "test", progress=False)
    two = embed(encoder, part, "test", progress=False)
    assert two.detectors == ("H1", "L1", "V1")
    np.testing.assert_array_equal(two.present, np.tile([True, True, False], (N, 1)))
    np.testing.assert_allclose(two.embeddings[:, :2], full.embeddings[:, :2], atol=1e-6)
    with pytest.raises(InputError, match="has detector K1"):
        embed(encoder, Windows(("H1", "K1")), "test", progress=False)


@pytest.mark.parametrize("announced", [N - 1, N + 1])
def test_a_source_that_miscounts_is_a_bug(announced: int) -> None:
    with pytest.raises(RuntimeError, match="announced"):
        embed(Tiny(), Windows(announced=announced), "test", batch_size=10, progress=False)


def test_a_split_without_rows_is_refused() -> None:
    with pytest.raises(InputError, match="no rows in split labelled"):
        embed(Tiny(), Windows(announced=0), "labelled", progress=False)


def test_a_fingerprint_sees_one_bit_and_nothing_else() -> None:
    encoder = Tiny()
    same = copy.deepcopy(encoder).eval()
    assert fingerprint(same) == fingerprint(encoder)
    same.norm.num_batches_tracked += 1
    assert fingerprint(same) != fingerprint(encoder)
    bit = copy.deepcopy(encoder)
    with torch.no_grad():
        bit.linear.weight[2, 3] = torch.nextafter(bit.linear.weight[2, 3], torch.tensor(9.0))
    assert fingerprint(bit) != fingerprint(encoder)
    assert fingerprint(Tiny().to(torch.bfloat16)) != fingerprint(encoder)


def test_a_fingerprint_sees_what_no_tensor_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other arguments, bands or rules of evidence make other features of the same weights."""

    def made(f_low: float = 25.0, **args: Any) -> str:
        torch.manual_seed(0)
        given = {"width": 8, "hidden": 8, "embedding": 16, "mergers": 2, **args}
        return fingerprint(PairedEncoder("cnn_gru", given, f_low=f_low))

    first = made()
    assert made() == first
    assert len({first, made(f_low=30.0), made(pool_from=1.0), made(mergers=0)}) == 4
    none = made(mergers=0)
    monkeypatch.setattr("gwtwins.probes.features.RULES", (*RULES[:-1], 0.5))
    assert made() != first and made(mergers=0) == none


def embeddings(n: int = 3000, d: int = 3, e: int = 4, seed: int = 2) -> np.ndarray:
    """Correlated embeddings (N, D, E) of different means and scales."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 1, e))
    return (rng.normal(size=(n, d, e)) + common * [[1.0, 0.5, 0.0, 2.0]] + np.arange(e)).astype(np.float32)


def shown_together(n: int = 3000, j: int = 6, seed: int = 12) -> np.ndarray:
    """What detectors show together (N, J), of other means and scales than their embeddings."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, j)) * np.linspace(0.7, 1.3, j) - 2.0 * np.arange(j)).astype(np.float32)


def test_concatenated_features_are_scikit_learns_standardisation() -> None:
    x = embeddings()
    z = FeatureMap("concat").fit(x).transform(x)
    assert z.shape == (3000, 12) and z.dtype == np.float32
    expected = StandardScaler().fit_transform(x.reshape(3000, -1).astype(np.float64))
    np.testing.assert_allclose(z, expected, rtol=2e-3, atol=1e-4)  # up to the scales' weak pull to their median


def test_coherent_features_are_the_embeddings_and_what_the_detectors_show_together() -> None:
    x, y = embeddings(), shown_together()
    features = FeatureMap("coherent").fit(x, together=y)
    z = features.transform(x, together=y)
    assert z.shape == (3000, 18) and features.n_features == 18 and z.dtype == np.float32
    np.testing.assert_array_equal(z[:, :12], FeatureMap("concat").fit(x).transform(x))
    expected = StandardScaler().fit_transform(y.astype(np.float64))
    np.testing.assert_allclose(z[:, 12:], expected, rtol=2e-3, atol=1e-4)  # up to the pull of the scales, as above


@pytest.mark.parametrize("kind", ["concat", "coherent"])
def test_features_do_not_depend_on_the_embeddings_units(kind: str) -> None:
    def features(offset: float, scale: float) -> np.ndarray:
        x, y = (offset + scale * values for values in (embeddings(), shown_together()))
        return FeatureMap(kind).fit(x, together=y).transform(x, together=y)

    own = features(0.0, 1.0)
    # float32 at 1000 has steps of 6e-5: nothing must be lost beyond that
    np.testing.assert_allclose(features(1000.0, 0.1), own, atol=0.02)
    np.testing.assert_allclose(features(0.0, 4.0), own, atol=1e-5)


def test_an_absent_detector_contributes_nothing_and_teaches_nothing() -> None:
    x, y, present = embeddings(), shown_together(), np.ones((3000, 3), dtype=bool)
    present[::2, 2] = False
    x[::2, 2] = 1e6
    features = FeatureMap("coherent").fit(x, present, together=y)
    z = features.transform(x, present, y)
    assert np.all(z[::2, 8:12] == 0)
    assert np.all(z[::2, :8] != 0) and np.all(z[::2, 12:] != 0)
    here = FeatureMap("concat").fit(x[1::2])
    np.testing.assert_allclose(features.state["mean"][2], here.state["mean"][2])
    np.testing.assert_allclose(features.state["inverse"][2], here.state["inverse"][2])


def test_a_detector_that_was_never_there_has_no_say_later() -> None:
    x, present = embeddings(100), np.ones((100, 3), dtype=bool)
    present[:, 1] = False
    z = FeatureMap("concat").fit(x, present).transform(x)
    assert np.all(np.isfinite(z)) and np.all(z[:, 4:8] == 0)


def test_features_that_never_vary_stay_silent() -> None:
    x, y = embeddings(), shown_together()
    x[:, 0, 1], x[:, 2, 3], y[:, 2] = 0.1, 0.0, 0.3
    features = FeatureMap("coherent").fit(x, together=y)
    z = features.transform(embeddings(seed=3), together=shown_together(seed=13))
    assert np.all(np.isfinite(z)) and np.all(z[:, [1, 11, 14]] == 0) and np.all(z[:, [0, 13, 15]] != 0)


def test_only_the_given_rows_teach() -> None:
    x, y, rows = embeddings(), shown_together(), np.arange(5, 65)
    features = FeatureMap("coherent").fit(x, rows=rows, together=y)
    expected = FeatureMap("coherent").fit(x[rows], together=y[rows])
    assert set(expected.state) == {"mean", "inverse", "together_mean", "together_inverse"}
    for key, value in expected.state.items():
        np.testing.assert_array_equal(features.state[key], value)


def test_a_unit_that_is_nearly_always_off_is_not_blown_up() -> None:
    """Off in all but a whisper of sixty rows, then 1: plain standardisation makes that one feature 7,000
    deviations."""
    x = embeddings(60)
    x[:, 0, 0] = 0.0
    x[3, 0, 0] = 1e-3
    x[:, :, 1:] -= np.arange(1, 4)
    later = x.copy()
    later[:, 0, 0] = 1.0
    assert np.abs(FeatureMap("concat").fit(x).transform(later)).max() < 10.0


def test_a_feature_map_refuses_what_does_not_fit() -> None:
    with pytest.raises(InputError, match="concat or coherent"):
        FeatureMap("sum")
    with pytest.raises(InputError, match="without frames in time to compare; expected --features concat"):
        FeatureMap("coherent").fit(embeddings())
    with pytest.raises(InputError, match=r"coherent features: shape \(2999, 6\) for 3000 rows"):
        FeatureMap("coherent").fit(embeddings(), together=shown_together(2999))
    fitted = FeatureMap("coherent").fit(embeddings(), together=shown_together())
    with pytest.raises(InputError, match="5 numbers of the detectors together; expected 6"):
        fitted.transform(embeddings(), together=shown_together(j=5))
    with pytest.raises(InputError, match="without frames in time"):
        fitted.transform(embeddings())
    with pytest.raises(InputError, match="a fitted map"):
        FeatureMap("concat").transform(embeddings())
    with pytest.raises(InputError, match=r"expected \(N, 3, 4\)"):
        FeatureMap("concat").fit(embeddings()).transform(embeddings(d=2))
    with pytest.raises(InputError, match="presence"):
        FeatureMap("concat").fit(embeddings(), np.ones((3000, 2), dtype=bool))
