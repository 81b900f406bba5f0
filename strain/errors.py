"""The one exception that means "your input is wrong", and how a command ends because of it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, the shell's convention
EXIT_TERMINATED = 143  # 128 + SIGTERM

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class InputError(ValueError):
    """A bad argument, file or array: one line that says where, what is wrong, and what is expected.

    >>> str(InputError("train.hdf5", "truncated at byte 2048", "a complete HDF5 file"))
    'train.hdf5: truncated at byte 2048; expected a complete HDF5 file'
    """

    def __init__(self, where: object, fault: str, expected: str | None = None):
        message = f"{where}: {fault}" + (f"; expected {expected}" if expected else "")
        # File names and ids come from outside: a newline or a terminal escape in one must not act.
        super().__init__(_CONTROL.sub("?", message))


def run_command(main: Callable[[], int | None]) -> int:
    """Run ``main`` and turn its end into the exit status the interfaces promise.

    Returns 0 (or what ``main`` returns) when done, 2 after an :class:`InputError` (one line on stderr, no
    traceback), 130 after Ctrl-C. Any other exception is a bug and keeps its traceback.
    """
    try:
        return main() or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
