"""Noise drawn from recordings: where it comes from, where it never comes from, and that draws are fair."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom, kstest

from gwosc_writer import GPS_START, coloured_noise, write_gwosc
from gwtwins.strain.conditioning import Conditioner
from gwtwins.strain.errors import InputError
from gwtwins.strain.events import EVENTS
from gwtwins.strain.noise_roles import BLOCK, ROLES, role_of, stretches
from gwtwins.strain.psd import PSD
from gwtwins.strain.real_noise import AFTER, BEFORE, RealNoise, gps_times
from gwtwins.strain.recording import Conditioned

RATE = 1024.0
T = 2048


def ramp(detector: str, gps: float, seconds: float, gates: list[tuple[float, float]] | None = None) -> Conditioned:
    """A piece whose samples are their own GPS times, in seconds after the start of the tests' epoch."""
    n = round(seconds * RATE)
    psd = PSD(np.array([1.0, 1000.0]), np.full(2, 1e-46), f"{detector} {gps:.0f}")
    value = (gps - GPS_START + np.arange(n) / RATE).astype(np.float32)
    return Conditioned(detector, gps, RATE, value, psd, gates or [])


@pytest.fixture(scope="module")
def noise() -> RealNoise:
    return RealNoise(
        [
            ramp("H1", GPS_START + 100.0, 7.0),
            ramp("H1", GPS_START + 40.0, 31.0, gates=[(GPS_START + 60.0, GPS_START + 61.5)]),
            ramp("L1", GPS_START + 0.0, 20.0),
            ramp("L1", GPS_START + 30.0, 1.5),  # shorter than a window
            ramp("V1", GPS_START + 0.0, 50.0),
        ],
        exclude=[GPS_START + 50.0, GPS_START + 500.0],
    )


def test_windows_are_whole_and_stay_clear_of_events_gates_and_ends(noise: RealNoise) -> None:
    strain, _, gps = noise.at(("H1", "L1", "V1"), torch.rand(4000, 3, dtype=torch.float64), T)
    assert strain.shape == (4000, 3, T) and strain.dtype == torch.float32
    step = strain[..., 1:] - strain[..., :-1]
    assert (step > 0).all() and step.max() < 1.1 / RATE  # no window jumps from one piece into another
    np.testing.assert_allclose(strain[..., 0].numpy(), gps.numpy() - GPS_START, atol=1e-4)
    allowed = {
        "H1": [(40, 42), (52, 60), (61.5, 71), (100, 107)],
        "L1": [(0, 20)],
        "V1": [(0, 42)],  # 42 to 50 is within 8 s before the merger at 50
    }
    for d, spans in enumerate(allowed.values()):
        first, last = strain[:, d, 0].numpy(), strain[:, d, -1].numpy()
        inside = [(first >= a - 1e-3) & (last < b + 1e-3) for a, b in spans]
        assert np.any(inside, axis=0).all()
        assert all(hit.any() for hit in inside)


def test_every_window_start_is_equally_likely(noise: RealNoise) -> None:
    assert noise.starts("L1", T) == round(18 * RATE) + 1
    assert noise.starts("H1", T) == 1 + round(6 * RATE) + 1 + round(7.5 * RATE) + 1 + round(5 * RATE) + 1
    # Each place of a grid over [0, 1) is one window, and all windows are there once.
    for name in noise.detectors:
        starts = noise.starts(name, 16)
        where = (torch.arange(starts, dtype=torch.float64) + 0.5) / starts
        gps = noise.at((name,), where[:, None], 16)[2]
        assert len(torch.unique(gps)) == starts


def test_draws_are_uniform_and_independent_between_detectors(noise: RealNoise) -> None:
    strain, _ = noise.draw(("L1", "V1"), 7, "noise", 0, range(20_000), T)
    first = strain[:, :, 0].double().numpy()
    assert kstest(first[:, 0] / 18, "uniform").pvalue > 1e-3
    assert kstest(first[:, 1] / 40, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(first.T)[0, 1]) < 4 / np.sqrt(20_000)
    # Nor are two windows at one moment more often than by chance.
    near = np.mean(np.abs(first[:, 0] - first[:, 1]) < 0.5)
    assert abs(near - 1.0 / 40) < 4 * np.sqrt(1 / 40 / 20_000)


