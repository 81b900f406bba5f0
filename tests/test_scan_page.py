"""The page of a scan: what it says, what it draws, and that it needs the scan's folder alone."""

from __future__ import annotations

import base64
import json
import os
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gwtwins import scan_strain
from gwtwins.probes import plots, scan_page, scan_wording
from gwtwins.probes.false_alarm_rate import YEAR, rate
from gwtwins.probes.scan_page import write_page
from gwtwins.probes.scan_rate_plot import cumulative_rate
from gwtwins.probes.scan_result import Network, read_scan
from gwtwins.probes.scan_timeline import KINDS, OTHER, TimeAxis, at_once, kind_of, timeline
from gwtwins.probes.triggers import Trigger, write_triggers
from gwtwins.strain.coverage import Span
from gwtwins.strain.detector_stream import GATED
from gwtwins.strain.errors import InputError
from gwtwins.strain.segments import EDGE_REASON, SHORT_REASON
from gwtwins.strain.strain_blocks import NO_DATA, NO_FILE
from scan_scene import GPS_START, save_run, write_strain

GPS = 1186741861  # 2017-08-14 10:30:43 UTC
DETECTORS = ("H1", "L1", "V1")
HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"


def found(time: float, stat: float, part: dict[str, float], count: int = 0, slid: float = 4 * YEAR) -> Trigger:
    """A trigger that ``count`` slid ones outdo; one of a detector alone has no rate."""
    clean, kept = (rate(count, slid), rate(count + 1, slid)) if len(part) > 1 else (None, None)
    return Trigger(time, stat, part, time - 0.4, 0.05, clean, kept)


COHERENT = found(GPS + 0.5214, 12.5, {"H1": 4.2, "L1": 6.1, "V1": 0.3})
GLITCH = found(GPS + 5000.0, 8.0, {"H1": 0.1, "L1": 7.1, "V1": 0.2}, count=8)
ALONE = found(GPS + 9000.0, 7.0, {"H1": 6.0})


def made_up(folder: Path, triggers: list[Trigger], seconds: float = 30 * 86400.0, **changes: Any) -> Path:
    """The folder of a scan from an hour before GPS on, with a veto, a gate and a detector that comes late."""
    begin, end = GPS - 3600.0, GPS - 3600.0 + seconds
    late = begin + 0.25 * seconds
    vetoed = (begin + 0.5 * seconds, begin + 0.75 * seconds)
    gate = (GPS + 8998.0, GPS + 9002.0)

    def spans(*edges: tuple[float, float], why: str = "") -> list[dict[str, Any]]:
        return [{"start": a, "end": b, **({"why": why} if why else {})} for a, b in edges]

    bins = [5000, 700, 90, 20, 8, 0, 1]
    report: dict[str, Any] = {
        "command": "python scan_strain.py strain/",
        "config": {
            "weights": "gwtwins/small",
            "probe": "p",
            "threshold": 2.0,
            "stride": 0.125,
            "apart": 2.0,
            "slide": 3.0,
        },
        "encoder": {"objective": "barlow", "views": "detector", "licence": "GPL-3.0-or-later"},
        "probe": {"features": "coherent", "n_labels": 1500},
        "statistic_of_noise": 0.9,
        "windows": {"count": int(seconds * 8), "seconds": 1.0},
        "background": {
            "slides": 1000,
            "stretches": 3,
            "networks": {
                "H1 L1 V1": {
                    "slid_seconds": 4 * YEAR,
                    "triggers": sum(bins),
                    "loudest": 8.6,
                    "histogram": {"low": 2.0, "bin": 1.0, "count": bins},
                },
                "H1": {"why_none": "one detector alone"},
            },
        },
        "analysed_seconds_by_network": {"H1 L1 V1": 0.5 * seconds, "H1": 0.25 * seconds, "H1 L1": 0.25 * seconds},
        "analysed": {
            "H1": spans((begin, end)),
            "L1": spans((begin, gate[0]), (gate[1], vetoed[0]), (vetoed[1], end)),
            "V1": spans((late, end)),
        },
        "not_analysed": {
            "H1": [],
            "L1": [*spans(vetoed, why="fails CBC_CAT2"), *spans(gate, why=GATED)],
            "V1": spans((begin, late), why=NO_FILE),
        },
        "notes": [],
        "seconds": 12.0,
        "seconds_by_stage": {"frames": 10.0, "background": 2.0},
        "versions": {"gwtwins": "0.1.0"},
        **changes,
    }
    folder.mkdir(exist_ok=True)
    (folder / "scan.json").write_text(json.dumps(report))
    write_triggers(folder / "triggers.csv", triggers, DETECTORS)
    return folder


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._hidden = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._hidden else " ".join(data.split()) + " "

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_of_a_real_scan_is_drawn_from_its_folder_alone(tmp_path: Path, cache: Path) -> None:
    """Moved elsewhere, without strain and weights, the same page comes out of it."""
    (tmp_path / "run").mkdir()
    run, merger = save_run(tmp_path / "run"), GPS_START + 21.37
    files = [write_strain(tmp_path, name, 40, merger) for name in ("H1", "L1")]
    out = tmp_path / "out"
    options = ["--weights", str(run), "--out", str(out), "--loudest", "2", "--threshold", "-4"]
    assert scan_strain.scan([*map(str, files), *options]) == 0
    moved = tmp_path / "elsewhere"
    os.rename(out, moved)
    for path in files:
        path.unlink()
    assert scan_page.redraw([str(moved)]) == 0
    page = Page(moved / "scan.html")
    names = {figure["id"] for figure in page.all("figure")}
    assert {"timeline", "rate-H1-L1", "trigger-1", "trigger-2", f"statistic-{GPS_START}"} <= names
    assert "is seen in H1 and L1. Nothing as loud" in page.text and "2 files of H1 and L1" in page.text
    assert files[0].name in page.text  # which strain it was
    result = read_scan(moved)
    best = result.candidates[0]
    assert abs(best.time - merger) < 0.05 and best.seen_in == ("H1", "L1")
    assert f"{best.time:.3f}" in page.text and f"{best.stat:.2f}" in page.text
    assert not list(moved.rglob("*.tmp"))


