"""Figures of merit against scikit-learn, plain formulas, and the truth where it is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve

from gwtwins.probes import metrics
from gwtwins.strain.errors import InputError


def rows(seed: int, n: int = 400, shift: float = 1.0, decimals: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Labels and Gaussian scores, ``shift`` standard deviations apart; rounded, they tie."""
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < 0.4).astype(int)
    score = rng.normal(size=n) + shift * label
    return label, score if decimals is None else np.round(score, decimals)


def plain_placements(label: np.ndarray, score: np.ndarray) -> np.ndarray:
    """(n_signal, n_noise): 1 where the signal scores above the noise row, 1/2 in a tie."""
    signal, noise = score[label == 1][:, None], score[label == 0][None]
    return (signal > noise) + 0.5 * (signal == noise)


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_auc_is_the_fraction_of_pairs_in_order(decimals: int | None) -> None:
    label, score = rows(1, decimals=decimals)
    value = metrics.auc(label, score)["value"]
    assert value == pytest.approx(plain_placements(label, score).mean(), abs=1e-12)
    assert value == pytest.approx(reference.roc_auc_score(label, score), abs=1e-12)


def test_auc_variance_is_delongs_formula() -> None:
    label, score = rows(2, decimals=1)
    pairs = plain_placements(label, score)
    expected = pairs.mean(axis=1).var(ddof=1) / pairs.shape[0] + pairs.mean(axis=0).var(ddof=1) / pairs.shape[1]
    assert metrics.auc(label, score)["se"] ** 2 == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n", [40, 300])
def test_auc_interval_holds_the_truth_in_95_of_100_cases(n: int) -> None:
    truth = stats.norm.cdf(2.0 / np.sqrt(2.0))
    low, high = np.transpose([metrics.auc(*rows(seed, n, 2.0))["ci95"] for seed in range(600)])
    assert 0.92 < np.mean((low <= truth) & (truth <= high)) < 0.98


def test_auc_interval_without_overlap_is_not_a_point() -> None:
    label, score = np.repeat([0, 1], 20), np.arange(40.0)
    best, worst = metrics.auc(label, score), metrics.auc(label, -score)
    assert (best["value"], best["ci95"][1]) == (1.0, 1.0) and 0.8 < best["ci95"][0] < 1.0
    assert (worst["value"], worst["ci95"][0]) == (0.0, 0.0) and 0.0 < worst["ci95"][1] < 0.2


def test_auc_difference_has_the_spread_seen_over_repetitions() -> None:
    found = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        label, common = np.repeat([0, 1], 100), rng.normal(size=200)
        a, b = (common + 0.5 * rng.normal(size=200) + shift * label for shift in (1.5, 1.2))
        found.append(metrics.auc_difference(label, a, b))
    values, errors = (np.array([one[key] for one in found]) for key in ("value", "se"))
    assert np.mean(errors) == pytest.approx(values.std(), rel=0.1)
    assert np.mean([one["p_value"] < 0.05 for one in found]) > 0.3


def test_auc_difference_of_a_score_with_itself_is_exactly_nothing() -> None:
    label, score = rows(3)
    result = metrics.auc_difference(label, score, 2.0 * score + 1.0)
    assert (result["value"], result["se"], result["p_value"]) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize("fap", [0.3, 0.1, 0.05])
def test_efficiency_is_the_highest_the_roc_allows(fap: float, decimals: int | None) -> None:
    label, score = rows(4, 1000, decimals=decimals)
    false_alarm, detected, _ = reference.roc_curve(label, score, drop_intermediate=False)
    result = metrics.efficiency(label, score, fap)
    assert result["value"] == pytest.approx(detected[false_alarm <= fap + 1e-12].max(), abs=1e-12)
    assert np.mean(score[label == 0] > result["threshold"]) <= fap


def test_efficiency_interval_holds_the_truth_in_95_of_100_cases() -> None:
    fap, rho = 0.1, 1.5
    truth = stats.norm.sf(stats.norm.isf(fap) - rho)  # known signal: the statistic is N(rho, 1)
    inside, binomial_only = [], []
    for seed in range(600):
        rng = np.random.default_rng(seed)
        label = np.repeat([0, 1], [150, 1000])
        result = metrics.efficiency(label, rng.normal(size=label.size) + rho * label, fap)
        inside.append(result["ci95"][0] <= truth <= result["ci95"][1])
        low, high = metrics.wilson(result["value"] * 1000, 1000)
        binomial_only.append(low <= truth <= high)
    assert 0.92 < np.mean(inside) < 0.985
    assert np.mean(binomial_only) < 0.6  # 150 noise rows: most of the uncertainty is the threshold's


def test_efficiency_is_none_with_a_reason_below_ten_false_alarms() -> None:
    label = np.repeat([0, 1], [999, 50])
    score = np.random.default_rng(5).normal(size=label.size)
    result = metrics.efficiency(label, score, 0.01)
    assert result["value"] is None and result["ci95"] is None
    assert "999 noise rows, 1000 needed" in result["reason"]
    label, score = np.append(label, 0), np.append(score, 0.0)
    assert metrics.efficiency(label, score, 0.01)["value"] is not None


def test_efficiency_counts_rounded_products_right() -> None:
    """0.29 * 100 is 28.999999999999996 in binary; 29 false alarms are allowed all the same."""
    label, score = np.repeat([0, 1], [100, 1]), np.append(np.arange(100.0), 70.5)
    assert metrics.efficiency(label, score, 0.29)["value"] == 1.0