def test_a_draw_depends_on_seed_stream_step_and_row_only(noise: RealNoise) -> None:
    whole, index = noise.draw(("H1", "V1"), 3, "noise", 5, range(40), T)
    parts = [noise.draw(("H1", "V1"), 3, "noise", 5, rows, T) for rows in (range(0, 13), range(13, 40))]
    assert torch.equal(whole, torch.cat([part[0] for part in parts]))
    assert torch.equal(index, torch.cat([part[1] for part in parts]))
    assert not torch.equal(whole, noise.draw(("H1", "V1"), 3, "other", 5, range(40), T)[0])
    for seed, step in ((4, 5), (3, 6)):
        assert not torch.equal(whole, noise.draw(("H1", "V1"), seed, "noise", step, range(40), T)[0])


def test_the_psd_index_names_the_pieces_own_psd(noise: RealNoise) -> None:
    strain, index = noise.draw(("H1", "L1", "V1"), 0, "noise", 0, range(500), T)
    names = [psd.name for psd in noise.psd_table()]
    assert len(names) == 5
    for row in range(500):
        assert names[index[row, 0]] == f"H1 {GPS_START + (100 if strain[row, 0, 0] >= 100 else 40)}"
        assert names[index[row, 1]] == f"L1 {GPS_START}"
        assert names[index[row, 2]] == f"V1 {GPS_START}"


def test_what_is_not_there_is_an_input_error(noise: RealNoise) -> None:
    with pytest.raises(InputError, match="no strain of K1; expected files of H1, L1, V1"):
        noise.draw(("H1", "K1"), 0, "noise", 0, range(4), T)
    with pytest.raises(InputError, match="no usable stretch of L1 is 30 s long"):
        noise.draw(("L1",), 0, "noise", 0, range(4), round(30 * RATE))
    with pytest.raises(InputError, match="no usable strain"):
        RealNoise([])
    other = ramp("V1", GPS_START, 4.0)
    other.rate = 2048.0
    with pytest.raises(InputError, match="pieces at 1024, 2048 Hz"):
        RealNoise([ramp("H1", GPS_START, 4.0), other])


def test_blocks_are_shared_out_as_stated_and_without_a_pattern() -> None:
    roles = [role_of(block) for block in range(120_000_000, 120_020_000)]
    for role, share in ROLES.items():
        assert 1e-3 < binom.cdf(roles.count(role), len(roles), share) < 1 - 1e-3
        again = sum(a == b == role for a, b in zip(roles[:-1], roles[1:], strict=True))
        assert 1e-4 < binom.cdf(again, len(roles) - 1, share**2) < 1 - 1e-4
    # Fixed for good: what was a test second once is one for ever.
    assert [role_of(block) for block in range(148_342_730, 148_342_738)] == [
        "labelled",
        "labelled",
        "train",
        "train",
        "test",
        "test",
        "train",
        "test",
    ]


def test_the_stretches_of_the_roles_are_all_of_a_time_and_each_second_once() -> None:
    start, end = GPS_START + 3.25, GPS_START + 203.5
    found = sorted(stretch for role in ROLES for stretch in stretches(role, start, end))
    assert found[0][0] == start and found[-1][1] == end
    assert all(one[1] == other[0] and one[1] % BLOCK == 0 for one, other in zip(found[:-1], found[1:], strict=True))


