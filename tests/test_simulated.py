"""The simulated source: rows that depend on their names alone, and hold what they are said to hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import binom, kstest

from gwosc_writer import GPS_START, coloured_noise, write_gwosc
from gwtwins.ssl.augment import AugmentConfig
from gwtwins.ssl.views import make_views
from gwtwins.strain.batch import Batch
from gwtwins.strain.errors import InputError
from gwtwins.strain.population import POPULATIONS
from gwtwins.strain.psd import DEFAULT_PSDS
from gwtwins.strain.simulated import SimulatedSource, SimulationConfig
from gwtwins.strain.sources import Window

SMALL = SimulationConfig(bank_size=64, n_labelled=64, n_test=64)
# The standard error of a correlation of two windows of 2 s in a band of 480 Hz.
ERROR = (2 * 480 * 2.0) ** -0.5


def source(window: Window | None = None, **changes: Any) -> SimulatedSource:
    return SimulatedSource(replace(SMALL, **changes), window or Window(), progress=False)


def all_of(given: SimulatedSource, split: str, batch_size: int = 512, **options: Any) -> Batch:
    batches = list(given.batches(split, batch_size, **options))
    return Batch(
        strain=torch.cat([b.strain for b in batches]),
        present=torch.cat([b.present for b in batches]),
        gps=torch.cat([b.gps for b in batches]),
        label=torch.cat([b.label for b in batches if b.label is not None]),
        id=[name for b in batches for name in b.id],
        truth={key: torch.cat([b.truth[key] for b in batches]) for key in batches[0].truth},
    )


def correlations(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Between all windows of one (..., T) and all of the other."""
    a, b = (x.reshape(-1, x.shape[-1]) / x.reshape(-1, x.shape[-1]).norm(dim=-1, keepdim=True) for x in (one, other))
    return a @ b.T


def noise_alone(batch: Batch) -> torch.Tensor:
    return batch.strain - batch.truth["signal"]


def test_a_batch(small_source: SimulatedSource) -> None:
    batch = small_source.train_batch(0, 3, range(40))
    assert batch.strain.shape == (40, 3, 4096) and batch.strain.dtype == torch.float32
    assert batch.present.shape == (40, 3) and batch.present.all()
    assert batch.gps.shape == (40,) and batch.gps.dtype == torch.float64
    assert ((batch.gps >= 1.26e9) & (batch.gps < 1.26e9 + 86164)).all()
    assert batch.label is None  # pretraining never sees it
    assert len(set(batch.id)) == len(batch) == 40
    assert small_source.detectors == ("H1", "L1", "V1") and small_source.fresh_noise
    assert (small_source.rate, small_source.window) == (2048.0, 2.0)
    assert {name: psd.name for name, psd in small_source.psds.items()} == {
        name: DEFAULT_PSDS[name] for name in ("H1", "L1", "V1")
    }


@pytest.mark.parametrize("pair", [False, True])
def test_rows_are_the_same_however_they_are_split(small_source: SimulatedSource, pair: bool) -> None:
    """Over batches, processes and after an interruption: to the last bit in noise, to rounding in signals."""

    def draw(rows: range) -> list[Batch]:
        arguments = (2, 11, rows, 0.3)
        return list(small_source.train_pair(*arguments)) if pair else [small_source.train_batch(*arguments)]

    whole = draw(range(24))
    parts = [draw(rows) for rows in (range(1), range(1, 15), range(15, 24))]
    for view in range(len(whole)):
        joined = torch.cat([part[view].strain for part in parts])
        torch.testing.assert_close(joined, whole[view].strain, rtol=0, atol=2e-5)
        is_noise = whole[view].truth["snr"] == 0
        assert torch.equal(joined[is_noise], whole[view].strain[is_noise])
        assert [name for part in parts for name in part[view].id] == whole[view].id
        assert torch.equal(torch.cat([part[view].gps for part in parts]), whole[view].gps)
        assert torch.equal(torch.cat([part[view].truth["snr"] for part in parts]), whole[view].truth["snr"])


def test_the_same_again(small_source: SimulatedSource) -> None:
    one, two = small_source.train_batch(5, 7, range(8)), source().train_batch(5, 7, range(8))
    assert torch.equal(one.strain, two.strain)


