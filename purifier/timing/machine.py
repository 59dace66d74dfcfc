"""What this machine can do at most, and what a model asks of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

SIDE = 1024
"""Side of the matrices that are multiplied on a CPU; on a GPU four times as large."""
COPIED = 1 << 28
"""Bytes of the tensor that is copied: more than caches hold."""


@dataclass(frozen=True)
class Machine:
    """The speed of one device with the threads that torch uses, measured with torch."""

    device: str
    threads: int
    flops: float
    """Floating-point operations per second of a product of float32 matrices."""
    bandwidth: float
    """Bytes per second that are read and written when a large tensor is copied."""

    def best(self, other: Machine) -> Machine:
        """The higher rates of two measurements: other work on the machine only lowers them."""
        return replace(self, flops=max(self.flops, other.flops), bandwidth=max(self.bandwidth, other.bandwidth))


@dataclass(frozen=True)
class Work:
    """What an answer to some images takes, as torch's operators do it one by one."""

    flops: int
    moved: int
    """Bytes of all tensors that operators read and write, weights included."""


def measure_machine(device: torch.device, seconds: float) -> Machine:
    """The rates of a device, each the best of what fits into so many seconds."""
    side = SIDE if device.type == "cpu" else 4 * SIDE
    left, right = (torch.randn(side, side, device=device) for _ in range(2))
    source = torch.zeros(COPIED // 4, device=device)
    target = torch.empty_like(source)
    flops = 2 * side**3 / _fastest(lambda: left @ right, device, seconds)
    bandwidth = 2 * COPIED / _fastest(lambda: target.copy_(source), device, seconds)
    name = "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return Machine(name, torch.get_num_threads(), flops, bandwidth)


def work_of(call: Callable[[], object]) -> Work:
    """What a call of torch modules takes."""
    flops = FlopCounterMode(display=False)
    with torch.no_grad(), flops, _Moved() as moved:
        call()
    return Work(int(flops.get_total_flops()), moved.total)


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _fastest(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        wait_for(device)
        start = time.perf_counter()
        call()
        wait_for(device)
        best = min(best, time.perf_counter() - start)
    return best


class _Moved(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Counts the bytes that operators read and write; views move nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [one for one in tree_leaves((args, kwargs, result)) if isinstance(one, Tensor)]
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result
