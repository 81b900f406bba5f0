"""The detection benchmark: one command, one table, equal budgets, paired errors, a rival that gets its best chance."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gwtwins import train_ssl
from gwtwins.benchmarks import detection, detection_training, frozen_probe, supervised, transfer
from gwtwins.benchmarks.detection_figures import REPLICATES, Judge, Judged, difference
from gwtwins.benchmarks.detection_rows import ROWS, chosen_rows
from gwtwins.benchmarks.detection_sources import FixedRows, NoiseOnly
from gwtwins.benchmarks.detection_table import Result, costs, write_table
from gwtwins.encoders.paired import PairedEncoder
from gwtwins.encoders.weights import save_encoder
from gwtwins.probes.metrics import auc, auc_difference, efficiency
from gwtwins.strain.command import hold_folder, parse
from gwtwins.strain.errors import InputError
from gwtwins.strain.simulated import SimulatedSource, SimulationConfig
from gwtwins.strain.sources import Window

TINY = {"width": 8, "hidden": 8, "embedding": 16, "bands": 8}
SLIM = Window(rate=1024.0)
POOL = frozen_probe.POOL
OPTIONS = "--encoder-args '{width: 8, hidden: 8, embedding: 16, bands: 8}' --bank-size 32 --batch 16"
BUDGET = [
    "--steps",
    "2",
    "--label-counts",
    "20",
    "60",
    "--test-rows",
    "200",
    "--noise-rows",
    "300",
    "--label-draws",
    "3",
]
ROWS_MADE = ("detector", "concat", "fixed", "untrained", "evidence", "supervised", "supervised_endless", "known")

pytestmark = pytest.mark.usefixtures("cache")


def benchmark(out: Path, *argv: str) -> str:
    """Run the command; table.md."""
    given = ["--out", str(out), "--options", OPTIONS, "--device", "cpu", "--seeds", "2"]
    assert detection.benchmark(detection.arguments([*given, *BUDGET, *argv])) == 0
    return (out / "table.md").read_text()


@pytest.fixture(scope="module")
def made(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a benchmark of a few rows."""
    out = tmp_path_factory.mktemp("detection")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detection_training, "_SUPERVISED_DRAWS", 2)
        patch.setattr(frozen_probe, "POOL", 100)
        patch.setattr(supervised, "RATES", (1e-3, 3e-3))
        patch.setattr("gwtwins.ssl.run_plots.plot_run", lambda *_: None)
        benchmark(out, "--rows", *ROWS_MADE)
        yield out


def test_one_command_gives_one_table(made: Path) -> None:
    text, node = (made / "table.md").read_text(), json.loads((made / "table.json").read_text())
    lines = [line for line in text.splitlines() if line.startswith("|")]
    widths = {line.count("|") for line in lines}
    assert widths <= {5, 7}  # a column for each label count and one for no labels; the costs
    for name in ROWS_MADE:
        assert f"| {ROWS[name].title} (`{name}`) |" in text
        assert any(line.startswith(f"| {ROWS[name].title} |") for line in lines)
        row = node["rows"][name]
        assert [one["seed"] for one in row["seeds"]] == ([0] if name in ("evidence", "known") else [0, 1])
        for count, entry in row["by_labels"].items():
            assert 0.3 < entry["auc"]["mean"] <= 1
            assert entry["efficiency_0.001"] is None or name == "known"  # 300 noise rows cannot say
            assert count in ("20", "60") if name in ("detector", "supervised") else True
    assert node["rows"]["supervised"]["by_labels"].keys() == {"20", "60"}
    assert node["rows"]["known"]["by_labels"]["any"]["auc"]["mean"] > 0.99
    assert node["rows"]["evidence"]["by_labels"]["any"]["auc"]["mean"] > 0.9  # 200 rows: 0.95 +- 0.02
    assert node["rows"]["detector"]["by_labels"]["20"]["auc_minus"]["value"] == 0


