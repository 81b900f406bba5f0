"""Random numbers that depend on (seed, stream, step, row) and on nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from gwtwins.strain import draws

Draw = Callable[[int, str, int, Iterable[int], int], torch.Tensor]
UNIFORM, NORMAL = (draws.uniform, draws.hashed_uniform), (draws.normal, draws.seeded_normal)


@pytest.mark.parametrize("draw", UNIFORM + NORMAL)
def test_rows_are_drawn_alike_however_they_are_split(draw: Draw) -> None:
    whole = draw(3, "noise", 7, range(20), 50)
    parts = [draw(3, "noise", 7, rows, 50) for rows in (range(0, 1), range(1, 13), range(13, 20))]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(draw(3, "noise", 7, [19, 0], 50), whole[[19, 0]])  # nor in which order
    assert draw(3, "noise", 7, [], 50).shape == (0, 50)


@pytest.mark.parametrize("draw", UNIFORM)
def test_a_longer_draw_begins_with_the_shorter_one(draw: Draw) -> None:
    long = draw(0, "sky", 0, range(3), 10)
    assert torch.equal(draw(0, "sky", 0, range(3), 4), long[:, :4])


@pytest.mark.parametrize(
    "other", [(2, "sky", 5, 9), (1, "sky ", 5, 9), (1, "sky", 6, 9), (1, "sky", 5, 10), (1, "sky", 9, 5)]
)
def test_seed_stream_step_and_row_each_give_other_numbers(other: tuple[int, str, int, int]) -> None:
    one = draws.row_generator(1, "sky", 5, 9).random(1000)
    two = draws.row_generator(*other).random(1000)
    assert not np.isin(one, two).any()  # not even shifted
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.15  # standard error 0.03


@pytest.mark.parametrize("draw", UNIFORM + NORMAL)
def test_seed_stream_step_and_row_are_told_apart_in_every_draw(draw: Draw) -> None:
    one = draw(1, "sky", 5, [9], 1000)[0].numpy()
    for seed, stream, step, row in ((2, "sky", 5, 9), (1, "sky ", 5, 9), (1, "sky", 6, 9), (1, "sky", 9, 5)):
        two = draw(seed, stream, step, [row], 1000)[0].numpy()
        assert np.isin(one, two).mean() < 0.01  # not even shifted; a few float32 meet by chance
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.15  # standard error 0.03


@pytest.mark.parametrize("draw", UNIFORM)
def test_neighbouring_rows_do_not_overlap(draw: Draw) -> None:
    """Row r + 1 is not row r some draws later, as it would be if the row were the counter's low word."""
    rows = draw(0, "noise", 0, range(50), 400).flatten()
    assert rows.unique().numel() == rows.numel()


@pytest.mark.parametrize("draw", UNIFORM)
def test_numbers_are_uniform_over_rows_and_along_them(draw: Draw) -> None:
    u = draw(0, "sky", 2, range(2000), 3)
    assert u.dtype == torch.float64 and u.shape == (2000, 3) and u.min() >= 0 and u.max() < 1
    for i in range(3):
        assert kstest(u[:, i].numpy(), "uniform").pvalue > 1e-3
    along = draw(0, "sky", 2, range(3), 2000)
    for row in along:
        assert kstest(row.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("draw", NORMAL)
def test_numbers_are_normal_over_rows_and_along_them(draw: Draw) -> None:
    x, along = draw(0, "sky", 2, range(2000), 3), draw(0, "sky", 2, range(3), 2000)
    assert x.dtype == torch.float32 and x.shape == (2000, 3)
    for i in range(3):
        assert kstest(x[:, i].numpy(), "norm").pvalue > 1e-3
        assert kstest(along[i].numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("draw", UNIFORM + NORMAL)
@pytest.mark.parametrize("rows", [range(400), range(0, 400 * 256, 256), range(2**40, 2**40 + 400)])
def test_rows_are_independent_of_each_other(draw: Draw, rows: range) -> None:
    """79,800 pairs of 1,000 numbers: correlations scatter by 0.032 as chance has it, the largest 4.5 times that."""
    x = draw(0, "noise", 1, rows, 1000).double().numpy()
    pairs = np.corrcoef(x)[np.triu_indices(400, 1)]
    assert pairs.std() == pytest.approx(1000**-0.5, rel=0.02)
    assert np.abs(pairs).max() < 6 * 1000**-0.5
    columns = np.corrcoef(x[:, :200].T)[np.triu_indices(200, 1)]  # nor are a row's own numbers
    assert columns.std() == pytest.approx(400**-0.5, rel=0.03)


def test_every_bit_of_a_hashed_number_is_fair() -> None:
    bits = (draws.hashed_uniform(0, "sky", 3, range(4000), 4) * 2.0**53).to(torch.int64).flatten()
    ones = torch.stack([(bits >> i & 1).double().mean() for i in range(53)])
    assert (ones - 0.5).abs().max() < 5 * 0.5 / 16_000**0.5


def test_what_a_seed_once_gave_it_always_gives() -> None:
    """Kept: with other numbers a run could not be repeated or resumed by a later version."""
    found = draws.hashed_uniform(20150914, "train", 7, [0, 3], 2).tolist()
    assert found == [[0.35723299694365507, 0.5093719424743052], [0.2092639875240142, 0.5515844569915601]]


@pytest.mark.parametrize("draw", [*UNIFORM, *NORMAL])
def test_any_seed_step_and_row_can_be_drawn(draw: Draw) -> None:
    seen = {
        float(draw(seed, "x", step, [row], 1))
        for seed in (0, -1, 2**63)
        for step in (0, 10**9)
        for row in (0, 2**40, 2**63)
    }
    assert len(seen) == 18


def test_seeds_of_any_size_and_sign_and_many_steps_are_taken() -> None:
    seen = {
        float(draws.row_generator(seed, "x", step, row).random())
        for seed in (0, -1, 2**63, 2**80 + 5)
        for step in (0, 10**9)
        for row in (0, 2**40)
    }
    assert len(seen) == 16


def test_global_generators_are_left_alone() -> None:
    np.random.seed(0)  # noqa: NPY002 (the state pycbc draws from)
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index]  # noqa: NPY002
    for draw in UNIFORM + NORMAL:
        draw(0, "x", 0, range(4), 4)
    after = np.random.get_state()[1], torch.get_rng_state()  # type: ignore[index]  # noqa: NPY002
    assert np.array_equal(before[0], after[0]) and torch.equal(before[1], after[1])
