"""Files made to harm: what a fuzz run found (`benchmarks/fuzz.py`), and what is known to be tried.

Each is refused in a line. Nothing in a file is run, no other file or address is opened for it, and what it declares is
not believed before it has been held against what is there: memory stays within a stated bound.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from gwtwins.benchmarks.fuzz_subjects import SUBJECTS
from gwtwins.encoders.weights import load_encoder
from gwtwins.probes.scan_result import read_scan
from gwtwins.strain import gwf_process
from gwtwins.strain.bank import WaveformBank
from gwtwins.strain.command import read_config
from gwtwins.strain.download import _same_path
from gwtwins.strain.errors import InputError
from gwtwins.strain.g2net import G2NetFolder
from gwtwins.strain.gwosc import GwoscReader, index_gwosc, read_gwosc
from gwtwins.strain.hdf5_file import CHUNK_CACHE, MAX_CHUNK
from gwtwins.strain.mlgwsc import MlgwscReader, index_mlgwsc
from gwtwins.strain.population import Population
from gwtwins.strain.psd import psd_from_asd_file
from gwtwins.strain.real_noise import gps_times
from gwtwins.strain.small_file import MAX_NODES, read_json, read_text, read_yaml
from gwtwins.strain.strain_index import index_strain
from gwtwins.strain.template_bank import TemplateBank
from gwtwins.train_ssl import RunConfig, _finished

MIB = 1 << 20


def peak(action: Callable[[], Any]) -> int:
    """MiB that ``action``, which is refused, takes at most above what there was before."""

    def memory(field: str) -> int:
        rows = Path("/proc/self/status").read_text().splitlines()
        return next(int(row.split()[1]) for row in rows if row.startswith(field)) >> 10

    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peaks of memory are Linux's to tell")
    rest = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    with pytest.raises(InputError):
        action()
    return memory("VmHWM") - rest


def refused(action: Callable[[], Any], *says: str) -> str:
    with pytest.raises(InputError) as caught:
        action()
    line = str(caught.value)
    assert line.isprintable() and len(line) < 1600
    for text in says:
        assert text in line, line
    return line


@pytest.fixture
def made(tmp_path: Path) -> Callable[[str], Path]:
    """A folder of sound files for a reader, in a folder of its own."""

    def made(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        SUBJECTS[name].prepare()
        SUBJECTS[name].make(folder)
        SUBJECTS[name].read(folder)
        return folder

    return made


# --- nothing in a file is run


class Mischief:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("writer", ["pickle", "torch", "numpy"])
@pytest.mark.parametrize("name", SUBJECTS)
def test_a_pickle_by_any_readers_name_is_refused_and_not_run(
    made: Callable[[str], Path], tmp_path: Path, name: str, writer: str
) -> None:
    folder, mark = made(name), tmp_path / "it-ran"
    for target in SUBJECTS[name].mutations:
        sound = (folder / target).read_bytes()
        with (folder / target).open("wb") as file:
            if writer == "pickle":
                pickle.dump(Mischief(mark), file)
            elif writer == "torch":
                torch.save({"state_dict": Mischief(mark), "global_step": 1}, file)
            else:
                np.save(file, np.array([Mischief(mark)], object), allow_pickle=True)
        refused(lambda: SUBJECTS[name].read(folder))
        assert not mark.exists()
        (folder / target).write_bytes(sound)


# --- text, JSON, YAML

_BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{b}: &{b} [{','.join(9 * ['*' + a])}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (_BOMB, "an anchor (&) or an alias (*)"),
        ("seed: &a [*a]\n", "an anchor"),
        ("seed: !!python/object/apply:os.mkdir [it-ran]\n", "holds a tag"),
        ("seed: !!bool maybe\n", "holds a tag"),
        ("seed: !x 1\n", "holds a tag"),
        ("seed: " + "[" * 100_000 + "\n", "nested more than 64 deep"),
        ("seed: " + "{a: " * 100_000 + "}" * 100_000 + "\n", "nested more than 64 deep"),
        ("seed: [" + "1," * (MAX_NODES + 1) + "]\n", "more than 10,000 values"),
        ("seed: 1\nseed: 2\n", "the key 'seed' twice"),
        ("seed: " + "1" * 5000 + "\n", "not YAML"),
        ("seed: 2001-99-99\n", "not YAML"),
        ("seed: 1\n---\nseed: 2\n", "not YAML"),
        ("seed: \x00\n", "not YAML"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_yaml_that_is_more_than_data(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    refused(lambda: read_config(path, ["seed"]), "x.yaml", says)
    refused(lambda: Population.load(str(path)), "x.yaml")
    assert peak(lambda: read_yaml(path, "YAML")) < 64
    assert not (Path("it-ran").exists() or (tmp_path / "it-ran").exists())


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"a":' * 200_000, "[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900]
)
def test_deep_json(tmp_path: Path, made: Callable[[str], Path], text: str) -> None:
    """That of 900 brackets is read, and would have ended what goes through it afterwards."""
    (tmp_path / "x.json").write_text(text)
    refused(lambda: read_json(tmp_path / "x.json", MIB * 2, "JSON"), "x.json")
    folder = made("scan-folder")
    (folder / "scan-config.json").write_text(text)
    refused(lambda: read_scan(folder), "scan-config.json")


@pytest.mark.parametrize("member", ["analysed_seconds_by_network", "windows", "config"])
def test_a_number_in_a_scans_folder_that_no_float_holds(made: Callable[[str], Path], member: str) -> None:
    folder = made("scan-folder")
    node = json.loads((folder / "scan.json").read_text())
    node[member] = dict.fromkeys(node[member], 10**400)
    (folder / "scan.json").write_text(json.dumps(node))
    refused(lambda: read_scan(folder), "scan.json")


def test_a_population_of_numbers_that_no_float_holds(made: Callable[[str], Path]) -> None:
    path = made("population") / "x.yaml"
    path.write_text(path.read_text().replace("[8, 70]", f"[8, {10**400}]", 1))
    refused(lambda: Population.load(str(path)), "x.yaml, mass1")


@pytest.mark.parametrize(
    "read",
    [
        partial(read_text, most=MIB, expected="text"),
        psd_from_asd_file,
        partial(gps_times, "--noise-avoid"),
        lambda path: Population.load(path),
        lambda path: read_config(path, []),
    ],
)
def test_what_has_no_end_or_never_begins_is_no_file(tmp_path: Path, read: Callable[[str], Any]) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    os.symlink("/dev/zero", tmp_path / "endless.yaml")
    for name in ("pipe.yaml", "endless.yaml"):
        refused(partial(read, str(tmp_path / name)), "not a plain file")
    refused(lambda: read_text(tmp_path, MIB, "text"), "cannot be read")
    refused(lambda: read_text("a\0b", MIB, "text"))


def test_labels_without_an_end(made: Callable[[str], Path]) -> None:
    folder = made("g2net")
    (folder / "training_labels.csv").unlink()
    os.symlink("/dev/zero", folder / "training_labels.csv")
    refused(lambda: G2NetFolder(folder), "training_labels.csv", "not a plain file")


def test_an_asd_is_neither_unpacked_nor_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("an address was opened"))
    refused(lambda: psd_from_asd_file("http://localhost:1/asd.txt"), "no such file")
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    (tmp_path / "asd.txt.gz").write_bytes(packer.compress(b"10 1e-23\n" * 4_000_000) + packer.flush())
    assert peak(lambda: psd_from_asd_file(tmp_path / "asd.txt.gz")) < 64
    (tmp_path / "long.txt").write_bytes(b"10 1e-23\n" * 2_000_000)
    refused(lambda: psd_from_asd_file(tmp_path / "long.txt"), "over 16 MiB")


# --- HDF5


def _kept(file: h5py.File, name: str, **how: Any) -> h5py.Dataset:
    """The dataset made anew, with its attributes."""
    attributes = dict(file[name].attrs)
    del file[name]
    dataset = file.create_dataset(name, **how)
    dataset.attrs.update(attributes)
    return dataset


def never_stored(file: h5py.File, name: str) -> None:
    """10^12 samples, none of which was written: 2 KB of file, and zeros for as long as they are asked for."""
    size = 1 << 40
    attributes = dict(file[name].attrs)
    made = _kept(file, name, shape=(size,), dtype="f8", chunks=(1 << 17,))
    if "Npoints" in attributes:
        made.attrs["Npoints"] = size


def one_chunk(file: h5py.File, name: str) -> None:
    """A chunk of 1 GB in 5 MB: it would be unpacked anew for every slice."""
    size = MAX_CHUNK << 3
    made = _kept(file, name, shape=(size,), dtype="f8", chunks=(size,), compression="gzip")
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(bytes(MIB)) for _ in range(size * 8 // MIB)) + packer.flush()
    made.id.write_direct_chunk((0,), data)


def unknown_filter(file: h5py.File, name: str) -> None:
    shape, attributes = file[name].shape, dict(file[name].attrs)
    del file[name]
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk(shape)
    plan.set_filter(32000, h5py.h5z.FLAG_OPTIONAL, (1,))
    made = h5py.h5d.create(
        file[os.path.dirname("/" + name)].id,
        os.path.basename(name).encode(),
        h5py.h5t.IEEE_F64LE,
        h5py.h5s.create_simple(shape),
        plan,
    )
    made.write_direct_chunk((0,), os.urandom(4096))
    h5py.Dataset(made).attrs.update(attributes)


def external_link(file: h5py.File, name: str) -> None:
    del file[name]
    file[name] = h5py.ExternalLink("other.hdf5", f"/{name}")


def soft_link(file: h5py.File, name: str) -> None:
    file.move(name, "elsewhere")
    file[name] = h5py.SoftLink("/elsewhere")


def virtual(file: h5py.File, name: str) -> None:
    shape, attributes = file[name].shape, dict(file[name].attrs)
    del file[name]
    layout = h5py.VirtualLayout(shape, "f8")
    layout[...] = h5py.VirtualSource("other.hdf5", name, shape)
    file.create_virtual_dataset(name, layout).attrs.update(attributes)


def external_storage(file: h5py.File, name: str) -> None:
    shape = file[name].shape
    _kept(file, name, shape=shape, dtype="f8", external=[("/etc/passwd", 0, 8 * shape[0])])


def a_group(file: h5py.File, name: str) -> None:
    del file[name]
    file.create_group(name)


def the_root(file: h5py.File, name: str) -> None:
    del file[name]
    file[name] = file["/"]


def a_scalar(file: h5py.File, name: str) -> None:
    _kept(file, name, data=1e-21)


def no_space(file: h5py.File, name: str) -> None:
    _kept(file, name, data=h5py.Empty("f8"))


def records(file: h5py.File, name: str) -> None:
    _kept(file, name, data=np.zeros(file[name].shape, [("a", "f8"), ("b", "i4")]))


def references(file: h5py.File, name: str) -> None:
    _kept(file, name, shape=file[name].shape, dtype=h5py.ref_dtype)


WAYS = [
    never_stored, one_chunk, unknown_filter, external_link, soft_link, virtual, external_storage, a_group, the_root,
    a_scalar, no_space, records, references,
]  # fmt: skip


@pytest.mark.parametrize("spoil", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", ["gwosc", "mlgwsc"])
def test_strain_that_is_not_what_it_says(
    made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str, spoil: Callable[[h5py.File, str], None]
) -> None:
    folder = made(name)
    monkeypatch.chdir(folder)
    path = folder / "x.hdf5"
    (folder / "other.hdf5").write_bytes(path.read_bytes())
    place = "strain/Strain" if name == "gwosc" else "H1/1000000000"
    with h5py.File(path, "r+") as file:
        spoil(file, place)
    assert path.stat().st_size < 6 * MIB
    ways = (
        (read_gwosc, GwoscReader, index_gwosc)
        if name == "gwosc"
        else (index_mlgwsc, partial(MlgwscReader, place=place))
    )
    if spoil is unknown_filter:  # what is in the chunks shows when they are read
        ways = (read_gwosc,) if name == "gwosc" else (lambda path: MlgwscReader(path, place).read(0, 10),)
    for read in ways:
        refused(partial(read, path), "x.hdf5")
        assert peak(partial(read, path)) < 64


@pytest.mark.parametrize("dataset", ["quality/simple/DQmask", "quality/simple/DQShortnames", "meta/Detector"])
def test_quality_that_is_not_what_it_says(made: Callable[[str], Path], dataset: str) -> None:
    path = made("gwosc") / "x.hdf5"
    with h5py.File(path, "r+") as file:
        kind = file[dataset].dtype
        _kept(file, dataset, shape=(1 << 26,), dtype=kind, chunks=(1 << 20,))
    assert peak(lambda: read_gwosc(path)) < 64


@pytest.mark.parametrize("size", [0, 1 << 12, (1 << 64) - 16, (1 << 64) - 1])
def test_a_heap_that_leads_round_in_circles(made: Callable[[str], Path], size: int) -> None:
    """Names of variable length lie in a heap; HDF5 adds up the sizes in it, and comes back to where it was."""
    path = made("gwosc") / "x.hdf5"
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL\1\0\0\0")
    data[heap + 24 : heap + 32] = struct.pack("<Q", size)
    path.write_bytes(data)
    refused(lambda: read_gwosc(path), "meta/Detector is not text")


@pytest.mark.parametrize("name", ["waveform-bank", "template-bank"])
def test_a_bank_described_by_text_in_a_heap(made: Callable[[str], Path], name: str) -> None:
    path = made(name) / "x.hdf5"
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = file.attrs["format"].decode()
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL\1\0\0\0")
    data[heap + 24 : heap + 32] = struct.pack("<Q", (1 << 64) - 16)
    path.write_bytes(data)
    refused(lambda: (TemplateBank if name == "template-bank" else WaveformBank).load(path), "not a", "this version")


def test_a_large_chunk_is_unpacked_once(made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that holds its strain in a single chunk is sound; slices of it come from memory."""
    path = made("mlgwsc") / "x.hdf5"
    strain = np.random.default_rng(0).normal(0, 1e-21, CHUNK_CACHE // 8 + 1024)
    with h5py.File(path, "r+") as file:
        _kept(file, "H1/1000000000", data=strain, chunks=strain.shape, compression="gzip", compression_opts=1)
    reader = MlgwscReader(path, "H1/1000000000")
    assert reader._file.id.get_access_plist().get_cache()[2] >= strain.nbytes
    assert np.array_equal(reader.read(1000, 5000), strain[1000:5000])
    reader.close()


BANKS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "waveform": ("waveform-bank", WaveformBank.load),
    "power": ("waveform-bank", WaveformBank.load),
    "psds/0/value": ("waveform-bank", WaveformBank.load),
    "match": ("template-bank", TemplateBank.load),
    "nearest": ("template-bank", TemplateBank.load),
}


