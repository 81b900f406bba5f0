"""The report: its words tell the truth, its page is safe and readable, and its Q-transform is the field's."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.colors
import numpy as np
import pytest
import torch
from scipy.stats import norm

from gwtwins.probes import metrics, plots
from gwtwins.probes.performance import limit_performances, probe_performance
from gwtwins.probes.qtransform import q_transform
from gwtwins.probes.report import principal_components, write_report
from gwtwins.probes.results import Example, ProbeResults, choose_examples, gather_examples, shown_fap
from gwtwins.probes.wording import same_data
from gwtwins.strain.batch import Batch
from gwtwins.strain.errors import InputError
from gwtwins.strain.sources import Source

RATE, BAND = 2048.0, (20.0, 500.0)
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>$\\frac{\x1b[31m\u202e\"'&"


def band_noise(n: int, seed: int, rate: float = RATE) -> np.ndarray:
    """White between 20 and 500 Hz, zero outside, variance 1."""
    rng = np.random.default_rng(seed)
    frequency = np.fft.rfftfreq(n, 1 / rate)
    inside = (frequency >= BAND[0]) & (frequency < BAND[1])
    spectrum = np.zeros(frequency.size, dtype=complex)
    spectrum[inside] = rng.normal(size=inside.sum()) + 1j * rng.normal(size=inside.sum())
    return np.fft.irfft(spectrum, n) * n / np.sqrt(4 * inside.sum())


def sine_gaussian(time: float, frequency: float, snr: float, seconds: float = 2.0) -> np.ndarray:
    """Of the Q-transform's own Q and of optimal SNR ``snr`` in whitened noise of variance 1."""
    t = np.arange(round(seconds * RATE)) / RATE - time
    wave = np.exp(-0.5 * (t * 2 * np.pi * frequency * np.sqrt(2) / 6) ** 2) * np.cos(2 * np.pi * frequency * t)
    return wave * snr / np.sqrt(2 * (BAND[1] - BAND[0]) / RATE * np.sum(wave**2))


def test_q_transform_of_noise_is_exponential_with_mean_one_in_every_row() -> None:
    energy = q_transform(band_noise(1 << 17, 0), RATE, rows=16).energy
    inner = energy[:, 1024:-1024]
    assert inner.mean(axis=1) == pytest.approx(np.ones(16), abs=0.12)  # a few hundred independent tiles at 20 Hz
    assert np.mean(inner[4:] > 3.0) == pytest.approx(np.exp(-3.0), rel=0.05)


def test_q_transform_equals_pycbcs_up_to_its_normalisation() -> None:
    from pycbc.filter.qtransform import qseries
    from pycbc.types import TimeSeries

    x = band_noise(1 << 16, 1) + np.pad(sine_gaussian(1.0, 90.0, 12.0), (20000, (1 << 16) - 24096))
    ours = q_transform(x, RATE, q=8.0, rows=3, f_low=60.0, f_high=240.0)
    reference = TimeSeries(x, delta_t=1 / RATE).to_frequencyseries()
    for i, frequency in enumerate(ours.frequency):
        if frequency in ours.frequency[[0, -1]]:
            continue  # the band given above cuts these tiles' windows, pycbc's are whole
        theirs = qseries(reference, 8.0, frequency).numpy()[2048:-2048]
        mine = ours.energy[i, 2048:-2048]
        assert np.corrcoef(mine, theirs)[0, 1] > 0.9999
        assert np.median(mine / theirs) == pytest.approx(np.median(mine), rel=0.01)  # theirs has median 1


@pytest.mark.parametrize("frequency", [40.0, 110.0, 260.0])
def test_q_transform_shows_a_sine_gaussian_where_it_is_with_half_its_squared_snr(frequency: float) -> None:
    shown = q_transform(sine_gaussian(1.3, frequency, 10.0), RATE)
    row, column = np.unravel_index(shown.energy.argmax(), shown.energy.shape)
    assert shown.time[column] == pytest.approx(1.3, abs=1 / RATE)
    assert shown.frequency[row] == pytest.approx(frequency, rel=0.03)
    assert shown.energy.max() == pytest.approx(50.0, rel=0.02)


def test_q_transform_does_not_wrap_from_the_end_to_the_start() -> None:
    shown = q_transform(sine_gaussian(1.97, 60.0, 20.0), RATE)
    assert shown.energy[:, shown.time > 1.9].max() > 100
    assert shown.energy[:, shown.time < 1.0].max() < 0.1


