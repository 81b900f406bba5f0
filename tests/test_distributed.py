"""Several processes train as one would on the same rows; what one of them meets with ends the run, with its reason."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gwtwins.encoders import bfloat16
from gwtwins.encoders.paired import PairedEncoder
from gwtwins.encoders.weights import load_encoder
from gwtwins.ssl import distributed
from gwtwins.ssl.augment import AugmentConfig
from gwtwins.ssl.objectives import Objective, ObjectiveConfig
from gwtwins.ssl.pretrain import Feed, OptimiserConfig, Pretraining
from gwtwins.ssl.sync_batchnorm import SyncBatchNorm1d, synchronise_batchnorm
from gwtwins.ssl.views import Views, make_views
from gwtwins.strain.errors import InputError
from gwtwins.train_ssl import train
from process_ends import ends
from spawned import run_all
from test_pretrain import ENCODER
from test_train_command import TINY
from toy_source import ToySource

ROWS = 24
OBJECTIVES = ("barlow", "vicreg", "ntxent")


# Ranks as processes of this test's own


def _join(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store-{world}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=120),
    )


def _rank(work: Callable[..., Any], rank: int, world: int, folder: str) -> None:
    _join(rank, world, folder)
    torch.save(work(rank, world), f"{folder}/found-{world}-{rank}.pt")
    torch.distributed.destroy_process_group()


def in_processes(work: Callable[[int, int], Any], world: int, folder: Path) -> list[Any]:
    """What ``work(rank, world)`` gives in each of ``world`` processes; one alone needs none."""
    if world == 1:
        return [work(0, 1)]
    run_all(_rank, ((work, rank, world, str(folder)) for rank in range(world)))
    return [torch.load(folder / f"found-{world}-{r}.pt", weights_only=True) for r in range(world)]  # noqa: TID251


# Loss and gradients


class Windows(PairedEncoder):
    """The encoder in the precision of its weights: elsewhere strain is always float32."""

    def encode_stretch(self, x: Tensor, detector: Tensor) -> Tensor:
        return self.hl(x[:, None].to(next(self.parameters()).dtype))


@contextmanager
def exact_encoder() -> Iterator[None]:
    """Without the products in bfloat16, which some CPUs have, and which round what goes into them by 0.4%."""
    before, bfloat16.fast = bfloat16.fast, lambda: False  # type: ignore[assignment]
    try:
        yield
    finally:
        bfloat16.fast = before


def _prepared(objective: str, dtype: torch.dtype, rank: int, world: int, absent: int) -> tuple[Pretraining, Views]:
    """A module, the same in every process, and this process's views of the first step."""
    torch.manual_seed(5)
    source = ToySource(absent=absent)
    maker = make_views("detector", source, AugmentConfig(aug_noise_probability=0.0))
    encoder = Windows("cnn_gru", ENCODER | {"pool_from": 0.0}, f_low=20.0, f_high=200.0)
    loss = Objective(ObjectiveConfig(objective=objective, projector=32), encoder.embedding_dim)
    module = Pretraining(encoder, loss, OptimiserConfig(batch=ROWS), 10).to(dtype).train()
    if world > 1:
        synchronise_batchnorm(module.encoder)
        synchronise_batchnorm(module.objective.projector)
    return module, next(iter(Feed(maker, 3, 10, ROWS, lambda: 0, rank, world, background=False)))


def _step(objective: str, dtype: torch.dtype, rank: int, world: int, absent: int = 0) -> dict[str, Tensor]:
    """Loss, gradients and batch statistics of one step, on this process's rows, as Lightning's DDP makes them."""
    module, views = _prepared(objective, dtype, rank, world, absent)
    wrapped: nn.Module = _Step(module)
    if world > 1:
        wrapped = nn.parallel.DistributedDataParallel(wrapped)
    with exact_encoder():
        value = wrapped(views)
        value.backward()
    found = {"loss": value.detach(), "rows": views.row, "embedding": module.last["embedding"]}
    found |= {f"gradient of {name}": p.grad for name, p in module.named_parameters() if p.grad is not None}
    statistics = {name: buffer.clone() for name, buffer in module.named_buffers() if "running" in name}
    assert len(statistics) >= 8
    return found | statistics


def _poisoned(rank: int, world: int) -> str:
    """What a process says of a step whose last row, which one process has, holds NaN."""
    module, views = _prepared("barlow", torch.float32, rank, world, 0)
    if rank == world - 1:
        views.first[-1, 50] = torch.nan
    with pytest.raises(distributed.RunError) as caught:
        module.training_step(views, 0)
    return str(caught.value)


class _Step(nn.Module):
    def __init__(self, module: Pretraining) -> None:
        super().__init__()
        self.module = module

    def forward(self, views: Views) -> Tensor:
        return self.module.training_step(views, 0)


