"""Weights on disk: what is saved comes back to the bit, and nothing that a stranger's file says is run or believed."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from packaging.version import Version
from safetensors.torch import load_file, save_file

from gwtwins.encoders import registry, weights
from gwtwins.encoders.paired import PairedEncoder
from gwtwins.encoders.weights import describe_weights, find_weights, load_encoder, save_encoder
from gwtwins.probes.features import fingerprint
from gwtwins.probes.linear import LinearProbe
from gwtwins.strain.errors import InputError
from gwtwins.strain.psd import PSD

SMALL: dict[str, Any] = {"width": 8, "hidden": 8, "embedding": 16}
UNUSUAL = {
    **SMALL,
    "pooling": "gem",
    "q": [4, 9.0],
    "bands": 5,
    "strides": [2, 2],
    "rate": 2048.0,
    "window": 1.0,
    "pool_from": 0.25,
}
TINY_2021 = {"width": 4, "embedding": 16, "pool_after": "silu"}


def make(
    name: str = "cnn_gru",
    args: dict[str, Any] | None = None,
    detectors: tuple[str, ...] = ("H1", "L1", "V1"),
    shared: bool = True,
    f_low: float = 20.0,
    f_high: float = 500.0,
) -> PairedEncoder:
    """An encoder whose BatchNorms have seen something."""
    frequency = np.geomspace(5.0, 1024.0, 4000)
    psds = {
        d: PSD(frequency, 1e-46 * (i + 1 + (30.0 / frequency) ** 4), f"psd of {d}") for i, d in enumerate(detectors)
    }
    encoder = PairedEncoder(name, SMALL if args is None else args, detectors, shared, psds, f_low, f_high)
    encoder.train()
    for scale in (1.0, 3.0):
        encoder(scale * torch.randn(8, len(detectors), encoder.samples))
    return encoder


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good export; to be looked at only."""
    folder = tmp_path_factory.mktemp("export")
    save_encoder(make(), folder, {"steps": 7})
    return folder


@pytest.fixture
def folder(export: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoiled."""
    return Path(shutil.copytree(export, tmp_path / "run"))


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Edit the JSON beside the weights; what ``change`` returns, if anything, takes the place of the whole."""
    node = json.loads(path.read_text())
    replaced = change(node)
    path.write_text(json.dumps(node if replaced is None else replaced))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"shared": False},
        {"detectors": ("H1", "K1"), "shared": False},
        {"detectors": ("V1",)},
        {"args": UNUSUAL, "f_low": 30.0, "f_high": 400.0},
        {"name": "cnn_gru_2021", "args": TINY_2021, "f_high": 600.0},
        {"name": "cnn_gru_2021", "args": TINY_2021, "shared": False},
    ],
    ids=["shared", "unshared", "K1", "V1 alone", "unusual", "2021", "2021 unshared"],
)
def test_what_is_saved_comes_back_to_the_bit(given: dict[str, Any], tmp_path: Path) -> None:
    encoder = make(**given)
    save_encoder(encoder, tmp_path, {"objective": "barlow"})
    loaded = load_encoder(tmp_path)
    before, after = encoder.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    running = [value for name, value in after.items() if name.endswith("running_var")]
    assert running and all((value != 1).any() for value in running)  # BatchNorm's state is there, not a fresh one's
    same = "detectors", "shared", "rate", "window", "samples", "embedding_dim", "f_low", "f_high", "name", "args"
    for attribute in same:
        assert getattr(loaded, attribute) == getattr(encoder, attribute)
    x = torch.randn(2, len(encoder.detectors), encoder.samples)
    assert torch.equal(encoder.eval().requires_grad_(False)(x), loaded(x))  # a GRU with gradients rounds otherwise