def test_q_transform_is_the_same_at_half_the_rate() -> None:
    x = band_noise(4096, 2)
    full, half = q_transform(x, RATE), q_transform(x[::2], RATE / 2)
    inner = slice(256, -256)  # at the ends the cut itself, which is not band-limited, aliases
    np.testing.assert_allclose(half.energy[:, inner], full.energy[:, ::2][:, inner], atol=0.02)


@pytest.mark.parametrize("options", [{"f_high": 1200.0}, {"f_low": 0.0}, {"q": 3.0}])
def test_q_transform_refuses_what_it_cannot_do(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="Q-transform"):
        q_transform(np.zeros(4096), RATE, **options)


def made_up(n: int = 3000, **changes: Any) -> ProbeResults:
    """A probe of about the standard population's performance, and a matched filter that beats it."""
    rng = np.random.default_rng(0)
    label = np.arange(n) % 2
    snr = np.where(label == 1, rng.uniform(4, 16, n), 0.0)
    score = rng.normal(0.55 * np.maximum(snr - 3.3, 0.0), 1.0) * 2 - 2
    area = metrics.auc(label, score) if n > 1 else {"value": None, "ci95": None}
    figures: dict[str, Any] = {
        "auc": area["value"],
        "auc_ci95": area["ci95"],
        "efficiency": {f"{p:g}": metrics.efficiency(label, score, p) for p in (0.1, 0.01, 0.001)} if n > 1 else {},
        "efficiency_vs_snr": metrics.efficiency_vs_snr(label, score, snr, 0.01) if n >= 2000 else None,
        "by_labels": [
            {"n_labels": 600, "draws": 20, "auc": 0.911, "auc_sd": 0.001, "efficiency": 0.69, "efficiency_sd": 0.004},
            {"n_labels": 60, "draws": 20, "auc": 0.902, "auc_sd": 0.004, "efficiency": 0.661, "efficiency_sd": 0.013},
        ],
        "n_labels": 1500,
        "frac": "0.25",
        "seconds": {"fit": 2.0, "total": 84.0},
        "knn_auc": 0.881,
        "evidence": {"auc": 0.8642, "efficiency": {"0.01": {"value": 0.5531, "ci95": [0.53, 0.58]}}},
        "versions": {"torch": "2.15.0"},
    }
    directions = rng.normal(size=(2, 24))
    embeddings = np.stack([snr, rng.normal(size=n)], axis=1) @ directions + rng.normal(size=(n, 24))
    given: dict[str, Any] = {
        "figures": figures,
        "ids": [f"test-{i:06d}" for i in range(n)],
        "score": score,
        "p": 1 / (1 + np.exp(-score)),
        "detectors": ("H1", "L1", "V1"),
        "run": {"encoder": {"name": "cnn_gru", "args": {"width": 48}}, "f_low": 20.0, "f_high": 500.0, "steps": 2310},
        "label": label,
        "snr": snr,
        "embeddings": embeddings,
        "limits": {"bank": {"score": rng.normal(0.78 * np.maximum(snr - 3.2, 0.0), 1.0)}, "known_signal": {"snr": snr}},
        "title": "Probe of a made-up run",
        "command": "python eval_probe.py --frac 0.25",
    }
    return ProbeResults(**{**given, **changes})


def windows(detectors: int = 3) -> list[Example]:
    strain = np.stack([band_noise(4096, seed)[::2] for seed in range(detectors)])
    strain[0] += sine_gaussian(1.5, 100.0, 12.0)[::2]
    strain[-1] = 0.0
    return [Example("Best detected", HOSTILE, strain, RATE / 2, 1.5, 12.0, 9.1)]