def _normalise(rank: int, world: int) -> dict[str, Tensor]:
    """Two BatchNorms one after the other on this process's share of 30 rows: 20, 10, and none for further processes."""
    torch.manual_seed(1)
    x = (5 + 3 * torch.randn(30, 4, 7)).double()
    bounds = [0, 30] if world == 1 else [0, 20, *[30] * (world - 1)]
    x = x[bounds[rank] : bounds[rank + 1]].clone().requires_grad_()
    norms = nn.Sequential(nn.BatchNorm1d(4), nn.Tanh(), nn.BatchNorm1d(4)).double()
    torch.nn.init.normal_(norms[0].weight)
    synchronise_batchnorm(norms)
    y = norms(x)
    (y**3).sum().backward()
    assert x.grad is not None and norms[0].weight.grad is not None
    found = {"y": y.detach(), "into": x.grad, "weight": norms[0].weight.grad}
    return found | {name: buffer.double() for name, buffer in norms.named_buffers()}


def _steps(rank: int, world: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for objective in OBJECTIVES:
        for dtype in (torch.float32, torch.float64):
            found[f"{objective} {dtype}"] = _step(objective, dtype, rank, world)
    found["absent"] = _step("barlow", torch.float64, rank, world, absent=7)
    found["BatchNorm"] = _normalise(rank, world)
    found["poisoned"] = _poisoned(rank, world)
    return found


def _check_batchnorm(wanted: dict[str, Tensor], several: list[dict[str, Tensor]]) -> None:
    for name, value in wanted.items():
        for found in several:
            if name in ("y", "into"):
                assert torch.allclose(torch.cat([each[name] for each in several]), value, rtol=1e-8, atol=1e-10)
            elif name == "weight":  # each has its share
                assert torch.allclose(sum(each[name] for each in several), value, rtol=1e-8)
            else:
                assert torch.allclose(found[name], value, rtol=1e-10)


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_make_the_step_of_one(tmp_path: Path, world: int) -> None:
    """Loss, gradients, embeddings and batch statistics; also where absent detectors leave each with other numbers."""
    (one,) = in_processes(_steps, 1, tmp_path)
    several = in_processes(_steps, world, tmp_path)
    said = f"data: 1 rows of step 0 hold NaN or infinity (row {ROWS - 1})"
    assert all(each.pop("poisoned").startswith(said) for each in (one, *several))
    _check_batchnorm(one.pop("BatchNorm"), [each.pop("BatchNorm") for each in several])
    for name, wanted in one.items():
        tolerance = 1e-5 if "float32" in name else 1e-8
        gradient = torch.cat([v.flatten() for k, v in wanted.items() if k.startswith("gradient")]).double()
        for found in (each[name] for each in several):
            assert found.keys() == wanted.keys() and len(gradient) > 1000
            for key, value in wanted.items():
                if key != "rows":
                    # What a mean is rounded by goes with the spread of what is averaged; it may itself be next to none.
                    size = wanted[key.replace("_mean", "_var")].sqrt() if key.endswith("_mean") else value
                    error = (found[key].double() - value.double()).norm() / size.double().norm().clamp_min(1e-3)
                    assert key.startswith("gradient") or error < tolerance, (name, key, float(error))
            theirs = torch.cat([v.flatten() for k, v in found.items() if k.startswith("gradient")]).double()
            assert (theirs - gradient).norm() / gradient.norm() < tolerance, name
        rows = torch.cat([each[name]["rows"] for each in several])
        assert rows.tolist() == wanted["rows"].tolist()  # each row in one process, and none twice
    assert len(one["absent"]["rows"]) < ROWS
    assert len({len(each["absent"]["rows"]) for each in several}) > 1


def test_in_one_process_synchronised_batchnorm_is_torchs() -> None:
    plain, ours = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    synchronise_batchnorm(nn.Sequential(ours))
    assert isinstance(ours, SyncBatchNorm1d) and list(ours.state_dict()) == list(plain.state_dict())
    x = torch.randn(9, 4, 3)
    assert torch.equal(plain(x), ours(x))
    assert torch.equal(plain.eval()(x), ours.eval()(x))
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), ours.state_dict().values()))


# Where a process is


def places(monkeypatch: pytest.MonkeyPatch, devices: int | str, nodes: int = 1, **env: object) -> object:
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
            monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, str(value))
    return distributed.find_place(devices, nodes, "cpu")


TORCHRUN = {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4}
SRUN = {
    "SLURM_STEP_NUM_TASKS": 8,
    "SLURM_STEP_NUM_NODES": 2,
    "SLURM_PROCID": 5,
    "SLURM_LOCALID": 1,
    "SLURM_JOB_ID": 1234567,
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}


def test_a_place_is_what_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert places(monkeypatch, 1) == places(monkeypatch, "auto") == distributed.Place()
    assert places(monkeypatch, 3) == 3  # to be started
    sixth = distributed.Place(5, 8, 1, 4)
    assert places(monkeypatch, 1, **TORCHRUN) == places(monkeypatch, 4, 2, **TORCHRUN) == sixth
    assert sixth.nodes == 2 and not sixth.first
    assert places(monkeypatch, 1, **SRUN) == sixth
    assert os.environ["MASTER_ADDR"] == "gpu07" and 15000 <= int(os.environ["MASTER_PORT"]) < 25000
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert places(monkeypatch, 1, **{**SRUN, "SLURM_STEP_NUM_TASKS": 1}) == distributed.Place()


