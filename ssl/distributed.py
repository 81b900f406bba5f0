"""Several processes: which of them this is, how those of one node are started, and what they tell each other."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from gwtwins.strain.errors import EXIT_BAD_INPUT, InputError, run_command
from gwtwins.strain.processes import usable_cores

EXIT_LOST = 75
"""Status of a process that ends because another one did (EX_TEMPFAIL of sysexits.h): never the cause."""
PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others before it gives the run up."""
_GRACE = 20.0  # seconds that processes have to end by themselves when one has failed


@dataclass(frozen=True)
class Place:
    """Which process of a run this is."""

    rank: int = 0
    """Number of this process among all."""
    world: int = 1
    """Processes of the run."""
    local_rank: int = 0
    """Number of this process on its node; also of its GPU."""
    on_node: int = 1
    """Processes on each node."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def nodes(self) -> int:
        """Nodes of the run."""
        return self.world // self.on_node


def find_place(devices: int | str, nodes: int, device: str) -> Place | int:
    """What the launcher of this process says, torchrun, srun or `launch`; else how many processes are to be started.

    Args:
        devices: processes of a node that are wanted, or "auto": every GPU, and one process on a CPU.
        nodes: that are wanted.
        device: "cpu" or "cuda".

    Raises:
        InputError: numbers that cannot be had, or that are not the launcher's.
    """
    held = torch.cuda.device_count() if device == "cuda" else 1
    count = held if devices == "auto" else devices
    if not isinstance(count, int) or count < 1 or nodes < 1:
        raise InputError("processes", f"--devices {devices} --nodes {nodes}", "numbers from 1, or --devices auto")
    if device == "cuda" and count > held:
        raise InputError(f"--devices {devices}", f"this node has {held} GPUs", f"at most {held}")
    place = _from_environment()
    if place is None:
        if nodes > 1:
            raise InputError(f"--nodes {nodes}", "the others were not started", "a start by torchrun or srun")
        return count if count > 1 else Place()
    if (devices != 1 and count != place.on_node) or (nodes != 1 and nodes != place.nodes):
        fault = f"started as {place.nodes} nodes with {place.on_node} processes each"
        raise InputError(f"--devices {devices} --nodes {nodes}", fault, "these numbers, or neither option")
    return place


def _from_environment() -> Place | None:
    """What torchrun or srun say. Addresses that srun leaves to be worked out go where torch looks for them."""
    env = os.environ
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if all(name in env for name in names):
        return Place(*(int(env[name]) for name in names))
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) == 1 or "SLURM_PROCID" not in env:
        return None  # not in a job step of several tasks, which srun makes
    world, nodes = int(env["SLURM_STEP_NUM_TASKS"]), int(env.get("SLURM_STEP_NUM_NODES", "1"))
    if world % nodes:
        raise InputError("srun", f"{world} tasks on {nodes} nodes", "as many on each: --ntasks-per-node")
    place = Place(int(env["SLURM_PROCID"]), world, int(env["SLURM_LOCALID"]), world // nodes)
    numbers = zip(names, (place.rank, place.world, place.local_rank, place.on_node), strict=True)
    env.update({name: str(value) for name, value in numbers} | {"GROUP_RANK": env.get("SLURM_NODEID", "0")})
    from pytorch_lightning.plugins.environments import SLURMEnvironment  # seconds that only srun's processes pay

    listed = env.get("SLURM_STEP_NODELIST", "127.0.0.1")
    env.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(listed))
    env.setdefault("MASTER_PORT", str(15000 + int(env.get("SLURM_JOB_ID", "0")) % 10000))
    return place


class RunError(InputError):
    """An InputError that every process of a run raises at once: the first one alone says it."""


def together(place: Place, device: str, run: Callable[[], int]) -> int:
    """``run()`` in a process that can talk to the others: gloo for what lies on the CPU, nccl for what lies on GPUs.

    The exit status; `EXIT_LOST` where another process has ended before its time.
    """
    if place.world == 1:
        return run()
    if device == "cuda":
        torch.cuda.set_device(place.local_rank)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    try:
        distributed.init_process_group(backend, rank=place.rank, world_size=place.world, timeout=PATIENCE)
        status = run()
        distributed.destroy_process_group()  # not after an error: it could wait for who is lost
        return status
    except RunError:
        if place.first:
            raise
        return EXIT_BAD_INPUT
    except RuntimeError as error:
        if not _lost(error):
            raise
        if place.first:
            print("error: another process of this run has ended; --resume goes on", file=sys.stderr)
        return EXIT_LOST


def _lost(error: RuntimeError) -> bool:
    """Whether an error says that another process is gone."""
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out", "NCCL")
    return isinstance(error, distributed.DistError) or any(word in str(error) for word in words)


def several() -> bool:
    """Whether there are other processes to talk to."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


