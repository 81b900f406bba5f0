"""What glibc does with memory that was freed."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # names of mallopt's parameters, from <malloc.h>


def keep_freed_memory() -> bool:
    """Let this process keep the memory it has freed, for its next tensors; whether the C library knows how.

    By default glibc hands every large block back to the kernel, which then has to give each of its pages anew, and
    clear it: a step of pretraining allocates and frees some 200 MB and spent up to a fifth of its time on that. The
    process stays as large as it ever was.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, (1 << 31) - 1), (_TOP_PAD, 1 << 26))
    done = [bool(mallopt(name, value)) for name, value in settings]
    return all(done)
