"""Whether the margin passes through 0 where the answer changes: gradients of a model that jumps lead nowhere."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..answering import answer, draw
from ..seeding import SampleGenerator, mix_seed
from .probing import fresh
from .report import Flag
from .setup import AuditSetup, Batch

PAIRS = 16
"""How many pairs of images are compared."""
HALVINGS = 20
"""How often the way between two images is halved: what is left is a millionth of it."""
JUMP = 0.1
"""The largest step of the margin at the boundary that is not a jump, relative to the margin of the clean image.

Of continuous guards it is below 1e-3.
"""
TOO_MANY = 0.5
"""The largest share of pairs with a jump: a guard that takes the best of several reconstructions has a few."""


def flags_of_jumps(setup: AuditSetup, batch: Batch) -> Iterator[Flag]:
    """Halve the ways between pairs of images with different answers up to the boundary, and look at the margin there.

    A classifier that masks all classes but its answer, or a purifier that chooses between finished images, has a
    gradient that is right and useless: nothing tells it how far the next class is. With a surrogate purifier the
    classifier alone is checked.
    """
    setup = setup if setup.purifier.gradient == "exact" else setup.alone
    classifier, purifier = fresh(setup)
    noise = draw(purifier, batch.pixels, SampleGenerator(mix_seed(setup.seed, "probe", "jumps"), batch.indices))

    def logits(pixels: Tensor, at: Tensor) -> Tensor:
        found: Tensor = answer(purifier, classifier, pixels, None if noise is None else noise[at]).output.float()
        return found

    with torch.no_grad():
        clean = logits(batch.pixels, torch.arange(len(batch.pixels), device=batch.pixels.device))
        answers = clean.argmax(1)
        differs = answers[:, None] != answers
        at = differs.any(1).nonzero().squeeze(1)[:PAIRS]
        own = answers[at]
        near, far = batch.pixels[at], batch.pixels[differs.int().argmax(1)[at]]
        # With the noise of the one image the other may be answered like the one: then there is no boundary.
        bounded = logits(far, at).argmax(1) != own
        for _ in range(HALVINGS):
            middle = (near + far) / 2
            same = (logits(middle, at).argmax(1) == own).view(-1, 1, 1, 1)
            near, far = torch.where(same, middle, near), torch.where(same, far, middle)
        step = _margin(logits(near, at), own) - _margin(logits(far, at), own)
        jumps = bounded & (step.isinf() | (step > JUMP * _margin(clean[at], own)))
    count, total = int(jumps.sum()), int(bounded.sum())
    if count > TOO_MANY * total:
        yield Flag(
            "discontinuous",
            f"where the answer changes between two images, the margin jumps by more than {JUMP:.0%} of its clean "
            f"value, for {count} of {total} pairs",
        )


def _margin(logits: Tensor, own: Tensor) -> Tensor:
    """The logit of the class ``own``, (N,), minus the largest other one, (N,)."""
    place = own.unsqueeze(1)
    return logits.gather(1, place).squeeze(1) - logits.scatter(1, place, -torch.inf).amax(1)
