"""Whether a gradient says anything beyond its place: one that is right and shattered leads nowhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..answering import answer, draw
from ..attacking.threat import Threat
from ..seeding import SampleGenerator, mix_seed
from .probing import fresh, led, moved
from .report import Flag
from .setup import AuditSetup, Batch

STEP, LONGEST = 0.1, 0.01
"""The step along the gradient, as a share of the budget, and its largest length in pixel units."""
LEAST = 0.2
"""The smallest change of the margin over this step, relative to what the gradient says.

Medians of healthy guards are above 0.8; that of a classifier behind a fine wave of its pixels is below 0.02.
"""
TOO_MANY = 0.5
"""The largest share of images with a smaller change."""
ROUNDINGS = 64
"""How many rounding errors of the logits' size a change has to exceed to be compared."""


def flags_of_reach(setup: AuditSetup, batch: Batch, threats: Sequence[Threat]) -> Iterator[Flag]:
    """Take a step along the sign of the margin's gradient, at random places within each threat.

    A gradient may agree with finite differences of any small length and change its sign within every step that an
    attack can take (shattered gradients: Athalye et al. 2018). With a surrogate purifier the classifier alone is
    checked. The purifier's noise is held fixed.
    """
    setup = setup if setup.purifier.gradient == "exact" else setup.alone
    classifier, purifier = fresh(setup)
    noise = draw(purifier, batch.pixels, SampleGenerator(mix_seed(setup.seed, "probe", "reach"), batch.indices))

    def logits(pixels: Tensor) -> Tensor:
        found: Tensor = answer(purifier, classifier, pixels, noise).output.float()
        return found

    for threat in threats:
        size = batch.pixels[0].numel()
        step = min(STEP * threat.eps / {"linf": 1.0, "l2": size**0.5, "l1": float(size)}[threat.norm], LONGEST)
        places = moved(setup, batch, threat, "reach").requires_grad_()
        with torch.enable_grad():
            found, leading = led(logits(places))
            margins = found[:, 0] - found[:, 1]
        if not margins.requires_grad:
            return  # cut off: another flag
        (gradient,) = torch.autograd.grad(margins.sum(), places, allow_unused=True)
        if gradient is None:
            return
        with torch.no_grad():
            stepped = (places - step * gradient.sign()).clamp(0, 1)
            after = logits(stepped).gather(1, leading)
            said = (gradient * (stepped - places)).flatten(1).sum(1)
            changed = after[:, 0] - after[:, 1] - margins
            rounding = ROUNDINGS * torch.finfo(torch.float32).eps * found.abs().nan_to_num(0, 0, 0).amax(1)
            usable = said.isfinite() & changed.isfinite() & (said < -rounding)
            short = int((usable & (changed > LEAST * said)).sum())
        total = int(usable.sum())
        if short > TOO_MANY * total:
            yield Flag(
                "gradient-wrong",
                f"{threat}: a step of {step:.2g} along the gradient changes the margin of {short} of {total} images by "
                f"less than {LEAST:.0%} of what the gradient says (exact)",
            )
