"""How much of what the machine could do pretraining and embedding do: measured rates beside the roofline's.

    python benchmarks/roofline.py                  on what there is, a GPU if there is one; 2 minutes on 2 cores
    python benchmarks/roofline.py --device cuda --batch 8192 --precision bf16-mixed

The roofline (Williams, Waterman & Patterson 2009, CACM 52, 65): a job of F operations and B bytes cannot take less than
the larger of F / peak and B / bandwidth. Peak is the best rate of a large product of matrices here, in float32 (on a
GPU TF32, which convolutions may use) and in bfloat16, and every product is held against that of its own type; bandwidth
that of a large copy. F are the products of matrices and convolutions that a job in fact calls, counted as they are
called, backward ones too; FFTs, logarithms and exponentials count nothing. B is what must move if all that lies between
stays in the cache: what goes in, what comes out, and weights, which training also writes, with their gradients and
AdamW's two moments. So the fraction says how far a rate is from a bound that no code with these products can pass, not
how near it could come.

Jobs are `cnn_gru` in configs/demo.yaml's shape: a step of the networks alone, on views made beforehand; train_ssl.py
with everything; embeddings of one detector's windows; and all that a probe looks at in windows of three detectors,
evidence among it. Rates are medians, with their range.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gwtwins.benchmarks.throughput import make, pretraining, timed, train_step
from gwtwins.ssl.views import Views
from gwtwins.strain.command import new_file, write_text
from gwtwins.strain.device import choose_device
from gwtwins.strain.errors import InputError, run_command

_VIEW = 1.125  # s, the mean length of the demo's views
_COPY = 256 << 20  # bytes: beyond any cache
_AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16}


class Operations(TorchDispatchMode):
    """While it is entered, counts the operations of products of matrices and convolutions, by the type they have."""

    def __init__(self) -> None:
        super().__init__()
        self.by_type: dict[torch.dtype, float] = defaultdict(float)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:  # in inference mode a layer comes whole, and is counted by what it is made of
            parts = func.decompose(*args, **(kwargs or {}))
        if parts is not NotImplemented:
            return parts
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.by_type[_tensor(args).dtype] += formula(*args, **(kwargs or {}), out_val=out)
        elif func._overloadpacket.__name__ in ("_cudnn_rnn", "_cudnn_rnn_backward"):
            # A GPU's recurrent layers are one call: every weight (G, C) is applied to each row and moment.
            moments = args[0].shape[0] * args[0].shape[1]
            forward = 2.0 * moments * sum(w.numel() for w in args[1] if w.ndim == 2)
            self.by_type[args[0].dtype] += forward if func._overloadpacket.__name__ == "_cudnn_rnn" else 2 * forward
        return out


def _tensor(args: Any) -> torch.Tensor:
    """The last tensor of an operation's arguments: addmm's first is added, and not multiplied."""
    return [x for x in args if isinstance(x, torch.Tensor)][-1]


@dataclass
class Job:
    """Something that is timed, and what it cannot do without."""

    name: str
    rows: int
    """Samples or windows of a call."""
    run: Callable[[], object]
    bytes: float
    """Of a call."""
    operations: dict[torch.dtype, float] = field(default_factory=dict)
    """Of a call."""
    rates: list[float] = field(default_factory=list)
    """Rows a second."""

    def bound(self, machine: Machine) -> float:
        """Rows a second that no code with these products can pass."""
        products = sum(n / machine.peak[dtype] for dtype, n in self.operations.items())
        return self.rows / max(products, self.bytes / machine.bandwidth)


@dataclass(frozen=True)
class Machine:
    """What the machine does at best."""

    peak: dict[torch.dtype, float]
    """Operations a second in products of matrices."""
    bandwidth: float
    """Bytes a second, read and written."""


def fastest(run: Callable[[], object], device: str, repeats: int) -> float:
    """Seconds of the fastest of some calls."""
    return min(timed(run, device) for _ in range(repeats + 1))


def measured(device: str, size: int, repeats: int) -> Machine:
    """The machine's peak and bandwidth, with torch's own threads."""
    peak, allowed = {}, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True  # as cuDNN may, for convolutions and GRU
    try:
        for dtype in (torch.float32, torch.bfloat16):
            a, b = torch.randn(2, size, size, device=device).to(dtype)
            peak[dtype] = 2.0 * size**3 / fastest(lambda a=a, b=b: a @ b, device, repeats)  # type: ignore[misc]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    source = torch.zeros(_COPY // 4, device=device)
    target = torch.empty_like(source)
    return Machine(peak, 2.0 * _COPY / fastest(lambda: target.copy_(source), device, repeats))


def jobs(batch: int, windows: int, device: str, precision: str) -> list[Job]:
    """A step of the networks, embedding, and windows of three detectors."""
    module, half = make("cnn_gru", device), _AUTOCAST[precision]
    encoder = make("cnn_gru", device).encoder.eval()  # another: what it says of noise is kept while weights stay
    samples = round(_VIEW * encoder.rate)
    x = torch.randn(2, batch, samples, generator=torch.Generator().manual_seed(0)).to(device)
    detector = torch.arange(batch, device=device) % 2
    views = Views(x[0], x[1], detector, torch.full_like(detector, 2), torch.arange(batch))
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-6)
    strain = torch.randn(windows, 3, encoder.samples, generator=torch.Generator().manual_seed(1)).to(device)
    which = torch.arange(windows, device=device) % 2

    module.train()

    def step() -> None:
        with torch.autocast(torch.device(device).type, half or torch.bfloat16, enabled=half is not None):
            train_step(module, optimiser, views)

    def evaluated(function: Callable[..., object], *args: torch.Tensor) -> Callable[[], object]:
        def run() -> object:
            with torch.inference_mode():
                return function(*args)

        return run

    def nbytes(tensors: Any) -> float:
        return float(sum(t.numel() * t.element_size() for t in tensors))

    alone = strain[:, 0].contiguous()
    weights, held = nbytes(module.parameters()), nbytes([*encoder.parameters(), *encoder.buffers()])
    vectors = 4.0 * windows * encoder.embedding_dim
    return [
        Job("networks, a step of pretraining", batch, step, nbytes([x]) + 8 * weights),
        Job("embedding", windows, evaluated(encoder.encode, alone, which), nbytes([alone]) + held + vectors),
        Job(
            "of networks, with evidence",
            3 * windows,
            evaluated(encoder.network, strain),
            nbytes([strain]) + held + 3 * vectors,
        ),
    ]


def benchmark(args: argparse.Namespace) -> int:
    """Measure and print."""
    if min(args.batch, args.windows, args.repeats, args.size) < 1:
        raise InputError("--batch, --windows, --repeats, --size", "a number below 1", "1 or more of each")
    if args.steps and args.steps < 10:
        raise InputError(f"--steps {args.steps}", "too few to time", "10 or more, or 0")
    args.device = choose_device(args.device)
    new_file(args.json)
    machine = measured(args.device, args.size, args.repeats)
    found = jobs(args.batch, args.windows, args.device, args.precision)
    for job in found:
        job.run()
        with Operations() as counted:
            job.run()
        job.operations = dict(counted.by_type)
    for _ in range(args.repeats):  # by turns: a machine that slows down slows all
        for job in found:
            job.rates.append(job.rows / timed(job.run, args.device))
    if args.steps:
        found.insert(1, replace(found[0], name="train_ssl.py, all of it", rates=_command(args)))
    _print(machine, found, args)
    if args.json:
        write_text(args.json, json.dumps(_report(machine, found, args), indent=1) + "\n")
    return 0


def _command(args: argparse.Namespace) -> list[float]:
    """Samples a second, line after line, of the demo's pretraining with this batch."""
    given = ["--batch", str(args.batch), "--precision", args.precision]
    with tempfile.TemporaryDirectory() as folder:
        return pretraining("cnn_gru", args.steps, args.device, Path(folder) / "run", given)


