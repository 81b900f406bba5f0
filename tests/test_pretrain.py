"""Pretraining: the schedule, what is decayed, the feed of views, and that it learns what two views share."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gwtwins.encoders.paired import PairedEncoder
from gwtwins.ssl.augment import AugmentConfig
from gwtwins.ssl.objectives import Objective, ObjectiveConfig, correlation_terms
from gwtwins.ssl.pretrain import Feed, OptimiserConfig, Pretraining, learning_rate_factor, measure_step_seconds
from gwtwins.ssl.views import ViewMaker, Views, make_views
from gwtwins.strain.errors import InputError
from toy_source import ToySource

ENCODER = {
    "rate": 512.0,
    "window": 1.0,
    "bands": 8,
    "f_low": 20.0,
    "f_high": 160.0,
    "kernel": 64,
    "stride": 16,
    "width": 16,
    "strides": [1, 1],
    "hidden": 16,
    "embedding": 32,
    "merger_frames": 4,
}


def module(
    batch: int = 64,
    steps: int = 100,
    objective: str = "barlow",
    shared: bool = True,
    pool_from: float = 0.0,
    **given: Any,
) -> Pretraining:
    torch.manual_seed(5)
    encoder = PairedEncoder("cnn_gru", ENCODER | {"pool_from": pool_from}, shared=shared, f_low=20.0, f_high=200.0)
    loss = Objective(ObjectiveConfig(objective=objective, projector=32), encoder.embedding_dim)
    return Pretraining(encoder, loss, OptimiserConfig(batch=batch, **given), steps)


def head(model: Pretraining) -> nn.Linear:
    found = model.encoder.hl.head
    assert isinstance(found, nn.Linear)
    return found


def toy_views(kind: str = "detector", **given: float) -> ViewMaker:
    return make_views(kind, ToySource(**given), AugmentConfig(aug_noise_probability=0.0))  # type: ignore[arg-type]


def count(seed: int, step: int, rows: range, progress: float, batch: int) -> Views:
    """Views that say which they are."""
    number = torch.tensor([[float(step), float(row), progress, float(batch)] for row in rows])
    zero = torch.zeros(len(rows), dtype=torch.int64)
    return Views(number, number, zero, zero, torch.tensor(rows))


# The schedule


@pytest.mark.parametrize(("steps", "warmup"), [(1000, 0.03), (100, 0.2), (10, 0.0), (1, 0.0), (2, 0.9), (7, 0.5)])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_nothing(steps: int, warmup: float) -> None:
    factors = [learning_rate_factor(step, steps, warmup) for step in range(steps)]
    assert all(0 < f <= 1 for f in factors) and max(factors) == 1
    peak = factors.index(1.0)
    assert peak == max(0, round(warmup * steps) - 1)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    if peak < steps - 1:
        assert learning_rate_factor(steps, steps, warmup) == pytest.approx(0, abs=1e-12)


def test_the_learning_rate_is_a_line_and_a_half_cosine() -> None:
    rise = [learning_rate_factor(step, 1000, 0.1) for step in (0, 49, 99)]
    assert rise == pytest.approx([0.01, 0.5, 1.0])
    fall = [learning_rate_factor(step, 1000, 0.1) for step in (100, 100 + 300, 100 + 450, 100 + 600)]
    assert fall == pytest.approx([1.0, 0.75, 0.5, 0.25])


# The optimisers


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("optimiser", ["adamw", "lars"])
def test_weights_decay_and_biases_and_norms_do_not(optimiser: str, shared: bool) -> None:
    model = module(optimiser=optimiser, shared=shared, weight_decay=1e-3)
    decayed, free = model.configure_optimizers().param_groups
    assert decayed["weight_decay"] == 1e-3 and free["weight_decay"] == 0
    names = {id(p): name for name, p in model.named_parameters()}
    assert sorted(map(id, (*decayed["params"], *free["params"]))) == sorted(names)  # each once
    free_names = {names[id(p)] for p in free["params"]}
    norms = [name for name, part in model.named_modules() if isinstance(part, nn.BatchNorm1d)]
    of_norms = {f"{name}.{kind}" for name in norms for kind in ("weight", "bias")} & set(names.values())
    assert len(of_norms) >= 6 and of_norms <= free_names
    assert {name for name in names.values() if "bias" in name} <= free_names
    assert all(name.rpartition(".")[2].startswith("weight") for name in set(names.values()) - free_names)


def test_lars_is_lars_and_not_sgd() -> None:
    """The step of a decayed weight is the trust coefficient's share of its norm, whatever the gradient's size."""
    moved = []
    for scale in (1.0, 1000.0):
        model = module(optimiser="lars", weight_decay=1e-6, learning_rate=1.0)
        weight, bias = head(model).weight, head(model).bias
        before = weight.detach().clone(), bias.detach().clone()
        weight.grad, bias.grad = scale * torch.ones_like(weight), scale * torch.ones_like(bias)
        model.configure_optimizers().step()
        moved.append([float((after - was).norm()) for after, was in zip((weight.detach(), bias.detach()), before)])
        assert moved[-1][0] == pytest.approx(1e-3 * float(before[0].norm()), rel=1e-2)
    assert moved[0][0] == pytest.approx(moved[1][0], rel=1e-3)
    assert moved[1][1] == pytest.approx(1000 * moved[0][1], rel=1e-3)


def test_lars_without_decay_is_refused() -> None:
    with pytest.raises(InputError, match="--weight-decay: 0 with --optimiser lars"):
        module(optimiser="lars", weight_decay=0.0).configure_optimizers()


@pytest.mark.parametrize(
    "given",
    [
        {"optimiser": "sgd"},
        {"batch": 1},
        {"precision": "8"},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"weight_decay": -1.0},
        {"warmup": 1.0},
        {"clip": -1.0},
    ],
)
def test_values_that_no_run_can_have_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        module(**given)


# The feed


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "views"]


def test_the_feed_gives_every_step_in_order_from_where_it_starts() -> None:
    start = 0
    feed = Feed(count, 0, 9, 4, lambda: start)
    assert [int(views.first[0, 0]) for views in feed] == list(range(9))
    start = 6
    steps = list(feed)
    assert [int(views.first[0, 0]) for views in steps] == [6, 7, 8]
    assert [float(views.first[0, 2]) for views in steps] == pytest.approx([6 / 9, 7 / 9, 8 / 9])
    start = 9
    assert list(feed) == []
    assert not threads()


def test_each_process_makes_its_own_rows() -> None:
    feeds = [Feed(count, 0, 1, 12, lambda: 0, rank, 3) for rank in range(3)]
    shares = [next(iter(feed)).row.tolist() for feed in feeds]
    assert shares == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(InputError, match="--batch: 12 rows for 5 processes"):
        Feed(count, 0, 1, 12, lambda: 0, 0, 5)


def test_an_error_in_the_feeds_thread_arrives_in_its_place() -> None:
    def broken(seed: int, step: int, rows: range, progress: float, batch: int) -> Views:
        if step == 3:
            raise InputError("window 7", "holds NaN", "finite strain")
        return count(seed, step, rows, progress, batch)

    got: list[int] = []
    with pytest.raises(InputError, match="window 7: holds NaN"):
        got.extend(int(views.first[0, 0]) for views in Feed(broken, 0, 10, 2, lambda: 0))
    assert got == [0, 1, 2]
    assert not threads()


def test_an_interrupt_in_the_feeds_thread_arrives_too() -> None:
    def interrupted(*_: object) -> Views:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(iter(Feed(interrupted, 0, 3, 2, lambda: 0)))


def test_the_feeds_thread_ends_when_nobody_listens() -> None:
    made: list[int] = []

    def remember(seed: int, step: int, rows: range, progress: float, batch: int) -> Views:
        made.append(step)
        return count(seed, step, rows, progress, batch)

    iterator: Iterator[Views] = iter(Feed(remember, 0, 10_000, 2, lambda: 0))
    next(iterator)
    assert len(threads()) == 1
    iterator.close()  # type: ignore[attr-defined]
    assert not threads()
    assert len(made) <= 4  # it does not run far ahead


def test_waiting_for_data_is_counted() -> None:
    def slow(seed: int, step: int, rows: range, progress: float, batch: int) -> Views:
        time.sleep(0.05)
        return count(seed, step, rows, progress, batch)

    feed = Feed(slow, 0, 4, 2, lambda: 0)
    list(feed)
    assert 0.1 < feed.waited


def test_measuring_the_speed_changes_nothing() -> None:
    model = module(batch=8)
    state = copy.deepcopy(model.state_dict())
    feed = Feed(toy_views(), 0, 100, 8, lambda: 0)
    assert measure_step_seconds(model, feed, steps=4) > 0
    after = model.state_dict()
    assert list(state) == list(after)
    assert all(torch.equal(after[name], state[name]) for name in state)
    assert any("running_mean" in name for name in state) and any("num_batches" in name for name in state)
    assert all(p.grad is None for p in model.parameters())
    assert feed.waited == 0 and feed.steps == 100
    assert not threads()


# Learning


def train(model: Pretraining, maker: ViewMaker, steps: int, batch: int) -> list[float]:
    """What Lightning does, without it."""
    model.train()
    optimiser = model.configure_optimizers()
    losses = []
    for step in range(steps):
        optimiser.zero_grad()
        loss = model.training_step(maker(0, step, range(batch), step / steps, batch), step)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def agreement(model: Pretraining, maker: ViewMaker) -> float:
    """Mean correlation of the two views' projections over rows that were not trained on."""
    model.eval()
    views = maker(1, 0, range(256), 0.0, 256)
    with torch.no_grad():
        model.training_step(views, 0)
    value = correlation_terms(model.last["first"], model.last["second"])["mean_diagonal"]
    assert isinstance(value, float)
    return value


