"""Embeddings on disk: the file says what the encoder says, neighbours are the definition's, nothing is half done."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from google.protobuf import text_format
from sklearn.preprocessing import StandardScaler
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from g2net_writer import coloured_noise, names, write_g2net_folder
from gwosc_writer import GPS_START, write_gwosc
from gwosc_writer import coloured_noise as long_noise
from gwtwins.encoders.paired import PairedEncoder
from gwtwins.encoders.weights import load_encoder, save_encoder
from gwtwins.probes import embed, embedding_file, projector
from gwtwins.probes.embed import embed_command
from gwtwins.probes.embedding_file import EmbeddingFile, EmbeddingWriter
from gwtwins.probes.features import fingerprint
from gwtwins.probes.neighbours import Standardiser, find_window, nearest, shown, write_csv
from gwtwins.probes.projector import write_projector
from gwtwins.strain.errors import InputError, run_command
from gwtwins.strain.events import EVENTS
from gwtwins.strain.simulated import SimulatedSource
from gwtwins.strain.sources import Window
from gwtwins.strain.splits import is_test

DETECTORS = ("H1", "L1", "V1")
ABOUT = {"encoder": "f00", "weights": "w", "window": 2.0, "split": "all", "seed": 0, "data": {}, "versions": {}}
SMALL = ["--bank-size", "64", "--n-labelled", "64", "--n-test", "64", "--device", "cpu"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, small_source: SimulatedSource) -> str:
    """A tiny untrained encoder for the windows of every source."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    encoder = PairedEncoder("cnn_gru", {"width": 8, "hidden": 8, "embedding": 16}, psds=small_source.psds)
    save_encoder(encoder, folder, {})
    return str(folder)


def made_up(path: Path, n: int = 300, e: int = 8, seed: int = 0) -> tuple[Path, np.ndarray, np.ndarray]:
    """A file of correlated embeddings in which a third of the detectors is away; it, embedding and present."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(3 * e, 3 * e))
    x = (rng.normal(size=(n, 3 * e)) @ mixing + rng.normal(size=3 * e)).reshape(n, 3, e).astype(np.float32)
    present = rng.random((n, 3)) < 0.67
    present[0] = True
    x[~present] = 0.0
    label, snr = np.where(np.arange(n) % 3 == 2, np.nan, np.arange(n) % 3), np.full(n, np.nan)
    with EmbeddingWriter(path, DETECTORS, e, n, ABOUT) as out:
        for start in range(0, n, 77):
            rows = slice(start, min(start + 77, n))
            ids = [f"row-{row:04d}" for row in range(n)][rows]
            out.add(ids, GPS_START + 2.0 * np.arange(n)[rows], present[rows], x[rows], label[rows], snr[rows])
    return path, x, present


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read some 13 rows at a time."""
    monkeypatch.setattr(embedding_file, "_BLOCK", 13 * 24)


# --- writing ----------------------------------------------------------------------------------------------------


def test_the_file_says_what_the_shipped_encoder_says(
    cache: Path, small_source: SimulatedSource, tmp_path: Path
) -> None:
    argv = ["--weights", "gwtwins/small", "--out", str(tmp_path), "--batch", "50", *SMALL]
    assert embed_command(argv) == 0
    encoder = load_encoder("gwtwins/small")
    window = Window(encoder.rate, encoder.window, encoder.f_low, encoder.f_high)
    source = SimulatedSource(small_source.config, window, progress=False)
    batches = [batch for split in ("labelled", "test") for batch in source.batches(split)]
    with torch.inference_mode():
        expected = torch.cat([encoder(batch.strain) for batch in batches]).numpy()
    with h5py.File(tmp_path / "embeddings.hdf5") as file:
        assert file["id"].asstr()[()].tolist() == [id for batch in batches for id in batch.id]
        np.testing.assert_array_equal(file["gps"][()], np.concatenate([batch.gps for batch in batches]))
        np.testing.assert_allclose(file["embedding"][()], expected, atol=1e-4)
        assert file["present"].dtype == bool and file["present"][()].all()
        np.testing.assert_array_equal(file["label"][()], np.arange(128) % 2)
        snr = file["snr"][()]
        assert (snr[::2] == 0).all() and (snr[1::2] >= 4).all()
        about = file.attrs
        assert about["encoder"].decode() == fingerprint(encoder)
        assert about["weights"] == b"gwtwins/small" and about["detectors"].tolist() == [b"H1", b"L1", b"V1"]
        assert json.loads(about["data"])["source"] == "simulated" and json.loads(about["versions"])["torch"]
    assert [path.name for path in tmp_path.iterdir()] == ["embeddings.hdf5"]