class Page(HTMLParser):
    """What is on a page: tags with their attributes, and the text that is seen."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[ProbeResults, Page, Path]:
    results = made_up(examples=windows(), title=f"run {HOSTILE}")
    results.ids = [HOSTILE] * len(results.ids)
    results.limits["bank_maximum"] = {"score": results.limits["bank"]["score"] - 0.1}
    results.run = {**results.run, "data": HOSTILE, "psds": {HOSTILE: HOSTILE}}
    path = write_report(tmp_path_factory.mktemp("report"), results)
    return results, Page(path), path.parent


def test_the_headline_says_what_the_figures_say(full: tuple[ProbeResults, Page, Path]) -> None:
    results, page, _ = full
    label = np.asarray(results.label)
    found = metrics.efficiency(label, results.score, 0.01)["value"]
    limit = metrics.efficiency(label, results.limits["bank"]["score"], 0.01)["value"]
    assert (
        f"With 1,500 labels the frozen probe finds {100 * found:.0f}% of the signals at one false alarm in a hundred; "
        f"a matched-filter bank finds {100 * limit:.0f}%." in page.text
    )
    assert "1,500 signals and 1,500 noise windows, so 50% carry a signal" in page.text
    low, high = results.figures["auc_ci95"]
    assert f"{low:.3f}\N{EN DASH}{high:.3f}" in page.text
    assert "1 false alarm in 1,000 is not stated" in page.text and "10000 needed" in page.text


def test_the_page_holds_all_it_needs_and_runs_nothing(full: tuple[ProbeResults, Page, Path]) -> None:
    _, page, folder = full
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "svg", "a"}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "srcset"):
            if name in attributes:
                head, data = str(attributes[name]).split(",")
                assert head == "data:image/png;base64"
                assert base64.b64decode(data, validate=True).startswith(b"\x89PNG\r\n")
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    assert "default-src 'none'" in text


def test_strings_from_outside_are_shown_and_do_nothing(full: tuple[ProbeResults, Page, Path]) -> None:
    _, page, _ = full
    assert page.text.count("<script>alert(1)</script>") >= 4  # as text: title, id, data, PSDs
    assert not any(c in page.text for c in "\x1b\u202e")


def test_every_picture_has_words_and_a_file_and_every_table_has_headers(full: tuple[ProbeResults, Page, Path]) -> None:
    _, page, folder = full
    names = [figure["id"] for figure in page.all("figure")]
    first = ["roc", "efficiency_vs_snr", "labels", "scores", "embedding_label", "embedding_snr", "calibration"]
    assert names == [*first, "example_1_best_detected"]
    assert sorted(p.name for p in (folder / "plots").iterdir()) == sorted(f"{name}.png" for name in names)
    assert sorted(p.name for p in folder.iterdir()) == ["plots", "report.html"]  # nothing half-written left
    assert len(page.all("img")) == len(page.all("figcaption")) == len(names)
    assert all(len(image["alt"] or "") > 20 for image in page.all("img"))
    assert all(header["scope"] in ("row", "col") for header in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) == 3
    assert page.all("html")[0]["lang"] == "en"


def test_few_labels_have_their_curve_and_their_table(full: tuple[ProbeResults, Page, Path]) -> None:
    results, page, _ = full
    alt = next(image["alt"] for image in page.all("img") if "1,500 labels" in str(image["alt"]))
    whole = results.figures["efficiency"]["0.01"]["value"]
    assert f"0.661 with 60 labels, 0.690 with 600 labels, {whole:.3f} with 1,500 labels" in str(alt)
    assert "0.902" in page.text and "\u00b1 0.013" in page.text
    figure = plots.label_curve(plots.LIGHT, results.figures["by_labels"][::-1], "auc", "AUC", [("bank", 0.95)])
    (axes,) = figure.axes
    assert axes.get_ylim()[0] == 0.5  # of an AUC, nothing is below chance
    assert axes.get_legend_handles_labels()[1] == ["bank", "frozen probe"]


def test_what_labels_add_to_evidence_can_be_read_off(full: tuple[ProbeResults, Page, Path]) -> None:
    text = full[1].text
    row = text[text.index("Evidence alone, no labels") :][:60]
    assert "0.864" in row and "0.553" in row


def test_a_limit_close_to_another_is_in_the_table_alone(full: tuple[ProbeResults, Page, Path]) -> None:
    results, page, _ = full
    assert "The same bank, maximum" in page.text
    assert [limit.drawn for limit in limit_performances(results)] == [True, False, True]


def test_without_labels_there_are_scores_and_no_judgement(tmp_path: Path) -> None:
    results = made_up(200, label=None, snr=None, limits={}, examples=[], figures={"n_labels": 60})
    page = Page(write_report(tmp_path, results))
    assert [figure["id"] for figure in page.all("figure")] == ["scores", "embedding_statistic"]
    assert "without labels nothing can be judged" in page.text
    assert "ROC, efficiency and calibration are left out: the labels are not known." in page.text
    assert results.ids[int(np.argmax(results.score))] in page.text


def test_recorded_data_leaves_out_what_needs_the_truth(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path, made_up(400, snr=None, limits={}, embeddings=None)))
    assert [figure["id"] for figure in page.all("figure")] == ["roc", "labels", "scores", "calibration"]
    assert "at one false alarm in ten." in page.text  # 200 noise rows cannot measure one in a hundred
    assert "the signals' SNRs are not known" in page.text and "No limits stand beside" in page.text


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_handful_of_rows_still_gives_a_page(tmp_path: Path, n: int) -> None:
    results = made_up(n, limits={}, figures={}, score=np.zeros(n), p=np.full(n, 0.5), embeddings=np.zeros((n, 4)))
    assert "scores" in [figure["id"] for figure in Page(write_report(tmp_path, results)).all("figure")]


def test_the_roc_reaches_no_further_than_one_noise_row() -> None:
    results = made_up(2400)
    band = {key: np.array([0.1, 0.5]) for key in ("fap", "low", "high")}
    figure = plots.roc(plots.LIGHT, probe_performance(results), limit_performances(results), band, results.n_noise)
    (axes,) = figure.axes
    assert axes.get_xlim() == pytest.approx((1 / 1200, 1.0)) and axes.get_xscale() == "log"
    for line in axes.lines:
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        assert x.min() == pytest.approx(1 / 1200) and np.all(np.diff(x) >= 0) and np.all(np.diff(y) >= 0)
    found = metrics.efficiency(np.asarray(results.label), results.score, 0.1)["value"]
    probe = next(line for line in axes.lines if line.get_label() == "frozen probe")
    curve = np.asarray(probe.get_xdata(), dtype=float), np.asarray(probe.get_ydata(), dtype=float)
    assert np.interp(0.1, *curve) == pytest.approx(found, abs=0.01)


def test_a_known_signals_limit_is_that_of_its_law() -> None:
    results = made_up(40_000, limits={})
    snr = np.asarray(results.snr) * 0.4
    drawn = np.random.default_rng(5).normal(snr, 1.0)
    results.limits = {"known_signal": {"snr": snr}, "drawn": {"score": drawn}}
    law, sample = limit_performances(results)
    assert law.auc is not None and sample.auc is not None and law.roc is not None
    assert law.auc["value"] == pytest.approx(sample.auc["value"], abs=4 * sample.auc["se"])
    low, high = sample.efficiency[0.01]["ci95"]
    assert 2 * low - high < law.efficiency[0.01]["value"] < 2 * high - low
    signals = snr[np.asarray(results.label) == 1]
    assert np.interp(0.1, *law.roc) == pytest.approx(norm.cdf(signals - norm.isf(0.1)).mean(), abs=1e-3)
    for a, b in zip(law.by_snr, sample.by_snr, strict=True):
        assert a["n"] == b["n"] and a["value"] == pytest.approx(b["value"], abs=0.04)


def test_limits_as_plain_numbers_stand_in_the_table(tmp_path: Path) -> None:
    node = {"auc": 0.987, "efficiency": {"0.1": 0.976, "0.01": None}}
    figures = {**made_up(400).figures, "limit": {"some_search": node, "bank": None}}
    results = made_up(400, figures=figures, limits={}, embeddings=None)
    (limit,) = limit_performances(results)
    assert limit.title == "some search" and limit.efficiency == {0.1: {"value": 0.976, "ci95": None}}
    assert "0.987" in Page(write_report(tmp_path, results)).text


def test_examples_are_the_ones_worth_looking_at() -> None:
    results = made_up()
    label, snr = np.asarray(results.label), np.asarray(results.snr)
    rows = choose_examples(results.score, label, snr)
    assert list(rows) == ["Best detected", "Loudest missed", "Worst false alarm"]
    threshold = metrics.efficiency(label, results.score, 0.01)["threshold"]
    missed = (label == 1) & (results.score <= threshold)
    assert rows["Best detected"] == np.argmax(np.where(label == 1, results.score, -np.inf))
    assert missed[rows["Loudest missed"]] and snr[rows["Loudest missed"]] == snr[missed].max()
    assert rows["Worst false alarm"] == np.argmax(np.where(label == 0, results.score, -np.inf))
    assert list(choose_examples(results.score, label)) == ["Best detected", "Worst missed", "Worst false alarm"]
    highest = choose_examples(results.score, None)
    assert results.score[highest["Highest"]] == results.score.max() and len(highest) == 3


class Counting(Source):
    """Windows filled with their row's number; every other one a signal."""

    detectors = ("H1", "L1")
    rate = 1024.0

    def batches(self, split: str, batch_size: int = 512) -> Iterator[Batch]:
        for start in range(0, 1200, batch_size):
            row = torch.arange(start, min(1200, start + batch_size))
            truth = {"snr": (row % 2) * 8.0, "merger": torch.where(row % 2 == 1, 1.5, torch.nan)}
            strain = row[:, None, None].float().expand(-1, 2, 16)
            present = torch.ones(len(row), 2, dtype=torch.bool)
            yield Batch(strain, present, row.double(), None, [f"{split}{i}" for i in row.tolist()], truth)