def test_steps_and_seeds_and_rows_are_fresh(small_source: SimulatedSource) -> None:
    first = small_source.train_batch(0, 0, range(16))
    for other in (
        small_source.train_batch(0, 1, range(16)),
        small_source.train_batch(1, 0, range(16)),
        small_source.train_batch(0, 0, range(16, 32)),
    ):
        quiet, loud = first.truth["snr"] == 0, other.truth["snr"] == 0
        assert correlations(first.strain[quiet], other.strain[loud]).abs().max() < 5 * ERROR
        both = np.intersect1d(first.truth["snr"].numpy(), other.truth["snr"].numpy())
        assert both.tolist() == [0.0]
        assert not set(first.id) & set(other.id)


def test_half_of_the_rows_carry_a_signal_of_the_population(small_source: SimulatedSource) -> None:
    batches = [small_source.train_batch(0, step, range(250), progress=1.0) for step in range(4)]
    truth = {key: torch.cat([b.truth[key] for b in batches]).numpy() for key in batches[0].truth}
    carries = truth["snr"] > 0
    assert 0.001 < binom.cdf(carries.sum(), 1000, 0.5) < 0.999
    assert kstest(truth["snr"][carries], "uniform", args=(4, 12)).pvalue > 1e-3
    assert kstest(truth["merger"][carries], "uniform", args=(1.2, 0.7)).pvalue > 1e-3
    assert np.isnan(truth["merger"][~carries]).all()
    network = np.linalg.norm(truth["snr_detector"], axis=1)
    np.testing.assert_allclose(network, truth["snr"], rtol=1e-6)
    used = np.bincount(truth["bank_index"][carries].astype(int), minlength=64)
    assert used.size == 64 and (used > 0).sum() > 60  # each of 64 is missed with probability 0.0004


def test_every_detector_sees_a_signal_but_virgo_less(small_source: SimulatedSource) -> None:
    """Virgo reaches 0.53 as far: the median of network SNR 10 leaves 6 in Hanford and 3.3 in Virgo."""
    batch = small_source.train_batch(1, 0, range(1000), progress=1.0)
    each = batch.truth["snr_detector"][batch.truth["snr"] > 0]
    hanford, livingston, virgo = each.median(0).values.tolist()
    assert hanford == pytest.approx(5.9, rel=0.12) and livingston == pytest.approx(5.9, rel=0.12)
    assert virgo == pytest.approx(3.3, rel=0.12)


def test_evaluation_rows_are_half_signals_with_labels(small_source: SimulatedSource) -> None:
    for split in ("labelled", "test"):
        rows = all_of(small_source, split, signal=True)
        assert small_source.count(split) == len(rows) == 64
        assert rows.label is not None
        assert rows.label.tolist() == [0.0, 1.0] * 32
        assert ((rows.truth["snr"] > 0) == (rows.label == 1)).all()
        assert (rows.truth["snr"][1::2] >= 4).all() and (rows.truth["snr"] <= 16).all()  # no curriculum here
        assert (rows.truth["signal"][0::2] == 0).all() and (rows.truth["signal"][1::2] != 0).any(-1).all()
        assert len(set(rows.truth["bank_index"][1::2].tolist())) == 32  # each its own waveform
        assert rows.id == [f"{split}-{n:06d}" for n in range(64)]
        # What is left when the signals are taken away is noise of variance 1.
        assert noise_alone(rows).var().item() == pytest.approx(1.0, abs=0.01)


def test_batch_size_changes_nothing_in_evaluation(small_source: SimulatedSource) -> None:
    whole, small = all_of(small_source, "test"), all_of(small_source, "test", batch_size=7)
    torch.testing.assert_close(small.strain, whole.strain, rtol=0, atol=2e-5)
    assert small.id == whole.id and torch.equal(small.truth["snr"], whole.truth["snr"])


def test_test_rows_depend_on_no_option_of_the_run(small_source: SimulatedSource) -> None:
    """Neither on training, nor on how many labelled rows or training waveforms there are."""
    rows = all_of(small_source, "test")
    small_source.train_batch(99, 5, range(4))
    for changes in (
        {"n_labelled": 10},
        {"bank_size": 65},
        {"curriculum_snr": 0.0, "signal_fraction": 0.9},
        {"n_labelled": 0},
    ):
        assert torch.equal(all_of(source(**changes), "test").strain, rows.strain), changes
    fewer = all_of(source(n_test=31), "test")
    torch.testing.assert_close(fewer.strain, rows.strain[:31], rtol=0, atol=2e-5)


