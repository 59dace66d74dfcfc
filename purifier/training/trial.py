"""Steps with a few images on a copy of the purifier, before training: to measure what they take."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..classifiers.pixel_classifier import PixelClassifier
from ..contracts.purifier import Purifier
from ..data.images import ImageData
from ..foreign_code import Attempt
from ..seeding import SampleGenerator
from ..torch_tools.memory_need import FEW
from .recipe import Batch, Recipe

PAYS = 1.3
"""How many times as fast as in float32 a CPU must convolve for ``bfloat16`` to be chosen: one did 0.6 times, one 2."""
TURNS = 5
"""How often a convolution is timed in each precision; the shortest counts. CPU time, which others hardly change."""
CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)


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


def gains_by_bfloat16(
    recipe: Recipe, purifier: Purifier, data: ImageData, classifier: PixelClassifier | None, device: torch.device
) -> bool:
    """Whether this CPU convolves faster in bfloat16 and a step has dense convolutions only.

    Grouped ones, such as depthwise ones, lose by it. A step is not timed: near the limit its times would differ from
    one run to the next, and with them the weights.
    """
    if gain_of_convolution() <= PAYS:
        return False
    seen = GroupedConvolutions()
    with Attempt() as attempt, torch.random.fork_rng(devices=[]):
        step = trial(recipe, purifier, data, classifier, device)
        with seen:
            step(min(min(FEW), len(data)), torch.autocast(device.type, enabled=False))
    return not seen.found and attempt.error is None


class GroupedConvolutions(TorchFunctionMode):
    """Looks for convolutions with more than one group, of layers and of functions, while it is active."""

    found = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func in CONVOLUTIONS:
            self.found = self.found or (args[6] if len(args) > 6 else named.get("groups", 1)) > 1
        return func(*args, **named)


@torch.no_grad()
def gain_of_convolution() -> float:
    """How many times as fast as in float32 this CPU convolves in bfloat16; takes about 0.1 s."""
    seconds = {torch.float32: math.inf, torch.bfloat16: math.inf}
    for turn, dtype in enumerate(TURNS * list(seconds)):
        weight, maps = torch.ones(64, 64, 3, 3, dtype=dtype), torch.ones(32, 64, 16, 16, dtype=dtype)
        maps = maps.contiguous(memory_format=torch.channels_last)
        start = time.process_time()
        torch.conv2d(maps, weight, padding=1)
        if turn > 1:  # the first of each also prepares
            seconds[dtype] = min(seconds[dtype], time.process_time() - start)
    return seconds[torch.float32] / seconds[torch.bfloat16]