@pytest.mark.parametrize("dataset", BANKS)
def test_banks_take_no_more_memory_than_their_file(made: Callable[[str], Path], dataset: str) -> None:
    name, load = BANKS[dataset]
    path = made(name) / "x.hdf5"
    for packed in (True, False):
        with h5py.File(path, "r+") as file:
            shape, kind = (1 << 24, *file[dataset].shape[1:]), file[dataset].dtype
            how = {"compression": "gzip"} if packed else {}
            _kept(file, dataset, shape=shape, dtype=kind, chunks=(min(shape[0], 1 << 10), *shape[1:]), **how)
        assert peak(lambda: load(path)) < 64


@pytest.mark.parametrize(
    ("dataset", "value", "says"),
    [
        ("waveform", np.nan, "NaN"),
        ("power", np.inf, "NaN or infinity"),
        ("scale", -1.0, "negative"),
        ("power", 1e308, "no finite SNR"),
        ("parameters", np.nan, "NaN"),
        ("psds/0/value", -1.0, "PSD"),
        ("chosen", 99, "points to what is not there"),
        ("nearest", -1, "points to what is not there"),
        ("lag", np.nan, "not finite"),
    ],
)
def test_numbers_that_no_bank_has(made: Callable[[str], Path], dataset: str, value: float, says: str) -> None:
    name = "template-bank" if dataset in ("chosen", "nearest", "lag") else "waveform-bank"
    path = made(name) / "x.hdf5"
    with h5py.File(path, "r+") as file:
        file[dataset][1] = value
    refused(lambda: (TemplateBank if name == "template-bank" else WaveformBank).load(path), "x.hdf5", says)


