"""What the self-checks share: copies that have seen nothing, places to look at, and flags for checks that fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..attacking.steps import random_start
from ..attacking.threat import Threat
from ..classifiers.pixel_classifier import PixelClassifier
from ..contracts.purifier import Purifier
from ..foreign_code import Attempt
from ..seeding import SampleGenerator, mix_seed
from ..torch_tools.copying import unused_copy
from .report import Flag
from .setup import AuditSetup, Batch

LEADING = 5
"""How many of the largest logits are compared."""
ROUNDING = 1e-2
"""Tolerance, relative to the range of an image's logits: summing in another order, even in TF32, changes far less."""


def probe(*checks: Callable[[], Iterable[Flag]]) -> list[Flag]:
    """The flags that checks raise; one that fails with an error raises ``probe-failed``, and the others still run."""
    found: list[Flag] = []
    for check in checks:
        with Attempt() as attempt:
            found.extend(check())
        if attempt.error is not None:
            found.append(Flag("probe-failed", attempt.cause))
    return list(dict.fromkeys(found))


def fresh(setup: AuditSetup) -> tuple[PixelClassifier, Purifier]:
    """Copies of classifier and purifier that have seen nothing."""
    return unused_copy(setup.classifier), unused_copy(setup.purifier)


def moved(setup: AuditSetup, batch: Batch, threat: Threat, what: str) -> Tensor:
    """The images, each moved to a random place within the threat, (N, C, H, W); ``what`` names the random numbers."""
    generator = SampleGenerator(mix_seed(setup.seed, "probe", what, str(threat)), batch.indices)
    places = random_start(batch.pixels, threat, generator)
    # A guard of images of 8 bits rounds what it gets; off their grid it would differ from what attacks differentiate.
    return (255 * places).round() / 255 if setup.classifier.preprocessing.dtype == "uint8" else places


def logits_differ(one: Tensor, other: Tensor, rounding: float = ROUNDING, count: int = LEADING) -> Tensor:
    """Which images' logits, both (N, K), differ by more than ``rounding``, relative to their range, bool (N,).

    Only the ``count`` largest are compared, because a class that is never chosen, with a logit of -inf or -1e9, would
    make any difference of the others small.
    """
    first, leading = led(one.float(), count)
    second = other.float().gather(1, leading)
    low = torch.where(first.isfinite(), first, torch.inf).amin(1)
    top = torch.where(first.isfinite(), first, -torch.inf).amax(1)
    scale = torch.maximum(top - low, ROUNDING * torch.maximum(top.abs(), low.abs())).nan_to_num(0, 0, 0)
    return _differ(first, second, rounding * scale)


def led(logits: Tensor, count: int = LEADING) -> tuple[Tensor, Tensor]:
    """The ``count`` largest logits of each image and their classes, both (N, at most ``count``)."""
    found = logits.topk(min(count, logits.shape[1]), dim=1)
    return found.values, found.indices


def images_differ(one: Tensor, other: Tensor) -> Tensor:
    """Which images, (N, ...), differ by more than rounding in the dtype of the first, bool (N,)."""
    return _differ(one.float(), other.float(), one.new_full((len(one),), _rounding(one.dtype)).float())


def scores_differ(one: Tensor, other: Tensor) -> Tensor:
    """Which scores, both (N,), differ by more than rounding, bool (N,)."""
    first, second = one.float(), other.float()
    # The default score is a squared difference of pixels.
    scale = first.abs().nan_to_num(0).amax() + _rounding(one.dtype) ** 2
    return _differ(first, second, (ROUNDING * scale).expand(len(first)))


def _rounding(dtype: torch.dtype) -> float:
    """The largest rounding error of a purified pixel: half a step of 8 bits, or more in 16-bit floats."""
    return max(2e-3, 8 * torch.finfo(dtype).eps)


def _differ(one: Tensor, other: Tensor, tolerance: Tensor) -> Tensor:
    """Which rows, (N, ...), differ by more than their tolerance, (N,); NaN and infinity are equal to themselves."""
    rows, others = one.reshape(len(one), -1), other.reshape(len(other), -1)
    same = (rows == others) | (rows.isnan() & others.isnan()) | ((rows - others).abs() <= tolerance[:, None])
    return ~same.all(1)
