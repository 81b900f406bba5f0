"""The probes against scikit-learn, against problems whose optimum is known, and against spoilt files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn
from packaging.version import Version
from safetensors.numpy import load_file, save_file
from scipy import special, stats
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.neighbors import NearestNeighbors

from gwtwins import eval_probe
from gwtwins.encoders.paired import PairedEncoder
from gwtwins.encoders.weights import save_encoder
from gwtwins.probes import linear, logistic
from gwtwins.probes.evaluate import label_curve
from gwtwins.probes.features import FeatureMap, Features, fingerprint
from gwtwins.probes.knn import KnnProbe, default_k
from gwtwins.probes.linear import LinearProbe, labelled_subset, parse_frac
from gwtwins.probes.metrics import auc, calibration
from gwtwins.probes.watch import LabelledWatch
from gwtwins.strain.errors import InputError
from gwtwins.strain.simulated import SimulatedSource


def two_classes(n: int, d: int = 3, e: int = 8, distance: float = 2.0, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian embeddings (N, D, E) of one covariance, class means ``distance`` Mahalanobis units apart.

    The optimal AUC is Phi(distance / sqrt 2), of a linear statistic. The mixing is drawn once, whatever the
    seed.
    """
    fixed = np.random.default_rng(0)
    mixing = fixed.normal(size=(d * e, d * e)) * np.geomspace(1.0, 0.05, d * e)[:, None]
    direction = fixed.normal(size=d * e)
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < 0.5).astype(int)
    plain = rng.normal(size=(n, d * e)) + distance * label[:, None] * direction / np.linalg.norm(direction)
    return (plain @ mixing + 3.0).reshape(n, d, e).astype(np.float32), label