def test_the_headline_says_who_saw_the_loudest_and_how_rare_it_is(tmp_path: Path) -> None:
    def says(*triggers: Trigger) -> str:
        return scan_wording.headline(read_scan(made_up(tmp_path, list(triggers))))

    text = says(COHERENT, GLITCH)
    assert "2017-08-14 10:30:43.5 UTC, is seen in H1 and L1 (V1 adds little). Nothing as loud" in text
    assert text.endswith("less often than about once in 4 years.")
    text = says(GLITCH)
    assert "stands out in L1 alone though H1 and V1 were on: so do glitches. Noise alone does this about once" in text
    assert text.endswith("once in 183 days.")  # 8 in 4 years
    text = says(ALONE)
    assert "was recorded by H1 alone: one-detector transients cannot be told from glitches." in text
    assert text.endswith("It has no false-alarm rate.")
    assert says() == "No trigger in 30 days of strain of H1, L1 and V1."
    assert says() in Page(write_page(tmp_path)).text


def test_rates_stand_with_their_intervals_in_both_versions(tmp_path: Path) -> None:
    result = read_scan(made_up(tmp_path, [COHERENT, GLITCH, ALONE]))
    coherent, glitch, alone = scan_wording.trigger_rows(result.candidates, DETECTORS)
    assert coherent["rates"][0] == ("rarer than once in 4 years", "")
    assert coherent["rates"][1][0] == "once in 4 years"  # one slid trigger: that of its own strain
    once, interval = glitch["rates"][0]
    gehrels = rate(8, 4 * YEAR)
    assert once == "once in 183 days" and gehrels is not None
    assert interval == " to ".join(scan_wording.duration(YEAR / end) for end in (gehrels.high, gehrels.low))
    assert glitch["rates"][1][0] == "once in 162 days"
    assert alone["rates"] == [("", ""), ("", "")]
    assert coherent["parts"] == ["+4.2", "+6.1", "+0.3"] and alone["parts"] == ["+6.0", "", ""]


def test_a_detector_that_was_away_is_named_with_the_reason(tmp_path: Path) -> None:
    result = read_scan(made_up(tmp_path, [COHERENT, ALONE]))
    words = scan_wording.trigger_caption(result.candidates[1], result)
    assert f"L1 counts as noise here: {GATED}." in words and f"V1 counts as noise here: {NO_FILE}." in words
    near = found(GPS + 9003.0, 3.0, {"H1": 2.0, "L1": 2.0})  # its window is clear of the gate, its picture is not
    result = read_scan(made_up(tmp_path, [near]))
    assert f"L1 from -5.0 to -1.0 s: {GATED}" in scan_wording.trigger_caption(result.candidates[0], result)