def test_another_evaluation_seed_gives_other_rows_and_the_same_training(small_source: SimulatedSource) -> None:
    other = source(evaluation_seed=2)
    for split in ("labelled", "test"):
        mine, theirs = (noise_alone(all_of(one, split, signal=True)) for one in (small_source, other))
        assert correlations(mine, theirs).abs().max() < 5.5 * ERROR
        binaries = np.concatenate([one.bank(split).parameters for one in (small_source, other)])
        assert len(np.unique(binaries, axis=0)) == len(binaries)
    same = [one.train_batch(3, 5, range(8)).strain for one in (small_source, other)]
    assert torch.equal(*same)


def test_labelled_test_and_training_rows_share_no_noise(small_source: SimulatedSource) -> None:
    labelled, test = (noise_alone(all_of(small_source, split, signal=True)) for split in ("labelled", "test"))
    assert correlations(labelled, test).abs().max() < 5.5 * ERROR
    for seed in (0, 1):  # 1 is the evaluation's own seed
        for step in (0, 1):
            batch = small_source.train_batch(seed, step, range(64))
            train = batch.strain[batch.truth["snr"] == 0]
            assert correlations(train, labelled).abs().max() < 5.5 * ERROR
            assert correlations(train, test).abs().max() < 5.5 * ERROR


def test_labelled_test_and_training_rows_share_no_waveform(small_source: SimulatedSource) -> None:
    held = {role: small_source.bank(role).parameters for role in ("train", "labelled", "test")}
    assert [len(held[role]) for role in held] == [64, 32, 32]
    binaries = np.concatenate(list(held.values()))
    assert len(np.unique(binaries, axis=0)) == len(binaries)
    labelled, test = (all_of(small_source, split).truth for split in ("labelled", "test"))
    for key in ("snr", "merger"):
        assert not np.isin(labelled[key][1::2], test[key][1::2]).any()


def test_a_pair_is_one_signal_in_two_noises(small_source: SimulatedSource) -> None:
    one, two = small_source.train_pair(0, 4, range(32), progress=1.0)
    for key in ("snr", "merger", "bank_index", "snr_detector"):
        assert torch.equal(one.truth[key].nan_to_num(), two.truth[key].nan_to_num())
    assert one.id == two.id and torch.equal(one.gps, two.gps) and one.label is two.label is None
    alone = one.truth["snr"] == 0
    assert correlations(one.strain[alone], two.strain[alone]).abs().max() < 5 * ERROR
    assert torch.equal(small_source.train_batch(0, 4, range(32), progress=1.0).strain, one.strain)
    # The signal cancels in the difference: two noises remain, variance 2, in loud rows as in quiet ones.
    difference = one.strain - two.strain
    assert difference[alone].var().item() == pytest.approx(2.0, abs=0.05)
    assert difference[~alone].var().item() == pytest.approx(2.0, abs=0.05)


def test_the_snr_curriculum(small_source: SimulatedSource) -> None:
    """The upper end falls in a straight line from 50 to the population's 16 over the first 60% of the run."""
    for progress, high in ((0.0, 50.0), (0.3, 33.0), (0.6, 16.0), (0.8, 16.0), (1.0, 16.0)):
        assert small_source.snr_high(progress) == pytest.approx(high)
        snr = small_source.train_batch(0, 0, range(200), progress).truth["snr"].numpy()
        assert kstest(snr[snr > 0], "uniform", args=(4, high - 4)).pvalue > 1e-3
    for given in (source(curriculum_snr=0.0), source(curriculum_end=0.0), source(curriculum_snr=12.0)):
        assert given.snr_high(0.0) == given.snr_high(1.0) == 16.0


def test_progress_moves_loudness_and_nothing_else(small_source: SimulatedSource) -> None:
    early, late = (small_source.train_batch(0, 0, range(32), progress) for progress in (0.0, 1.0))
    alone = early.truth["snr"] == 0
    assert torch.equal(early.strain[alone], late.strain[alone])
    assert torch.equal(early.truth["merger"].nan_to_num(), late.truth["merger"].nan_to_num())
    assert (early.truth["snr"][~alone] > late.truth["snr"][~alone]).all()


