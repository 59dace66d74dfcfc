"""Steps with a few images on a copy of the purifier, before training: to measure what they take."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable

import torch

from ..classifiers.pixel_classifier import PixelClassifier
from ..contracts.purifier import Purifier
from ..data.images import ImageData
from ..foreign_code import Attempt
from ..seeding import SampleGenerator
from ..torch_tools.torchrun import Processes
from .recipe import Batch, Recipe

TIMED = 8
"""How many images a step that is timed has."""
TURNS = 2
"""How often a step is timed in each precision; the shortest counts. CPU time, which other processes hardly change."""


def trial(
    recipe: Recipe, purifier: Purifier, data: ImageData, classifier: PixelClassifier | None, device: torch.device
) -> Callable[[int, torch.autocast], None]:
    """A function that computes loss and gradient of so many images, in a context of autocast."""
    copied = copy.deepcopy(purifier)

    def step(count: int, autocast: torch.autocast) -> None:
        indices = data.spread(count)
        pixels, labels = (part.to(device) for part in data.batch(indices))
        generator, lasting = (SampleGenerator(seed, indices) for seed in (0, 1))
        batch = Batch(pixels, labels, generator, lasting, indices, classifier, done=1.0)
        copied.zero_grad(set_to_none=True)
        with autocast:
            loss = torch.stack([term.float() for term in recipe.memory_step(copied, batch).values()]).sum()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's

    return step


def gain_of_bfloat16(
    recipe: Recipe,
    purifier: Purifier,
    data: ImageData,
    classifier: PixelClassifier | None,
    processes: Processes,
    device: torch.device,
) -> float:
    """How many times as fast as in float32 a step is in bfloat16, in the process that gains least.

    0 if the purifier cannot be copied or a step fails. Layers differ: where dense convolutions gain, depthwise ones may
    lose.
    """
    seconds = {False: math.inf, True: math.inf}
    with Attempt() as attempt, torch.random.fork_rng(devices=[]):
        step, count = trial(recipe, purifier, data, classifier, device), min(TIMED, len(data))
        for turn in range(TURNS + 1):
            for enabled in seconds:
                start = time.process_time()
                step(count, torch.autocast(device.type, torch.bfloat16, enabled=enabled))
                if turn:  # the first also prepares
                    seconds[enabled] = min(seconds[enabled], time.process_time() - start)
    return processes.smallest(0.0 if attempt.error is not None else seconds[False] / seconds[True], device)