@pytest.mark.parametrize(
    ("devices", "nodes", "env", "says"),
    [
        (0, 1, {}, "numbers from 1"),
        ("all", 1, {}, "numbers from 1"),
        (1, 2, {}, "--nodes 2: the others were not started; expected a start by torchrun or srun"),
        (2, 1, TORCHRUN, "started as 2 nodes with 4 processes each"),
        (4, 3, TORCHRUN, "started as 2 nodes with 4 processes each"),
        (1, 1, {**SRUN, "SLURM_STEP_NUM_TASKS": 7}, "7 tasks on 2 nodes"),
    ],
)
def test_places_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, devices: int | str, nodes: int, env: dict[str, object], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        places(monkeypatch, devices, nodes, **env)


# The processes of a node


@pytest.mark.parametrize(
    ("kind", "status", "says"),
    [
        pytest.param("well", 0, "", marks=pytest.mark.slow),
        ("killed", 128 + signal.SIGKILL, "error: process 1 of 2 was ended by SIGKILL (out of memory?)"),
        pytest.param("refused", 2, "error: window 7: holds NaN; expected finite strain", marks=pytest.mark.slow),
        pytest.param("bug", 1, "KeyError: 'a bug'", marks=pytest.mark.slow),
        pytest.param("everywhere", 2, "error: data: wrong for all; expected better", marks=pytest.mark.slow),
    ],
)
def test_the_run_ends_as_the_process_that_failed_and_says_why(
    kind: str, status: int, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert distributed.launch(ends, [kind], 2) == status
    said = capfd.readouterr().err
    assert says in said and said.count("error: data") <= 1
    assert bool(said) == (kind != "well")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_processes_end_with_their_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """A signal is handed on to them; and they learn of it when the launcher itself is killed."""
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    script = Path(__file__).with_name("process_ends.py")
    with subprocess.Popen([sys.executable, str(script), "signal"], stderr=subprocess.PIPE, text=True) as launcher:
        until = time.monotonic() + 200
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        launcher.send_signal(number)
        launcher.communicate(timeout=60)  # until the last process that could write to the pipe has ended
    assert launcher.returncode == (143 if number == signal.SIGTERM else -signal.SIGKILL)


@pytest.fixture(scope="module")
def in_two(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps in two processes."""
    out = tmp_path_factory.mktemp("runs") / "two"
    assert train([*TINY, "--monitor_every", "1", "--steps", "6", "--out", str(out), "--devices", "2"]) == 0
    return out


@pytest.mark.slow
def test_a_run_in_two_processes_is_a_run(in_two: Path, tmp_path: Path) -> None:
    """One writes; the encoder is, but for rounding, that of one process."""
    one = tmp_path / "one"
    assert train([*TINY, "--monitor_every", "1", "--steps", "6", "--out", str(one)]) == 0
    names = [{str(p.relative_to(out)) for p in out.rglob("*") if "tb/" not in str(p)} for out in (one, in_two)]
    assert names[0] == names[1]
    first, second = (load_file(out / "encoder.safetensors") for out in (one, in_two))
    assert first.keys() == second.keys()
    assert load_encoder(in_two)(torch.randn(2, 3, 4096)).isfinite().all()
    lines = [[json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()] for out in (one, in_two)]
    assert [line["step"] for line in lines[1]] == [1, 2, 3, 4, 5, 6]
    wanted, found = ([line["loss"] for line in each] for each in lines)
    if bfloat16.fast():  # differences of rounding grow with every step of the optimiser
        assert found[0] == pytest.approx(wanted[0], rel=1e-3)
    else:
        assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_which_goes_on_to_the_same_encoder(in_two: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = "import sys; from gwtwins.train_ssl import main; main()"
    argv = [*TINY, "--steps", "6", "--out", str(out), "--devices", "2"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", command, *argv], env=env, stderr=subprocess.PIPE, text=True) as run:
        until = time.monotonic() + 250
        while not (out / "checkpoints" / "last.ckpt").exists() and time.monotonic() < until:
            time.sleep(0.01)
        children = [int(p) for p in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
        last = [p for p in children if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()][-1]
        os.kill(last, signal.SIGKILL)
        _, said = run.communicate(timeout=100)
    assert run.returncode == 128 + signal.SIGKILL
    assert "error: process 1 of 2 was ended by SIGKILL" in said
    assert not (out / "encoder.json").exists()
    assert train(["--resume", str(out)]) == 0  # by its own config.yaml: two processes again
    first, second = (load_file(folder / "encoder.safetensors") for folder in (in_two, out))
    assert all(torch.equal(first[name], second[name]) for name in first)