def seen_at_once(n: int, seed: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pulses in both of two detectors: at the same moment in a signal, at two moments in noise.

    Embeddings (N, 2, 8), the mean and the maximum over time of 16 frames; the same of the frames' sum, (N, 8); labels.
    """
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < 0.5).astype(int)
    frames = 0.3 * rng.normal(size=(n, 2, 16, 4))
    first = rng.integers(16, size=n)
    second = np.where(label == 1, first, (first + rng.integers(1, 16, size=n)) % 16)
    frames[np.arange(n), 0, first] += 2.0
    frames[np.arange(n), 1, second] += 2.0

    def pool(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x.mean(axis=-2), x.max(axis=-2)], axis=-1).astype(np.float32)

    return pool(frames), pool(frames.sum(axis=1)), label


def standardised(n: int, f: int, seed: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N, F) of mean 0 and variance 1 with unequal correlations, and noisy linear labels."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, f)) @ (rng.normal(size=(f, f)) * np.arange(1, f + 1)[:, None] ** -0.7)
    z = ((z - z.mean(axis=0)) / z.std(axis=0)).astype(np.float32)
    return z, z[:, :10] @ rng.normal(size=10) + 3.0 * rng.normal(size=n) > 0


def as_rows(z: np.ndarray) -> logistic.Rows:
    return logistic.Rows(*z.shape, lambda start, stop: z[start:stop])


# --- how many labels, and which ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1", 6000),
        ("1.0", 6000),
        ("0.25", 1500),
        ("0.01", 60),
        (0.5, 3000),
        ("10", 10),
        (60, 60),
        ("6000", 6000),
    ]
    + [("60.0", 60), (" 0.1 ", 600), ("1e-2", 60)],
)
def test_frac_is_a_fraction_up_to_one_and_a_count_from_ten(text: object, count: int) -> None:
    assert parse_frac(text, 6000) == count


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "0.0",
        "2.5",
        "3",
        "9",
        "-1",
        "-0.5",
        "nan",
        "inf",
        "-inf",
        "abc",
        "",
        "10.5",
        "6001",
        "1e9",
        "0.001",
        "1.0001",
    ],
)
def test_frac_that_means_neither_is_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(InputError, match="--frac .*; expected"):
        parse_frac(text, 6000)


def test_a_smaller_labelled_subset_begins_a_larger_one() -> None:
    label = np.random.default_rng(3).random(500) < 0.5
    ids = [f"row{i}" for i in range(500)]
    for rows in (500, ids):
        whole = labelled_subset(rows, 500, 7, label)
        assert sorted(whole) == list(range(500))
        for n in (10, 60, 499):
            np.testing.assert_array_equal(labelled_subset(rows, n, 7, label), whole[:n])
        assert set(labelled_subset(rows, 60, 8, label)) != set(whole[:60])


def test_a_labelled_subset_belongs_to_the_ids_not_to_their_order() -> None:
    ids = [f"row{i}" for i in range(300)]
    there = {ids[i] for i in labelled_subset(ids, 40, 5)}
    assert {ids[::-1][i] for i in labelled_subset(ids[::-1], 40, 5)} == there


def test_a_labelled_subset_is_a_plain_sample_that_has_seen_both_classes() -> None:
    label = np.zeros(2000, dtype=int)
    label[:40] = 1  # 2%: ten rows as they come hold a signal in one draw of five
    shares = []
    for seed in range(200):
        order = labelled_subset(2000, 500, seed, label)
        assert label[order[:10]].sum() >= 2 and len(set(order)) == 500
        shares.append(label[order].sum())
    assert np.mean(shares) == pytest.approx(10.0, abs=1.0)
    assert np.std(shares) > 2.0  # stratified, it would always be ten; hypergeometric, 2.7
    assert labelled_subset(2000, 10, 0, np.zeros(2000)).size == 10  # one class only: the probe says so, not the draw


# --- the solver -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "f"), [(60, 200), (400, 50), (1500, 120)])
@pytest.mark.parametrize("c", [1e-4, 1e-2, 1.0])
def test_a_solution_is_scikit_learns(n: int, f: int, c: float) -> None:
    z, label = standardised(n, f)
    coef, intercept = logistic.solve(as_rows(z), label, c)
    expected = LogisticRegression(C=c, tol=1e-9, max_iter=5000).fit(z.astype(np.float64), label)
    np.testing.assert_allclose(coef, expected.coef_[0], atol=5e-3 * np.abs(expected.coef_).max())
    assert intercept == pytest.approx(expected.intercept_[0], abs=5e-3)


def test_the_chosen_strength_is_that_of_the_smallest_held_out_loss() -> None:
    """Every fold at every strength refitted with scikit-learn, at a C in proportion to its rows."""
    z, label = standardised(600, 20)
    train = logistic.stratified_folds(label, 0)
    path = logistic.fit_path(as_rows(z), label, train)
    assert train.shape == (600, 5)
    for tried in path.tried[::3]:
        score = np.empty(600)
        for rows in train.T:
            fold = LogisticRegression(C=tried["c"] * 600 / rows.sum(), tol=1e-8, max_iter=5000).fit(
                z[rows], label[rows]
            )
            score[~rows] = z[~rows] @ fold.coef_[0]
        assert tried["loss"] == pytest.approx(logistic.recalibrate(score, label)[0].mean(), abs=2e-4)
    assert path.c == min(path.tried, key=lambda tried: tried["loss"])["c"]


def test_of_few_rows_the_strongest_penalty_within_a_standard_error_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the mean over rows of what each loses by it, all folds refitted with scikit-learn."""
    monkeypatch.setattr(logistic, "REPEATS", 2)
    z, label = standardised(200, 20)
    train = logistic.stratified_folds(label, 0)
    assert train.shape == (200, 10)
    path = logistic.fit_path(as_rows(z), label, train)
    of_rows = []
    for tried in path.tried:
        score = np.zeros((200, 10))
        for k, rows in enumerate(train.T):
            fold = LogisticRegression(C=tried["c"] * 200 / rows.sum(), tol=1e-6, max_iter=5000).fit(
                z[rows], label[rows]
            )
            score[~rows, k] = z[~rows] @ fold.coef_[0]
        truth = np.broadcast_to(label[:, None], train.shape)[~train]
        loss = np.zeros((200, 10))
        loss[~train] = logistic.recalibrate(score[~train], truth, 2.0)[0]
        assert tried["loss"] == pytest.approx(loss.sum() / 400, abs=2e-4)
        of_rows.append(loss.sum(axis=1) / 2)
    least = int(np.argmin([loss.mean() for loss in of_rows]))
    more = np.array(of_rows) - of_rows[least]
    close = more.mean(axis=1) <= more.std(axis=1, ddof=1) / np.sqrt(200)
    first = int(np.argmax(close))
    assert first < least and path.c == path.tried[first]["c"]


def test_reading_rows_in_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, label = two_classes(3000)
    whole = LinearProbe.fit(x, None, label)
    monkeypatch.setattr(logistic, "IN_MEMORY", 0)

    def blocks_of_700(rows: logistic.Rows) -> Iterator[tuple[slice, np.ndarray]]:
        for start in range(0, rows.n, 700):
            stop = min(start + 700, rows.n)
            yield slice(start, stop), rows.read(start, stop)

    monkeypatch.setattr(logistic.Rows, "blocks", blocks_of_700)
    blocks = LinearProbe.fit(x, None, label)
    assert blocks.about["c"] == pytest.approx(whole.about["c"], rel=1e-3)
    np.testing.assert_allclose(blocks.decision(x), whole.decision(x), atol=0.02)


def test_folds_are_stratified_and_hold_every_row_out_equally_often() -> None:
    label = np.arange(107) < 33
    train = logistic.stratified_folds(label, 4)
    assert train.shape == (107, 50)
    assert np.all((~train).sum(axis=1) == 10)
    held_signals, held_noise = (~train)[label].sum(axis=0), (~train)[~label].sum(axis=0)
    assert np.ptp(held_signals) <= 1 and np.ptp(held_noise) <= 1
    np.testing.assert_array_equal(train, logistic.stratified_folds(label, 4))


def test_recalibration_finds_the_logit_behind_a_score() -> None:
    rng = np.random.default_rng(5)
    logit = rng.normal(-1.0, 2.0, 50_000)
    label = rng.random(50_000) < special.expit(logit)
    loss, gain, offset = logistic.recalibrate((logit - 4.0) / 7.0, label)
    assert (gain, offset) == (pytest.approx(7.0, rel=0.03), pytest.approx(4.0, abs=0.1))
    assert loss.mean() == pytest.approx(np.logaddexp(0.0, np.where(label, -logit, logit)).mean(), abs=1e-4)
    for score, truth in [(np.arange(20.0), np.arange(20) > 9), (-np.arange(20.0), np.arange(20) > 9)]:
        gain = logistic.recalibrate(score, truth)[1]
        assert 0.0 < gain < 2.0  # without overlap it stays finite; of the wrong sign, it stays positive


# --- the linear probe -------------------------------------------------------------------------------------


def test_with_many_labels_the_probe_reaches_the_optimum_and_its_probabilities_are_true() -> None:
    distance = 2.0
    x, label = two_classes(8000, distance=distance)
    test, truth = two_classes(20_000, distance=distance, seed=9)
    probe = LinearProbe.fit(x, None, label)
    limit = float(stats.norm.cdf(distance / np.sqrt(2.0)))
    assert limit - 0.008 < auc(truth, probe.decision(test))["value"] < limit + 0.008
    assert calibration(truth, probe.probability(test))["ece"] < 0.02
    np.testing.assert_allclose(probe.probability(test), special.expit(probe.decision(test)))


def test_with_sixty_labels_it_is_better_than_scikit_learns_own_choice_of_strength() -> None:
    """Signals in 40 of 384 directions whose variance falls as a power of their rank: not at all, gently,
    steeply."""
    ours, theirs = [], []
    # Before scikit-learn 1.8 this is what it does; from then on it warns where it is not said.
    new = Version(sklearn.__version__) >= Version("1.8")
    ridge: dict[str, Any] = {"l1_ratios": (0.0,), "use_legacy_attributes": False} if new else {}
    for power, shift in [(0.0, 0.28), (0.5, 0.5), (1.0, 0.35)]:
        rng = np.random.default_rng(6)
        label = rng.random(2400) < 0.5
        x = rng.normal(size=(2400, 384)) + np.outer(label, shift * (np.arange(384) < 40))
        x = x * np.arange(1.0, 385.0) ** -power @ np.linalg.qr(rng.normal(size=(384, 384)))[0]
        x = x.reshape(2400, 3, 128).astype(np.float32)
        for seed in range(6):
            rows = labelled_subset(400, 60, seed, label[:400])
            probe = LinearProbe.fit(x, None, label, rows, seed=seed)
            features = FeatureMap("concat").fit(x[rows])
            model = LogisticRegressionCV(Cs=np.geomspace(1e-6, 1.0, 7), scoring="neg_log_loss", **ridge)
            model.fit(features.transform(x[rows]), label[rows])
            ours.append(auc(label[400:], probe.decision(x[400:]))["value"])
            theirs.append(auc(label[400:], model.decision_function(features.transform(x[400:])))["value"])
    each = np.reshape(np.subtract(ours, theirs), (3, 6)).mean(axis=1)
    assert each.mean() > 0.0 and each.min() > -0.01


@pytest.mark.parametrize("n", [10, 11, 30])
def test_the_fewest_labels_give_a_finite_probe(n: int) -> None:
    x, label = two_classes(2000, d=3, e=64, distance=6.0)
    probe = LinearProbe.fit(x, None, label, labelled_subset(2000, n, 1, label))
    logit = probe.decision(x)
    assert np.all(np.isfinite(logit)) and np.abs(logit).max() < 50.0
    assert auc(label, logit)["value"] > 0.6
    assert probe.about["n_labels"] == n


def test_only_the_labelled_rows_are_looked_at() -> None:
    x, label = two_classes(500)
    rows = labelled_subset(500, 50, 2, label)
    probe = LinearProbe.fit(x, None, label, rows)
    others = np.setdiff1d(np.arange(500), rows)
    changed, relabelled = x.copy(), label.astype(float)
    changed[others], relabelled[others] = 1e6, np.nan
    again = LinearProbe.fit(changed, None, relabelled, rows[::-1])
    np.testing.assert_array_equal(again.coef, probe.coef)
    assert again.intercept == probe.intercept
    np.testing.assert_array_equal(LinearProbe.fit(x[np.sort(rows)], None, label[np.sort(rows)]).coef, probe.coef)


def test_a_probe_is_the_same_in_any_units() -> None:
    x, label = two_classes(400)
    moved = 8.0 * x - 100.0
    logit, other = (
        LinearProbe.fit(x, None, label).decision(x),
        LinearProbe.fit(moved, None, label).decision(moved),
    )
    np.testing.assert_allclose(other, logit, atol=0.02)


def test_coherent_features_reject_what_the_detectors_see_at_different_moments() -> None:
    """Each detector by itself shows the same in a signal and in noise: only the sum of their frames can tell."""
    x, both, label = seen_at_once(2000)
    train, test = slice(0, 1000), slice(1000, None)
    result = {}
    for kind in ("concat", "coherent"):
        probe = LinearProbe.fit(x[train], None, label[train], kind=kind, together=both[train])
        result[kind] = auc(label[test], probe.decision(x[test], None, both[test]))["value"]
    assert result["concat"] < 0.56 and result["coherent"] > 0.99


def test_coherent_features_need_what_the_detectors_show_together() -> None:
    x, both, label = seen_at_once(60)
    with pytest.raises(InputError, match="without frames in time"):
        LinearProbe.fit(x, None, label, kind="coherent")
    probe = LinearProbe.fit(x, None, label, kind="coherent", together=both)
    with pytest.raises(InputError, match="without frames in time"):
        probe.decision(x)


def test_only_the_labelled_rows_of_what_is_seen_together_are_looked_at() -> None:
    x, both, label = seen_at_once(300)
    rows = labelled_subset(300, 50, 2, label)
    probe = LinearProbe.fit(x, None, label, rows, "coherent", together=both)
    changed = both.copy()
    changed[np.setdiff1d(np.arange(300), rows)] = 1e6
    again = LinearProbe.fit(x, None, label, rows[::-1], "coherent", together=changed)
    np.testing.assert_array_equal(again.coef, probe.coef)


def test_all_labels_can_be_drawn_but_once() -> None:
    x, y = two_classes(60)
    rows = Features(x, np.ones(x.shape[:2], bool), ("H1", "L1", "V1"), [f"{i}" for i in range(60)], np.zeros(60),
                    y.astype(np.int8), None, None, "0")  # fmt: skip
    some, every = label_curve(rows, rows, [40, 60], 3, 0, "concat")
    assert (some["draws"], every["draws"]) == (3, 1)
    assert some["auc_sd"] is not None and every["auc_sd"] is None


def test_an_absent_detector_neither_helps_nor_harms() -> None:
    x, label = two_classes(3000)
    present = np.ones((3000, 3), dtype=bool)
    present[:, 2] = np.random.default_rng(8).random(3000) < 0.5
    x[~present] = 1e4  # never to be read
    probe = LinearProbe.fit(x, present, label)
    assert auc(label[~present[:, 2]], probe.decision(x, present)[~present[:, 2]])["value"] > 0.7
    z = probe.features.transform(x[:5], np.zeros((5, 3), dtype=bool))
    assert np.all(z == 0)
    np.testing.assert_allclose(probe.decision(x[:5], np.zeros((5, 3), dtype=bool)), probe.intercept)


def test_features_that_never_vary_do_no_harm() -> None:
    x, label = two_classes(300)
    constant = np.concatenate([x, np.full((300, 3, 4), 0.1, dtype=np.float32)], axis=2)
    logit = LinearProbe.fit(x, None, label).decision(x)
    np.testing.assert_allclose(LinearProbe.fit(constant, None, label).decision(constant), logit, atol=1e-3)
    with pytest.raises(InputError, match="none of them varies"):
        LinearProbe.fit(np.ones((300, 3, 4), dtype=np.float32), None, label)


@pytest.mark.parametrize(
    ("rows", "label", "fault"),
    [
        (np.arange(9), np.arange(40) % 2, "9 labelled rows; expected at least 10"),
        (None, np.ones(40), "40 signals and 0 noise rows; expected at least two of each"),
        (None, np.arange(40) == 3, "1 signals and 39 noise rows"),
        (None, np.where(np.arange(40) == 3, np.nan, 0.0), "neither 0 nor 1"),
        (None, np.zeros(39), "one label a row"),
    ],
)
def test_labels_that_cannot_teach_are_refused(rows: Any, label: np.ndarray, fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        LinearProbe.fit(two_classes(40)[0], None, label, rows)


def test_coherent_features_of_an_encoder_of_whole_windows_are_refused_before_anything_is_embedded(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = PairedEncoder("cnn_gru_2021", {"width": 4, "embedding": 16})
    save_encoder(encoder, tmp_path, {"licence": "GPL-3.0-or-later"})
    monkeypatch.setattr("gwtwins.probes.features.embed", lambda *args, **given: pytest.fail("embedded"))
    data = ["--n_labelled", "64", "--n_test", "64", "--bank_size", "64", "--device", "cpu"]
    with pytest.raises(InputError, match="--features coherent: encoder cnn_gru_2021 embeds whole windows"):
        eval_probe.probe(["--weights", str(tmp_path), "--features", "coherent", *data])
    assert not (tmp_path / "probe").exists()


@pytest.mark.parametrize(("name", "args"), [("cnn_gru", {"hidden": 8}), ("cnn_gru_2021", {"width": 4})])
def test_the_watch_looks_at_any_encoder_and_leaves_it_as_it_was(
    small_source: SimulatedSource, name: str, args: dict[str, Any]
) -> None:
    encoder = PairedEncoder(name, args | {"embedding": 16}).train()
    before = fingerprint(encoder)
    watch = LabelledWatch(small_source, 60)
    found = watch(encoder)
    assert set(found) == {"linear_auc", "knn_auc"} and all(0.0 <= value <= 1.0 for value in found.values())
    assert watch(encoder) == found
    assert encoder.training and fingerprint(encoder) == before


# --- its files --------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> tuple[LinearProbe, Path]:
    x, label = two_classes(200)
    names, both = ("H1", "L1", "V1"), x.sum(axis=1)
    probe = LinearProbe.fit(x, None, label, None, "coherent", 0, names, "ab" * 32, both)
    probe.save(tmp_path / "probe.safetensors", {"auc": 0.9, "efficiency": {"0.001": None}})
    return probe, tmp_path


def test_a_saved_probe_comes_back_to_the_last_bit(saved: tuple[LinearProbe, Path]) -> None:
    probe, folder = saved
    x = two_classes(50, seed=4)[0]
    for path in (folder, folder / "probe.safetensors", folder / "probe.json", str(folder)):
        again = LinearProbe.load(path)
        np.testing.assert_array_equal(again.decision(x, None, x.sum(axis=1)), probe.decision(x, None, x.sum(axis=1)))
        assert (again.detectors, again.encoder, again.about) == (probe.detectors, probe.encoder, probe.about)
    node = json.loads((folder / "probe.json").read_text())
    assert node["auc"] == 0.9 and node["linear_probe"]["classes"] == ["noise", "signal"]
    assert node["linear_probe"]["features"] == "coherent" and node["linear_probe"]["together_dim"] == 8
    assert sorted(path.name for path in folder.iterdir()) == ["probe.json", "probe.safetensors"]


def test_a_probe_knows_its_encoder(saved: tuple[LinearProbe, Path]) -> None:
    probe = LinearProbe.load(saved[1])
    probe.check_encoder("ab" * 32, ["H1", "L1", "V1"])
    with pytest.raises(InputError, match="another encoder"):
        probe.check_encoder("cd" * 32, ["H1", "L1", "V1"])
    with pytest.raises(InputError, match="was fitted to H1 L1 V1; expected H1 L1"):
        probe.check_encoder("ab" * 32, ["H1", "L1"])


def edit(folder: Path, **changes: Any) -> None:
    node = json.loads((folder / "probe.json").read_text())
    node["linear_probe"] |= changes
    (folder / "probe.json").write_text(json.dumps(node))


def retensor(folder: Path, **changes: np.ndarray) -> None:
    """Other tensors under a JSON that vouches for them."""
    path = folder / "probe.safetensors"
    save_file({**load_file(path), **changes}, path)
    edit(folder, sha256=linear.hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda f: (f / "probe.json").unlink(), "probe.json: no such file"),
        (lambda f: (f / "probe.safetensors").unlink(), "probe.safetensors: no such file"),
        (lambda f: (f / "probe.json").write_text("{"), "is not JSON"),
        (lambda f: (f / "probe.json").write_text("[" * 100_000), "is not JSON"),
        (lambda f: (f / "probe.json").write_bytes(b"\xff\xfe\x00"), "is not JSON"),
        (lambda f: (f / "probe.json").write_text('{"auc": 0.9}'), "holds no linear probe"),
        (lambda f: (f / "probe.json").write_text("[1]"), "holds no linear probe"),
        (lambda f: edit(f, format="gwtwins-linear-probe-9"), "holds no linear probe"),
        (lambda f: edit(f, features="sum"), "features 'sum'"),
        (lambda f: edit(f, features=["concat"]), "features"),
        (lambda f: edit(f, features="concat"), "together_dim 8 of concat features"),
        (lambda f: edit(f, features="concat", together_dim=0), "holds coef"),
        (lambda f: edit(f, together_dim=0), "together_dim 0 of coherent features"),
        (lambda f: edit(f, together_dim=-8), "together_dim -8"),
        (lambda f: edit(f, together_dim=10**12), "together_dim 1000000000000"),
        (lambda f: edit(f, together_dim=True), "together_dim True"),
        (lambda f: edit(f, together_dim=8.0), "together_dim 8.0"),
        (lambda f: edit(f, together_dim="8"), "together_dim '8'"),
        (lambda f: edit(f, together_dim=None), "together_dim None"),
        (lambda f: edit(f, together_dim=9), r"coef is float64 \(32,\); expected float64 \(33,\)"),
        (lambda f: retensor(f, coef=np.zeros(33)) or edit(f, together_dim=9), r"expected float64 \(1, 9\)"),
        (lambda f: edit(f, detectors=[]), "a list of names"),
        (lambda f: edit(f, detectors=["H1", "L1", 3]), "a list of names"),
        (lambda f: edit(f, detectors=["H1", "L1"]), r"coef is float64 \(32,\); expected float64 \(24,\)"),
        (lambda f: edit(f, embedding_dim=10**9), "embedding_dim 1000000000"),
        (lambda f: edit(f, embedding_dim=True), "embedding_dim True"),
        (lambda f: edit(f, encoder=5), "not a fingerprint"),
        (lambda f: edit(f, sha256="0" * 64), "does not belong to probe.safetensors"),
        (lambda f: (f / "probe.safetensors").write_bytes(b"x" * 99), "does not belong to probe.safetensors"),
        (lambda f: retensor(f, coef=np.zeros(7)), r"coef is float64 \(7,\)"),
        (lambda f: retensor(f, coef=np.zeros(32, dtype=np.float32)), r"coef is float32 \(32,\)"),
        (lambda f: retensor(f, together_inverse=np.full((1, 8), np.inf)), "together_inverse has a value that is not"),
        (lambda f: retensor(f, mean=np.full((3, 8), np.nan)), "mean has a value that is not finite"),
        (lambda f: retensor(f, extra=np.zeros(2)), "holds coef, extra"),
    ],
)
def test_a_spoilt_probe_is_refused_with_the_file_and_the_fault(
    saved: tuple[LinearProbe, Path], spoil: Any, fault: str
) -> None:
    spoil(saved[1])
    with pytest.raises(InputError, match=fault):
        LinearProbe.load(saved[1])


def test_a_truncated_tensor_file_is_refused_even_if_the_json_vouches_for_it(
    saved: tuple[LinearProbe, Path],
) -> None:
    path = saved[1] / "probe.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    edit(saved[1], sha256=linear.hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(InputError, match="not a readable safetensors file"):
        LinearProbe.load(saved[1])


def test_a_file_beyond_any_probes_size_is_not_read(
    saved: tuple[LinearProbe, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match="is over"):
        LinearProbe.load(saved[1])


def test_a_figure_that_json_cannot_hold_leaves_the_old_files(saved: tuple[LinearProbe, Path]) -> None:
    probe, folder = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="JSON"):
        probe.save(folder / "probe.safetensors", {"auc": float("nan")})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# --- the nearest neighbours -------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [None, 1, 7])
def test_knn_is_the_weighted_vote_of_scikit_learns_neighbours(k: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    x, label = two_classes(700)
    query = two_classes(300, seed=5)[0]
    probe = KnnProbe(k).fit(x, None, label)
    features = FeatureMap("concat").fit(x)
    search = NearestNeighbors(n_neighbors=k or 20, metric="cosine").fit(features.transform(x))
    distance, index = search.kneighbors(features.transform(query))
    vote = np.exp((1.0 - distance.astype(np.float64)) / 0.1)
    signal = label[index] == 1
    expected = np.log1p((vote * signal).sum(axis=1)) - np.log1p((vote * ~signal).sum(axis=1))
    np.testing.assert_allclose(probe.decision(query), expected, atol=1e-3)
    monkeypatch.setattr("gwtwins.probes.knn.BLOCK", 24 * 100)
    np.testing.assert_allclose(probe.decision(query), expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["concat", "coherent"])
def test_knn_looks_at_what_the_detectors_show_together_where_it_is_asked_to(kind: str) -> None:
    x, both, label = seen_at_once(600)
    query, seen, truth = seen_at_once(300, seed=8)
    rows = labelled_subset(600, 400, 0, label)
    probe = KnnProbe(kind=kind).fit(x, None, label, rows, both)
    features = FeatureMap(kind).fit(x, None, rows, both)
    known, asked = features.transform(x[rows], None, both[rows]), features.transform(query, None, seen)
    distance, index = NearestNeighbors(n_neighbors=20, metric="cosine").fit(known).kneighbors(asked)
    vote, signal = np.exp((1.0 - distance.astype(np.float64)) / 0.1), label[rows][index] == 1
    expected = np.log1p((vote * signal).sum(axis=1)) - np.log1p((vote * ~signal).sum(axis=1))
    score = probe.decision(query, None, seen)
    np.testing.assert_allclose(score, expected, atol=1e-3)
    area = auc(truth, score)["value"]
    assert area > 0.95 if kind == "coherent" else area < 0.6


def test_knn_tells_the_classes_apart_and_ranks_unanimous_votes() -> None:
    x, label = two_classes(2000, distance=3.0)
    test, truth = two_classes(1000, distance=3.0, seed=6)
    score = KnnProbe().fit(x, None, label, labelled_subset(2000, 500, 0, label)).decision(test)
    assert auc(truth, score)["value"] > 0.82
    assert np.unique(score).size > 990


def test_knn_asks_for_a_sensible_number_of_neighbours() -> None:
    assert [default_k(n) for n in (1, 10, 60, 400, 140_000)] == [1, 3, 8, 20, 20]
    x, label = two_classes(12)
    assert KnnProbe(500).fit(x, None, label).k == 12
    for k in (0, -3, 10**9):
        with pytest.raises(InputError, match="expected 1 to 1000"):
            KnnProbe(k)
    with pytest.raises(InputError, match="no labelled rows"):
        KnnProbe().fit(x, None, label, np.array([], dtype=int))
