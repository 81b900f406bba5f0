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


@pytest.mark.parametrize("detectors", ["V1,L1", "H1", "H1,L1,V1,K1"])
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
        ({"psds": "a.txt,b.txt,c.txt"}, "a.txt: cannot be read"),
        ({"bank_size": 0}, "--bank_size: 0"),
        ({"n_test": -1}, "--n_test: -1"),
        ({"n_labelled": -5}, "--n_labelled: -5"),
        ({"noise": "/nowhere/at-all"}, "/nowhere/at-all"),
        ({"noise": "/nowhere/at-all", "noise_exclude": "soon"}, "--noise_exclude"),
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