def test_signal_fraction(small_source: SimulatedSource) -> None:
    for fraction in (0.1, 1.0):
        snr = source(signal_fraction=fraction).train_batch(0, 0, range(300)).truth["snr"]
        assert 0.001 < binom.cdf((snr > 0).sum().item(), 300, fraction) and (
            fraction == 1.0 or binom.cdf((snr > 0).sum().item(), 300, fraction) < 0.999
        )


def test_1024_hz_is_every_second_sample_of_2048_hz(small_source: SimulatedSource) -> None:
    coarse = source(Window(rate=1024.0))
    assert coarse.rate == 1024.0
    for draw in (
        lambda given: given.train_batch(0, 0, range(16)),
        lambda given: next(given.batches("test", 16)),
    ):
        fine = draw(small_source)
        torch.testing.assert_close(draw(coarse).strain, fine.strain[..., ::2], rtol=0, atol=2e-5)


@pytest.mark.parametrize("detectors", ["V1,L1", "H1", "K1", "L1,K1", "H1,V1,K1", "H1,L1,V1,K1"])
def test_other_networks(cache: Path, detectors: str) -> None:
    given = source(detectors=detectors, bank_size=16, n_test=8, n_labelled=8)
    names = tuple(detectors.split(","))
    assert given.detectors == names and tuple(given.psds) == names
    rows = all_of(given, "test", signal=True)
    assert rows.strain.shape == (8, len(names), 4096) and torch.isfinite(rows.strain).all()
    each = rows.truth["snr_detector"][1::2]
    assert each.shape == (4, len(names)) and (each > 0).all()
    torch.testing.assert_close(each.norm(dim=1), rows.truth["snr"][1::2])
    if names[:2] == ("V1", "L1"):
        assert each[:, 0].mean() < each[:, 1].mean()  # in the order asked for
    train = given.train_batch(0, 0, range(8))
    assert train.strain.shape == (8, len(names), 4096) and train.present.all()
    # What is left when the signals are taken away is noise of variance 1, in each.
    np.testing.assert_allclose(noise_alone(rows).var(dim=(0, 2)), 1.0, atol=0.05)


def test_psds_of_ones_own(cache: Path, tmp_path: Path) -> None:
    """Ten times Hanford's noise: the network's SNR stays, and Hanford has little of it."""
    np.savetxt(tmp_path / "asd.txt", [[10.0, 1e-20], [2000.0, 1e-20]])
    named = DEFAULT_PSDS["L1"]
    given = source(psds=f"{tmp_path / 'asd.txt'},{named}", detectors="H1,L1", bank_size=16, n_test=8)
    assert given.psds["H1"].at(np.array([100.0]))[0] == pytest.approx(1e-40)
    each = all_of(given, "test").truth["snr_detector"][1::2]
    assert (each[:, 0] < 0.2 * each[:, 1]).all()


def test_a_population_of_ones_own(cache: Path, tmp_path: Path) -> None:
    node = yaml.safe_load((POPULATIONS / "standard.yaml").read_text())
    node |= {"mass1": {"uniform": [30, 31]}, "mass2": {"uniform": [30, 31]}, "snr": {"uniform": [60, 61]}}
    node |= {"merger": {"uniform": [1.5, 1.51]}, "signal_fraction": 1.0}
    (tmp_path / "loud.yaml").write_text(yaml.safe_dump(node))
    given = source(population=str(tmp_path / "loud.yaml"), bank_size=16, n_test=8, curriculum_snr=0.0)
    batch = given.train_batch(0, 0, range(32))
    assert ((batch.truth["snr"] >= 60) & (batch.truth["snr"] <= 61)).all()
    # SNR 60 in a few cycles stands out of the noise where the merger is said to be.
    loudest = batch.strain[:, :2].abs().amax(1).argmax(-1) / 2048.0
    assert ((loudest - 1.505).abs() < 0.05).float().mean() > 0.9


def test_what_it_says_of_itself_can_be_saved(small_source: SimulatedSource) -> None:
    said = small_source.describe()
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert said["source"] == "simulated" and said["bank_size"] == 64
    assert said["psds"] == {name: DEFAULT_PSDS[name] for name in ("H1", "L1", "V1")}
    assert said["population"]["mass1"] == {"low": 8.0, "high": 70.0, "exponent": 0.0}
    assert source(curriculum_snr=0.0).describe() != said


def test_there_are_no_unlabelled_rows_to_run_through(small_source: SimulatedSource) -> None:
    assert small_source.count("unlabelled") == 0 and list(small_source.batches("unlabelled")) == []