def test_the_number_of_rows_at_a_time_changes_nothing(cache: Path, weights: str, tmp_path: Path) -> None:
    for batch in ("7", "64"):
        out = str(tmp_path / f"{batch}.hdf5")
        embed_command(["--weights", weights, "--split", "test", "--out", out, "--batch", batch, *SMALL])
    with EmbeddingFile(tmp_path / "7.hdf5") as few, EmbeddingFile(tmp_path / "64.hdf5") as many:
        assert few.shape == many.shape == (64, 3, 16)
        np.testing.assert_allclose(few.read(slice(0, 64))[0], many.read(slice(0, 64))[0], atol=1e-4)


def test_all_of_a_half_labelled_set_has_the_labels_that_are_known(weights: str, tmp_path: Path) -> None:
    ids, later = names(12), names(5, "ff")
    write_g2net_folder(tmp_path / "g2net", coloured_noise(12), ids, [k % 2 for k in range(12)])
    write_g2net_folder(tmp_path / "g2net", coloured_noise(5, 1), later, folder="test")
    argv = ["--data", str(tmp_path / "g2net"), "--weights", weights, "--device", "cpu"]
    embed_command([*argv, "--out", str(tmp_path / "all.h5")])
    embed_command([*argv, "--out", str(tmp_path / "blind.h5"), "--split", "unlabelled"])
    with EmbeddingFile(tmp_path / "all.h5") as file:
        label = dict(zip(file.ids(range(len(file))), file.label))
        assert set(label) == {*ids, *later}
        assert [label[id] for id in ids] == [k % 2 for k in range(12)]
        assert np.isnan([label[id] for id in later]).all() and np.isnan(file.gps).all()
    with EmbeddingFile(tmp_path / "blind.h5") as file:  # what pretraining may see has no labels
        assert set(file.ids(range(len(file)))) == {id for id in ids if not is_test(id)} | set(later)
        assert np.isnan(file.label).all()


def test_strain_of_one_detector_leaves_the_others_absent(weights: str, tmp_path: Path) -> None:
    write_gwosc(tmp_path / "L1.hdf5", long_noise(24, 1024), 1024, "L1", GPS_START)
    out = tmp_path / "l1.hdf5"
    embed_command(["--data", str(tmp_path / "L1.hdf5"), "--weights", weights, "--out", str(out), "--device", "cpu"])
    with EmbeddingFile(out) as file:
        embedding, present = file.read(slice(0, len(file)))
        assert present.tolist() == [[False, True, False]] * len(file)
        assert (embedding[:, [0, 2]] == 0).all() and (embedding[:, 1] != 0).any(axis=1).all()
        row = find_window(file, f"{file.gps[1] + 1.5}")  # a time in the window, not its start
        query, found = nearest(file, row, 3, progress=False)
        assert row == 1 and query.detectors == found[0].detectors == "L1"


@pytest.mark.parametrize(("end", "status"), [(KeyboardInterrupt, 130), (InputError("x", "bad"), 2)])
def test_an_interrupted_run_leaves_nothing(
    cache: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: Any, status: int
) -> None:
    whole = embed.embedded

    def cut(*args: Any) -> Iterator[Any]:
        for number, made in enumerate(whole(*args)):
            if number == 2:
                assert list(tmp_path.iterdir())  # it had begun
                raise end
            yield made

    monkeypatch.setattr(embed, "embedded", cut)
    argv = ["--weights", weights, "--out", str(tmp_path), "--batch", "16", *SMALL]
    assert run_command(lambda: embed_command(argv)) == status
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("taken", "options"), [("e.hdf5", []), ("tb-projector", ["--projector"])], ids=["file", "projector"]
)
def test_nothing_is_overwritten(cache: Path, weights: str, tmp_path: Path, taken: str, options: list[str]) -> None:
    (tmp_path / taken).write_text("mine")
    with pytest.raises(InputError, match=f"{taken}: is there already"):
        embed_command(["--weights", weights, "--out", str(tmp_path / "e.hdf5"), *SMALL, *options])
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(taken, "mine")]