@pytest.mark.parametrize(("name", "given"), [("cnn_gru", SMALL), ("cnn_gru_2021", TINY_2021)])
def test_every_argument_is_written_so_that_later_defaults_change_no_file(
    name: str, given: dict[str, Any], tmp_path: Path
) -> None:
    """Regression: with those given alone, a file of strides (4, 2, 1) was read as one of (4, 1, 2)."""
    save_encoder(make(name, given), tmp_path, {})
    args = describe_weights(tmp_path)["encoder"]["args"]
    assert set(args) == {field.name for field in dataclasses.fields(registry.build(name, given).config)}
    assert args.items() >= given.items()


def test_a_loaded_encoder_is_frozen(export: Path) -> None:
    loaded = load_encoder(export)
    assert not any(module.training for module in loaded.modules())
    assert not any(p.requires_grad for p in loaded.parameters())
    state = {name: value.clone() for name, value in loaded.state_dict().items()}
    loaded(torch.randn(4, 3, 4096))
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


def test_raw_strain_is_whitened_as_before_saving(tmp_path: Path) -> None:
    encoder = make().eval()
    save_encoder(encoder, tmp_path, {})
    loaded = load_encoder(tmp_path)
    frequency = np.linspace(20.0, 500.0, 3000)
    for name, psd in encoder.psds.items():
        assert loaded.psds[name].at(frequency) == pytest.approx(psd.at(frequency), rel=1e-4)
    raw = 1e-22 * torch.randn(2, 3, 4096, dtype=torch.float64)
    assert torch.allclose(loaded(raw, whitened=False), encoder(raw, whitened=False), atol=1e-4)


def test_shared_weights_are_written_once(tmp_path: Path) -> None:
    sizes = []
    for shared in (True, False):
        (tmp_path / str(shared)).mkdir()
        save_encoder(make(shared=shared), tmp_path / str(shared), {})
        tensors = load_file(tmp_path / str(shared) / "encoder.safetensors")
        sizes.append(sum(t.numel() for name, t in tensors.items() if not name.startswith("psd.")))
    assert 2 * sizes[0] == sizes[1]


def test_the_card_is_beside_the_weights_and_nothing_else(export: Path) -> None:
    assert sorted(p.name for p in export.iterdir()) == ["encoder.json", "encoder.safetensors"]
    node = describe_weights(export)
    assert node["steps"] == 7 and node["detectors"] == ["H1", "L1", "V1"] and node["psds"]["V1"] == "psd of V1"
    # Others may read what others may read: both files have the mode that the umask says.
    modes = {p.stat().st_mode for p in export.iterdir()}
    assert len(modes) == 1


def test_the_folder_either_file_and_the_json_name_the_same_weights(folder: Path) -> None:
    wanted = folder / "encoder.safetensors"
    for path in (folder, wanted, folder / "encoder.json", str(folder)):
        assert find_weights(path) == wanted


def test_shipped_encoders_go_by_name_and_a_name_leads_nowhere_else(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "package" / "shipped"
    shutil.copytree(folder, shipped / "small")
    shutil.copytree(shipped / "small", tmp_path / "package" / "secret")
    monkeypatch.setattr(weights, "SHIPPED", shipped)
    assert load_encoder("gwtwins/small").detectors == ("H1", "L1", "V1")
    for name in ("gwtwins/../secret", "gwtwins/small/../../secret", f"gwtwins/{tmp_path}/package/secret"):
        with pytest.raises(InputError, match="does not come with this version; expected gwtwins/small"):
            find_weights(name)
    with pytest.raises(InputError, match="does not come"):
        find_weights("gwtwins/large")


# What is wrong with a file is said in one line that names it


def test_what_is_not_there_is_said_to_be_missing(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "nowhere", tmp_path / "empty", tmp_path / "no.safetensors"):
        with pytest.raises(InputError, match="no such file"):
            load_encoder(path)
    (folder / "encoder.json").unlink()
    with pytest.raises(InputError, match=r"encoder\.json: no such file"):
        load_encoder(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused(folder: Path, keep: float) -> None:
    path = folder / "encoder.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep > 1 else keep * len(whole))])
    with pytest.raises(InputError, match=r"encoder\.safetensors: is not a whole safetensors file"):
        load_encoder(folder)


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
@pytest.mark.parametrize("name", ["encoder.safetensors", "last.ckpt", "encoder.pt"])
def test_a_pickle_is_refused_and_runs_nothing(folder: Path, writer: str, name: str) -> None:
    path, mark = folder / name, folder / "it ran"
    if writer == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Bomb(mark)}))
    else:
        torch.save({"state_dict": Bomb(mark)}, path)
    with pytest.raises(InputError, match=f"{name}: is not a"):
        load_encoder(path)
    assert not mark.exists()


