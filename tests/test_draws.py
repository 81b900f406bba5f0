"""Random numbers that depend on (seed, stream, step, row) and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from gwtwins.strain import draws


def test_rows_are_drawn_alike_however_they_are_split() -> None:
    for draw in (draws.uniform, draws.normal):
        whole = draw(3, "noise", 7, range(20), 50)
        parts = [draw(3, "noise", 7, rows, 50) for rows in (range(0, 1), range(1, 13), range(13, 20))]
        assert torch.equal(torch.cat(parts), whole)
        assert torch.equal(draw(3, "noise", 7, [19, 0], 50), whole[[19, 0]])  # nor in which order


def test_a_longer_draw_begins_with_the_shorter_one() -> None:
    long = draws.uniform(0, "sky", 0, range(3), 10)
    assert torch.equal(draws.uniform(0, "sky", 0, range(3), 4), long[:, :4])


@pytest.mark.parametrize(
    "other", [(2, "sky", 5, 9), (1, "sky ", 5, 9), (1, "sky", 6, 9), (1, "sky", 5, 10), (1, "sky", 9, 5)]
)
def test_seed_stream_step_and_row_each_give_other_numbers(other: tuple[int, str, int, int]) -> None:
    one = draws.row_generator(1, "sky", 5, 9).random(1000)
    two = draws.row_generator(*other).random(1000)
    assert not np.isin(one, two).any()  # not even shifted
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.15  # standard error 0.03


def test_neighbouring_rows_do_not_overlap() -> None:
    """Row r + 1 is not row r some draws later, as it would be if the row were the counter's low word."""
    rows = draws.uniform(0, "noise", 0, range(50), 400).flatten()
    assert rows.unique().numel() == rows.numel()


def test_numbers_are_uniform_and_normal_over_rows_and_along_them() -> None:
    u, x = draws.uniform(0, "sky", 2, range(2000), 3), draws.normal(0, "sky", 2, range(2000), 3)
    assert u.dtype == torch.float64 and u.shape == (2000, 3) and u.min() >= 0 and u.max() < 1
    assert x.dtype == torch.float32 and x.shape == (2000, 3)
    for i in range(3):
        assert kstest(u[:, i].numpy(), "uniform").pvalue > 1e-3
        assert kstest(x[:, i].numpy(), "norm").pvalue > 1e-3


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
    draws.uniform(0, "x", 0, range(4), 4), draws.normal(0, "x", 0, range(4), 4)
    after = np.random.get_state()[1], torch.get_rng_state()  # type: ignore[index]  # noqa: NPY002
    assert np.array_equal(before[0], after[0]) and torch.equal(before[1], after[1])