def test_the_page_holds_all_it_needs_and_runs_nothing(tmp_path: Path) -> None:
    made_up(tmp_path, [COHERENT, GLITCH, ALONE])
    (tmp_path / "plots").mkdir()
    picture = plots.png(cumulative_rate(plots.LIGHT, read_scan(tmp_path).networks[0], []))
    (tmp_path / "plots" / "trigger-1.png").write_bytes(picture)
    page = Page(write_page(tmp_path))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "form", "svg"}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "srcset"):
            if name in attributes:
                head, data = str(attributes[name]).split(",")
                assert head == "data:image/png;base64"
                assert base64.b64decode(data, validate=True).startswith(b"\x89PNG\r\n")
    text = (tmp_path / "scan.html").read_text(encoding="utf-8")
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    assert "default-src 'none'" in text
    assert len(page.all("img")) == len(page.all("figcaption")) == len(page.all("figure")) == 3
    assert all(len(image["alt"] or "") > 20 for image in page.all("img"))
    assert all(header["scope"] in ("row", "col") for header in page.all("th"))
    targets = {figure["id"] for figure in page.all("figure")}
    assert [link["href"] for link in page.all("a")] == ["#trigger-1"] and "trigger-1" in targets
    assert page.all("html")[0]["lang"] == "en"


def test_strings_from_outside_are_shown_and_do_nothing(tmp_path: Path) -> None:
    spans = {name: [{"start": GPS - 3600.0, "end": GPS + 3600.0}] for name in DETECTORS}
    left = {"H1": [{"start": GPS + 3600.0, "end": GPS + 3700.0, "why": HOSTILE}], "L1": [], "V1": []}
    made_up(tmp_path, [COHERENT], command=HOSTILE, notes=[HOSTILE], analysed=spans, not_analysed=left)
    (tmp_path / "scan-config.json").write_text(json.dumps({"strain files": [{"path": "strain/<img src=x>"}]}))
    page = Page(write_page(tmp_path))
    assert page.text.count("alert(1)") == 3  # as text: command, note, reason
    assert "<img src=x>" in page.text and not any(image.get("src") == "x" for image in page.all("img"))
    assert not page.all("script") and not any(c in page.text for c in "\x1b\u202e")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("scan.json", "{"),
        ("scan.json", "[]"),
        ("scan.json", "{}"),
        ("scan.json", '{"analysed": 3}'),
        ("triggers.csv", "time,stat\n1,2\n"),
        ("triggers.csv", "time,stat,network,window_start,stat_H1\nnan,2,H1,0,1\n"),
        ("scan-config.json", '{"strain files": 3}'),
    ],
)
def test_a_folder_that_holds_no_finished_scan_is_refused(tmp_path: Path, name: str, text: str) -> None:
    made_up(tmp_path, [COHERENT])
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=name):
        write_page(tmp_path)
    with pytest.raises(InputError, match="finished scan"):
        write_page(tmp_path / "absent")
    assert not (tmp_path / "scan.html").exists()


def test_a_reason_has_a_kind() -> None:
    reasons = {
        NO_FILE: "no file",
        NO_DATA: "no data",
        "fails DATA and CBC_CAT1": "vetoed",
        "hardware injection": "vetoed",
        GATED: "gated",
        EDGE_REASON: "end of a stretch",
        SHORT_REASON: "end of a stretch",
        "something new": OTHER,
    }
    assert {why: kind_of(why) for why in reasons} == reasons
    assert set(reasons.values()) == {*KINDS, OTHER}


def test_shares_of_columns_are_those_of_the_time() -> None:
    axis = TimeAxis([Span(100.0, 200.0)])
    share = axis.shares([Span(100.0, 110.0), Span(115.0, 120.0), Span(195.0, 200.0)], columns=10)
    np.testing.assert_allclose(share, [1, 0.5, 0, 0, 0, 0, 0, 0, 0, 0.5])
    assert not axis.broken and axis.place(np.array(150.0)) == 50
    rng = np.random.default_rng(0)
    edges = np.sort(rng.uniform(0, 1e6, 4000)).reshape(-1, 2)
    spans = [Span(float(a), float(b)) for a, b in edges]
    month = TimeAxis([Span(0.0, 1e6)])
    assert month.shares(spans).mean() == pytest.approx(sum(s.end - s.start for s in spans) / 1e6)