def test_parts_of_the_noise_never_share_a_second_of_any_detector() -> None:
    """Nor does one of Hanford coincide with another's of Livingston: what reached both stays in one role."""
    pieces = [
        ramp("H1", GPS_START + 0.3, 333.0, gates=[(GPS_START + 60.0, GPS_START + 61.5)]),
        ramp("H1", GPS_START + 340.5, 100.0),
        ramp("L1", GPS_START + 7.7, 400.0),
    ]
    noise = RealNoise(pieces, exclude=[GPS_START + 200.0])
    seconds: dict[str, set[int]] = {}
    for role in ROLES:
        part = noise.only(role)
        strain, index, gps = part.at(("H1", "L1"), torch.rand(4000, 2, dtype=torch.float64), T)
        whole = noise.at(("H1", "L1"), torch.rand(4, 2, dtype=torch.float64), T)
        assert part.psd_table() == noise.psd_table() and strain.shape[1:] == whole[0].shape[1:]
        np.testing.assert_allclose(strain[..., 0].numpy(), gps.numpy() - GPS_START, atol=1e-4)
        np.testing.assert_allclose(strain[..., -1].numpy() - strain[..., 0].numpy(), (T - 1) / RATE, atol=1e-4)
        first, last = gps.numpy(), gps.numpy() + (T - 1) / RATE
        assert all(role_of(int(t // BLOCK)) == role for t in np.concatenate([first.ravel(), last.ravel()]))
        seconds[role] = {s for a, b in zip(first.ravel(), last.ravel(), strict=True) for s in range(int(a), int(b) + 1)}
        assert len(seconds[role]) > 50
    assert not seconds["train"] & seconds["labelled"] | seconds["train"] & seconds["test"]
    assert not seconds["labelled"] & seconds["test"]


def test_the_parts_are_all_of_the_noise(noise: RealNoise) -> None:
    parts = [noise.only(role) for role in ROLES]
    for name in noise.detectors:
        assert sum(part.seconds(name) for part in parts) == noise.seconds(name)
    assert [part.describe()["usable_seconds"]["V1"] for part in parts] == [part.seconds("V1") for part in parts]


def test_a_part_without_room_says_which_rows_have_none() -> None:
    short = RealNoise([ramp("H1", GPS_START, 8.0)])  # one block
    roomless = [role for role in ROLES if role != role_of(GPS_START // int(BLOCK))]
    for role in roomless:
        with pytest.raises(InputError, match=f"real noise for {role} rows .*no usable stretch of H1 is 2 s long"):
            short.only(role).draw(("H1",), 0, "noise", 0, range(4), T)


def test_real_files_leave_each_role_noise_of_each_detector(gwosc: Path) -> None:
    noise = RealNoise.from_spec(str(gwosc), rate=1024.0)
    for name in noise.detectors:
        for role, least in (("train", 70), ("labelled", 40), ("test", 25)):
            assert noise.only(role).starts(name, T) / 1024 > least


def test_gps_times_come_from_a_list_or_a_file(tmp_path: Path) -> None:
    assert gps_times("--noise-avoid", "") == []
    assert gps_times("--noise-avoid", "1126259462.4,1186741861.5") == [1126259462.4, 1186741861.5]
    many = [1e9 + i for i in range(500)]  # longer than a file's name can be
    assert gps_times("--noise-avoid", ",".join(map(str, many))) == many
    (tmp_path / "times.txt").write_text("1126259462.4\n\n1186741861.5\n")
    assert gps_times("--noise-avoid", str(tmp_path / "times.txt")) == [1126259462.4, 1186741861.5]
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe1")
    for wrong in ("soon", "1e9;2e9", "inf", str(tmp_path), str(tmp_path / "binary.txt")):
        with pytest.raises(InputError, match="--noise-avoid: .*; expected GPS times joined by commas"):
            gps_times("--noise-avoid", wrong)


def test_times_to_avoid_come_on_top_of_the_known_mergers(gwosc: Path) -> None:
    files = sorted(gwosc.glob("*GW170814*"))
    spec, event = ",".join(map(str, files)), next(e for e in EVENTS if e.name == "GW170814")
    whole = RealNoise.from_spec(spec, rate=1024.0)
    some = RealNoise.from_spec(spec, rate=1024.0, avoid=[event.gps - 8.0])
    assert some.seconds("L1") == pytest.approx(whole.seconds("L1") - 8.0, abs=0.01)
    gps = some.at(("H1", "L1", "V1"), torch.rand(500, 3, dtype=torch.float64), T)[2]
    assert ((gps + 2.0 <= event.gps - 16.0 + 1e-3) | (gps >= event.gps + AFTER - 1e-3)).all()


def test_256_rows_of_three_detectors_take_less_than_10_ms(noise: RealNoise) -> None:
    taken = []
    for step in range(12):
        begin = time.perf_counter()
        noise.draw(("H1", "L1", "V1"), 0, "noise", step, range(256), T)
        taken.append(time.perf_counter() - begin)
    assert min(taken) < 0.010


def test_from_files_leaves_out_a_file_and_its_seconds_in_every_other(tmp_path: Path) -> None:
    strain = coloured_noise(40, 1024)
    whole = write_gwosc(tmp_path / "whole.hdf5", strain, 1024)
    part = write_gwosc(tmp_path / "part.hdf5", strain[10 * 1024 : 20 * 1024], 1024, gps=GPS_START + 10)
    livingston = write_gwosc(tmp_path / "l.hdf5", coloured_noise(30, 1024, seed=9), 1024, detector="L1")
    files = [whole, part, livingston, whole]
    every = RealNoise.from_files(files, rate=1024.0)
    assert every.seconds("H1") == pytest.approx(39.0 + 9.0)
    noise = RealNoise.from_files(files, exclude_files=[part], rate=1024.0)
    assert noise.seconds("H1") == pytest.approx(39.0 - 10.0)
    assert noise.seconds("L1") == pytest.approx(29.0 - 10.0)
    where = torch.rand(2000, 2, dtype=torch.float64)
    gps = noise.at(("H1", "L1"), where, T)[2] - GPS_START
    assert ((gps + 2 <= 10) | (gps >= 20)).all()
    assert str(tmp_path) not in str(noise.describe())
    with pytest.raises(InputError, match="absent.hdf5: no such file"):
        RealNoise.from_files(files, exclude_files=[tmp_path / "absent.hdf5"])


def test_a_spec_names_files_and_folders_and_times_to_leave_out(tmp_path: Path) -> None:
    strain = coloured_noise(24, 1024)
    for i, detector in enumerate(("H1", "L1")):
        write_gwosc(tmp_path / f"{detector}.hdf5", strain[: 12 * 1024], 1024, detector)
        write_gwosc(tmp_path / f"{detector}-later.hdf5", strain[12 * 1024 :], 1024, detector, GPS_START + 12 + i)
    everything = RealNoise.from_spec(str(tmp_path), rate=1024.0)
    assert everything.seconds("H1") == everything.seconds("L1") == 22.0
    some = RealNoise.from_spec(f"{tmp_path / 'H1.hdf5'},{tmp_path / 'L1-later.hdf5'}", rate=1024.0)
    assert some.seconds("H1") == some.seconds("L1") == 11.0
    rest = RealNoise.from_spec(str(tmp_path), [GPS_START + 5.0], rate=1024.0)
    assert rest.seconds("H1") == rest.seconds("L1") == 11.0
    with pytest.raises(InputError, match="no file holds GPS 1000000100.0"):
        RealNoise.from_spec(str(tmp_path), [GPS_START + 100.0])
    with pytest.raises(InputError, match="absent: no such file"):
        RealNoise.from_spec(str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no strain file in this folder"):
        RealNoise.from_spec(str(tmp_path / "empty"))


def test_real_noise_is_white_and_holds_no_event(gwosc: Path) -> None:
    noise = RealNoise.from_files(sorted(gwosc.glob("*.hdf5")), rate=1024.0)
    assert noise.detectors == ("H1", "L1", "V1")
    assert all(noise.seconds(name) > 150 for name in noise.detectors)
    where = torch.rand(3000, 3, dtype=torch.float64)
    strain, index, gps = noise.at(noise.detectors, where, T)
    for event in EVENTS:
        assert ((gps + 2.0 <= event.gps - BEFORE + 1e-3) | (gps >= event.gps + AFTER - 1e-3)).all()
    spread = strain.std(dim=(0, 2))
    assert (abs(spread - 1) < 0.02).all()
    one = strain.std(dim=2)
    assert 0.8 < one.min() and one.max() < 1.6
    assert index.max() < len(noise.psd_table())


def test_signals_can_be_whitened_by_the_psds_of_the_table(gwosc: Path) -> None:
    noise = RealNoise.from_files(sorted(gwosc.glob("*.hdf5"))[:3])
    for psd in noise.psd_table():
        Conditioner([psd], 2048.0)