def test_examples_are_read_from_their_rows() -> None:
    score = np.arange(1200.0)
    found = gather_examples(Counting(), "test", {"Best detected": 1101, "Worst false alarm": 700, "Again": 700}, score)
    assert [e.title for e in found] == ["Best detected", "Worst false alarm", "Again"]
    assert [e.id for e in found] == ["test1101", "test700", "test700"]
    assert [float(e.strain[1, 3]) for e in found] == [1101.0, 700.0, 700.0]
    assert (found[0].snr, found[0].merger, found[1].snr, found[1].merger) == (8.0, 1.5, None, None)
    assert found[0].score == 1101.0 and found[0].rate == 1024.0


def test_principal_components_find_the_directions_of_largest_spread() -> None:
    rng = np.random.default_rng(3)
    hidden = rng.normal(size=(500, 2)) * [3.0, 2.0]
    x = hidden[:, :1] * rng.choice([-1, 1], 40) + 0.1 * rng.normal(size=(500, 40))
    found = principal_components(x, -hidden[:, 0])
    assert found is not None
    xy, share = found
    assert np.corrcoef(xy[:, 0], -hidden[:, 0])[0, 1] > 0.999  # the sign is the score's
    assert share[0] > 0.99
    assert principal_components(np.ones((10, 5)), np.zeros(10)) is None