@pytest.mark.parametrize("objective", ["barlow", "vicreg", "ntxent"])
def test_an_easy_problem_is_learned_in_a_few_steps(objective: str) -> None:
    model, maker = module(objective=objective), toy_views()
    untrained = agreement(model, maker)
    losses = train(model, maker, 30, 64)
    first, last = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
    assert last < 0.75 * first
    assert agreement(model, maker) > max(0.85, untrained)


def test_noise_alone_teaches_nothing() -> None:
    model, maker = module(), toy_views(loud=0.0)
    train(model, maker, 10, 64)
    assert abs(agreement(model, maker)) < 0.1


@pytest.mark.parametrize("shared", [True, False])
def test_both_branches_are_trained(shared: bool) -> None:
    model = module(shared=shared)
    model.training_step(toy_views()(0, 0, range(16), 0.0, 16), 0).backward()
    for branch in (model.encoder.hl, model.encoder.v):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in branch.parameters())


@torch.no_grad()
def test_all_frames_of_a_view_are_pooled_and_not_a_windows_later_ones() -> None:
    """Else where in a window to look would be learned: frames of long strain would be others than those of windows."""
    model = module(pool_from=0.5).eval()
    views = toy_views()(0, 0, range(16), 0.0, 16)
    model.training_step(views, 0)
    branch = model.encoder.hl
    assert branch.pool_start == 16
    frames = branch.sequence(views.first[:, None])  # type: ignore[operator]
    expected = head(model)(torch.cat([frames.mean(dim=1), frames.amax(dim=1)], dim=1))
    assert torch.allclose(model.last["embedding"], expected, atol=1e-6)
    assert not torch.allclose(model.encoder.encode(views.first, views.first_detector), expected, atol=1e-3)