def _set(*keys: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(node: dict[str, Any]) -> None:
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda node: [node], "does not describe an encoder"),
        (lambda node: "encoder", "does not describe an encoder"),
        (_set("format", to="gwtwins-encoder-99"), "does not describe an encoder of this version"),
        (_set("encoder", to="cnn_gru"), "names no encoder"),
        (_set("encoder", "name", to=["cnn_gru"]), "names no encoder"),
        (_set("encoder", "args", to=[8]), "names no encoder"),
        (_set("encoder", "name", to="resnet"), "no encoder of that name"),
        (_set("encoder", "name", to="../../evil"), "no encoder of that name"),
        (_set("encoder", "args", "width", to=10**12), "out of bounds"),
        (_set("encoder", "args", "width", to="8"), "is a str"),
        (_set("encoder", "args", "hidden", to=float("nan")), "no finite number"),
        (_set("encoder", "args", "rate", to=float("nan")), "no finite number"),
        (_set("encoder", "args", "depth", to=3), "no argument 'depth'"),
        (_set("detectors", to="H1"), "detectors"),
        (_set("detectors", to=[]), "detectors"),
        (_set("detectors", to=["H1", "H1"]), "detectors"),
        (_set("detectors", to=["H1", "X1"]), "detectors"),
        (_set("detectors", to=[["H1"], {}]), "detectors"),
        (_set("detectors", to=["H1"] * 10**5), "detectors"),
        (_set("shared", to="yes"), "shared"),
        (_set("f_low", to=None), "f_low"),
        (_set("f_low", to=float("nan")), "no finite number"),
        (_set("f_low", to=600.0), "f_low"),
        (_set("f_high", to=1e9), "f_high"),
        (_set("f_high", to=float("inf")), "no finite number"),
    ],
)
def test_a_json_that_says_nonsense_is_refused(folder: Path, change: Callable[[dict[str, Any]], Any], says: str) -> None:
    rewrite(folder / "encoder.json", change)
    with pytest.raises(InputError, match=says):
        load_encoder(folder)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "is not JSON"),
        (b"width: 8", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"[" * 200_000, "is not JSON"),
        (b'{"format": "' + b"x" * (1 << 20) + b'"}', "is over 1 MiB"),
        (b'{"f_high": 1' + b"0" * 400 + b"}", r"holds 10000000000000000000\.\.\., which is no finite number"),
        (b'{"f_high": 1e400}', "holds 1e400, which is no finite number"),
        (b'{"seconds": NaN}', "holds NaN, which is no finite number"),
    ],
    ids=["empty", "YAML", "not text", "deep", "large", "beyond float64", "infinite", "NaN"],
)
def test_a_json_that_is_none_is_refused(folder: Path, text: bytes, says: str) -> None:
    (folder / "encoder.json").write_bytes(text)
    with pytest.raises(InputError, match=rf"encoder\.json: {says}"):
        load_encoder(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set("encoder", "args", "width", to=16), "tensor .* where encoder.json says"),
        (_set("encoder", "args", "strides", to=[4, 2]), "tensors do not match encoder.json"),
        (_set("encoder", "args", "pooling", to="gem"), "match encoder.json|where encoder.json says"),
        (_set("encoder", to={"name": "cnn_gru_2021", "args": TINY_2021}), "tensors do not match encoder.json"),
        (_set("shared", to=False), "tensors do not match encoder.json"),
        (_set("detectors", to=["H1", "L1"]), "tensors do not match encoder.json"),
    ],
)
def test_a_json_of_another_encoder_is_refused(folder: Path, change: Callable[[dict[str, Any]], Any], says: str) -> None:
    rewrite(folder / "encoder.json", change)
    with pytest.raises(InputError, match=says):
        load_encoder(folder)


