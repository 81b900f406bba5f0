"""Views: what is common to the two and what is not, and that rows, not batches, decide what is drawn."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from gwtwins.ssl.augment import AugmentConfig
from gwtwins.ssl.views import ViewMaker, Views, make_views
from gwtwins.strain.batch import Batch
from gwtwins.strain.errors import InputError
from gwtwins.strain.simulated import SimulatedSource
from toy_source import ToySource

# Over the toy's band there is less than an octave and a half: the default augmentations reach further.
CONFIG = AugmentConfig(aug_noise_probability=0.0)
KINDS = ("detector", "pairs", "noise", "augment")


def make(
    kind: str, source: ToySource | None = None, always: bool = False, shortest: float = 0.0, hop: float = 0.0625
) -> ViewMaker:
    return make_views(kind, source or ToySource(), CONFIG, always, shortest, hop)


def same(first: Views, second: Views) -> bool:
    return all(torch.equal(getattr(first, f), getattr(second, f)) for f in Views.__dataclass_fields__)


def joined(parts: list[Views]) -> Views:
    return Views(*(torch.cat([getattr(part, f) for part in parts]) for f in Views.__dataclass_fields__))


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's, of each row (N, T)."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("absent", [0, 2])
def test_views_are_a_function_of_seed_step_and_row(kind: str, absent: int) -> None:
    views = make(kind, ToySource(absent=absent), always=kind == "pairs")
    whole = views(3, 5, range(32), 0.5, 32)
    assert same(whole, views(3, 5, range(32), 0.5, 32))
    parts = [views(3, 5, rows, 0.5, 32) for rows in (range(10), range(10, 11), range(11, 32))]
    assert same(whole, joined(parts))
    for other in (views(4, 5, range(32), 0.5, 32), views(3, 6, range(32), 0.5, 32)):
        assert len(other) != len(whole) or not torch.equal(other.first, whole.first)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes(kind: str) -> None:
    views = make(kind)(0, 0, range(8), 0.0, 8)
    assert len(views) == 8
    assert views.first.shape == views.second.shape == (8, 512)
    assert views.first.dtype == views.second.dtype == torch.float32
    assert views.first_detector.dtype == views.second_detector.dtype == torch.int64
    assert views.row.tolist() == list(range(8))


def test_detector_views_are_hanford_or_livingston_against_virgo() -> None:
    source = ToySource(("V1", "H1", "L1"))
    views = make("detector", source)(0, 0, range(1000), 0.0, 1000)
    assert (views.second_detector == 0).all()
    # 1000 fair coins: 500 +- 16.
    assert 430 < int((views.first_detector == 1).sum()) < 570
    assert set(views.first_detector.tolist()) == {1, 2}
    strain = source.train_batch(0, 0, range(1000)).strain
    rows = torch.arange(1000)
    assert torch.equal(views.first, strain[rows, views.first_detector])
    assert torch.equal(views.second, strain[:, 0])


def test_kagra_may_stand_for_virgo() -> None:
    views = make("detector", ToySource(("H1", "K1")))(0, 0, range(4), 0.0, 4)
    assert views.first_detector.tolist() == [0] * 4 and views.second_detector.tolist() == [1] * 4
    both = make("detector", ToySource(("H1", "L1", "V1", "K1")))(0, 0, range(400), 0.0, 400)
    pairs = set(zip(both.first_detector.tolist(), both.second_detector.tolist()))
    assert pairs == {(0, 2), (0, 3), (1, 2), (1, 3)}


@pytest.mark.parametrize("detectors", [("H1", "L1"), ("V1",), ("V1", "K1"), ("H1",)])
def test_detector_views_need_both_kinds(detectors: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=f"the data hold {' '.join(detectors)} only; expected H1 or L1, and V1 or K1"):
        make("detector", ToySource(detectors))


def test_pairs_are_taken_in_turn() -> None:
    views = make("pairs")
    seen = []
    for step in range(6):
        made = views(0, step, range(5), 0.0, 5)
        (pair,) = set(zip(made.first_detector.tolist(), made.second_detector.tolist()))
        seen.append(pair)
    assert seen == 2 * list(combinations(range(3), 2))
    with pytest.raises(InputError, match="one detector"):
        make("pairs", ToySource(("H1",)))


def test_two_detectors_share_the_signal_and_not_the_noise() -> None:
    source = ToySource(loud=3.0)
    views = make("detector", source)(0, 0, range(400), 0.0, 400)
    signal = source.signal(0, 0, range(400))[:, 0]
    loud = signal.abs().amax(dim=1) > 0
    assert 150 < int(loud.sum()) < 250
    found = correlation(views.first, views.second)
    assert found[loud].mean() > 0.2
    assert abs(float(found[~loud].mean())) < 4 / (int((~loud).sum()) * 512) ** 0.5


def test_noise_views_are_one_signal_in_two_independent_noises() -> None:
    source = ToySource(loud=3.0)
    views = make("noise", source)(0, 0, range(400), 0.0, 400)
    assert torch.equal(views.first_detector, views.second_detector)
    assert set(views.first_detector.tolist()) == {0, 1, 2}
    signal = source.signal(0, 0, range(400))[:, 0]
    first, second = views.first - signal, views.second - signal
    assert first.std() == pytest.approx(1.0, abs=0.01) and second.std() == pytest.approx(1.0, abs=0.01)
    assert abs(float(correlation(first, second).mean())) < 4 / (400 * 512) ** 0.5


def test_noise_views_of_the_simulated_source(small_source: SimulatedSource) -> None:
    views = make_views("noise", small_source, CONFIG)(0, 0, range(200), 0.0, 200)
    batch = small_source.train_batch(0, 0, range(200))
    quiet = batch.truth["snr"] == 0
    found = correlation(views.first, views.second)
    # 4096 samples of 480 Hz of band are 1,920 independent ones.
    assert abs(float(found[quiet].mean())) < 4 / (int(quiet.sum()) * 1920) ** 0.5
    loud = batch.truth["snr"] > 25
    assert int(loud.sum()) > 20 and found[loud].mean() > 0.1


def test_noise_views_of_a_recording_are_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match="--views noise with toy: a recorded signal comes with one noise only"):
        make("noise", ToySource(fresh=False))


def test_augmented_views_differ_and_come_from_one_window() -> None:
    source = ToySource()
    views = make("augment", source)(0, 0, range(64), 0.0, 64)
    strain = source.train_batch(0, 0, range(64)).strain
    original = strain[torch.arange(64), views.first_detector]
    assert torch.equal(views.first_detector, views.second_detector)
    assert (views.first != views.second).any(dim=1).all()
    for view in (views.first, views.second):
        assert (view != original).any(dim=1).float().mean() > 0.9
        # Half of the signs are turned, and shifts of up to 0.05 s leave the energy.
        assert view.square().sum() == pytest.approx(float(original.square().sum()), rel=0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_augmentation_on_top_changes_any_kind_and_neither_detectors_nor_rows(kind: str) -> None:
    plain, augmented = (make(kind, always=always)(0, 0, range(16), 0.0, 16) for always in (False, True))
    for name in ("first_detector", "second_detector", "row"):
        assert torch.equal(getattr(plain, name), getattr(augmented, name))
    assert torch.equal(plain.first, augmented.first) == (kind == "augment")


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_lack_a_detector_are_left_out(kind: str) -> None:
    source = ToySource(absent=2)
    batch = source.train_batch(0, 1, range(60))
    assert not batch.present.all()
    views = make(kind, source)(0, 1, range(60), 0.0, 60)
    for row, first, second in zip(views.row.tolist(), views.first_detector, views.second_detector):
        assert batch.present[row, first] and batch.present[row, second]
    if kind != "detector":
        assert len(views) == 60  # every row has two detectors left to choose from
    else:
        assert 20 < len(views) < 60
    for view in (views.first, views.second):
        assert (view.abs().amax(dim=1) > 0).all()


def test_a_batch_without_any_complete_row_gives_no_views() -> None:
    class Alone(ToySource):
        def train_batch(self, *args: object, **given: object):  # type: ignore[no-untyped-def, override]
            batch = super().train_batch(*args, **given)  # type: ignore[arg-type]
            batch.present[:] = torch.tensor([True, False, False])
            return batch

    assert len(make("detector", Alone())(0, 0, range(8), 0.0, 8)) == 0
    assert len(make("augment", Alone())(0, 0, range(8), 0.0, 8)) == 8


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="--views dectector: not a kind of views; expected detector, pairs, noise, au"):
        make("dectector")


def test_each_row_takes_a_pair_that_it_has() -> None:
    class Halves(ToySource):
        """Livingston is absent from even rows, Hanford from odd ones."""

        def train_batch(self, *args: object, **given: object):  # type: ignore[no-untyped-def, override]
            batch = super().train_batch(*args, **given)  # type: ignore[arg-type]
            batch.present[0::2] = torch.tensor([True, False, True])
            batch.present[1::2] = torch.tensor([False, True, True])
            return batch

    for kind in ("detector", "pairs"):
        views = make(kind, Halves())(0, 3, range(16), 0.0, 16)
        assert views.row.tolist() == list(range(16))
        assert views.first_detector.tolist() == [0, 1] * 8
        assert views.second_detector.tolist() == [2] * 16


# Views of some detectors alone


@pytest.mark.parametrize("kind", ["detector", "pairs"])
def test_only_the_two_detectors_of_a_view_are_asked_for(kind: str) -> None:
    """A source that makes its data need not make the others."""
    asked: list[Tensor] = []

    class Asked(ToySource):
        def train_chosen(self, *args: Any) -> tuple[Batch, Tensor]:
            windows, which = super().train_chosen(*args)
            asked.append(which)
            return windows, which

    views = make(kind, Asked(absent=2))(0, 1, range(40), 0.0, 40)
    (which,) = asked
    assert which.shape == (40, 2) and (which[:, 0] != which[:, 1]).all()
    assert torch.equal(which[views.row], torch.stack([views.first_detector, views.second_detector], dim=1))


def test_what_is_chosen_of_a_source_is_its_own() -> None:
    source, which = ToySource(absent=2), torch.stack([torch.arange(12) % 3, (torch.arange(12) + 1) % 3], dim=1)
    seen: list[Tensor] = []
    windows, found = source.train_chosen(1, 2, range(12), 0.0, 12, lambda present: seen.append(present) or which)
    whole = source.train_batch(1, 2, range(12))
    assert torch.equal(seen[0], whole.present) and torch.equal(found, which)
    for row in range(12):
        for view in range(2):
            assert torch.equal(windows.strain[row, view], whole.strain[row, which[row, view]])
            assert windows.present[row, view] == whole.present[row, which[row, view]]
    assert windows.id == whole.id and torch.equal(windows.gps, whole.gps) and windows.truth == {}


# Views cut short


def places(cut: Tensor, whole: Tensor) -> list[int]:
    """Where in its row (N, T) each cut (N, L) was taken; -1 for nowhere."""
    pieces = whole.unfold(1, cut.shape[1], 1)  # (N, T - L + 1, L)
    same = (pieces == cut[:, None]).all(dim=2)
    return [int(row.to(torch.int8).argmax()) if row.any() else -1 for row in same]


@pytest.mark.parametrize("kind", ["detector", "pairs", "noise"])
def test_both_views_are_cut_at_one_place_in_whole_frames(kind: str) -> None:
    """Sixteen frames of 62.5 ms: 12 to 16 of them, from any of the frames that leaves so many."""
    whole, cut = make(kind), make(kind, shortest=0.75)
    lengths, starts = set(), set()
    for step in range(30):
        a, b = whole(0, step, range(32), 0.0, 32), cut(0, step, range(32), 0.0, 32)
        for name in ("first_detector", "second_detector", "row"):
            assert torch.equal(getattr(a, name), getattr(b, name))
        first, second = places(b.first, a.first), places(b.second, a.second)
        assert first == second and min(first) >= 0
        assert b.first.shape == b.second.shape and b.first.is_contiguous()
        frames = b.first.shape[1] / 32
        assert all(place % 32 == 0 and place / 32 + frames <= 16 for place in first)
        lengths.add(frames)
        starts |= {(frames, place / 32) for place in first}
    assert lengths == {12, 13, 14, 15, 16}
    assert starts == {(n, start) for n in lengths for start in range(17 - int(n))}


def test_lengths_and_places_are_even() -> None:
    """720 steps: 144 +- 11 of each of five lengths; 1024 rows of one: 205 +- 13 at each of five ends, the last ones."""
    cut = make("detector", shortest=0.5)
    lengths = torch.tensor([cut(0, step, range(2), 0.0, 2).first.shape[1] // 32 for step in range(720)])
    assert set(lengths.tolist()) == {8, 9, 10, 11, 12} and torch.bincount(lengths)[8:].min() > 144 - 44
    step = int((lengths == 9).nonzero()[0])
    whole, short = (make("detector", shortest=s)(0, step, range(1024), 0.0, 1024) for s in (0.0, 0.5))
    found = torch.bincount(torch.tensor(places(short.first, whole.first)) // 32, minlength=8)
    assert found[:3].sum() == 0 and len(found) == 8 and (found[3:] - 205).abs().max() < 52


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_is_a_function_of_seed_step_and_row(kind: str) -> None:
    views = make(kind, ToySource(absent=2), shortest=0.5)
    whole = views(3, 5, range(32), 0.5, 32)
    assert same(whole, views(3, 5, range(32), 0.5, 32))
    parts = [views(3, 5, rows, 0.5, 32) for rows in (range(10), range(10, 11), range(11, 32))]
    assert same(whole, joined(parts))  # one length for the step, whichever rows a process makes


def test_augmented_views_are_cut_after_their_augmentation() -> None:
    """Else what an augmentation does at a window's ends would be where the cut is, and differ by its length."""
    whole, cut = make("detector", always=True), make("detector", always=True, shortest=0.5)
    a, b = whole(0, 4, range(16), 0.0, 16), cut(0, 4, range(16), 0.0, 16)
    assert b.first.shape[1] < 512
    assert places(b.first, a.first) == places(b.second, a.second) and min(places(b.first, a.first)) >= 0


def test_whole_windows_are_left_as_they_are() -> None:
    assert same(make("pairs")(0, 1, range(8), 0.0, 8), make("pairs", shortest=1.0)(0, 1, range(8), 0.0, 8))


def test_a_window_that_is_no_multiple_of_a_frame_is_cut_within_it() -> None:
    """Regression: 1 s in frames of 150 ms was taken for seven of them, 1.05 s."""
    cut = make("detector", shortest=0.6, hop=0.15)
    seen = {cut(0, step, range(8), 0.0, 8).first.shape[1] for step in range(40)}
    assert seen == {n * round(0.15 * 512) for n in (4, 5)}


@pytest.mark.parametrize("shortest", [0.01, 1.1, -1.0])
def test_cuts_that_no_window_holds_are_refused(shortest: float) -> None:
    with pytest.raises(InputError, match=rf"--crop: {shortest:g} s; expected 0.0625 to 1 s, or 0"):
        make("detector", shortest=shortest)