def test_equal_budgets_and_what_they_cost_are_in_the_table(made: Path) -> None:
    rows = json.loads((made / "table.json").read_text())["rows"]
    for name in ("detector", "fixed", "supervised_endless"):
        assert [one["steps"] for one in rows[name]["seeds"]] == [2, 2]
    for name in ("detector", "fixed", "untrained", "supervised_endless"):
        for one in rows[name]["seeds"]:
            assert one["seconds"] > 0 and one["parameters"] == rows["detector"]["seeds"][0]["parameters"]
    assert all(
        tried["steps"] <= 2 for one in rows["supervised"]["seeds"] for c in one["chosen"] for tried in c["tried"]
    )
    assert "Budget of each training: 2 steps" in (made / "table.md").read_text()


def test_a_training_that_was_finished_is_not_done_again_where_judging_was_cut_short(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = made / "detector" / "seed1" / "result.json"
    held = json.loads(result.read_text())["by_labels"]
    result.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(detection_training, "pretrain", lambda *_: pytest.fail("trained again"))
        benchmark(made, "--rows", "detector")
    assert json.loads(result.read_text())["by_labels"] == held


def test_what_is_there_is_not_made_again_and_what_is_missing_is(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (made / "table.json").read_text()
    result = made / "supervised" / "seed1-20labels" / "result.json"
    held = json.loads(result.read_text())["by_labels"]
    remade = []
    make = detection.make

    def counted(row: Any, seed: int, count: int | None, *rest: Any) -> Any:
        remade.append((row.name, seed, count))
        return make(row, seed, count, *rest)

    monkeypatch.setattr(detection, "make", counted)
    benchmark(made, "--rows", *ROWS_MADE)
    assert not remade and (made / "table.json").read_text() == before
    result.unlink()  # killed before it was done: the folder is there, the result is not
    benchmark(made, "--rows", "supervised")
    assert remade == [("supervised", 1, 20)]
    assert json.loads(result.read_text())["by_labels"] == held
    assert "concat" in json.loads((made / "table.json").read_text())["rows"]  # not asked for, but there


@pytest.mark.parametrize(
    ("changed", "fault"), [(["--steps", "3"], "steps 2, not 3"), (["--test-rows", "100"], "test_rows 200, not 100")]
)
def test_unlike_budgets_or_rows_are_not_mixed(made: Path, changed: list[str], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        benchmark(made, "--rows", "pairs", *changed)
    assert not (made / "pairs").exists()


def test_few_labels_are_drawn_from_many_rows_however_few_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_probe, "POOL", POOL)  # above it is less
    settings = detection.settings_of(detection.arguments(["--label-counts", "20", "60", "--device", "cpu"]))
    assert settings.source(ROWS["detector"]).count("labelled") == POOL == 6000


def test_a_part_that_another_process_is_at_is_left_alone(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "settings.json", tmp_path)
    held = tmp_path / "pairs" / "seed0"
    (held / "run" / "checkpoints").mkdir(parents=True)
    (held / "run" / "checkpoints" / "last.ckpt").write_text("theirs")
    with hold_folder(held), pytest.raises(InputError, match="is at work in it"):
        benchmark(tmp_path, "--rows", "pairs")
    assert (held / "run" / "checkpoints" / "last.ckpt").read_text() == "theirs"


def test_the_config_is_compared_by_what_it_says(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "settings.json", tmp_path)
    demo = (detection.ROOT / "configs" / "demo.yaml").read_text()
    for text, fault in ((f"{demo}crop: 1.5\n", "made with config of another text"), ("nosuch: 1\n", "unknown key")):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(InputError, match=fault):
            benchmark(tmp_path, "--rows", "pairs", "--config", str(tmp_path / "c.yaml"))
    with pytest.raises(InputError, match="no such file"):
        benchmark(tmp_path / "other", "--rows", "pairs", "--config", "nosuch.yaml")
    assert not (tmp_path / "other").exists()  # and the corrected command is not refused
    (tmp_path / "c.yaml").write_text(demo)
    with pytest.raises(InputError, match="reads the encoders of detector"):
        benchmark(tmp_path, "--rows", "concat", "--config", str(tmp_path / "c.yaml"))
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(InputError, match="settings.json: is not JSON"):
        benchmark(tmp_path, "--rows", "pairs")


@pytest.mark.parametrize(
    "wrong",
    [
        ["--label-counts", "5"],
        ["--label-draws", "-1"],
        ["--test-rows", "10"],
        ["--noise-rows", "-5"],
        ["--minutes", "-1"],
        ["--seeds", "-1"],
    ],
)
def test_wrong_numbers_are_refused_before_they_are_kept(tmp_path: Path, wrong: list[str]) -> None:
    """Regression: they were written to settings.json first, and refused the corrected command."""
    with pytest.raises(InputError, match=wrong[0]):
        benchmark(tmp_path / "out", "--rows", "bank", *wrong)
    assert not (tmp_path / "out" / "settings.json").exists()


def test_evidence_alone_is_not_told_of_an_encoder_without_any(tmp_path: Path) -> None:
    run = tmp_path / "untrained" / "seed0" / "run"
    run.mkdir(parents=True)
    save_encoder(PairedEncoder("cnn_gru", {"mergers": 0}), run, {})
    with pytest.raises(InputError, match="no evidence"):
        benchmark(tmp_path, "--rows", "evidence")


def test_a_row_is_compared_with_one_of_the_same_test_rows(tmp_path: Path) -> None:
    label, scores = scored()
    settings = dataclasses.asdict(detection.settings_of(detection.arguments([])))

    def result(scores: np.ndarray) -> list[Result]:
        found = Judge(label, 0)(scores)
        return [Result({"seed": 0, "by_labels": {"any": found.figures}, "seconds": 1.0}, {"any": found.replicates})]

    good, poor = result(scores), result(scores + 2 * np.random.default_rng(0).normal(size=scores.shape))
    made = {"detector": good, "bank": good, "power_law": poor, "power_law_bank": good}
    text = write_table(tmp_path, made, settings, "detector")
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert {name: row["against"] for name, row in rows.items()} == {
        "detector": "detector",
        "bank": "detector",
        "power_law": "power_law",  # the first of its group
        "power_law_bank": "power_law",
    }
    auc = {name: row["by_labels"]["any"]["auc"]["mean"] for name, row in rows.items()}
    less = {name: row["by_labels"]["any"]["auc_minus"]["value"] for name, row in rows.items()}
    assert less["bank"] == 0
    assert less["power_law_bank"] == pytest.approx(auc["power_law_bank"] - auc["power_law"])
    assert less["power_law_bank"] > 0.01
    assert "### Minus `detector`" in text and "### Minus `power_law`" in text


def test_every_training_is_given_the_same_budget() -> None:
    settings = detection.settings_of(detection.arguments(["--minutes", "3"]))
    for row in ROWS.values():
        if row.kind != "frozen" or row.trained_as:
            continue
        command = detection_training.train_command(row, 0, settings, Path("run"))
        run, _, objective, simulation, _ = parse("train_ssl.py", "", train_ssl.concerns(), command)[0]
        untrained = "untrained" in row.name
        assert (run.steps, run.minutes) == (1 if untrained else 0, 3 * row.budget)
        assert row.budget == (10 if row.name.endswith("10x") else 1)
        assert (run.watch, objective.objective) == (0, row.name if row.name in ("vicreg", "ntxent") else "barlow")
        assert simulation.population == ("power_law" if row.name.startswith("power_law") else "standard")


def test_a_training_that_missed_its_budget_is_named() -> None:
    node = {"seed": 0, "by_labels": {}, "seconds": 300.0, "steps": 5, "samples": 1280, "parameters": 7}
    late = Result({**node, "share_of_budget": 1.25}, {})
    text = costs({"pairs": [Result({**node, "share_of_budget": 1.02}, {})], "noise": [late]})
    assert "Not within 0.9 to 1.1 of the budget: `noise` (1.25)." in text


def test_rows_are_chosen_by_name() -> None:
    assert [row.name for row in chosen_rows(["untrained", "detector"], False, "")] == ["detector", "untrained"]
    assert not any(row.group.endswith("real noise") for row in chosen_rows([], False, ""))
    assert any(row.group.endswith("real noise") for row in chosen_rows([], False, "FILES"))
    with pytest.raises(InputError, match="is not a row"):
        chosen_rows(["pears"], False, "")
    with pytest.raises(InputError, match="no real noise"):
        chosen_rows(["real_noise"], False, "")


# --- figures and their errors ------------------------------------------------------------------------------------


def scored(n: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,), and two scores (2, N) that share most of their noise."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 2
    common, own = rng.standard_normal(n), 0.3 * rng.standard_normal((2, n))
    return label, label * np.array([[1.9], [1.7]]) + common + own


def test_figures_are_those_of_the_probes_and_replicates_scatter_about_them() -> None:
    label, scores = scored()
    noise = np.random.default_rng(1).standard_normal((2, 20_000))
    judged = Judge(label, noise.shape[1])(scores, noise)
    each = [auc(label, s)["value"] for s in scores]
    assert judged.figures["auc"] == pytest.approx(np.mean(each))
    assert judged.figures["auc_sd"] == pytest.approx(np.std(each, ddof=1))
    rare = [
        efficiency(np.r_[np.ones(1000), np.zeros(20_000)], np.r_[s[label == 1], m], 0.001)
        for s, m in zip(scores, noise)
    ]
    assert judged.figures["efficiency_0.001"] == pytest.approx(np.mean([one["value"] for one in rare]))
    assert judged.replicates.shape == (3, REPLICATES)
    for name, values in zip(("auc", "efficiency_0.01", "efficiency_0.001"), judged.replicates):
        assert abs(values.mean() - judged.figures[name]) < values.std()
        assert 0 < values.std() < 0.06
    one = Judge(label, 0)(scores[:1])
    assert one.replicates[0].std() == pytest.approx(auc(label, scores[0])["se"], rel=0.2)  # sd of a sd: 5%
    assert one.figures["efficiency_0.001"] is None and np.isnan(one.replicates[2]).all()


def test_the_efficiency_of_a_replicate_is_that_of_the_resampled_rows() -> None:
    label, scores = scored(2400)
    noise = np.random.default_rng(2).standard_normal(12_000)
    judge = Judge(label, noise.size)
    replicates = judge(scores[:1], noise[None]).replicates
    for r in range(3):
        rows, more = np.repeat(np.arange(label.size), judge.weight[r]), np.repeat(noise, judge.noise_weight[r])
        y, s = label[rows], scores[0, rows]
        assert replicates[0, r] == pytest.approx(auc(y, s)["value"], abs=3e-3)  # ties of a row with itself aside
        assert replicates[1, r] == pytest.approx(efficiency(y, s, 0.01)["value"], abs=1e-9)
        signal = s[y == 1]
        both = np.r_[np.ones(signal.size), np.zeros(more.size)], np.r_[signal, more]
        assert replicates[2, r] == pytest.approx(efficiency(*both, 0.001)["value"], abs=1e-9)


def test_differences_are_paired_by_the_test_rows() -> None:
    """The same rows make two scores high or low together: the bootstrap sees it as DeLong's covariance does."""
    label, scores = scored()
    judge = Judge(label, 0)
    first, second = judge(scores[:1]), judge(scores[1:])
    ours, theirs = difference([first], [second], "auc"), auc_difference(label, *scores)
    assert ours is not None
    assert ours["value"] == pytest.approx(theirs["value"])
    assert ours["error"] == pytest.approx(theirs["se"], rel=0.2)
    assert ours["error"] < 0.5 * np.hypot(auc(label, scores[0])["se"], auc(label, scores[1])["se"])


def test_the_spread_over_training_seeds_is_part_of_the_error() -> None:
    quiet = np.zeros((3, REPLICATES))
    names = ("auc", "efficiency_0.01", "efficiency_0.001")

    def results(*values: float) -> list[Judged]:
        return [
            Judged({"scores": 4} | {k: v for n in names for k, v in ((n, x), (f"{n}_sd", 0.02))}, quiet) for x in values
        ]

    found = difference(results(0.90, 0.92, 0.94), results(0.90, 0.90, 0.90), "auc")
    assert found == {"value": pytest.approx(0.02), "error": pytest.approx(0.02 / np.sqrt(3))}
    one = difference(results(0.92), results(0.90), "auc")  # a single seed: the draws of labels, of which there are four
    assert one == {"value": pytest.approx(0.02), "error": pytest.approx(np.sqrt(2) * 0.01)}


# --- rows --------------------------------------------------------------------------------------------------------


def test_noise_only_rows_are_noise_of_their_own(small_source: SimulatedSource) -> None:
    pieces = [
        b.strain for piece in (range(0, 40), range(40, 64)) for b in NoiseOnly(small_source, piece).batches("test", 16)
    ]
    strain = torch.cat(pieces)
    whole = next(NoiseOnly(small_source, range(64)).batches("test", 64))
    torch.testing.assert_close(strain, whole.strain, rtol=0, atol=0)  # however they are cut into pieces
    assert whole.label is not None and not whole.label.any()
    assert abs(strain.var().item() - 1) < 0.02
    test = next(small_source.batches("test", 64))
    both = torch.nn.functional.normalize(torch.cat([strain, test.strain]).reshape(128, -1), dim=1)
    overlap = (both @ both.T).fill_diagonal_(0)
    assert overlap.abs().max() < 0.1  # 480 Hz * 2 s * 2 * 3 numbers in each: 0.019


def test_noise_only_rows_in_recorded_noise_are_cut_from_what_is_for_test_rows(gwosc: Path) -> None:
    files = ",".join(str(path) for path in sorted(gwosc.glob("*GW190413*.hdf5")))
    config = SimulationConfig(noise=files, bank_size=2, n_labelled=2, n_test=2)
    source = SimulatedSource(config, SLIM, progress=False)
    rows = NoiseOnly(source, range(32))
    assert source.background is not None and rows.background is not None
    assert [rows.background.seconds(d) < source.background.seconds(d) for d in source.detectors] == [True] * 3
    strain = next(rows.batches("test", 32)).strain
    assert strain.shape == (32, 3, 2048) and 0.5 < strain.std().item() < 2


def test_noise_only_rows_hold_glitches_where_test_rows_do() -> None:
    config = SimulationConfig(bank_size=2, n_labelled=2, n_test=2, glitch_fraction=0.3)
    peaks = []
    for disturbed in (False, True):
        source = SimulatedSource(dataclasses.replace(config, test_disturbed=disturbed), SLIM, progress=False)
        peaks.append(next(NoiseOnly(source, range(100)).batches("test", 100)).strain.abs().amax(2))
    assert peaks[0].max() < 6 < peaks[1].max()
    assert 0.2 < (peaks[0] != peaks[1]).float().mean() < 0.4


def test_fixed_rows_come_back_and_all_come_once_in_each_round() -> None:
    config = SimulationConfig(bank_size=64, n_labelled=64, n_test=64)
    source = FixedRows(24, config, SLIM)
    steps = [source.train_batch(5, step, range(8), progress=0.0) for step in range(6)]
    rounds = [torch.cat([b.strain for b in steps[i : i + 3]]).flatten(1) for i in (0, 3)]
    match = (rounds[0][:, None] == rounds[1][None]).all(dim=2)
    assert match.sum(0).eq(1).all() and match.sum(1).eq(1).all()  # 24 different rows, and the same 24
    assert not match.diagonal().all()  # in another order
    snr = torch.cat([b.truth["snr"] for b in steps])
    assert snr.max() < 16  # no curriculum: the population's


def test_labels_are_drawn_from_the_same_rows_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_probe, "POOL", POOL)
    ids, label = [f"labelled-{i}" for i in range(60_000)], np.arange(60_000) % 2
    few = frozen_probe.drawn_labels(ids[:6000], label[:6000], 60, 3, 1)
    np.testing.assert_array_equal(few, frozen_probe.drawn_labels(ids, label, 60, 3, 1))
    assert set(few) != set(frozen_probe.drawn_labels(ids, label, 60, 3, 2))
    assert frozen_probe.drawn_labels(ids, label, 60_000, 0, 0).size == 60_000
    assert (frozen_probe.draws_of(600, 20), frozen_probe.draws_of(6000, 20)) == (20, 1)


# --- the supervised rival ----------------------------------------------------------------------------------------


@pytest.fixture
def model() -> supervised.Supervised:
    torch.manual_seed(0)
    return supervised.Supervised(PairedEncoder("cnn_gru", TINY))


def test_the_rival_sees_what_the_probe_sees(model: supervised.Supervised) -> None:
    strain = torch.randn(4, 3, 2048)
    k = model.encoder.evidence
    model.norm.running_mean = torch.linspace(1.0, 3.0, k)
    model.norm.running_var = torch.linspace(2.0, 9.0, k)
    model.eval()
    with torch.inference_mode():
        embedding, together = model.encoder.network(strain)
        assert together is not None
        together[:, -k:] = (together[:, -k:] - model.norm.running_mean) / torch.sqrt(model.norm.running_var + 1e-5)
        expected = model.head(torch.cat([embedding.flatten(1), together], dim=1)).squeeze(1)
        torch.testing.assert_close(model(strain), expected)


def test_augmented_rows_are_the_same_signals(model: supervised.Supervised) -> None:
    strain = torch.zeros(40, 3, 2048)
    strain[:, :, 1500] = torch.tensor([1.0, 2.0, 3.0])
    rows = supervised.LabelledRows(strain.half(), (torch.arange(40) % 2).float(), [f"{i}" for i in range(40)])
    made, label = rows.step(0, 7, 1024.0)
    peak = made.abs().argmax(-1)
    assert (peak == peak[:, :1]).all()  # detectors are shifted together
    assert (peak[:, 0] - 1500).abs().max() <= 103 and peak[:, 0].unique().numel() > 10
    sizes = made.gather(2, peak[..., None])[..., 0]
    assert (sizes.abs() == torch.tensor([1.0, 2.0, 3.0])).all() and 5 < (sizes[:, 0] > 0).sum() < 35
    assert label.sum() == 20


def test_the_rival_learns_from_few_labels_what_can_be_learnt_from_them(model: supervised.Supervised) -> None:
    """A burst in 40 of 80 rows; judged on others."""

    def rows(n: int, seed: int) -> supervised.LabelledRows:
        generator = torch.Generator().manual_seed(seed)
        strain = torch.randn(n, 3, 2048, generator=generator)
        label = (torch.arange(n) % 2).float()
        burst = 3 * torch.sin(2 * np.pi * 100 * torch.arange(400) / 1024)
        strain[1::2, :, 1300:1700] += burst
        return supervised.LabelledRows(strain.half(), label, [f"{i}" for i in range(n)])

    found = supervised.train_labelled(model, rows(80, 0), 0, 40)
    assert found["learning_rate"] in supervised.RATES and 0 < found["steps"] <= 40
    assert len(found["tried"]) == len(supervised.RATES)
    other = rows(60, 1)
    model.eval()
    with torch.inference_mode():
        score = model(other.strain.float()).numpy()
    assert auc(other.label.numpy(), score)["value"] > 0.95


def test_endless_rows_are_pretrainings_own_with_their_labels() -> None:
    source = SimulatedSource(SimulationConfig(bank_size=64, n_labelled=64, n_test=64), SLIM, progress=False)
    strain, label = supervised.endless(source, 3, 10, 32)(4)
    batch = source.train_batch(3, 4, range(32), progress=0.4, batch=32)
    torch.testing.assert_close(strain, batch.strain, rtol=0, atol=0)
    assert 6 < label.sum() < 26
    # The rows with a signal carry it: they are the louder ones at SNRs of up to 50.
    power = strain.square().mean((1, 2))
    assert power[label == 1].mean() > power[label == 0].mean()


# --- transfer ----------------------------------------------------------------------------------------------------


def test_an_encoder_is_judged_on_populations_it_never_saw(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen_probe, "POOL", 60)
    run = str(made / "detector" / "seed0" / "run")
    given = ["--weights", run, "--populations", "standard", "precessing", "--labels", "40", "--draws", "2"]
    given += ["--test-rows", "80", "--noise-rows", "100", "--out", str(tmp_path), "--device", "cpu"]
    given += ["--features", "concat"]  # where evidence is at hand, 40 labels teach nothing else
    assert transfer.benchmark(transfer.arguments(given)) == 0
    node = json.loads((tmp_path / "table.json").read_text())
    assert [one["population"] for one in node] == ["standard", "precessing"]
    standard, precessing = node
    assert standard["standard"] == standard["own"] and standard["standard_minus_own"]["auc"]["value"] == 0
    assert precessing["standard"]["auc"] != precessing["own"]["auc"]
    for one in node:
        assert one["known"]["auc"] > 0.99 and 4 < one["known"]["median_snr_in_window"] < 16
    text = (tmp_path / "table.md").read_text()
    assert f"| {run} | Gaussian | precessing |" in text
    # Made once: the second time nothing is embedded.
    monkeypatch.setattr(transfer, "embed", None)
    assert transfer.benchmark(transfer.arguments(given)) == 0
    assert (tmp_path / "table.md").read_text() == text
