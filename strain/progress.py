"""Progress of long work on stderr: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

_LINE_EVERY = 15.0  # seconds between lines where nobody sees a bar move


def progress_bar(total: int, what: str, unit: str, shown: bool = True, done: int = 0) -> Any:
    """A tqdm bar with rate and time left.

    Args:
        total: units of work.
        what: what is being done, in a word or two.
        unit: of the work, singular.
        shown: False for silence.
        done: units done before (after a resume).
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=f" {unit}",
        disable=not shown,
        dynamic_ncols=terminal,
        mininterval=0.2 if terminal else _LINE_EVERY,
        miniters=None if terminal else 1,
        file=sys.stderr,
    )