def test_efficiency_of_everything_and_nothing_ends_at_the_bound() -> None:
    label, score = np.repeat([0, 1], 200), np.arange(400.0)
    best, worst = metrics.efficiency(label, score, 0.1), metrics.efficiency(label, -score, 0.1)
    assert best["value"] == best["ci95"][1] == 1.0 and 0.9 < best["ci95"][0] < 1.0
    assert worst["value"] == worst["ci95"][0] == 0.0 and 0.0 < worst["ci95"][1] < 0.1


def test_efficiency_against_snr_counts_every_signal_once() -> None:
    rng = np.random.default_rng(6)
    label = np.repeat([0, 1], 1000)
    snr = np.where(label == 1, rng.uniform(4.0, 18.0, 2000), 0.0)
    snr[-3:] = [16.0, 8.0, np.nan]
    score = rng.normal(size=2000) + 0.4 * np.nan_to_num(snr)
    result = metrics.efficiency_vs_snr(label, score, snr, 0.01)
    threshold = metrics.efficiency(label, score, 0.01)["threshold"]
    assert result["threshold"] == threshold
    for i, row in enumerate(result["bins"]):
        low, high = row["snr"]
        here = (label == 1) & (snr >= low) & ((snr <= high) if i == 5 else (snr < high))
        assert (row["n"], row["detected"]) == (here.sum(), (score[here] > threshold).sum())
        interval = stats.binomtest(row["detected"], row["n"]).proportion_ci(method="wilson")
        assert row["ci95"] == pytest.approx([interval.low, interval.high], abs=1e-12)
    assert result["outside"] + sum(row["n"] for row in result["bins"]) == 1000
    values = [row["value"] for row in result["bins"]]
    assert values == sorted(values)


def test_an_empty_snr_bin_has_no_value() -> None:
    label, score = rows(7, 500)
    result = metrics.efficiency_vs_snr(label, score, np.where(label == 1, 5.0, 0.0), 0.1)
    assert [row["n"] for row in result["bins"]][1:] == [0] * 5
    assert result["bins"][1]["value"] is None and result["bins"][1]["ci95"] is None


@pytest.mark.parametrize("decimals", [None, 1])
def test_roc_is_scikit_learns_curve_with_fewer_points(decimals: int | None) -> None:
    label, score = rows(8, 600, decimals=decimals)
    curve = metrics.roc(label, score)
    false_alarm, detected, threshold = reference.roc_curve(label, score, drop_intermediate=False)
    every = set(zip(false_alarm, detected, np.append(np.nan, threshold[1:]), strict=True))
    assert set(list(zip(*curve.values(), strict=True))[1:]) <= every
    assert reference.auc(curve["fap"], curve["efficiency"]) == pytest.approx(metrics.auc(label, score)["value"])
    assert (curve["fap"][0], curve["efficiency"][0], curve["fap"][-1], curve["efficiency"][-1]) == (
        0,
        0,
        1,
        1,
    )
    assert len(curve["fap"]) < len(false_alarm)


def test_calibration_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(9)
    p = rng.random(5000)
    label = (rng.random(5000) < p**2).astype(int)
    result = metrics.calibration(label, p, 10)
    fraction, mean_p = calibration_curve(label, p, n_bins=10)
    assert [row["fraction"] for row in result["bins"]] == pytest.approx(list(fraction))
    assert [row["mean_p"] for row in result["bins"]] == pytest.approx(list(mean_p))
    assert result["brier"] == pytest.approx(reference.brier_score_loss(label, p))
    assert result["log_loss"] == pytest.approx(reference.log_loss(label, p))
    assert result["ece"] == pytest.approx(1.0 / 6.0, abs=0.02)  # the mean of p - p^2 over [0, 1]
    honest = metrics.calibration((rng.random(5000) < p).astype(int), p, 10)
    assert honest["ece"] < 0.03


def test_certain_probabilities_have_a_finite_loss_and_a_bin() -> None:
    result = metrics.calibration([0, 1, 1], [0.0, 1.0, 0.0], 4)
    assert [row["n"] for row in result["bins"]] == [2, 0, 0, 1]
    assert result["bins"][1]["fraction"] is None
    assert 10.0 < result["log_loss"] < 12.0


def test_everything_is_ready_for_strict_json() -> None:
    label, score = rows(10, 800)
    snr, p = np.where(label == 1, 9.0, 0.0), 1.0 / (1.0 + np.exp(-score))
    for result in (
        metrics.auc(label, score),
        metrics.auc_difference(label, score, -score),
        metrics.efficiency(label, score, 0.1),
        metrics.efficiency(label, score, 1e-6),
        metrics.efficiency_vs_snr(label, score, snr, 0.1),
        metrics.efficiency_vs_snr(label, score, snr, 1e-6),
        metrics.roc(label, score),
        metrics.calibration(label, p),
    ):
        json.dumps(result, allow_nan=False)


def test_what_cannot_be_judged_is_refused_with_the_reason() -> None:
    label, score = rows(11, 20)
    for bad_label, bad_score, fault in [
        (np.ones(20), score, "20 signals and 0 noise rows"),
        (label, np.where(np.arange(20) == 7, np.nan, score), "nan in row 7"),
        (label, score[:-1], r"shape \(19,\)"),
        (label + 1, score, "neither 0 nor 1"),
    ]:
        with pytest.raises(InputError, match=fault):
            metrics.auc(bad_label, bad_score)
    with pytest.raises(InputError, match="between 0 and 1"):
        metrics.efficiency(label, score, 1.0)
    with pytest.raises(InputError, match=r"outside \[0, 1\]"):
        metrics.calibration(label, score)
