"""Recorded windows as a source: whitened, split by the id, each row once an epoch; store and folder alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from g2net_writer import coloured_noise, names, write_g2net_folder
from gwtwins.strain.errors import InputError
from gwtwins.strain.g2net import LABELS, window_path
from gwtwins.strain.pack import pack
from gwtwins.strain.recorded_windows import G2NetSource, RecordedWindowSource, WindowStoreSource
from gwtwins.strain.sources import Window
from gwtwins.strain.splits import is_test

N_TRAIN, N_TEST = 160, 20
IDS = names(N_TRAIN + N_TEST)
LABEL = {id: k % 2 for k, id in enumerate(IDS[:N_TRAIN])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Strain of 1e-21 with a PSD that no code knows: 160 labelled windows and 20 of a test folder."""
    root = tmp_path_factory.mktemp("recorded") / "g2net"
    windows = coloured_noise(N_TRAIN + N_TEST, seed=1)
    write_g2net_folder(root, windows[:N_TRAIN], IDS[:N_TRAIN], [*LABEL.values()])
    write_g2net_folder(root, windows[N_TRAIN:], IDS[N_TRAIN:], folder="test")
    pack(root, root.parent / "windows.hdf5", workers=1, progress=False)
    return root


@pytest.fixture(scope="module", params=["store", "folder"])
def source(request: pytest.FixtureRequest, folder: Path) -> RecordedWindowSource:
    if request.param == "store":
        return WindowStoreSource(str(folder.parent / "windows.hdf5"))
    return G2NetSource(str(folder))


def _all(source: RecordedWindowSource, split: str) -> torch.Tensor:
    return torch.cat([batch.strain for batch in source.batches(split, 100)])


def test_coloured_noise_becomes_white_with_variance_one_inside_the_band(source) -> None:
    white = _all(source, "all")
    assert white.shape == (N_TRAIN + N_TEST, 3, 4096)
    assert white.dtype == torch.float32
    edge = 400  # samples; the taper of 62 ms and what the filter carries inwards
    std = white[..., edge:-edge].std(dim=(0, 2))
    # 130 windows of 960 modes whiten themselves by less than 2%.
    assert torch.allclose(std, torch.ones(3), atol=0.03), std
    power = torch.fft.rfft(white).abs().square().mean(dim=0)  # (D, 2049), every 0.5 Hz
    within = power[:, 40:1000].unflatten(1, (-1, 60)).mean(dim=2)  # (D, 16) bands of 30 Hz
    assert ((within / within.mean() - 1).abs() < 0.06).all(), within / within.mean()
    assert power[:, :39].max() < 1e-6 * within.mean()
    assert power[:, 1001:].max() < 1e-6 * within.mean()


def test_store_and_folder_give_the_same_batches(folder) -> None:
    store, tree = WindowStoreSource(str(folder.parent / "windows.hdf5")), G2NetSource(str(folder))
    for step in (0, 7):
        a, b = store.train_batch(5, step, range(32)), tree.train_batch(5, step, range(32))
        assert a.id == b.id
        assert torch.allclose(a.strain, b.strain, atol=1e-4)
    for split in ("labelled", "test"):
        a, b = next(store.batches(split, 50)), next(tree.batches(split, 50))
        assert a.id == b.id
        assert a.label is not None
        assert torch.equal(a.label, b.label)
        assert torch.allclose(a.strain, b.strain, atol=1e-4)


