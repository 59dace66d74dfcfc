"""What happens to memory that tensors no longer need."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
"""Options of mallopt(3), from glibc's malloc.h."""
NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Let the process keep freed memory for the next batch: training on the CPU takes about a fifth less time.

    By default glibc maps each large block separately, has the kernel zero it, and unmaps it when it is freed, so every
    layer of every batch faults its pages in again (``tests/benchmarks/memory_speed.py``). The setting affects the whole
    process, whose memory then never shrinks. So the command line calls this, but the library does not. Without glibc it
    does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(ARENA_MAX, 1)  # other arenas, such as the backward pass's, cannot hold blocks above 64 MB
        set_option(MMAP_MAX, 0)
        set_option(TRIM_THRESHOLD, NEVER)