def test_efficiency_is_quoted_where_noise_rows_can_measure_it() -> None:
    assert shown_fap(made_up(2000)) == 0.01
    assert shown_fap(made_up(1998)) == 0.1
    assert shown_fap(made_up(198)) is None
    assert shown_fap(made_up(2000, label=None)) is None


def test_tested_on_the_same_is_said_of_the_same_alone() -> None:
    learnt = {"source": "simulated", "population": {"name": "x", "mass": [8, 70]}, "psds": {"H1": "a"}, "n_test": 6000}
    assert same_data(learnt, {**learnt, "n_test": 10})
    for changed in ({"psds": {"H1": "b"}}, {"population": {"name": "x", "mass": [8, 90]}}, {"background": {"H1": 5}}):
        assert not same_data(learnt, {**learnt, **changed})
    assert same_data({"kind": "Recorded", "sha256": "1"}, {"kind": "Recorded", "sha256": "1"})
    assert same_data({"kind": "Recorded", "spec": "a", "sha256": "1"}, {"kind": "Recorded", "spec": "b", "sha256": "1"})
    assert not same_data({"kind": "Recorded", "sha256": "1"}, {"kind": "Recorded", "sha256": "2"})
    assert not same_data(learnt, {"kind": "Recorded", "sha256": "1"})


def test_results_of_different_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="score"):
        made_up(100, score=np.zeros(99))
    results = made_up(400, limits={"known_signal": {"snr": np.zeros(3)}})
    with pytest.raises(InputError, match="limit"):
        limit_performances(results)


# Machado, Oliveira & Fernandes, IEEE TVCG 15, 1291 (2009), severity 1, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour: str) -> np.ndarray:
    c = np.array(matplotlib.colors.to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of linear RGB."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb.clip(0, 1)
    f = np.cbrt(np.maximum(xyz / [0.9505, 1.0, 1.089], 1e-6))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", [plots.LIGHT, plots.DARK], ids=["light", "dark"])
def test_colours_can_be_told_apart_by_everyone(theme: plots.Theme, vision: str) -> None:
    matrix = np.array(VISION[vision])
    names = [field.name for field in dataclasses.fields(theme) if field.name != "rising"]
    shown = {name: lab(matrix @ linear(getattr(theme, name))) for name in names}
    for a, b in [("probe", "signal"), ("probe", "noise"), ("signal", "noise"), ("probe", "ink")]:
        assert np.linalg.norm(shown[a] - shown[b]) > 20, (a, b)  # 2 can just be seen
    for name in ("ink", "probe", "signal", "noise"):
        assert np.linalg.norm(shown[name] - shown["paper"]) > 35, name


@pytest.mark.parametrize("theme", [plots.LIGHT, plots.DARK], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_the_paper(theme: plots.Theme) -> None:
    """Contrast as WCAG 2.2 counts it: 7 for text (AAA), 3 for graphics."""

    def contrast(a: str, b: str) -> float:
        light = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) + 0.05 for c in (a, b))
        return light[1] / light[0]

    assert contrast(theme.ink, theme.paper) > 7
    for colour in (theme.probe, theme.signal, theme.noise):
        assert contrast(colour, theme.paper) > 3