def fingerprint(strain: torch.Tensor) -> torch.Tensor:
    """(B, D): how much of each window lies along one fixed chirp; any change of a row moves it."""
    t = torch.arange(strain.shape[-1], dtype=torch.float64)
    return strain.double() @ torch.cos(0.3 * t + 1e-4 * t**2)


def test_the_rows_of_the_defaults_stay_what_they_are(small_source: SimulatedSource) -> None:
    """Figures are compared across versions. Rows 0, 1 and 5, and all squares' sum, as in the first version."""
    stored = {
        "labelled": ([[-87.181, 84.753, 78.787], [5.914, 24.165, 8.026], [-17.17, -98.829, -53.15]], 661745.5),
        "test": ([[43.915, 10.691, 45.108], [12.338, -3.599, 16.15], [173.321, 53.227, 25.349]], 778859.1),
    }
    rows = {
        "labelled": all_of(small_source, "labelled"),
        "test": all_of(small_source, "test"),
    }
    for name, (three, total) in stored.items():
        found = fingerprint(rows[name].strain)
        np.testing.assert_allclose(found[[0, 1, 5]], three, rtol=0, atol=2e-3, err_msg=name)
        assert found.square().sum().item() == pytest.approx(total, rel=1e-5)
        assert rows[name].present.all() and (rows[name].truth["glitch_snr"] == 0).all()


def test_glitches_and_absent_detectors_never_reach_the_test_rows_unasked(small_source: SimulatedSource) -> None:
    expected = all_of(small_source, "test", signal=True)
    rows = all_of(source(glitch_fraction=0.5, absent=0.5), "test", signal=True)
    assert torch.equal(rows.strain, expected.strain) and torch.equal(rows.present, expected.present)
    assert all(torch.equal(rows.truth[k].nan_to_num(), expected.truth[k].nan_to_num()) for k in expected.truth)
    asked = all_of(source(glitch_fraction=0.5, absent=0.5, test_disturbed=True), "test")
    assert (asked.truth["glitch_snr"] > 0).any() and not asked.present.all()


@pytest.mark.parametrize("split", ["train", "labelled"])
def test_glitches_are_in_the_rows_and_detectors_that_say_so_and_nowhere_else(
    small_source: SimulatedSource, split: str
) -> None:
    def rows(given: SimulatedSource) -> Batch:
        return given.train_batch(0, 3, range(100), 1.0) if split == "train" else all_of(given, split)

    plain, glitchy = rows(small_source), rows(source(glitch_fraction=0.3, glitch_snr="20,40"))
    snr, difference = glitchy.truth["glitch_snr"], (glitchy.strain - plain.strain).double()
    carries = snr > 0
    assert 1e-3 < binom.cdf(int(carries.sum()), carries.numel(), 0.3) < 1 - 1e-3
    assert (difference[~carries] == 0).all() and glitchy.present.all()
    found = (2 * 480 / 2048 * difference.square().sum(-1)).sqrt()
    torch.testing.assert_close(found[carries], snr[carries], rtol=1e-3, atol=0)
    assert ((snr[carries] >= 20) & (snr[carries] <= 40)).all()
    # The label is about signals only, and these are where they were, with or without a glitch on top.
    assert torch.equal(glitchy.truth["snr"], plain.truth["snr"])
    signal = glitchy.truth["snr"] > 0
    assert carries[signal].any() and carries[~signal].any()
    if split == "labelled":
        assert glitchy.label is not None and torch.equal(glitchy.label == 1, signal)


@pytest.mark.parametrize("detectors", ["H1,L1,V1", "L1,K1", "V1"])
def test_detectors_are_absent_as_often_as_asked_and_one_is_always_left(cache: Path, detectors: str) -> None:
    given, n = source(detectors=detectors, absent=0.5), detectors.count(",") + 1
    batch = given.train_batch(0, 0, range(1500))
    away = ~batch.present
    assert batch.present.any(1).all()
    probability = 0.5 - 0.5**n / n  # where all would be, one of them is called back
    for d in range(n):
        assert 1e-3 < binom.cdf(int(away[:, d].sum()), 1500, probability) < 1 - 1e-3 or probability == 0
    assert bool(away.any()) == (n > 1)
    assert (batch.strain[away] == 0).all() and (batch.strain[~away] != 0).any(-1).all()
    assert (batch.truth["snr_detector"][away] == 0).all()


