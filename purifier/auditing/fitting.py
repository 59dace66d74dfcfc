"""The batch size of an audit: the largest whose gradients fit into memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

from ..attacking.target import Target, strongest_route
from ..data.images import ImageData
from ..errors import ConfigError
from ..foreign_code import Attempt
from ..seeding import SampleGenerator
from ..torch_tools.memory_need import FEW, Need, need_of, out_of_memory
from ..torch_tools.memory_use import available
from .probing import fresh
from .setup import AuditSetup

BATCH_SIZE = 250
"""Images per batch, unless they do not fit."""
SHARE = 0.4
"""The share of the memory that the gradient of a batch may take: attacks keep copies, and checks run in float64."""


def fitting_batch(setup: AuditSetup, data: ImageData) -> int:
    """250 images, or the half, quarter, ... of them whose gradients take at most 40% of the memory; at least one.

    A classifier without gradients gets 250.

    Raises
    ------
    ConfigError
        There is not enough memory even for a few images.
    """
    room = available(setup.device) if setup.classifier.differentiable else None
    need = None if room is None else measured(setup, data)
    if room is not None and setup.device.type == "cpu":  # the processes of torchrun share it
        room //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    chosen = BATCH_SIZE
    if need is not None and room is not None:
        while chosen > max(1, need.largest(SHARE * room)) and chosen // 2 < len(data):
            chosen //= 2
    return chosen


def measured(setup: AuditSetup, data: ImageData) -> Need | None:
    """The memory of a gradient along the strongest route, in copies that leave classifier and purifier as they are.

    None if it cannot be computed.
    """
    need = None
    with Attempt() as attempt:
        classifier, purifier = fresh(setup)
        route = strongest_route(classifier, purifier)

        def ask(indices: Sequence[int]) -> None:
            pixels = setup.batch(data, indices).pixels
            target = Target(classifier, purifier, route, SampleGenerator(setup.seed, indices))
            target.gradient(pixels, lambda logits: logits.logsumexp(1))

        counts = {min(few, len(data)) for few in FEW}
        need = need_of({count: partial(ask, range(count)) for count in counts}, setup.device)
    if attempt.error is not None and out_of_memory(attempt.error):
        raise ConfigError(
            "there is not enough memory for the gradients of a few images: choose smaller images (--resize), or close "
            "other programs"
        ) from attempt.error
    return need
