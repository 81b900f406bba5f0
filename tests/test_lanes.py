"""Lanes: threads that share a step's rows change neither outputs nor gradients, and a run stays reproducible."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gwtwins.encoders.paired import PairedEncoder
from gwtwins.ssl.augment import AugmentConfig
from gwtwins.ssl.lanes import LEAST_ROWS, Lanes, in_lanes
from gwtwins.ssl.objectives import Objective, ObjectiveConfig
from gwtwins.ssl.pretrain import Feed, OptimiserConfig, Pretraining
from gwtwins.ssl.views import make_views
from gwtwins.train_ssl import train
from test_resume import killed_on_the_way
from test_train_command import TINY, losses, same_weights
from toy_source import ToySource


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def both(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Two views of N rows to (2, N, E)."""
    return torch.stack([module(x), module(y)])


def plain(used: bool = True) -> nn.Module:
    """A network whose rows have nothing to do with each other, in float64."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    if not used:
        net.register_parameter("idle", nn.Parameter(torch.zeros(2, dtype=torch.float64)))
    return net


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("used", [True, False])
def test_outputs_and_gradients_are_those_of_one_pass(count: int, used: bool) -> None:
    """To float64's rounding: sums over rows are made lane by lane. Ten rows divide into two and into three lanes."""
    net, x, y = plain(used), torch.randn(10, 7).double(), torch.randn(10, 7).double()
    weigh = torch.randn(2, 10, 3).double()
    (both(net, x, y) * weigh).sum().backward()
    wanted = [p.grad for p in net.parameters()]
    net.zero_grad()
    lanes = Lanes(net, count, count)
    out = lanes(both, x, y)
    (out * weigh).sum().backward()
    lanes.close()
    assert torch.equal(out, both(net, x, y))
    for p, expected in zip(net.parameters(), wanted, strict=True):
        assert (p.grad is None) == (expected is None)
        assert expected is None or (p.grad - expected).abs().max() < 1e-13


def test_batchnorm_is_each_lanes_own_and_what_is_kept_is_their_mean() -> None:
    torch.manual_seed(1)
    net, x, y = nn.BatchNorm1d(4), torch.randn(12, 4) * 3, torch.randn(12, 4) + 1
    lanes = Lanes(net, 2, 2)
    out = lanes(both, x, y)
    lanes.close()
    kept = []
    for part in (slice(0, 6), slice(6, 12)):
        alone = nn.BatchNorm1d(4)
        assert out[:, part].allclose(both(alone, x[part], y[part]), rtol=1e-5)
        kept.append(torch.stack([alone.running_mean, alone.running_var]))
    assert torch.stack([net.running_mean, net.running_var]).allclose(torch.stack(kept).mean(dim=0), rtol=1e-6)
    assert int(net.num_batches_tracked) == 2  # once a view


def test_what_goes_wrong_in_a_lane_is_said() -> None:
    lanes = Lanes(nn.Linear(7, 3), 2, 2)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        lanes(both, torch.randn(4, 6), torch.randn(4, 6))
    lanes.close()


def made(batch: int) -> tuple[Pretraining, Feed]:
    torch.manual_seed(2)
    given = {"rate": 512.0, "window": 1.0, "pool_from": 0.0, "f_high": 200.0}
    encoder = PairedEncoder("cnn_gru", given, f_low=20.0, f_high=200.0)
    module = Pretraining(encoder, Objective(ObjectiveConfig(projector=16), 128), OptimiserConfig(batch=batch), 10)
    maker = make_views("detector", ToySource(), AugmentConfig())
    return module.train(), Feed(maker, 0, 10, batch, lambda: 0, background=False)


def test_a_lane_is_a_thread_with_rows_enough() -> None:
    for batch, threads, count in ((2 * LEAST_ROWS, 2, 2), (2 * LEAST_ROWS - 1, 2, 0), (8 * LEAST_ROWS, 1, 0)):
        torch.set_num_threads(threads)
        module, feed = made(batch)
        with in_lanes(module, feed, "cpu"):
            assert (module.lanes.count if module.lanes else 0) == count
            assert module.threads == threads and feed.background == bool(count)
            assert torch.get_num_threads() == (1 if count else threads)
        assert module.lanes is None and not feed.background and torch.get_num_threads() == threads
    with in_lanes(module, feed, "cuda"):
        assert module.lanes is None


def test_a_step_in_lanes_is_a_step() -> None:
    """Loss and gradient differ by what BatchNorm makes of 64 rows instead of 128, and no copy shows in the module."""
    module, feed = made(2 * LEAST_ROWS)
    views, names = feed.make(0), set(module.state_dict())
    found = []
    for lanes in (False, True):
        module.zero_grad()
        if lanes:
            with in_lanes(module, feed, "cpu"):
                loss = module.training_step(views, 0)
                loss.backward()
        else:
            loss = module.training_step(views, 0)
            loss.backward()
        found.append((float(loss.detach()), torch.cat([p.grad.flatten() for p in module.objective.parameters()])))
    assert found[1][0] == pytest.approx(found[0][0], rel=0.05)
    assert torch.cosine_similarity(found[0][1], found[1][1], dim=0) > 0.9
    assert set(module.state_dict()) == names and len(list(module.parameters())) == len(set(module.parameters()))


def test_killed_in_lanes(cache: Path, tmp_path: Path) -> None:
    """To the very weights of a run that nothing stopped, as without lanes."""
    out, reference, batch = tmp_path / "run", tmp_path / "reference", ["--batch", str(2 * LEAST_ROWS)]
    assert killed_on_the_way(out, 24, 1, seed=3, more=batch) == 1
    assert train(["--resume", str(out)]) == 0
    every = ["--monitor-every", "1", "--checkpoint-every", "1", "--steps", "24"]
    assert train([*TINY, *batch, *every, "--out", str(reference)]) == 0
    assert same_weights(out, reference) and losses(out) == losses(reference)