def test_views_of_any_length_are_trained_on() -> None:
    """Cut to another length at each step: it learns as much, and knows whole windows."""
    model = module()
    cut = make_views("detector", ToySource(), AugmentConfig(), shortest=0.75, hop=model.encoder.hop)
    untrained = agreement(model, toy_views())
    losses = train(model, cut, 30, 64)
    assert sum(losses[-3:]) < 0.75 * sum(losses[:3])
    assert agreement(model, toy_views()) > max(0.8, untrained)


def test_what_the_monitors_see_holds_no_graph() -> None:
    model = module()
    model.training_step(toy_views()(0, 0, range(16), 0.0, 16), 0)
    shapes = {name: tuple(value.shape) for name, value in model.last.items()}
    assert shapes == {"loss": (), "first": (16, 32), "second": (16, 32), "embedding": (16, 32)}
    assert not any(value.requires_grad for value in model.last.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_poisoned_batch_stops_the_run_and_names_the_step(value: float) -> None:
    model = module()
    views = toy_views()(0, 0, range(16), 0.0, 16)
    poisoned: Tensor = views.first.clone()
    poisoned[3, 100] = value
    before = copy.deepcopy(head(model).state_dict())
    with pytest.raises((FloatingPointError, InputError), match="step 0"):
        model.training_step(Views(poisoned, views.second, views.first_detector, views.second_detector, views.row), 0)
    assert all(torch.equal(v, before[name]) for name, v in head(model).state_dict().items())
