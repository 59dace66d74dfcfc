"""A self-check of gradients at black and white pixels, where a clamp has none."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..attacking.target import Target
from ..errors import GradientError
from ..seeding import SampleGenerator, mix_seed
from .probing import fresh
from .report import Flag
from .setup import AuditSetup, Batch

INWARDS = 1e-4
"""How far black and white pixels are moved into the box, in pixel units: a fortieth of a level of 8 bits."""
NOTABLE = 0.01
"""The smallest share of black and white pixels, and of the gradient's length at them, for which an image counts."""
TOO_MANY = 0.25
"""The largest share of images whose gradient may vanish there."""


def flags_of_bounds(setup: AuditSetup, batch: Batch) -> Iterator[Flag]:
    """Look for gradients that are 0 at all black and white pixels, and not 0 a little inside.

    A clamp at the start of a model has that effect (since torch 2.15; in torch 2.11 it has a gradient at its bounds).
    Attacks start in the box around the image, where half of its black pixels stay black, and could never move them.
    """
    setup = setup if setup.purifier.gradient == "exact" else setup.alone
    pixels = batch.pixels
    black, white = pixels <= 0, pixels >= 1
    bound = black | white
    inside = torch.where(black, INWARDS, torch.where(white, 1 - INWARDS, pixels))
    try:
        at, near = (_gradient(setup, batch, images) for images in (pixels, inside))
    except GradientError:  # cut off: another flag
        return
    length = near.flatten(1).norm(dim=1)
    there = (near * bound).flatten(1).norm(dim=1)
    counted = (bound.flatten(1).float().mean(1) >= NOTABLE) & (there > NOTABLE * length)
    cut = counted & ~(at * bound).flatten(1).any(1)
    if int(cut.sum()) > TOO_MANY * int(counted.sum()):
        yield Flag(
            "gradient-wrong",
            f"the gradient is 0 at every black and white pixel of {int(cut.sum())} of {int(counted.sum())} images, but "
            f"not {INWARDS:g} inside: a clamp to [0, 1] has no gradient at its bounds; use purifier.into_range in its "
            "place",
        )


def _gradient(setup: AuditSetup, batch: Batch, pixels: Tensor) -> Tensor:
    """The gradient of the margin between the two leading classes along ``exact``, shaped like ``pixels``."""
    classifier, purifier = fresh(setup)
    generator = SampleGenerator(mix_seed(setup.seed, "probe", "bounds"), batch.indices)
    target = Target(classifier, purifier, "exact", generator)
    gradient, _ = target.gradient(pixels, lambda logits: -logits.topk(2).values.diff(dim=1).squeeze(1))
    return gradient.nan_to_num(0)
