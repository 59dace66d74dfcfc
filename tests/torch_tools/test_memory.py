"""Page faults of a real process that keeps its freed memory, on the main thread and on another."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, threading
import torch
from purifier.torch_tools.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()

def batches(count):
    for _ in range(count):
        assert torch.ones(25_000_000).sum() == 25_000_000  # 100 MB, larger than a heap of glibc's other arenas

def faults(work):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def elsewhere():
    other = threading.Thread(target=batches, args=(8,))
    other.start()
    other.join()

batches(4)
print(faults(lambda: batches(8)), faults(elsewhere))
"""


@pytest.mark.integration
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="getrusage counts differently elsewhere")
def test_kept_memory_is_not_faulted_in_again() -> None:
    taken, kept = (_faults(how) for how in ("plain", "keep"))
    assert all(count > 1000 for count in taken)
    assert all(count < plain / 2 for count, plain in zip(kept, taken, strict=True))


def _faults(how: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, timeout=120)
    return [int(count) for count in done.stdout.split()]
