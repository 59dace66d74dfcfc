"""What becomes of memory that tensors no longer need."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
"""Of mallopt(3), from glibc's malloc.h."""
NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Let the process keep what it frees, for the next batch: training on the CPU takes about a fifth less time.

    glibc maps each large block anew, has the kernel zero it, and gives it back when it is freed, so every layer of
    every batch faults its pages in again (``tests/benchmarks/memory_speed.py``). Holds for the whole process, which
    stays as large as it once was; so it is for processes of one's own: the command line calls it, the library does
    not. Without glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(ARENA_MAX, 1)  # the others, such as the backward pass's, cannot hold blocks above 64 MB
        set_option(MMAP_MAX, 0)
        set_option(TRIM_THRESHOLD, NEVER)