def test_a_signals_snr_is_that_in_all_detectors_whichever_are_absent(small_source: SimulatedSource) -> None:
    whole, part = all_of(small_source, "labelled", signal=True), all_of(source(absent=0.4), "labelled", signal=True)
    assert not part.present.all()
    assert torch.equal(part.truth["snr"], whole.truth["snr"])
    assert torch.equal(part.strain[part.present], whole.strain[part.present])
    for key in ("signal", "snr_detector"):
        assert torch.equal(part.truth[key][part.present], whole.truth[key][part.present])
        assert (part.truth[key][~part.present] == 0).all()
    assert part.label is not None and torch.equal(part.label == 1, whole.truth["snr"] > 0)


def test_disturbed_rows_are_the_same_however_they_are_split(cache: Path) -> None:
    given = source(glitch_fraction=0.4, absent=0.4)
    whole = given.train_batch(2, 11, range(24), 0.3)
    parts = [given.train_batch(2, 11, rows, 0.3) for rows in (range(1), range(1, 15), range(15, 24))]
    assert torch.equal(torch.cat([part.present for part in parts]), whole.present)
    assert torch.equal(torch.cat([part.truth["glitch_snr"] for part in parts]), whole.truth["glitch_snr"])
    torch.testing.assert_close(torch.cat([part.strain for part in parts]), whole.strain, rtol=1e-4, atol=2e-4)
    for other in (given.train_batch(3, 11, range(24)), given.train_batch(2, 12, range(24))):
        assert not torch.equal(other.present, whole.present)
        assert not torch.equal(other.truth["glitch_snr"], whole.truth["glitch_snr"])


def test_a_pair_lacks_the_same_detectors_and_has_other_glitches(cache: Path) -> None:
    """A glitch belongs to the noise, of which the two views have one each."""
    one, two = source(glitch_fraction=0.5, absent=0.3).train_pair(0, 4, range(64), progress=1.0)
    assert torch.equal(one.present, two.present) and not one.present.all()
    both = (one.truth["glitch_snr"] > 0) & (two.truth["glitch_snr"] > 0)
    assert both.any() and (one.truth["glitch_snr"][both] != two.truth["glitch_snr"][both]).all()


@pytest.mark.parametrize("kind", ["detector", "pairs", "noise", "augment"])
def test_views_are_of_detectors_that_are_present(cache: Path, kind: str) -> None:
    given = source(absent=0.5, glitch_fraction=0.2)
    views = make_views(kind, given, AugmentConfig())(0, 2, range(64), 0.5, 64)
    present = given.train_batch(0, 2, range(64), 0.5).present
    for name, view in (("first", views.first), ("second", views.second)):
        assert present[views.row, getattr(views, f"{name}_detector")].all()
        assert (view != 0).any(-1).all()
    held = {"detector": present[:, :2].any(1) & present[:, 2], "pairs": present.sum(1) > 1}
    assert views.row.tolist() == torch.nonzero(held.get(kind, present.any(1)))[:, 0].tolist()


def real_noise_files(folder: Path, seconds: int = 96) -> str:
    for i, name in enumerate(("H1", "L1", "V1")):
        write_gwosc(folder / f"{name}.hdf5", coloured_noise(seconds, 1024, seed=i), 1024, name)
    return str(folder)


def test_training_labelled_and_test_rows_take_their_noise_from_different_seconds(cache: Path, tmp_path: Path) -> None:
    given = source(Window(rate=1024.0), noise=real_noise_files(tmp_path), bank_size=16, n_labelled=64, n_test=64)
    train = given.train_batch(0, 0, range(200))
    drawn = {
        "train": train.strain[train.truth["snr"] == 0],
        **{split: noise_alone(all_of(given, split, signal=True))[::2] for split in ("labelled", "test")},
    }
    for d, name in enumerate(given.detectors):
        whole = torch.from_numpy(given.background._strips[name].strain)
        used = torch.zeros(len(drawn), len(whole), dtype=torch.bool)
        for role, windows in enumerate(drawn.values()):
            for window in windows[:, d]:
                places = torch.nonzero(whole == window[0])[:, 0].tolist()  # float32 noise: one, seldom two
                start = next(i for i in places if torch.equal(whole[i : i + 2048], window))
                used[role, start : start + 2048] = True
        assert (used.sum(1) > 4 * 1024).all()
        assert (used.sum(0) <= 1).all()
    described = given.describe()["background"]
    assert all(set(described[f"{role}_seconds"]) == {"H1", "L1", "V1"} for role in drawn)