@contextmanager
def first_on_node(place: Place) -> Iterator[None]:
    """One process of each node goes ahead, the others follow: what it puts into a cache is made once.

    If it fails, it fails alone, and with one message.
    """
    if place.local_rank:
        maximum(0)
    yield
    if not place.local_rank:
        maximum(0)


def maximum(value: int) -> int:
    """The largest of all processes' values."""
    if not several():
        return value
    tensor = torch.tensor([value], dtype=torch.int64)
    distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return int(tensor)


def told(text: str, by: int = 0) -> str:
    """The text of process ``by``."""
    if not several():
        return text
    content = text.encode()
    length = maximum(len(content) if distributed.get_rank() == by else 0)
    message = torch.zeros(length, dtype=torch.uint8)
    if distributed.get_rank() == by:
        message.copy_(torch.tensor(list(content), dtype=torch.uint8))
    distributed.broadcast(message, by)
    return bytes(message.tolist()).decode()


def gathered(*parts: Tensor) -> tuple[Tensor, ...]:
    """Each of ``parts`` (n, P) with the rows of all processes, (N, P), in the order of the processes; differentiable.

    The processes may hold different numbers of rows. Gradients are those of the sum of what the processes compute from
    the result; `DistributedDataParallel` divides by their number. All must compute the same from it.
    """
    if not several():
        return parts
    widths = [part.shape[1] for part in parts]
    rows = _Gather.apply(torch.cat(parts, dim=1))
    return tuple(rows.split(widths, dim=1))


def counts_of(rows: list[int]) -> Tensor:
    """(W, len(rows)) int64: ``rows`` of every process."""
    mine = torch.tensor(rows, dtype=torch.int64)
    if not several():
        return mine[None]
    each = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(each, mine)
    return torch.stack(each)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        counts = counts_of([len(rows)])[:, 0].tolist()
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        each = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(each, padded)
        rank = distributed.get_rank()
        ctx.start, ctx.count, ctx.world = sum(counts[:rank]), counts[rank], len(counts)
        return torch.cat([part[:count] for part, count in zip(each, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # Every process computes the same loss from the same rows, so that their gradients need not be sent round.
        return ctx.world * grad[ctx.start : ctx.start + ctx.count]


# The processes of one node


def launch(command: Callable[[list[str]], int | None], argv: list[str], count: int) -> int:
    """Run ``command(argv)`` in ``count`` processes that find each other; the exit status of the run.

    Signals are handed on to all of them. When one fails the others end too, within seconds, and the status is the one's
    that failed first. They end, with their state saved, when this process is killed.
    """
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # a free port
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_rank, args=(command, argv, n, count, store.port)) for n in range(count)]
    handed_on: list[int] = []

    def hand_on(number: int, frame: Any) -> None:
        handed_on.append(number)
        for process in processes:
            if process.pid and process.exitcode is None:
                os.kill(process.pid, number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, hand_on) for number in numbers}
    try:
        for process in processes:
            process.start()
        ended = _until_all_have_ended(processes)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)
    failed = [n for n in ended if processes[n].exitcode]
    cause = next((n for n in failed if processes[n].exitcode != EXIT_LOST), failed[0] if failed else None)
    if cause is None:
        return 0
    status = processes[cause].exitcode or 0
    if status > 0:
        return status
    if -status not in handed_on:
        why = " (out of memory?)" if -status == signal.SIGKILL else ""
        print(f"error: process {cause} of {count} was ended by {signal.Signals(-status).name}{why}", file=sys.stderr)
    return 128 - status


def _until_all_have_ended(processes: list[Any]) -> list[int]:
    """The processes' numbers in the order in which they ended; after one has failed, the others have some seconds."""
    running = {process.sentinel: n for n, process in enumerate(processes)}
    ended: list[int] = []
    until: float | None = None
    while running:
        patience = None if until is None else max(0.0, until - time.monotonic())
        ready = multiprocessing.connection.wait(list(running), patience)
        for n in sorted(running.pop(sentinel) for sentinel in ready):  # type: ignore[call-overload]
            processes[n].join()
            ended.append(n)
            if processes[n].exitcode and until is None:
                until = time.monotonic() + _GRACE
        if until is not None and time.monotonic() >= until:
            for n in running.values():
                processes[n].kill()
            until = time.monotonic() + _GRACE
    return ended


def _rank(command: Callable[[list[str]], int | None], argv: list[str], rank: int, world: int, port: int) -> None:
    """One of the processes that `launch` starts."""
    os.setpgid(0, 0)  # a Ctrl-C in the terminal reaches the launcher alone, which hands it on: once
    threading.Thread(target=_end_with_the_launcher, daemon=True).start()
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    os.environ.update({name: str(value) for name, value in (place | address).items()})
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, usable_cores() // world))
    sys.exit(run_command(lambda: command(argv)))


def _end_with_the_launcher() -> None:
    launcher = multiprocessing.parent_process()
    assert launcher is not None
    multiprocessing.connection.wait([launcher.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
