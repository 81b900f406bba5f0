"""Objectives: lightly's losses are the papers' formulas, in float32, on the rows of all processes."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightly.loss
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gwtwins.ssl.objectives import Objective, ObjectiveConfig, correlation_terms, effective_rank
from gwtwins.strain.errors import InputError
from spawned import run_all

N, P = 24, 6


def bare(name: str, **given: float) -> Objective:
    """An objective on the projections themselves."""
    objective = Objective(ObjectiveConfig(objective=name, **given), P)  # type: ignore[arg-type]
    objective.projector = nn.Identity()
    return objective


def views(n: int = N, p: int = P) -> tuple[Tensor, Tensor]:
    """Two correlated views with means and scales of their own, (n, p) float32."""
    common, first, second = torch.randn(3, n, p)
    return 2.0 + common + 0.5 * first, -1.0 + 3.0 * (common + 0.5 * second)


def barlow_formula(a: Tensor, b: Tensor) -> Tensor:
    """Zbontar et al. 2021, arXiv:2103.03230, eq. 1 and 2."""

    def standard(z: Tensor) -> Tensor:
        return (z - z.mean(0)) / torch.sqrt(((z - z.mean(0)) ** 2).mean(0) + 1e-5)

    c = standard(a).T @ standard(b) / len(a)
    loss = torch.zeros((), dtype=a.dtype)
    for i in range(c.shape[0]):
        for j in range(c.shape[1]):
            loss = loss + ((1 - c[i, i]) ** 2 if i == j else 5e-3 * c[i, j] ** 2)
    return loss


def vicreg_formula(a: Tensor, b: Tensor) -> Tensor:
    """Bardes et al. 2022, arXiv:2105.04906, eq. 1 to 6: 25 s(a, b) + 25 [v(a) + v(b)] + c(a) + c(b), as the authors'
    code scales it: s and v are means over dimensions, and v is halved.
    """
    invariance = ((a - b) ** 2).mean()
    variance = sum(torch.relu(1 - torch.sqrt(z.var(0, unbiased=True) + 1e-4)).mean() for z in (a, b)) / 2
    covariance = torch.zeros((), dtype=a.dtype)
    for z in (a, b):
        matrix = (z - z.mean(0)).T @ (z - z.mean(0)) / (len(z) - 1)
        covariance = covariance + (matrix - torch.diag(matrix.diagonal())).pow(2).sum() / z.shape[1]
    return 25 * invariance + 25 * variance + covariance


def ntxent_formula(a: Tensor, b: Tensor) -> Tensor:
    """Chen et al. 2020, arXiv:2002.05709, eq. 1, the mean over all 2 N rows."""
    z = torch.cat([a, b])
    z = z / z.norm(dim=1, keepdim=True)
    similarity = torch.exp(z @ z.T / 0.1)
    total = torch.zeros((), dtype=a.dtype)
    for i in range(len(z)):
        others = similarity[i].sum() - similarity[i, i]
        total = total - torch.log(similarity[i, (i + len(a)) % len(z)] / others)
    return total / len(z)


FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "barlow": barlow_formula,
    "vicreg": vicreg_formula,
    "ntxent": ntxent_formula,
}
LIGHTLY = {
    "barlow": lambda: lightly.loss.BarlowTwinsLoss(lambda_param=5e-3),
    "vicreg": lightly.loss.VICRegLoss,
    "ntxent": lambda: lightly.loss.NTXentLoss(temperature=0.1),
}


def terms_of(a: Tensor, b: Tensor) -> dict[str, Any]:
    return correlation_terms(a, b)


def with_gradients(loss: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    value = loss(a, b)
    first, second = torch.autograd.grad(value, (a, b))
    return value.detach(), first, second


@pytest.mark.parametrize("name", FORMULAS)
def test_loss_and_gradients_equal_the_papers_formula_and_lightlys(name: str) -> None:
    a, b = views()
    ours = with_gradients(lambda x, y: bare(name)(x, y)[0], a, b)
    plain = with_gradients(FORMULAS[name], a.double(), b.double())
    lightlys = with_gradients(LIGHTLY[name](), a, b)
    for got, formula, reference in zip(ours, plain, lightlys):
        assert torch.allclose(got.double(), formula, rtol=1e-4, atol=1e-5 * float(formula.abs().max()))
        assert torch.equal(got, reference)


def test_barlow_does_not_see_scale_and_shift_of_a_view() -> None:
    a, b = views()
    objective = bare("barlow")
    loss = objective(a, b)[0]
    assert objective(a * torch.rand(P).add(0.5) * 7 + torch.randn(P), b)[0] == pytest.approx(float(loss), rel=1e-4)
    assert objective(b, a)[0] == pytest.approx(float(loss), rel=1e-4)
    order = torch.randperm(N)
    assert objective(a[order], b[order])[0] == pytest.approx(float(loss), rel=1e-4)
    assert abs(objective(a[order], b)[0] / loss - 1) > 0.1  # rows no longer belong together


def test_ntxent_does_not_see_the_length_of_a_row() -> None:
    a, b = views()
    loss = bare("ntxent")(a, b)[0]
    assert bare("ntxent")(a * torch.rand(N, 1).add(0.5), b)[0] == pytest.approx(float(loss), rel=1e-4)


def test_barlow_is_zero_for_equal_views_without_redundancy() -> None:
    rows = torch.randn(64, P)
    white = torch.linalg.qr(rows - rows.mean(0))[0]
    assert bare("barlow")(5 * white, 5 * white)[0] < 1e-4
    assert bare("barlow")(5 * white, -5 * white)[0] == pytest.approx(4 * P, rel=1e-2)


@pytest.mark.parametrize("name", FORMULAS)
def test_the_loss_is_float32_under_lower_precision(name: str) -> None:
    objective = Objective(ObjectiveConfig(objective=name, projector=32), P).train()
    a, b = views(64)
    wanted = objective(a, b)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss, projections = objective(a, b)
        rounded, _ = objective(a.bfloat16(), b.bfloat16())
    assert loss.dtype == rounded.dtype == torch.float32
    assert all(z.dtype == torch.float32 for z in projections)
    assert torch.equal(loss, wanted)
    assert not torch.is_autocast_enabled("cpu")


def test_projections_are_those_of_the_loss() -> None:
    objective = Objective(ObjectiveConfig(projector=32), P).train()
    a, b = views()
    loss, (first, second) = objective(a, b)
    assert first.shape == second.shape == (N, 32)
    assert torch.equal(objective.loss(first, second), loss)


@pytest.mark.parametrize(
    "config",
    [{"objective": "byol"}, {"projector": 0}, {"lambda_param": -1.0}, {"temperature": 0.0}, {"temperature": math.nan}],
)
def test_what_is_no_objective_is_refused(config: dict[str, float]) -> None:
    with pytest.raises(InputError, match="objective"):
        Objective(ObjectiveConfig(**config), P)  # type: ignore[arg-type]


# What is watched


def test_correlation_terms_equal_numpys() -> None:
    a, b = views(200)
    terms = terms_of(a, b)
    c = np.corrcoef(a.numpy(), b.numpy(), rowvar=False)[:P, P:]
    assert terms["matrix"].numpy() == pytest.approx(c, abs=1e-5)
    assert terms["mean_diagonal"] == pytest.approx(np.diag(c).mean(), abs=1e-5)
    assert terms["invariance"] == pytest.approx(((1 - np.diag(c)) ** 2).sum(), rel=1e-4)
    assert terms["redundancy"] == pytest.approx((c**2).sum() - (np.diag(c) ** 2).sum(), rel=1e-4)
    assert bare("barlow")(a, b)[0] == pytest.approx(terms["invariance"] + 5e-3 * terms["redundancy"], rel=1e-3)


@pytest.mark.parametrize(("n", "p"), [(64, 32), (256, 64), (32, 128)])
def test_independent_views_show_the_redundancy_of_the_floor(n: int, p: int) -> None:
    ratios = []
    for _ in range(20):
        terms = terms_of(torch.randn(n, p), torch.randn(n, p))
        ratios.append(terms["redundancy"] / terms["floor"])
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.02)


def test_a_constant_dimension_is_not_nan() -> None:
    a, b = views()
    a[:, 2] = 4.0
    terms = terms_of(a, b)
    assert all(np.isfinite(terms[name]) for name in ("invariance", "redundancy", "mean_diagonal"))
    assert terms["matrix"][2].abs().max() < 1e-3


def test_effective_rank_counts_the_directions_in_use() -> None:
    rows = torch.randn(4096, 16)
    assert effective_rank(rows) == pytest.approx(16, rel=0.01)
    assert effective_rank(5.0 + 100 * rows) == pytest.approx(effective_rank(rows), rel=1e-5)
    assert effective_rank(rows[:, :3] @ torch.linalg.qr(torch.randn(16, 3))[0].T) == pytest.approx(3, rel=0.01)
    assert effective_rank(torch.randn(4096, 1) @ torch.randn(1, 16)) == pytest.approx(1, rel=0.01)
    assert effective_rank(torch.full((64, 16), 3.0)) == pytest.approx(1)


# Several processes


def _linear(name: str) -> Objective:
    objective = Objective(ObjectiveConfig(objective=name), P)
    torch.manual_seed(2)
    # Without the usual projector's BatchNorm, whose statistics are each process's own unless they are synchronised.
    objective.projector = nn.Linear(P, P)
    return objective


def _loss_and_gradient(name: str, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    objective = _linear(name)
    loss = objective(a, b)[0]
    loss.backward()
    assert isinstance(objective.projector, nn.Linear) and objective.projector.weight.grad is not None
    return loss.detach(), objective.projector.weight.grad


def _half(rank: int, folder: str) -> None:
    """One of two processes: its half of the rows; what it finds goes to ``folder``."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=120),
    )
    a, b = (z.chunk(2)[rank] for z in torch.load(f"{folder}/views.pt", weights_only=True))  # noqa: TID251 (this test's)
    found = {}
    for name in FORMULAS:
        loss, gradient = _loss_and_gradient(name, a, b)
        torch.distributed.all_reduce(gradient)  # as DistributedDataParallel does: the mean over processes
        found[name] = (loss, gradient / 2)
    torch.save(found, f"{folder}/found-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_optimise_the_loss_of_all_rows(tmp_path: Path) -> None:
    torch.save(views(), tmp_path / "views.pt")
    run_all(_half, ((rank, str(tmp_path)) for rank in range(2)))
    a, b = torch.load(tmp_path / "views.pt", weights_only=True)  # noqa: TID251
    for rank in range(2):
        found = torch.load(tmp_path / f"found-{rank}.pt", weights_only=True)  # noqa: TID251
        for name in FORMULAS:
            loss, gradient = _loss_and_gradient(name, a, b)
            assert torch.allclose(found[name][0], loss, rtol=1e-5)
            assert torch.allclose(found[name][1], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))
