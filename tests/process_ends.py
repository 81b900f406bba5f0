"""What the processes of tests/test_distributed.py do: they meet, and one of them ends in some way."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from gwtwins.ssl import distributed
from gwtwins.strain.errors import InputError


def ends(argv: list[str]) -> int:
    """One of two processes, of which the second ends as ``argv`` says, while the first waits for it."""
    place = distributed.find_place(1, 1, "cpu")
    assert isinstance(place, distributed.Place)
    return distributed.together(place, "cpu", lambda: _meets(argv[0], place))


def _meets(kind: str, place: distributed.Place) -> int:
    assert distributed.told(f"from {place.rank}", by=1) == "from 1"
    assert distributed.maximum(place.rank) == 1
    if kind == "signal":
        signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
        Path(os.environ["MARK"]).with_suffix(f".{place.rank}").touch()
        time.sleep(200)
    if place.rank == 1:
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "refused":
            raise InputError("window 7", "holds NaN", "finite strain")
        if kind == "bug":
            raise KeyError("a bug")
    if kind == "everywhere":
        raise distributed.RunError("data", "wrong for all", "better")
    return distributed.maximum(0)


if __name__ == "__main__":
    sys.exit(distributed.launch(ends, sys.argv[1:], 2))
