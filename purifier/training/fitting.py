"""The batch size that fits into memory, from the memory that steps with a few images take."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

import torch

from ..classifiers.pixel_classifier import PixelClassifier
from ..contracts.purifier import Purifier
from ..data.images import ImageData
from ..errors import ConfigError
from ..foreign_code import Attempt
from ..torch_tools.memory_need import FEW, Need, need_of, out_of_memory
from ..torch_tools.memory_use import available
from ..torch_tools.torchrun import Processes
from .optimisation import Follower
from .recipe import Recipe
from .trial import trial

BATCH_SIZE = 128
"""Images per step, unless it is given or does not fit."""
SHARE = 0.8
"""The share of the memory that a chosen batch size may take: kernels need scratch memory, and others grow too."""
SMALLEST = 2
"""The smallest batch size that is chosen, for each process."""


def fitting_batch(
    given: int | None,
    recipe: Recipe,
    purifier: Purifier,
    follower: Follower,
    data: ImageData,
    classifier: PixelClassifier | None,
    processes: Processes,
    device: torch.device,
) -> int:
    """``given``, or the largest of 128, 64, ..., 2 images (for all processes together) whose step fits into memory.

    What the first steps would do is measured on a copy of the purifier; if that fails, memory is not checked.

    Raises
    ------
    ConfigError
        ``given``, or even the smallest batch, does not fit.
    """
    need = measured(recipe, purifier, follower, data, classifier, device)
    room = available(device)
    if room is not None and device.type == "cpu":
        room //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    wanted = min(BATCH_SIZE if given is None else given, len(data))
    largest = wanted
    if need is not None and room is not None:
        largest = processes.count * need.largest(room if given is not None else SHARE * room)
    largest = int(processes.smallest(min(largest, wanted), device))
    if largest >= wanted:
        return BATCH_SIZE if given is None else given
    assert need is not None and room is not None
    least = SMALLEST * processes.count
    chosen = BATCH_SIZE
    while chosen > max(largest, least):
        chosen //= 2
    if given is None and largest >= least:
        return max(chosen, least)
    own = -(-(least if given is None else wanted) // processes.count)
    advice = f"lower the batch size to {chosen}, or leave it out" if largest >= least else ""
    raise ConfigError(
        f"a step with {own} images takes about {_gigabytes(need.of(own))}, but this process can use "
        f"{_gigabytes(room)}: "
        + (advice or "choose a smaller purifier (--size tiny), smaller images (--resize) or another classifier")
    )


def measured(
    recipe: Recipe,
    purifier: Purifier,
    follower: Follower,
    data: ImageData,
    classifier: PixelClassifier | None,
    device: torch.device,
) -> Need | None:
    """The memory of a step, beyond what is held already: the line through the peaks with two and with four images.

    None if the purifier cannot be copied or the step fails otherwise than by lack of memory.
    """
    need = None
    with Attempt() as attempt, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        step, autocast = trial(recipe, purifier, data, classifier, device), follower.settings.autocast(device)
        need = need_of(
            {count: partial(step, count, autocast) for count in {min(few, len(data)) for few in FEW}}, device
        )
    if attempt.error is not None:
        if out_of_memory(attempt.error):
            raise ConfigError(
                "there is not enough memory for a step with a few images: choose a smaller purifier (--size tiny), "
                "smaller images (--resize) or another classifier"
            ) from attempt.error
        return None
    assert need is not None
    return replace(need, fixed=need.fixed + follower.bytes_of_moments())


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2g} GB"
