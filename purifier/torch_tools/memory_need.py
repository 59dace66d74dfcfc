"""How the memory of a computation grows with its number of images, from its peaks with a few of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from .memory_use import peak_of

FEW = (2, 4)
"""How many images a computation is measured with."""


@dataclass(frozen=True)
class Need:
    """Bytes at the peak of a computation: ``fixed``, and so much ``per_image``."""

    fixed: int
    per_image: int

    def of(self, images: int) -> int:
        """The bytes for so many images."""
        return self.fixed + images * self.per_image

    def largest(self, room: float) -> int:
        """The largest number of images for which ``room`` bytes are enough."""
        return int((room - self.fixed) // self.per_image) if self.per_image else sys.maxsize


def need_of(runs: Mapping[int, Callable[[], object]], device: torch.device) -> Need:
    """The line through the peaks of ``runs``, each a computation with so many images as its key says: one or two."""
    peaks = {count: peak_of(run, device) for count, run in runs.items()}
    (few, low), (many, high) = min(peaks.items()), max(peaks.items())
    per_image = max(0, (high - low) // (many - few)) if many > few else low // few
    return Need(max(0, low - few * per_image), per_image)


def out_of_memory(problem: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or the CPU."""
    return isinstance(problem, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(problem)