def _print(machine: Machine, found: list[Job], args: argparse.Namespace) -> None:
    threads = "" if args.device == "cuda" else f", {torch.get_num_threads()} threads"
    peak = ", ".join(f"{_short(dtype)} {rate / 1e9:,.0f}" for dtype, rate in machine.peak.items())
    copy = f"{machine.bandwidth / 1e9:,.1f} GB/s"
    print(f"{args.device}{threads}: products of matrices in GFLOP/s: {peak}; copy {copy}\n")
    print("| job | MFLOP a row (in bfloat16) | kB a row | rows/s (range) | GFLOP/s | bound, rows/s | of the bound |")
    print("|---|---|---|---|---|---|---|")
    for job in found:
        total, half = sum(job.operations.values()), job.operations.get(torch.bfloat16, 0.0)
        rate, bound = statistics.median(job.rates), job.bound(machine)
        print(
            f"| {job.name} | {total / job.rows / 1e6:.2f} ({half / total:.0%}) | {job.bytes / job.rows / 1e3:.1f} | "
            f"{rate:,.0f} ({min(job.rates):,.0f}-{max(job.rates):,.0f}) | {rate * total / job.rows / 1e9:,.1f} | "
            f"{bound:,.0f} | {rate / bound:.0%} |"
        )


def _report(machine: Machine, found: list[Job], args: argparse.Namespace) -> dict[str, Any]:
    about = {key: value for key, value in vars(args).items() if key != "json"}
    peak = {_short(dtype): rate for dtype, rate in machine.peak.items()}
    rows = {}
    for job in found:
        operations = {_short(dtype): n / job.rows for dtype, n in job.operations.items()}
        bound = job.bound(machine)
        fraction = statistics.median(job.rates) / bound
        rows[job.name] = {"operations": operations, "rates": job.rates, "bound": bound, "fraction": fraction}
    return {**about, "peak": peak, "bandwidth": machine.bandwidth, "jobs": rows}


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    """Entry point."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=512, help="rows of a step of pretraining")
    parser.add_argument("--windows", type=int, default=256, help="of a call")
    parser.add_argument("--repeats", type=int, default=10, help="counted calls of each job")
    parser.add_argument("--steps", type=int, default=400, help="of train_ssl.py; 0 leaves it out")
    size = 16_384 if cuda else 2_048
    parser.add_argument("--size", type=int, default=size, help="of the matrices whose product is the peak")
    parser.add_argument("--precision", choices=list(_AUTOCAST), default="32-true", help="of pretraining")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    raise SystemExit(run_command(lambda: benchmark(parser.parse_args())))


if __name__ == "__main__":
    main()