@pytest.mark.parametrize(
    ("argv", "fault"),
    [
        (["--split", "train"], "--split train: is not known"),
        (["--split", "unlabelled"], "no rows in split unlabelled; expected --split labelled or test"),
        (["--count", "0", "--neighbours", "a"], "--count: 0; expected 1 to"),
        (["--csv", "a.csv"], "--csv: without --neighbours"),
        (["--batch", "0"], "--batch: 0"),
        (["a.hdf5", "b.hdf5"], "a second file"),
        (["a.hdf5", "--out", "b.hdf5"], "is looked into, not written"),
        (["a.hdf5"], "a.hdf5: no such file"),
        (["--out", "file/below.hdf5"], "may not be written to"),
        (["--neighbour", "a"], "unknown option --neighbour; expected --neighbours"),
    ],
)
def test_bad_arguments_are_named(
    cache: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], fault: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=fault):
        embed_command([*argv, *SMALL, *([] if argv[0].endswith(".hdf5") else ["--weights", weights])])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_named_before_anything_is_computed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"GB free on its disk; expected 1627000\.00 GB"):
        EmbeddingWriter(tmp_path / "e.hdf5", DETECTORS, 128, 10**12, ABOUT)


# --- neighbours -------------------------------------------------------------------------------------------------


def test_neighbours_are_those_of_the_definition(tmp_path: Path, small_blocks: None) -> None:
    path, x, present = made_up(tmp_path / "e.hdf5")
    z = np.zeros(x.shape)
    for d in range(3):
        z[present[:, d], d] = StandardScaler().fit_transform(x[present[:, d], d].astype(float))
    with EmbeddingFile(path) as file:
        for row in (0, 17, 299):
            similarity = {}
            for other in range(len(x)):
                both = present[row] & present[other]
                if both.any() and other != row:
                    a, b = z[row, both].ravel(), z[other, both].ravel()
                    similarity[other] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            expected = sorted(similarity, key=lambda other: -similarity[other])
            query, found = nearest(file, row, 1000, progress=False)
            assert [m.id for m in found[:20]] == [f"row-{other:04d}" for other in expected[:20]]
            assert len(found) == len(expected)  # neither itself nor those that share no detector
            np.testing.assert_allclose([m.similarity for m in found], [similarity[o] for o in expected], atol=1e-5)
            assert query.id == f"row-{row:04d}" and [m.rank for m in found] == list(range(1, len(found) + 1))
            shared = [name for name, a, b in zip(DETECTORS, present[row], present[expected[0]]) if a and b]
            assert found[0].detectors == " ".join(shared)
            assert found[0].label == (None if expected[0] % 3 == 2 else expected[0] % 3) and found[0].snr is None


def test_the_window_most_like_a_real_merger_holds_another(gwosc: Path, tmp_path: Path) -> None:
    argv = ["--data", str(gwosc), "--weights", "gwtwins/small", "--device", "cpu"]
    embed_command([*argv, "--out", str(tmp_path / "e.hdf5")])
    hits = 0
    with EmbeddingFile(tmp_path / "e.hdf5") as file:
        standard = Standardiser(file, False)
        for event in EVENTS:
            if event.name in ("GW150914", "GW170814", "GW190521_074359"):  # well inside one of the windows
                _, (first,) = nearest(file, find_window(file, str(event.gps)), 1, standard, False)
                hits += any(0.0 < other.gps - first.gps < file.window for other in EVENTS)
    assert len(file) > 200 and hits >= 2  # a random window holds one in 12 cases of 250


def test_scales_and_offsets_of_dimensions_do_not_choose_the_neighbours(tmp_path: Path) -> None:
    _, x, present = made_up(tmp_path / "a.hdf5")
    stretched = x * np.geomspace(1e-3, 1e3, 8, dtype=np.float32) + np.float32(5.0)
    stretched = np.concatenate([stretched, np.full((300, 3, 1), 7.0)], axis=2)  # and one that never varies
    with EmbeddingWriter(tmp_path / "b.hdf5", DETECTORS, 9, 300, ABOUT) as out:
        out.add([f"row-{row:04d}" for row in range(300)], np.zeros(300), present, stretched * present[..., None])
    with EmbeddingFile(tmp_path / "a.hdf5") as plain, EmbeddingFile(tmp_path / "b.hdf5") as other:
        near = [[m.id for m in nearest(file, 5, 10, progress=False)[1]] for file in (plain, other)]
    assert near[0] == near[1]


