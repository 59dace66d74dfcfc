"""Measuring calls side by side: they take turns, so that what else the machine does hits all of them alike."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..foreign_code import Attempt
from .machine import wait_for

WARM_UP = 2
"""Calls of each way before those that count."""
LEAST_ROUNDS, MOST_ROUNDS = 5, 2000


def take_turns(
    calls: Mapping[str, Callable[[], object]], device: torch.device, seconds: float
) -> dict[str, list[float]]:
    """The seconds of each call in each round, for about ``seconds`` per way and at least 5 rounds."""
    for _ in range(WARM_UP):
        for call in calls.values():
            call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds * len(calls)
    for turn in range(MOST_ROUNDS):
        if turn >= LEAST_ROUNDS and time.perf_counter() >= end:
            break
        for name, call in calls.items():
            wait_for(device)
            start = time.perf_counter()
            call()
            wait_for(device)
            found[name].append(time.perf_counter() - start)
    return found


def growth(call: Callable[[], object], device: torch.device) -> int | None:
    """By how many bytes the memory in use grows at the peak of a call; None if the system does not say.

    On CUDA it is that of the device, for all that uses it; on the CPU that of this process, on Linux.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        wait_for(device)
        before, _ = torch.cuda.mem_get_info(device)
        call()
        wait_for(device)
        return max(0, before - torch.cuda.mem_get_info(device)[0])
    _return_freed_memory()
    before_call = _from_status("VmRSS") if _reset_peak() else None
    call()
    peak = _from_status("VmHWM")
    return None if before_call is None or peak is None else max(0, peak - before_call)


def _return_freed_memory() -> None:
    with Attempt():  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _reset_peak() -> bool:
    """Make the process's peak what it holds now; False if that cannot be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _from_status(field: str) -> int | None:
    """A size in bytes from /proc/self/status."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