def test_each_row_open_to_pretraining_comes_once_an_epoch_in_an_order_of_its_own(source) -> None:
    n = source.count("unlabelled")
    open_ids = {id for id in IDS if not is_test(id)} | set(IDS[N_TRAIN:])
    assert n == len(open_ids)
    size = 32
    drawn = [id for step in range(-(-2 * n // size)) for id in source.train_batch(1, step, range(size)).id]
    first, second = drawn[:n], drawn[n : 2 * n]
    assert set(first) == set(second) == open_ids
    assert first != second
    assert first != sorted(first)
    assert source.train_batch(2, 0, range(size)).id != drawn[:size]


def test_a_training_batch_depends_on_nothing_but_seed_step_and_row(source) -> None:
    source.train_batch(3, 0, range(16))
    whole = source.train_batch(3, 11, range(16))
    parts = [source.train_batch(3, 11, rows, batch=16) for rows in (range(0, 5), range(5, 16))]
    assert whole.id == parts[0].id + parts[1].id
    assert torch.equal(whole.strain, torch.cat([part.strain for part in parts]))
    assert whole.label is None
    assert whole.present.all()
    with pytest.raises(ValueError, match="pass the size of the global batch"):
        source.train_batch(3, 11, range(8, 16))


def test_pretraining_sees_neither_labels_nor_what_they_change(source, folder, tmp_path) -> None:
    windows = coloured_noise(N_TRAIN + N_TEST, seed=1)
    write_g2net_folder(tmp_path / "g2net", windows[:N_TRAIN], IDS[:N_TRAIN])
    write_g2net_folder(tmp_path / "g2net", windows[N_TRAIN:], IDS[N_TRAIN:], folder="test")
    unlabelled = G2NetSource(str(tmp_path / "g2net"))
    a, b = source.train_batch(0, 3, range(24)), unlabelled.train_batch(0, 3, range(24))
    assert a.id == b.id
    assert torch.allclose(a.strain, b.strain, atol=1e-4)
    assert next(source.batches("unlabelled")).label is None


def test_splits_are_by_the_id_and_in_its_order_whatever_the_batch_size(source) -> None:
    rows = {
        split: [id for batch in source.batches(split, 33) for id in batch.id]
        for split in ("labelled", "test")
    }
    assert rows["labelled"] == sorted(id for id in LABEL if not is_test(id))
    assert rows["test"] == sorted(id for id in LABEL if is_test(id))
    for split, ids in rows.items():
        assert source.count(split) == len(ids)
        label = torch.cat([batch.label for batch in source.batches(split, 7)])
        assert label.tolist() == [LABEL[id] for id in ids]
        assert label.dtype == torch.float32
    with pytest.raises(InputError, match="split train: unknown"):
        source.count("train")


def test_a_set_without_any_label_gives_every_row_in_the_order_of_the_ids(tmp_path) -> None:
    windows, ids = coloured_noise(24), names(24)
    write_g2net_folder(tmp_path / "g2net", windows, ids)
    pack(tmp_path / "g2net", tmp_path / "out.hdf5", workers=1, progress=False)
    for source in (G2NetSource(str(tmp_path / "g2net")), WindowStoreSource(str(tmp_path / "out.hdf5"))):
        assert (source.count("labelled"), source.count("test"), source.count("all")) == (0, 0, 24)
        assert source.count("unlabelled") == sum(not is_test(id) for id in ids)
        assert list(source.batches("test")) == []
        batches = list(source.batches("all", 10))
        assert [id for batch in batches for id in batch.id] == sorted(ids)
        assert all(batch.label is None and batch.gps.isnan().all() for batch in batches)


def test_at_1024_hz_every_second_sample_of_2048_hz_comes(folder) -> None:
    path = str(folder.parent / "windows.hdf5")
    fine, coarse = WindowStoreSource(path), WindowStoreSource(path, Window(rate=1024.0))
    a, b = fine.train_batch(0, 0, range(8)), coarse.train_batch(0, 0, range(8))
    assert b.strain.shape == (8, 3, 2048)
    assert coarse.rate == 1024.0
    assert torch.allclose(a.strain[..., ::2], b.strain, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
def test_a_gpu_gives_the_windows_of_a_cpu(folder) -> None:
    path = str(folder.parent / "windows.hdf5")
    here, there = WindowStoreSource(path), WindowStoreSource(path, device="cuda")
    a, b = here.train_batch(0, 0, range(40)), there.train_batch(0, 0, range(40))
    assert b.strain.is_cuda
    assert torch.allclose(a.strain, b.strain.cpu(), atol=1e-4)


def test_a_window_of_another_length_is_refused(folder) -> None:
    with pytest.raises(InputError, match="windows of 2 s; expected 1 s"):
        WindowStoreSource(str(folder.parent / "windows.hdf5"), Window(seconds=1.0))


def test_too_few_windows_to_measure_a_psd_are_refused(tmp_path) -> None:
    write_g2net_folder(tmp_path, coloured_noise(5), names(5))
    with pytest.raises(InputError, match="at least 8 to measure a PSD"):
        G2NetSource(str(tmp_path))


def test_a_window_spoilt_after_opening_is_named_when_it_is_met(folder, tmp_path) -> None:
    write_g2net_folder(tmp_path, coloured_noise(40), names(40))
    source = G2NetSource(str(tmp_path))
    window_path(tmp_path, "train", sorted(names(40))[5]).unlink()
    with pytest.raises(InputError, match=f"{sorted(names(40))[5]}.npy: no such file"):
        list(source.batches("all"))


def test_the_fingerprint_is_plain_and_tells_two_sets_apart(source, folder, tmp_path) -> None:
    told = source.describe()
    assert json.loads(json.dumps(told)) == told
    assert told["windows"] == N_TRAIN + N_TEST
    assert told["labelled"] + told["test"] == N_TRAIN
    again = type(source)(source.spec).describe()
    assert again == told
    windows = coloured_noise(N_TRAIN, seed=1)
    write_g2net_folder(tmp_path, windows, IDS[:N_TRAIN], [*LABEL.values()])
    labels = (tmp_path / LABELS).read_text()
    before = G2NetSource(str(tmp_path)).describe()["sha256"]
    (tmp_path / LABELS).write_text(labels.replace(",0", ",1", 1))
    assert G2NetSource(str(tmp_path)).describe()["sha256"] != before


def test_detectors_and_psds_are_those_of_the_noise(source) -> None:
    assert source.detectors == ("H1", "L1", "V1")
    assert not source.fresh_noise
    # V1 was made three times as loud in strain: nine times in power, whichever way the windows came.
    ratio = np.median(
        source.psds["V1"].at(np.arange(30.0, 500.0)) / source.psds["H1"].at(np.arange(30.0, 500.0))
    )
    assert ratio == pytest.approx(9.0, rel=0.05)
    with pytest.raises(InputError, match="one noise only"):
        source.train_pair(0, 0, range(4))
