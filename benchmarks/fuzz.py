"""Every reader of files that a user hands in, against files that are spoilt on purpose.

    python benchmarks/fuzz.py                                  every reader, 180 s each, one after the other
    python benchmarks/fuzz.py --reader gwosc --seconds 30      one of them
    python benchmarks/fuzz.py --reader gwf --case 1234         one case again, with its traceback

A case is a sound file with one to three mutations, a function of --seed, the reader and the case's number. It must end
in an InputError of one line, or in a result that keeps the reader's promises (and equals the sound file's, where the
mutation leaves no other). Anything else is a finding: another exception, a dead or hung process, a result that breaks a
promise, memory beyond the reader's bound, file handles that stay open. Cases run in a process of their own under
limits of memory and time; one that dies is followed by the next. Findings are kept under --out with how to repeat them.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import mmap
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gwtwins.benchmarks.fuzz_mutations import REFUSED, SAME, pick
from gwtwins.benchmarks.fuzz_subjects import SUBJECTS, Subject
from gwtwins.strain.errors import InputError, run_command

LIMIT_SECONDS = 40  # of one case; the slowest sound file takes a tenth of a second
LIMIT_MEMORY = 6 << 30  # bytes of address space above what the process has before its first case
MAX_MESSAGE = 1200  # characters of an error line
_HANDLES_EVERY = 256  # cases
_CASE, _DONE, _REFUSED, _PEAK, _READING = range(5)  # places in the memory that a worker shares


@dataclass
class Outcome:
    """What came of one case."""

    what: str
    """"right", "refused" or the kind of finding."""
    said: str
    peak: int
    """Bytes above rest."""


def digest(value: Any) -> str:
    """A name for a result: equal results have equal ones."""
    hashed = hashlib.sha256()

    def take(node: Any) -> None:
        if isinstance(node, np.ndarray) and node.dtype != object:
            hashed.update(f"{node.dtype.str}{node.shape}".encode() + np.ascontiguousarray(node).tobytes())
        elif is_dataclass(node) and not isinstance(node, type):
            take(asdict(node))
        elif isinstance(node, dict):
            for key in sorted(node, key=str):
                take((str(key), node[key]))
        elif isinstance(node, list | tuple):
            hashed.update(f"[{len(node)}".encode())
            for item in node:
                take(item)
        else:
            hashed.update(repr(node).encode("utf-8", "surrogatepass"))

    take(value)
    return hashed.hexdigest()


def spoil(subject: Subject, name: str, seed: int, case: int, sound: Path, folder: Path) -> tuple[str, str]:
    """Lay out a case in ``folder``; what was done, and what may come of it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), case])
    target = pick(rng, sorted(subject.mutations))
    ways = subject.mutations[target]
    count = pick(rng, (1, 1, 1, 2, 3))
    done, expected = [], []
    for _ in range(count):
        way = pick(rng, ways)
        try:
            said, may = way(rng, folder / target)
        except Exception as error:  # the format itself does not allow it
            said, may = f"could not be made ({type(error).__name__})", ""
        done.append(f"{way.__name__}: {said}")
        expected.append(may)
    return f"{target}: " + "; ".join(done), expected[0] if count == 1 else ""


def attempt(subject: Subject, folder: Path, may: str, baseline: str) -> Outcome:
    """Read a case."""
    rest = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    try:
        result = subject.read(folder)
        what, said = "right", ""
        if may == REFUSED:
            what, said = "taken, not refused", ""
        elif may == SAME and digest(result) != baseline:
            what, said = "another result", ""
        del result
    except InputError as error:
        what, said = "refused", str(error)
        if len(said) > MAX_MESSAGE or not said.isprintable():
            what = "message"
    except AssertionError as error:
        what, said = "promise broken", f"{error} {_place()}"
    except Exception as error:
        what, said = "exception", f"{type(error).__name__}: {str(error)[:200]} {_place()}"
    peak = max(0, _memory("VmHWM") - rest)
    if peak > subject.bound << 20:
        what, said = "memory", f"{peak >> 20} MiB; {what} {said}"
    return Outcome(what, said, peak)


def _place() -> str:
    frames = traceback.extract_tb(sys.exc_info()[2])
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    return f"at {Path(own[-1].filename).name}:{own[-1].lineno}"


def _memory(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(field))


def work(name: str, seed: int, first: int, until: float, shared: mmap.mmap, place: Path, out: Path) -> None:
    """Run cases from ``first`` on, in a process of its own."""
    subject, numbers = SUBJECTS[name], np.frombuffer(shared, np.int64)
    sound, folder = place / "sound", place / "case"
    baseline = digest(subject.read(sound))
    used = _memory("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_MEMORY, used + LIMIT_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)  # what C libraries say for themselves
    handles, case = len(os.listdir("/proc/self/fd")), first
    while time.monotonic() < until:
        numbers[_CASE] = case
        done, may = spoil(subject, name, seed, case, sound, folder)
        signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)
        numbers[_READING] = 1
        outcome = attempt(subject, folder, may, baseline)
        numbers[_READING] = 0
        signal.setitimer(signal.ITIMER_REAL, 0)
        numbers[_DONE] += 1
        numbers[_REFUSED] += outcome.what == "refused"
        numbers[_PEAK] = max(numbers[_PEAK], outcome.peak)
        if outcome.what not in ("right", "refused"):
            keep(out, name, seed, case, done, outcome.what, outcome.said, folder)
        if numbers[_DONE] % _HANDLES_EVERY == 0:
            gc.collect()
            now = len(os.listdir("/proc/self/fd"))
            if now > handles + 8:
                keep(out, name, seed, case, "", "file handles", f"{now} open, {handles} at first", folder)
                handles = now
        case += 1