@pytest.mark.parametrize("value", [-1, 10**6, 0.5, "80", np.zeros(3)])
def test_a_bank_that_begins_nowhere(made: Callable[[str], Path], value: Any) -> None:
    path = made("waveform-bank") / "x.hdf5"
    with h5py.File(path, "r+") as file:
        file.attrs["k_low"] = value
    refused(lambda: WaveformBank.load(path), "k_low")


# --- frame files


def test_a_frame_file_on_which_the_library_dies_is_named(made: Callable[[str], Path]) -> None:
    """The process that reads frames does not come back; the one that asked does, and goes on with other files."""
    folder = made("gwf")
    sound = index_strain([folder / "x.gwf"])
    reader = sound.open(sound.files[0])
    before = reader.read(0, 100)
    os.kill(gwf_process._server()._process.pid, 11)
    refused(lambda: gwf_process._running.ask(folder / "x.gwf", do="index"), "x.gwf", "crashes on it (signal 11)")
    assert np.array_equal(reader.read(0, 100), before)
    reader.close()


def test_a_frame_file_that_keeps_the_library_busy_is_named(
    made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made("gwf") / "x.gwf"
    os.kill(gwf_process._server()._process.pid, signal.SIGSTOP)  # or it may have answered before anyone looks
    with monkeypatch.context() as patch:
        patch.setattr(gwf_process, "LIMIT_SECONDS", 0)
        refused(lambda: index_strain([path]), "x.gwf", "busy for over 0 s")
    assert index_strain([path]).files


# --- weights


def test_weights_whose_header_is_longer_than_they_are(made: Callable[[str], Path]) -> None:
    path = made("weights") / "encoder.safetensors"
    data = path.read_bytes()
    for length in (1 << 62, len(data), 2 * MIB):
        path.write_bytes(struct.pack("<Q", length) + data[8:] + bytes(3 * MIB if length == 2 * MIB else 0))
        refused(lambda: load_encoder(path), "is not a whole safetensors file")
        assert peak(lambda: load_encoder(path)) < 16


def test_a_json_that_asks_for_the_largest_encoder_gets_none(made: Callable[[str], Path]) -> None:
    """Within its bounds: 1.7 GB, were it made before the tensors are looked at."""
    folder = made("weights")
    node = json.loads((folder / "encoder.json").read_text())
    node["encoder"] = {"name": "cnn_gru_2021", "args": {"width": 256, "embedding": 16384}}
    node["f_high"] = 500.0
    (folder / "encoder.json").write_text(json.dumps(node))
    refused(lambda: load_encoder(folder), "tensors do not match encoder.json")
    assert peak(lambda: load_encoder(folder)) < 64


def test_an_argument_that_no_float_holds(made: Callable[[str], Path]) -> None:
    folder = made("weights")
    node = json.loads((folder / "encoder.json").read_text())
    node["encoder"]["args"]["rate"] = 10**400
    (folder / "encoder.json").write_text(json.dumps(node))
    refused(lambda: load_encoder(folder), "encoder.json", "no finite number")
    node["encoder"]["args"]["rate"] = 10**300
    (folder / "encoder.json").write_text(json.dumps(node))
    refused(lambda: load_encoder(folder), "encoder cnn_gru, rate")
    node["encoder"]["name"] = "x" * 100_000
    (folder / "encoder.json").write_text(json.dumps(node))
    refused(lambda: load_encoder(folder), "no encoder of that name")


@pytest.mark.parametrize("text", ["[]", '{"steps": "9"}', '{"steps": null}', "{}"])
def test_a_run_whose_description_is_spoilt_is_not_taken_for_finished(tmp_path: Path, text: str) -> None:
    (tmp_path / "encoder.json").write_text(text)
    assert not _finished(tmp_path, RunConfig(steps=5))
    (tmp_path / "encoder.json").write_text('{"steps": 5')
    refused(lambda: _finished(tmp_path, RunConfig(steps=5)), "encoder.json", "not JSON")


# --- what is said


def test_notes_on_files_hold_nothing_that_acts(made: Callable[[str], Path]) -> None:
    folder = made("mlgwsc")
    for name in ("a\x1b[2J.hdf5", "b\n\u202e.hdf5"):
        (folder / name).write_bytes((folder / "x.hdf5").read_bytes())
    notes = index_strain([folder]).notes
    assert len(notes) == 4 and all(note.isprintable() for note in notes)


def test_a_record_beside_a_file_that_names_no_url() -> None:
    assert not _same_path("http://[", "http://gwosc.org/a")
    assert not _same_path(math.pi, "http://gwosc.org/a")


def test_an_error_does_not_repeat_a_file_at_length() -> None:
    line = str(InputError("x" * 9999, "y" * 9999, "z" * 9999))
    assert len(line) < 1600 and line.startswith("... xxx") and line.endswith("zzz ...")
    assert str(InputError("a\u202eb\ud800", "c\u2028d")) == "a?b?: c?d"
