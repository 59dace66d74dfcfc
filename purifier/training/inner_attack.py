"""The inner maximisation of adversarial training: a few large gradient ascent steps, the same number for all images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..attacking.steps import steepest
from ..attacking.threat import Threat
from ..errors import GradientError


def climb(
    loss: Callable[[Tensor], Tensor], start: Tensor, pixels: Tensor, threat: Threat, steps: int, step_size: float
) -> Tensor:
    """Projected gradient ascent (Madry et al. 2018, section 2.1): pixels (N, C, H, W) in the threat around ``pixels``.

    Parameters
    ----------
    loss
        Images (N, C, H, W) -> a scalar to maximise.
    start
        The starting images, (N, C, H, W).
    steps, step_size
        The number of steps, and their length in the threat's norm, ``linf`` or ``l2``.
    """
    found = threat.project(start, pixels)
    for _ in range(steps):
        found = threat.project(found + step_size * ascent(loss, found, threat), pixels)
    return found


def ascent(loss: Callable[[Tensor], Tensor], pixels: Tensor, threat: Threat) -> Tensor:
    """The direction in which a loss of ``pixels`` (N, C, H, W) grows fastest, same shape.

    For each image it has length 1 in the threat's norm, ``linf`` or ``l2``.
    """
    leaf = pixels.detach().requires_grad_()
    with torch.enable_grad():
        total = loss(leaf)
    gradient = torch.autograd.grad(total, leaf, allow_unused=True)[0] if total.requires_grad else None
    if gradient is None:
        raise GradientError(
            "no gradient reaches the images: the purifier cuts it off (detach, no_grad); make it differentiable, or "
            "use the recipe denoise, which needs gradients of the classifier only"
        )
    return steepest(gradient, threat.norm)


@contextmanager
def as_used(module: nn.Module) -> Iterator[None]:
    """In evaluation mode, so that an attack sees the module as it will answer, and leaves running statistics alone."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
