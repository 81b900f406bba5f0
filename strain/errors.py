"""The one exception that means "your input is wrong", and how a command ends because of it."""

from __future__ import annotations

import sys
from collections.abc import Callable

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, the shell's convention
EXIT_TERMINATED = 143  # 128 + SIGTERM

_LONGEST = 500  # characters of what is wrong, and of what was expected: a file may hold names of any length


class InputError(ValueError):
    """A bad argument, file or array: one line that says where, what is wrong, and what is expected.

    >>> str(InputError("train.hdf5", "truncated at byte 2048", "a complete HDF5 file"))
    'train.hdf5: truncated at byte 2048; expected a complete HDF5 file'
    """

    def __init__(self, where: object, fault: str, expected: str | None = None):
        place = str(where)
        place = place if len(place) <= _LONGEST else f"... {place[4 - _LONGEST :]}"  # of a path the end says more
        message = f"{place}: {_cut(fault)}" + (f"; expected {_cut(expected)}" if expected else "")
        super().__init__(shown(message))


def shown(text: str) -> str:
    """``text`` as it may be printed: file names and ids come from outside, and nothing in them may act.

    Tabs, line ends, terminal escapes, what turns the direction of writing, and halves of surrogate pairs become "?".

    >>> shown("GW170814\\x1b[2J")
    'GW170814?[2J'
    """
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."


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