def _edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "encoder.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["hl.head.weight", "hl.cnn.0.running_var"])
def test_weights_that_are_not_finite_are_refused(folder: Path, name: str, value: float) -> None:
    _edit(folder, lambda tensors: tensors[name].view(-1)[3:4].fill_(value))
    with pytest.raises(InputError, match=f"{name} holds NaN or infinity"):
        load_encoder(folder)


def test_tensors_of_another_kind_are_refused(folder: Path) -> None:
    _edit(folder, lambda tensors: tensors.update({"hl.head.bias": tensors["hl.head.bias"].double()}))
    with pytest.raises(InputError, match=r"hl\.head\.bias is \(16,\) torch.float64"):
        load_encoder(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors["psd.H1.value"].fill_(float("nan")),
        lambda tensors: tensors["psd.H1.value"][5:6].fill_(-1.0),
        lambda tensors: tensors["psd.H1.frequency"].fill_(20.0),
        lambda tensors: tensors.update({"psd.H1.value": torch.ones(3, dtype=torch.float64)}),
        pytest.param(
            lambda tensors: tensors.update({"psd.H1.value": torch.ones(1024, dtype=torch.complex64)}),
            marks=pytest.mark.skipif(Version(safetensors.__version__) < Version("0.7"), reason="cannot write complex"),
        ),
    ],
    ids=["NaN", "negative", "constant grid", "other length", "complex"],
)
def test_psds_that_are_none_are_refused(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    _edit(folder, change)
    with pytest.raises(InputError, match=r"psd\.H1"):
        load_encoder(folder)


def test_weights_without_psds_take_whitened_strain_only(folder: Path) -> None:
    _edit(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("psd.")])
    encoder = load_encoder(folder)
    assert encoder(torch.randn(1, 3, 4096)).isfinite().all()
    with pytest.raises(InputError, match="no PSD of H1 L1 V1"):
        encoder(torch.randn(1, 3, 4096), whitened=False)


def test_a_path_with_control_characters_stays_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_encoder(tmp_path / "a\n\x1b[31mb")
    assert len(str(caught.value).splitlines()) == 1 and "\x1b" not in str(caught.value)


@pytest.mark.parametrize("name", ["small", "flagship"])
def test_shipped_encoders_and_their_probes_belong_together(name: str) -> None:
    encoder = weights.load_encoder(f"gwtwins/{name}")
    probe = LinearProbe.load(weights.SHIPPED / name / "probe")
    probe.check_encoder(fingerprint(encoder), encoder.detectors)
    strain = torch.randn(8, 3, encoder.samples, generator=torch.Generator().manual_seed(0))
    embedding, together = encoder.network(strain)
    assert together is not None
    score = probe.decision(embedding.numpy(), None, together.numpy())
    assert (score < 3.0).all()  # white noise is no signal, though its band is wider than conditioned noise has


def test_a_folder_that_holds_a_lock_alone_is_still_to_be_filled(tmp_path: Path) -> None:
    """Regression: of a command that was killed early a lock stays, and its successor's result went to probe-2."""
    save_encoder(make("cnn_gru", SMALL), tmp_path, {})
    assert weights.result_folder(str(tmp_path), "probe") == tmp_path / "probe"
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / ".lock").touch()
    assert weights.result_folder(str(tmp_path), "probe") == tmp_path / "probe"
    (tmp_path / "probe" / "probe.json").write_text("{}")
    assert weights.result_folder(str(tmp_path), "probe") == tmp_path / "probe-2"