def test_years_between_stretches_take_no_more_than_a_fifth_of_the_axis() -> None:
    stretches = [Span(0.0, 30.0), Span(1e8, 1e8 + 50.0), Span(2e8, 2e8 + 20.0)]
    axis = TimeAxis(stretches)
    assert axis.broken and axis.length == pytest.approx(100 / 0.8)
    for s, low, high in zip(stretches, axis.start, axis.end):
        np.testing.assert_allclose(axis.place(np.array([s.start, s.end])), [low, high])
        assert high - low == pytest.approx(s.end - s.start)
    close = TimeAxis([Span(0.0, 4000.0), Span(4100.0, 8000.0)])
    assert not close.broken and close.length == 8000.0


def test_detectors_at_once_are_counted() -> None:
    spans = at_once({"H1": [Span(0.0, 10.0)], "L1": [Span(2.0, 5.0), Span(8.0, 12.0)], "V1": [Span(4.0, 5.0)]})
    seconds = [sum(s.end - s.start for s in group) for group in spans]
    assert seconds == [0 + 2 + 3 + 2, 2 + 2, 1]


@pytest.mark.parametrize(
    ("seconds", "unit"), [(30.0, "Seconds"), (4096.0, "Minutes"), (86400.0, "Hours"), (0.9 * YEAR, "Days")]
)
@pytest.mark.parametrize("theme", [plots.LIGHT, plots.DARK], ids=["light", "dark"])
def test_the_timeline_spans_half_a_minute_to_months(
    tmp_path: Path, seconds: float, unit: str, theme: plots.Theme
) -> None:
    begin, end = GPS - 3600.0, GPS - 3600.0 + seconds
    at = begin + 0.4 * seconds
    spans = {name: [{"start": begin, "end": end}] for name in DETECTORS}
    shown = Trigger(at, 5.0, {"H1": 2.0, "L1": 2.0}, at - 1, 0.05)
    result = read_scan(made_up(tmp_path, [shown], seconds, analysed=spans, not_analysed={}))
    figure = timeline(theme, result)
    main, bars = figure.axes
    assert bars.get_xlim() == (0, seconds)
    assert float(np.asarray(main.lines[0].get_xdata())[0]) == pytest.approx(0.4 * seconds)
    labels = [float(t.get_text()) for t in bars.get_xticklabels()]
    assert 3 <= len(labels) <= 12 and labels[0] == 0 and labels[-1] > labels[0]
    assert bars.get_xlabel() == f"{unit} after GPS {begin:.0f}, 2017-08-14 09:30:43 UTC"
    assert len(plots.png(figure)) > 10_000


def test_the_rate_of_noise_counts_all_that_is_as_loud() -> None:
    network = Network(("H1", "L1"), 3600.0, 36000.0, 111, 4.9, 2.0, 1.0, np.array([100, 10, 1]))
    figure = cumulative_rate(plots.LIGHT, network, [])
    (ax,) = figure.axes
    (noise,) = [patch for patch in ax.patches if patch.get_label() == "noise (time slides)"]
    np.testing.assert_allclose(noise.get_data().values, [11.1, 1.1, 0.1])  # type: ignore[attr-defined]
    (floor,) = [line for line in ax.lines if str(line.get_label()).startswith("floor")]
    assert floor.get_ydata()[0] == pytest.approx(0.1) and "one in 10 h" in str(floor.get_label())  # type: ignore[index]
    assert ax.get_ylabel() == "Triggers per hour of this or more"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.5, "0.5 s"), (41.2, "41 s"), (119, "119 s"), (138, "2.3 min"), (7200, "2 h"), (2 * YEAR, "2 years")]
    + [(1234 * YEAR, "1,234 years")],
)
def test_lengths_of_time_in_words(seconds: float, words: str) -> None:
    assert scan_wording.duration(seconds) == words


def test_times_are_utc_with_leap_seconds() -> None:
    assert scan_wording.utc(1126259462.4, 1) == "2015-09-14 09:50:45.4"
    assert scan_wording.utc(1167264017) == "2016-12-31 23:59:60"
    assert scan_wording.utc(1186741861.96, 1) == "2017-08-14 10:30:44.0"  # carried over, not 43.10
    assert scan_wording.utc(-5.0) == "GPS -5"
