"""What is wrong with a step is named in one line, before it reaches the weights or a checkpoint."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gwtwins.ssl.pretrain import OptimiserConfig, Pretraining
from gwtwins.ssl.views import Views
from gwtwins.strain.errors import InputError, run_command
from gwtwins.train_ssl import train
from test_pretrain import module, toy_views
from test_train_command import TINY


def views(n: int = 16) -> Views:
    return toy_views()(0, 0, range(n), 0.0, n)


def poisoned(value: float) -> Callable[[Views], None]:
    def act(made: Views) -> None:
        made.second[3, 100] = made.first[7, 0] = value

    return act


def dead(made: Views) -> None:
    made.second[:] = 0.0


def never_changing(made: Views) -> None:
    made.first[:] = made.first[0]
    made.second[:] = made.first[0]


def overflowing(made: Views) -> None:
    made.first[2] *= 1e30  # finite, its square is not


NAN, INF = float("nan"), float("inf")
CASES = [
    (poisoned(NAN), r"data: 2 rows of step 0 hold NaN or infinity \(row 3, 7\)"),
    (poisoned(-INF), r"data: 2 rows of step 0 hold NaN or infinity \(row 3, 7\)"),
    (dead, "detector V1: all 16 windows of step 0 are zeros"),
    (never_changing, "encoder: all 16 embeddings of step 0 are the same"),
    (overflowing, r"encoder: its output overflows at step 0 \(32-true\)"),
]
IDS = ["NaN", "infinity", "dead", "constant", "overflow"]


@pytest.mark.parametrize(("act", "says"), CASES, ids=IDS)
def test_a_bad_step_is_named(act: Callable[[Views], None], says: str) -> None:
    model, made = module(), views()
    act(made)
    with pytest.raises(InputError, match=says):
        model.training_step(made, 0)


def test_a_few_dead_windows_and_a_small_batch_are_no_fault() -> None:
    made = views()
    made.second[:5] = 0.0
    module().training_step(made, 0)
    module().training_step(views(4), 0)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_too_few_rows_are_named(n: int) -> None:
    with pytest.raises(InputError, match=f"data: {n} rows of step 0 have the detectors"):
        module().training_step(views(n), 0)
    with pytest.raises(InputError, match=f"--batch: {n}; expected at least 4"):
        OptimiserConfig(batch=n).check()


@pytest.mark.parametrize("objective", ["barlow", "vicreg"])
def test_two_rows_would_teach_nothing(objective: str) -> None:
    """Why they are refused: standardised over the batch they are -1 and 1, whatever the encoder says."""
    model = module(objective=objective).double()
    embedding = torch.randn(2, 2, 32, dtype=torch.float64, requires_grad=True)
    loss, _ = model.objective(embedding[0], embedding[1])
    (two,) = torch.autograd.grad(loss, embedding)
    embedding = torch.randn(2, 4, 32, dtype=torch.float64, requires_grad=True)
    loss, _ = model.objective(embedding[0], embedding[1])
    (four,) = torch.autograd.grad(loss, embedding)
    assert two.abs().median() < 0.02 * four.abs().median()


def test_weights_that_overflow_in_bfloat16_are_named() -> None:
    model = module(precision="bf16-mixed")
    with torch.no_grad():
        model.encoder.hl.head.weight.fill_(3e38)  # type: ignore[union-attr, operator]
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(InputError, match=r"encoder: its output overflows at step 0 \(bf16-mixed\).*--precision 32-true"),
    ):
        model.training_step(views(), 0)


def test_a_gradient_that_is_not_finite_never_reaches_the_weights() -> None:
    """As Lightning calls it, before every step of the optimiser; a finite one is cut to its largest norm."""
    model = module()
    model.training_step(views(), 0).backward()
    model.configure_gradient_clipping(None, gradient_clip_val=None, gradient_clip_algorithm=None)
    assert torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]) <= model.config.clip * 1.0001
    next(model.parameters()).grad[0] = INF
    with pytest.raises(InputError, match=r"gradient: is inf at step 0 \(32-true\), the last checkpoint is from"):
        model.configure_gradient_clipping(None, gradient_clip_val=None, gradient_clip_algorithm=None)


def test_loss_and_gradients_are_those_of_float64() -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        model = module()
        objective = copy.deepcopy(model.objective).to(dtype)
        embedding = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
        loss, _ = objective(embedding[0], embedding[1])
        (gradient,) = torch.autograd.grad(loss, embedding)
        found.append((loss.detach().double(), gradient.double()))
    (loss, gradient), (exact, exact_gradient) = found
    assert loss == pytest.approx(float(exact), rel=1e-5)
    assert (gradient - exact_gradient).norm() < 1e-4 * exact_gradient.norm()


@pytest.mark.parametrize(("act", "says"), CASES, ids=IDS)
def test_the_command_ends_with_one_line_and_nothing_claims_to_be_finished(
    cache: Path, tmp_path: Path, act: Callable[[Views], None], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    original, out = Pretraining.training_step, tmp_path / "run"

    def spoilt(self: Pretraining, made: Views, batch_idx: int) -> Tensor:
        if self.global_step == 3:
            act(made)
        return original(self, made, batch_idx)

    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pretraining, "training_step", spoilt)
        assert run_command(lambda: train([*TINY, "--steps", "6", "--out", str(out)])) == 2
    said = [line for line in re.split(r"[\r\n]+", capsys.readouterr().err) if line]
    (line,) = [text for text in said if not re.match("pretraining|waveforms", text)]
    assert line.startswith("error: ")
    assert re.search(says.replace("step 0", "step 3").replace("16 ", r"\d+ "), line)
    there = {p.name for p in out.iterdir()}
    assert there == {"config.yaml", "metrics.jsonl", "checkpoints", "tb"}
    held = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)  # noqa: TID251
    assert held["global_step"] == 2
    assert all(torch.isfinite(value).all() for value in held["state_dict"].values())
