"""Several processes under torchrun, each with its share of the images, or a single one."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

from ..errors import ConfigError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Processes:
    """This process and how many there are; ``rank`` 0 writes files and prints."""

    rank: int = 0
    count: int = 1

    def share(self, indices: Sequence[int]) -> tuple[Sequence[int], float]:
        """This process's images of a batch, and the weight of their mean in the mean over the batch.

        If there are fewer images than processes, some processes take an image with weight 0: a mean needs at least one.
        """
        if self.count == 1:
            return indices, 1.0
        low, high = (len(indices) * rank // self.count for rank in (self.rank, self.rank + 1))
        return (indices[low:high], (high - low) / len(indices)) if high > low else (indices[:1], 0.0)

    def wrapped(self, module: nn.Module, device: torch.device) -> nn.Module:
        """The module, with gradients averaged over all processes if there are several."""
        if self.count == 1:
            return module
        # A purifier may have weights that some epochs or recipes do not use.
        return nn.parallel.DistributedDataParallel(
            module, device_ids=[device] if device.type == "cuda" else None, find_unused_parameters=True
        )

    def summed(self, values: Tensor) -> Tensor:
        """The sum of all processes' tensors."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def largest(self, values: Sequence[float], device: torch.device) -> list[float]:
        """The largest of all processes' values, for each of some numbers."""
        if self.count == 1:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return [float(value) for value in found.tolist()]

    def smallest(self, value: float, device: torch.device) -> float:
        """The smallest of all processes' values."""
        return -self.largest([-value], device)[0]

    def synchronise(self, module: nn.Module) -> None:
        """Copy the weights and buffers of the first process to all others."""
        if self.count > 1:
            for tensor in module.state_dict().values():
                distributed.broadcast(tensor, 0)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            distributed.barrier()


def join_processes(device: torch.device = CPU, *, timeout: timedelta | None = None) -> Processes:
    """Join the processes that torchrun started into one group; without torchrun there is a single process.

    ``timeout`` is how long they wait for each other, by default as long as torch's do.

    Layers that use a whole batch, such as BatchNorm, see only their own process's share.

    Raises
    ------
    ConfigError
        torchrun's variables are incomplete, or the processes cannot reach each other.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if count == "1":
        return Processes()
    if not distributed.is_initialized():
        try:
            distributed.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                device_id=device if device.type == "cuda" else None,
                timeout=timeout,
            )
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"{count} processes were started (WORLD_SIZE), but they cannot reach each other: {error}; start them "
                "with torchrun, or unset WORLD_SIZE"
            ) from error
        # Leave at exit, not after each training: a second group would read the first one's stale addresses.
        atexit.register(_leave)
    return Processes(distributed.get_rank(), distributed.get_world_size())


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def own_device(device: str | torch.device) -> str | torch.device:
    """This process's GPU for ``cuda`` under torchrun, otherwise the device as given."""
    local = os.environ.get("LOCAL_RANK")
    if local is None or not str(device).startswith("cuda"):
        return device
    if str(device) != "cuda":
        raise ConfigError(f"device: expected cuda under torchrun, which gives each process its own GPU, got {device}")
    return f"cuda:{local}"