def test_without_the_split_every_row_may_take_all_the_noise(cache: Path, tmp_path: Path) -> None:
    files = real_noise_files(tmp_path, 12)
    options = {"noise": files, "bank_size": 16, "n_labelled": 8, "n_test": 8}
    with pytest.raises(InputError, match=r"real noise for labelled rows \(--noise-split\): no usable stretch of H1 is"):
        all_of(source(Window(rate=1024.0), **options), "labelled")
    given = source(Window(rate=1024.0), noise_split=False, **options)
    assert len(all_of(given, "test")) == 8 and "test_seconds" not in given.describe()["background"]


def test_noise_keeps_away_from_the_times_of_ones_own_list(cache: Path, tmp_path: Path) -> None:
    """Given on the command line, or as a file of one on each line."""
    times = [GPS_START + 20.0, GPS_START + 60.0]
    (tmp_path / "list.txt").write_text("".join(f"{t}\n" for t in times))
    options = {"noise": real_noise_files(tmp_path), "noise_split": False, "bank_size": 16}
    whole = source(Window(rate=1024.0), **options)
    for avoid in (",".join(map(str, times)), str(tmp_path / "list.txt")):
        given = source(Window(rate=1024.0), noise_avoid=avoid, **options)
        for name in given.detectors:
            assert given.background.seconds(name) == whole.background.seconds(name) - 20.0


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"detectors": "H1,X1"}, "detector X1: is not known; expected H1 L1 V1 K1"),
        ({"detectors": ""}, "is not known"),
        ({"detectors": "H1,H1"}, "--detectors: H1,H1; expected each detector once"),
        ({"population": "standart"}, "population standart: no such file"),
        ({"signal_fraction": 1.5}, "--signal_fraction: 1.5; expected 0 to 1"),
        ({"signal_fraction": -0.1}, "--signal_fraction"),
        ({"curriculum_end": 2.0}, "--curriculum_end: 2.0; expected 0 to 1"),
        ({"psds": DEFAULT_PSDS["H1"]}, "--psds: 1 PSDs for 3 detectors; expected one each"),
        ({"psds": "aLIGO,aLIGO,aLIGO"}, "aLIGO: no PSD of that name"),
        ({"psds": "a.txt,b.txt,c.txt"}, "a.txt: no such file"),
        ({"bank_size": 0}, "--bank_size: 0"),
        ({"n_test": -1}, "--n_test: -1"),
        ({"n_labelled": -5}, "--n_labelled: -5"),
        ({"evaluation_seed": 0}, "--evaluation_seed: 0; expected 1 or more"),
        ({"noise": "/nowhere/at-all"}, "/nowhere/at-all"),
        ({"noise": "/nowhere/at-all", "noise_exclude": "soon"}, "--noise_exclude"),
        ({"noise": "/nowhere/at-all", "noise_avoid": "1e9,soon"}, "--noise_avoid: 1e9,soon; expected GPS times"),
        ({"noise": "/nowhere/at-all", "noise_avoid": "nan"}, "--noise_avoid: nan"),
        ({"glitch_fraction": 1.1}, "--glitch_fraction: 1.1; expected 0 to 1"),
        ({"glitch_snr": "100,8"}, "--glitch_snr: 100,8; expected two numbers"),
        ({"absent": -0.5}, "--absent: -0.5; expected 0 to 1"),
    ],
)
def test_bad_options_are_refused(cache: Path, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        source(**changes)


def test_windows_that_the_bank_cannot_fill_are_refused(cache: Path, tmp_path: Path) -> None:
    for window, fault in (
        (Window(rate=4096.0, f_high=900.0), "f_high: 900 Hz; expected at most 640 Hz"),
        (Window(seconds=3.0), "merger times: 1.2-1.9 s into a 3 s window"),
    ):
        with pytest.raises(InputError, match=fault):
            source(window).train_batch(0, 0, range(8))
    np.savetxt(tmp_path / "short.txt", [[30.0, 1e-23], [400.0, 1e-23]])
    with pytest.raises(InputError, match="PSD reaches over 30-400 Hz; expected all of 20-500 Hz"):
        source(psds=str(tmp_path / "short.txt"), detectors="H1", bank_size=8).train_batch(0, 0, range(8))
