"""Several processes under torchrun, each with its share of every batch, or one by itself."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from ..errors import TrainingError


@dataclass(frozen=True)
class Processes:
    """This process among ``count``; ``rank`` 0 writes files and speaks."""

    rank: int = 0
    count: int = 1

    def part(self, indices: Sequence[int]) -> tuple[Sequence[int], float]:
        """This process's images of a batch, and the weight of their mean in the mean over the batch.

        Where there are fewer images than processes, some take an image with weight 0: a mean needs one.
        """
        if self.count == 1:
            return indices, 1.0
        low, high = (len(indices) * place // self.count for place in (self.rank, self.rank + 1))
        return (indices[low:high], (high - low) / len(indices)) if high > low else (indices[:1], 0.0)

    def wrapped(self, module: nn.Module, device: torch.device) -> nn.Module:
        """The module, its gradients averaged over all processes where there are several."""
        if self.count == 1:
            return module
        # A purifier may have weights that not every stage or recipe uses.
        return nn.parallel.DistributedDataParallel(
            module, device_ids=[device] if device.type == "cuda" else None, find_unused_parameters=True
        )

    def summed(self, values: Tensor) -> Tensor:
        """The sum of all processes' tensors."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def agreed(self, module: nn.Module) -> None:
        """Give every process the weights and buffers of the first."""
        if self.count > 1:
            for tensor in module.state_dict().values():
                distributed.broadcast(tensor, 0)

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            distributed.barrier()


def joined(device: torch.device) -> Processes:
    """The processes that torchrun started, in one group; a single one without torchrun.

    Layers that see a whole batch, such as BatchNorm, see their own process's share.

    Raises
    ------
    TrainingError
        torchrun's variables are incomplete, or the processes do not find each other.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if count == "1":
        return Processes()
    if not distributed.is_initialized():
        try:
            distributed.init_process_group(
                "nccl" if device.type == "cuda" else "gloo", device_id=device if device.type == "cuda" else None
            )
        except (ValueError, RuntimeError) as error:
            raise TrainingError(
                f"{count} processes were started (WORLD_SIZE), but they do not find each other: {error}; start them "
                "with torchrun, or unset WORLD_SIZE"
            ) from error
        # Not after each training: a second group would read where the first one's processes listened.
        atexit.register(_leave)
    return Processes(distributed.get_rank(), distributed.get_world_size())


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def own_device(device: str | torch.device) -> str | torch.device:
    """``cuda`` under torchrun -> this process's GPU."""
    local = os.environ.get("LOCAL_RANK")
    if local is None or not str(device).startswith("cuda"):
        return device
    if str(device) != "cuda":
        raise TrainingError(f"device: expected cuda under torchrun, which gives each process its own, got {device}")
    return f"cuda:{local}"
