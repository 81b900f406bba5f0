"""Exported programs give the encoder's embeddings without this package, for any number of rows."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gwtwins.encoders import export
from gwtwins.encoders.export import TOLERANCE, WhitenedForward, export_encoder
from gwtwins.encoders.paired import PairedEncoder
from gwtwins.encoders.weights import describe_weights, load_encoder, save_encoder
from gwtwins.strain.errors import InputError, run_command

SMALL = {"width": 8, "hidden": 8, "embedding": 16}
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="the export extra is not installed")


def make(folder: Path, name: str = "cnn_gru", args: dict[str, Any] | None = None, **given: Any) -> Path:
    """A run's folder with an encoder whose BatchNorms have seen something."""
    encoder = PairedEncoder(name, args or SMALL, **given).train()
    encoder(2.0 * torch.randn(8, len(encoder.detectors), encoder.samples))
    folder.mkdir()
    save_encoder(encoder, folder, {})
    return folder


@pytest.fixture(scope="module")
def unshared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two branches, in an order of detectors that mixes them."""
    torch.manual_seed(1)
    return make(tmp_path_factory.mktemp("export") / "run", detectors=("V1", "H1", "K1", "L1"), shared=False)


@pytest.fixture(scope="module")
def exported(unshared: Path) -> Path:
    """The same, exported by the command beside the weights."""
    assert export.export([str(unshared), *(["--onnx"] if HAS_ONNX else [])]) == 0
    return unshared


def embeddings_of_pt2(path: Path, strain: torch.Tensor) -> torch.Tensor:
    with export._quiet():
        return torch.export.load(path).module()(strain)


def embeddings_of_onnx(path: Path, strain: torch.Tensor) -> torch.Tensor:
    return export._run_onnx(path.read_bytes(), strain)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_the_exported_program_gives_the_encoders_embeddings(exported: Path, rows: int) -> None:
    strain = torch.randn(rows, 4, 2048)
    wanted = load_encoder(exported)(strain)
    assert wanted.std() > 100 * TOLERANCE
    assert torch.allclose(embeddings_of_pt2(exported / "encoder.pt2", strain), wanted, rtol=0, atol=TOLERANCE)


@needs_onnx
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_the_onnx_graph_gives_the_encoders_embeddings(exported: Path, rows: int) -> None:
    strain = torch.randn(rows, 4, 2048)
    wanted = load_encoder(exported)(strain)
    assert torch.allclose(embeddings_of_onnx(exported / "encoder.onnx", strain), wanted, rtol=0, atol=TOLERANCE)


def test_every_order_of_detectors_goes_to_its_branches() -> None:
    for detectors in (("H1",), ("V1",), ("H1", "V1"), ("V1", "H1", "K1", "L1"), ("L1", "K1", "H1")):
        for shared in (True, False):
            encoder = PairedEncoder("cnn_gru", SMALL, detectors, shared).eval()
            strain = torch.randn(3, len(detectors), 2048)
            assert torch.allclose(WhitenedForward(encoder)(strain), encoder(strain), atol=1e-6)


def test_the_files_say_what_windows_they_take_and_not_where_they_were_made(exported: Path, root: Path) -> None:
    extra = {export.DESCRIPTION: ""}
    with export._quiet():
        torch.export.load(exported / "encoder.pt2", extra_files=extra)
    assert json.loads(extra[export.DESCRIPTION]) == describe_weights(exported)
    for path in exported.glob("encoder.*"):
        assert str(root).encode() not in path.read_bytes(), path


@needs_onnx
def test_the_onnx_graph_is_whole_and_names_its_ends(exported: Path) -> None:
    import onnx

    model = onnx.load(exported / "encoder.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"strain": ["batch", 4, 2048], "embedding": ["batch", 4, 16]}
    (text,) = [p.value for p in model.metadata_props if p.key == export.DESCRIPTION]
    assert json.loads(text)["detectors"] == ["V1", "H1", "K1", "L1"]
    assert [node.op_type for node in model.graph.node].count("GRU") == 2  # one for each branch, not unrolled


def test_other_window_lengths_are_refused_by_the_program(exported: Path) -> None:
    with pytest.raises(Exception, match="2048"):
        embeddings_of_pt2(exported / "encoder.pt2", torch.randn(2, 4, 4096))


def test_nothing_is_left_beside_the_files(exported: Path) -> None:
    onnx = {"encoder.onnx"} if HAS_ONNX else set()
    assert {p.name for p in exported.iterdir()} == {"encoder.json", "encoder.safetensors", "encoder.pt2"} | onnx


def test_the_encoder_is_left_as_it_was(tmp_path: Path) -> None:
    encoder = PairedEncoder("cnn_gru", SMALL).train()
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert list(export_encoder(encoder, tmp_path / "new" / "folder", {})) == ["encoder.pt2"]
    assert encoder.training and all(p.requires_grad for p in encoder.parameters())
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    strain = torch.randn(2, 3, 2048)
    got = embeddings_of_pt2(tmp_path / "new" / "folder" / "encoder.pt2", strain)
    assert torch.allclose(got, encoder.eval()(strain), atol=TOLERANCE)


def test_without_the_extra_one_line_says_how_to_install_it(
    unshared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else found(name))
    status = run_command(lambda: export.export([str(unshared), "--out", str(tmp_path / "out"), "--onnx"]))
    (line,) = capsys.readouterr().err.splitlines()
    assert status == 2
    assert "onnx, onnxscript, onnxruntime not installed" in line and "pip install 'gwtwins[export]'" in line
    assert not (tmp_path / "out").exists()


def test_a_program_that_differs_from_the_encoder_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: WhitenedForward, strain: torch.Tensor) -> torch.Tensor:
        return strain[..., :16] + torch.ones(16) * torch.compiler.is_exporting()

    monkeypatch.setattr(WhitenedForward, "forward", broken)
    (tmp_path / "encoder.pt2").write_text("the one before")
    with pytest.raises(RuntimeError, match="encoder.pt2 would differ from the encoder by 1 "):
        export_encoder(PairedEncoder("cnn_gru", SMALL), tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["encoder.pt2"]
    assert (tmp_path / "encoder.pt2").read_text() == "the one before"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "0 weights named"),
        (["one", "two"], "2 weights named"),
        (["nowhere"], "nowhere: no such file"),
        (["gwtwins/nobody"], "does not come with this version"),
        (["nowhere", "--onxn"], "unknown option --onxn; expected --onnx"),
    ],
)
def test_bad_arguments_end_with_one_line(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: export.export(argv)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_a_folder_that_cannot_be_is_refused(unshared: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="cannot be made"):
            export.export([str(unshared), "--out", str(out)])


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize(
    ("name", "args"),
    [("cnn_gru", {}), ("cnn_gru", {**SMALL, "pooling": "gem", "q": [4, 9]}), ("cnn_gru_2021", {"embedding": 64})],
)
def test_every_encoder_exports(name: str, args: dict[str, Any], tmp_path: Path) -> None:
    folder = make(tmp_path / "run", name, args, shared=True)
    assert export.export([str(folder), "--out", str(tmp_path / "out"), "--onnx", "true"]) == 0
    encoder = load_encoder(folder)
    strain = torch.randn(5, 3, encoder.samples)
    wanted = encoder(strain)
    for got in (
        embeddings_of_pt2(tmp_path / "out" / "encoder.pt2", strain),
        embeddings_of_onnx(tmp_path / "out" / "encoder.onnx", strain),
    ):
        assert torch.allclose(got, wanted, rtol=0, atol=TOLERANCE)