def keep(out: Path, name: str, seed: int, case: int, done: str, what: str, said: str, folder: Path) -> None:
    """A line in findings.jsonl, and the case's files for the first few of each kind."""
    line = {"reader": name, "what": what, "said": said, "seed": seed, "case": case, "done": done}
    log = out / "findings.jsonl"
    alike = log.read_text().count(json.dumps(said)) if log.exists() else 0
    with log.open("a") as file:
        file.write(json.dumps(line) + "\n")
    if alike < 2 and folder.exists():
        shutil.copytree(folder, out / f"{name}-{seed}-{case}", dirs_exist_ok=True)


def run(name: str, seed: int, seconds: float, first: int, out: Path) -> dict[str, Any]:
    """Fuzz one reader; its line of the table."""
    subject = SUBJECTS[name]
    subject.prepare()
    shm = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(prefix="fuzz-", dir=shm if shm.is_dir() else None))
    shared = mmap.mmap(-1, 64)
    numbers = np.frombuffer(shared, np.int64)
    out.mkdir(parents=True, exist_ok=True)
    before = (out / "findings.jsonl").read_text().count("\n") if (out / "findings.jsonl").exists() else 0
    (place / "sound").mkdir()
    subject.make(place / "sound")
    began, cpu = time.monotonic(), sum(os.times()[2:4])
    case = first
    while time.monotonic() < began + seconds:
        numbers[_CASE] = case - 1
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work(name, seed, case, began + seconds, shared, place, out)
                status = 0
            except BaseException:
                (out / f"{name}-harness.txt").write_text(traceback.format_exc())
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        if status:
            case = int(numbers[_CASE]) + 1
            ended = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {os.WEXITSTATUS(status)}"
            what = "hung" if ended == f"signal {signal.SIGALRM:d}" else "died"
            if numbers[_READING]:  # else it was the making of the case, by the same libraries, that it did not survive
                numbers[_DONE] += 1
                keep(out, name, seed, case - 1, "", what, ended, place / "case")
            numbers[_READING] = 0
    findings = [json.loads(line) for line in _lines(out / "findings.jsonl")[before:]]
    own = [finding for finding in findings if finding["reader"] == name]
    cases, refused, peak = (int(numbers[at]) for at in (_DONE, _REFUSED, _PEAK))
    spent = time.monotonic() - began
    shutil.rmtree(place, ignore_errors=True)
    return {
        "reader": name,
        "serves": subject.serves,
        "seconds": round(spent),
        "cpu_seconds": round(sum(os.times()[2:4]) - cpu),
        "cases": cases,
        "refused": refused,
        "right": cases - refused - len([f for f in own if f["what"] != "file handles"]),
        "findings": dict(Counter(finding["what"] for finding in own)),
        "peak_mib": peak >> 20,
        "bound_mib": subject.bound,
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def again(name: str, seed: int, case: int, folder: Path) -> None:
    """One case in this process, with all that it says."""
    subject = SUBJECTS[name]
    subject.prepare()
    sound = Path(tempfile.mkdtemp(prefix="fuzz-"))
    subject.make(sound)
    baseline = digest(subject.read(sound))
    done, may = spoil(subject, name, seed, case, sound, folder)
    print(f"{done}\nmay be: {may or 'any'}\nfiles: {folder}", flush=True)
    try:
        result = subject.read(folder)
        print("result", "equal to" if digest(result) == baseline else "other than", "the sound file's")
    except InputError as error:
        print(f"refused: {error}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", default="all", help="all, or names joined by commas: " + ", ".join(SUBJECTS))
    parser.add_argument("--seconds", type=float, default=180, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, default=None, help="only this one, with its traceback")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    options = parser.parse_args()
    names = list(SUBJECTS) if options.reader == "all" else options.reader.split(",")
    for name in names:
        if name not in SUBJECTS:
            raise InputError(f"--reader {name}", "is not known", ", ".join(SUBJECTS))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # readers are run in processes that fork
    if options.case is not None:
        again(names[0], options.seed, options.case, options.out / f"{names[0]}-{options.seed}-{options.case}")
        return 0
    rows = []
    print(
        f"{'reader':14} {'seconds':>7} {'cases':>8} {'right':>8} {'refused':>8} {'peak MiB':>8}  findings", flush=True
    )
    for name in names:
        row = run(name, options.seed, options.seconds, options.first, options.out)
        rows.append(row)
        found = ", ".join(f"{count} {what}" for what, count in row["findings"].items()) or "none"
        figures = "".join(f" {row[key]:>8,}" for key in ("cases", "right", "refused", "peak_mib"))
        print(f"{name:14} {row['seconds']:>7}{figures}  {found}", flush=True)
        (options.out / f"table-{os.getpid()}.json").write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if any(row["findings"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