def test_the_command_finds_a_twin_and_writes_it_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, x, present = made_up(tmp_path / "plain.hdf5")
    with EmbeddingWriter(tmp_path / "e.hdf5", DETECTORS, 8, 301, ABOUT) as out:
        out.add([f"row-{row:04d}" for row in range(300)], np.arange(300.0), present, x)
        out.add(["=twin\x1b[2J"], [np.nan], present[:1], x[:1] * np.float32(1.001), [1], [12.34])
    near, node = tmp_path / "near.csv", tmp_path / "near.json"
    argv = ["--neighbours", "row-0000", "--count", "3", "--csv", str(near), "--json", str(node)]
    assert embed_command([str(tmp_path / "e.hdf5"), *argv]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and said.splitlines()[3].split()[:4] == ["1", "=twin?[2J", "-", "1.0000"]
    with open(near, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 and rows[0]["id"] == "'=twin?[2J" and float(rows[0]["similarity"]) > 0.999
    assert (rows[0]["gps"], rows[0]["label"], rows[0]["snr"]) == ("", "1", "12.34")
    found = json.loads(node.read_text())
    assert found["query"]["id"] == "row-0000" and found["neighbours"][0]["label"] == 1
    assert found["neighbours"][0]["gps"] is None and found["encoder"] == "f00"


def test_a_window_is_found_by_id_start_or_a_time_in_it(tmp_path: Path) -> None:
    path, _, _ = made_up(tmp_path / "e.hdf5")
    with EmbeddingFile(path) as file:
        assert find_window(file, "row-0123") == 123
        assert find_window(file, str(GPS_START + 246)) == 123
        assert find_window(file, f"{GPS_START + 247.9:.1f}") == 123


@pytest.mark.parametrize(
    ("named", "fault"),
    [
        ("row-123", r"row-123: no window of this id in .*; expected one such as row-0123, row-"),
        (str(GPS_START - 10), r"expected one near it: row-0000 \(1000000000.000\), row-0001"),
        ("nan", "expected one near it"),
        ("\x1b[2J\n", r"^\?\[2J\?: no window"),
    ],
)
def test_an_unknown_window_is_answered_with_the_nearest(tmp_path: Path, named: str, fault: str) -> None:
    path, _, _ = made_up(tmp_path / "e.hdf5")
    with pytest.raises(InputError, match=fault) as error:
        embed_command([str(path), f"--neighbours={named}"])
    assert "\n" not in str(error.value)


# --- the projector ----------------------------------------------------------------------------------------------


def read_projector(folder: Path) -> tuple[np.ndarray, list[list[str]]]:
    """Points (N, F) and the table of metadata, as TensorBoard's configuration names them."""
    config = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (info,) = config.embeddings
    points = np.loadtxt(folder / info.tensor_path, delimiter="\t", ndmin=2)
    lines = (folder / info.metadata_path).read_text().removesuffix("\n").split("\n")
    return points, [line.split("\t") for line in lines]


def test_the_projector_shows_every_window_with_what_is_known(tmp_path: Path, small_blocks: None) -> None:
    path, x, present = made_up(tmp_path / "e.hdf5")
    assert embed_command([str(path), "--projector"]) == 0
    points, metadata = read_projector(tmp_path / "tb-projector")
    with EmbeddingFile(path) as file:
        np.testing.assert_allclose(points, Standardiser(file, False)(x, present).reshape(300, -1), atol=6e-5)
    assert metadata[0] == ["id", "gps", "label", "snr", "detectors"] and len(metadata) == 301
    assert metadata[2] == ["row-0001", f"{GPS_START + 2}.000", "1", "", " ".join(np.array(DETECTORS)[present[1]])]
    assert not [p.name for p in tmp_path.iterdir() if p.name not in ("e.hdf5", "tb-projector")]
    with pytest.raises(InputError, match="tb-projector: is there already"):
        embed_command([str(path), "--projector"])


def test_an_id_cannot_add_columns_or_rows_to_the_projector(tmp_path: Path) -> None:
    hostile = ["a\tb", "c\nd", "e\r\n\x1b[31m\u202e", "\u00fc\u2028", ""]
    with EmbeddingWriter(tmp_path / "e.hdf5", ("H1",), 4, 5, ABOUT) as out:
        out.add(hostile, np.zeros(5), np.ones((5, 1)), np.random.default_rng(0).normal(size=(5, 1, 4)))
    with EmbeddingFile(tmp_path / "e.hdf5") as file:
        assert file.ids([3, 0]) == [hostile[3], hostile[0]]
        write_projector(tmp_path / "tb", file, progress=False)
    points, metadata = read_projector(tmp_path / "tb")
    assert [row[0] for row in metadata[1:]] == ["a?b", "c?d", "e???[31m?", "\u00fc?", ""]
    assert {len(row) for row in metadata} == {5} and points.shape == (5, 4)


def test_a_large_file_is_sampled_by_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projector, "MAX_ROWS", 40)
    path, x, present = made_up(tmp_path / "e.hdf5")
    shown_rows = []
    with EmbeddingFile(path) as file:
        for number, seed in enumerate((1, 1, 2)):
            assert write_projector(tmp_path / f"tb{number}", file, seed, progress=False) == 40
            points, metadata = read_projector(tmp_path / f"tb{number}")
            rows = [int(row[0][4:]) for row in metadata[1:]]
            shown_rows.append(rows)
            standard = Standardiser(file, False)(x, present).reshape(300, -1)
            np.testing.assert_allclose(points, standard[rows], atol=6e-5)
    assert shown_rows[0] == shown_rows[1] != shown_rows[2]


# --- files that lie ---------------------------------------------------------------------------------------------


def replaced(name: str, **options: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        given = dict(options)
        data = given.pop("data", file[name][()] if "shape" not in given else None)
        del file[name]
        file.create_dataset(name, data=data, **given)

    return change


def put(name: str, where: Any, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file[name].__setitem__(where, value)


def attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.__setitem__(name, value)


def linked(link: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["gps"]
        file["gps"] = link

    return change


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((300,), "f8")
    layout[:] = h5py.VirtualSource("elsewhere.hdf5", "gps", (300,))
    del file["gps"]
    file.create_virtual_dataset("gps", layout)


LIES = {
    "format": (attribute("format", np.bytes_("other")), "format 'other'"),
    "text in a heap": (attribute("encoder", "text"), "attribute encoder is of type object"),
    "no encoder": (lambda file: file.attrs.__delitem__("encoder"), "no attribute encoder"),
    "window": (attribute("window", np.nan), "window nan"),
    "detectors": (attribute("detectors", np.array([b"H1", b"H1", b"V1"])), "expected 3 distinct names"),
    "detector names": (attribute("detectors", np.array([b"H1", b"\x1b[", b"V1"])), "detectors"),
    "external link": (linked(h5py.ExternalLink("/etc/passwd", "/a")), "no dataset gps of its own"),
    "soft link": (linked(h5py.SoftLink("/snr")), "no dataset gps of its own"),
    "virtual": (virtual, "gps is not a dataset of its own"),
    "external": (replaced("gps", shape=(300,), dtype="f8", external=[("/etc/passwd", 0, 2400)]), "not a dataset"),
    "group": (lambda file: (file.__delitem__("gps"), file.create_group("gps")), "gps is not a dataset"),
    "compressed": (replaced("gps", chunks=(10,), compression="gzip"), "gps is compressed"),
    "type": (replaced("embedding", data=np.zeros((300, 3, 8))), "embedding is of type float64"),
    "shape": (replaced("label", data=np.zeros(299)), r"label has shape \(299,\)"),
    "axes": (replaced("present", data=np.zeros(300, bool)), "expected axes N, D"),
    "huge": (replaced("embedding", shape=(300, 3, 2**33), dtype="f4", chunks=(1, 1, 64)), "truncated: embedding is"),
    "many": (lambda file: [file[name].resize(2**40, axis=0) for name in file], "truncated: id is of"),
    "empty": (lambda file: [file[name].resize(0, axis=0) for name in file], "id has shape"),
    "label": (put("label", 3, 7.0), "a label other than"),
    "gps": (put("gps", 3, np.inf), "an infinite gps"),
    "embedding": (put("embedding", (31, 1, 2), np.nan), "the embedding of row-0031 is not finite"),
}


@pytest.mark.parametrize(("change", "fault"), LIES.values(), ids=LIES.keys())
def test_a_file_that_lies_is_refused_in_one_line(tmp_path: Path, change: Any, fault: str) -> None:
    path, _, _ = made_up(tmp_path / "e.hdf5")
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(InputError, match=fault):
        embed_command([str(path), "--neighbours", "row-0000"])


def test_damage_anywhere_in_the_structure_is_an_input_error_or_nothing(tmp_path: Path) -> None:
    path, _, _ = made_up(tmp_path / "e.hdf5", n=40, e=2)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for trial in range(120):
        blob = bytearray(whole)
        if trial % 10 == 0:
            blob = blob[: int(rng.integers(0, len(blob)))]
        for place in rng.integers(0, len(blob), 40 * bool(blob)):
            blob[place] = rng.integers(0, 256)
        path.write_bytes(blob)
        try:
            with EmbeddingFile(path) as file:
                nearest(file, 0, 3, progress=False)
        except InputError:
            refused += 1
    assert refused > 40


def test_text_that_acts_is_neutralised(tmp_path: Path) -> None:
    assert shown("a\tb\u202e\x9b\u200b c") == "a?b??? c"
    path, _, _ = made_up(tmp_path / "e.hdf5")
    with EmbeddingFile(path) as file:
        _, found = nearest(file, 0, 2, progress=False)
    with pytest.raises(InputError, match="may not be written"):
        write_csv(tmp_path / "no" / "near.csv", found)
