"""The roofline counts what products of matrices cost, by type, and bounds a rate by the slower of these and traffic."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gwtwins.benchmarks import roofline
from gwtwins.benchmarks.roofline import Job, Machine, Operations

FLOAT, HALF = torch.float32, torch.bfloat16


def counted(run) -> dict[torch.dtype, float]:
    with Operations() as operations:
        run()
    return dict(operations.by_type)


def test_a_linear_layer_costs_two_operations_a_weight_and_row_and_its_gradient_twice_that() -> None:
    layer, x = nn.Linear(30, 20), torch.randn(7, 30, requires_grad=True)
    assert counted(lambda: layer(x)) == {FLOAT: 2 * 7 * 30 * 20}
    assert counted(lambda: layer(x).sum().backward()) == {FLOAT: 3 * 2 * 7 * 30 * 20}


def test_a_convolution_costs_two_operations_a_weight_and_output() -> None:
    layer, x = nn.Conv1d(4, 6, 5, stride=2, padding=2), torch.randn(3, 4, 40)
    assert counted(lambda: layer(x)) == {FLOAT: 2 * 3 * 20 * 4 * 6 * 5}


def test_a_recurrent_layer_costs_two_operations_a_weight_row_and_moment() -> None:
    layer, x = nn.GRU(12, 8, batch_first=True, bidirectional=True), torch.randn(3, 10, 12)
    weights = sum(w.numel() for w in layer.parameters() if w.ndim == 2)
    assert counted(lambda: layer(x)) == {FLOAT: 2 * 3 * 10 * weights}


def test_layers_are_counted_in_inference_mode_too() -> None:
    layer, x = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Linear(8, 5)), torch.randn(3, 1, 10)
    with torch.inference_mode():
        assert counted(lambda: layer(x)) == {FLOAT: 2 * 3 * 8 * 2 * 3 + 2 * 3 * 2 * 8 * 5}


def test_products_in_bfloat16_are_counted_by_themselves() -> None:
    a, b = torch.randn(10, 20), torch.randn(20, 30)
    found = counted(lambda: (a @ b, a.bfloat16() @ b.bfloat16(), torch.addmm(torch.zeros(30), a, b)))
    assert found == {FLOAT: 2 * 2 * 10 * 20 * 30, HALF: 2 * 10 * 20 * 30}


def test_a_rate_is_bounded_by_the_slower_of_products_and_traffic() -> None:
    machine = Machine({FLOAT: 100.0, HALF: 400.0}, bandwidth=10.0)
    # 200 operations in float32 take 2 s and 400 in bfloat16 1 s, one after the other; 10 bytes take 1 s, 60 take 6 s.
    assert Job("", 6, lambda: None, 10.0, {FLOAT: 200.0, HALF: 400.0}).bound(machine) == pytest.approx(2.0)
    assert Job("", 6, lambda: None, 60.0, {FLOAT: 200.0, HALF: 400.0}).bound(machine) == pytest.approx(1.0)


def run(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    small = ["--device", "cpu", "--repeats", "1", "--batch", "16", "--windows", "4", "--size", "64", "--steps", "0"]
    monkeypatch.setattr(sys, "argv", ["roofline.py", *small, *argv])
    with pytest.raises(SystemExit) as end:
        roofline.main()
    return int(end.value.code or 0)


def test_the_command_prints_each_job_with_its_bound(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "roofline.json"
    assert run(monkeypatch, "--json", str(out)) == 0
    text, report = capsys.readouterr().out, json.loads(out.read_text())
    assert set(report["jobs"]) == {"networks, a step of pretraining", "embedding", "of networks, with evidence"}
    assert all(name in text for name in report["jobs"])
    # Three detectors' windows share a call: each has an embedding's products, and evidence beside.
    one, network = (report["jobs"][name]["operations"] for name in ("embedding", "of networks, with evidence"))
    assert sum(network.values()) > 1.2 * sum(one.values()) > 0
    for job in report["jobs"].values():
        assert job["bound"] > 0 and len(job["rates"]) == 1


def test_wrong_numbers_and_a_file_that_is_there_are_one_line_and_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.json").write_text("{}")
    for argv, named in (["--batch", "0"], "--batch"), (["--json", str(tmp_path / "old.json")], "old.json"):
        assert run(monkeypatch, *argv) == 2
        error = capsys.readouterr().err
        assert named in error and error.count("\n") == 1
    assert (tmp_path / "old.json").read_text() == "{}"


def test_what_cannot_be_timed_or_written_is_said_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(roofline, "measured", None)
    wrong = [
        ["--steps", "1"],
        ["--json", str(tmp_path / "nodir" / "x.json")],
        ["--device", "tpu"],
    ]
    for argv in wrong:
        assert run(monkeypatch, *argv) == 2
        error = capsys.readouterr().err
        assert argv[0].lstrip("-") in error or "nodir" in error
        assert error.count("\n") == 1
