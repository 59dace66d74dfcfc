"""How much memory a computation takes at its peak, and how much there is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CGROUPS = Path("/sys/fs/cgroup")
V1, V2 = ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")


def peak_of(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors that ``run`` holds at a time, beyond what was there before.

    On CUDA this is the allocator's figure. On the CPU the tensors are counted that torch's operators return, which
    leaves out the operators' own scratch memory and what other libraries (ONNX Runtime) allocate.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = int(torch.cuda.memory_allocated(device))
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    with _Counted() as counted:
        run()
    return int(counted.peak)


class _Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Counts the bytes of the storages that operators return, while they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.peak = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {_key(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        result = func(*args, **(kwargs or {}))
        self._held = {key: held for key, held in self._held.items() if not _gone(held[0])}
        for tensor in tree_leaves(result):
            # A view, or a tensor changed in place, shares the storage of an argument.
            if isinstance(tensor, Tensor) and _key(tensor) not in given:
                storage = tensor.untyped_storage()
                self._held[_key(tensor)] = (_weak(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._held.values()))
        return result


def _weak(storage: torch.UntypedStorage) -> StorageWeakRef:
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]  # torch's


def _gone(reference: StorageWeakRef) -> bool:
    return bool(reference.expired())  # type: ignore[no-untyped-call]  # torch's


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def available(device: torch.device) -> int | None:
    """The bytes that this process can still allocate on a device; None if nobody says.

    On Linux the tightest of the machine's free memory and the limits of its control groups (containers), files that
    could be dropped from the cache counted as free.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    return min((room for room in (_free_on_machine(), *_free_in_groups()) if room is not None), default=None)


def _free_on_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
        known = "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _free_in_groups() -> Iterator[int]:
    """What each control group with a limit has left, from the process's own up to the root (cgroups 1 and 2)."""
    try:
        memberships = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in memberships:
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, files = (CGROUPS / "memory", V1) if controllers else (CGROUPS, V2)
        group = top / name.strip("/")
        for folder in (group, *group.parents):
            room = _room(folder, *files)
            if room is not None:
                yield room
            if folder == top:
                break


def _room(folder: Path, limit: str, usage: str) -> int | None:
    try:
        most, used = ((folder / name).read_text().strip() for name in (limit, usage))
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if not most.isdigit():  # "max"
        return None
    cached = int(facts.get("total_inactive_file", facts.get("inactive_file", 0)))
    return max(0, int(most) - int(used) + cached)
