"""What gradient attacks share: steps, random starts, the climb, and the strongest image so far."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator
from purifier.target import Target
from purifier.threat import Norm, Threat, norm_of, scale_like

from ._losses import loss_of

MOVED = 0.02
"""The share of an image's values that an l1 step moves: of 0.01 (Tramer & Boneh 2019) and 0.05 either can be far better
than the other on 28x28 images, this is close to the better one."""


def unit(images: Tensor, norm: Norm) -> Tensor:
    """Each of (N, C, H, W) at length 1 in ``norm``; 0 where it is 0."""
    tiny = torch.finfo(images.dtype).tiny
    # To a largest value of 1 first: squares of very small or large gradients leave float32.
    images = images / scale_like(norm_of(images, "linf").clamp_min(tiny), images)
    return images / scale_like(norm_of(images, norm).clamp_min(tiny), images)


def steepest(gradient: Tensor, norm: Norm, pixels: Tensor | None = None, *, moved: float = MOVED) -> Tensor:
    """The step of length 1 in ``norm`` that a linear loss grows most along; 0 where the gradient is 0 or NaN.

    In ``l1`` that would move one value. Here it is an equal step in each of the share ``moved`` of the values with the
    largest gradients, none in those that the box stops at ``pixels`` (Tramer & Boneh 2019, section 4: sparse l1
    descent). All tensors are (N, C, H, W).
    """
    gradient = gradient.nan_to_num(0)
    if norm == "linf":
        return gradient.sign()
    if norm == "l1":
        if pixels is not None:
            gradient = gradient.masked_fill(torch.where(gradient > 0, pixels >= 1, pixels <= 0), 0)
        flat = gradient.flatten(1)
        largest = flat.abs().topk(math.ceil(moved * flat.shape[1]), dim=1).indices
        gradient = torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest).sign()).view_as(gradient)
    return unit(gradient, norm)


def full_step(gradient: Tensor, pixels: Tensor, norm: Norm, length: float) -> Tensor:
    """``pixels`` moved by ``length`` so that a linear loss grows most; all (N, C, H, W).

    In ``l1`` the box is part of the optimum: the values of the largest gradients go to its walls, one after the other,
    until the length is spent (Croce & Hein 2021, "Mind the box", section 3).
    """
    if norm != "l1":
        return pixels + length * steepest(gradient, norm)
    slope, at = gradient.nan_to_num(0).flatten(1), pixels.flatten(1)
    order = slope.abs().sort(1, descending=True).indices
    room = torch.where(slope > 0, 1 - at, at).masked_fill(slope == 0, 0).gather(1, order)
    taken = (length - room.cumsum(1) + room).clamp_min(0).minimum(room)
    return (at + slope.sign() * torch.zeros_like(at).scatter(1, order, taken)).view_as(pixels)


def random_direction(pixels: Tensor, norm: Norm, generator: SampleGenerator) -> Tensor:
    """A random step of length 1 in ``norm`` for each of (N, C, H, W).

    Uniform on the sphere for ``l2`` and on the faces for ``l1``; a corner of the ball for ``linf``.
    """
    if norm != "l1":
        return steepest(generator.normal(pixels.shape[1:], pixels), norm)
    signed = 2 * generator.uniform(pixels.shape[1:], pixels) - 1
    # -1 is drawn, 1 never is; the logarithm needs both left out.
    falling = torch.log1p(-signed.abs().clamp_max(1 - torch.finfo(signed.dtype).eps))
    return unit(signed.sign() * falling, "l1")


def random_start(pixels: Tensor, threat: Threat, generator: SampleGenerator) -> Tensor:
    """Uniform in the threat's ball (Madry et al. 2018), then projected into the box."""
    shape = pixels.shape[1:]
    if threat.norm == "linf":
        offset = 2 * generator.uniform(shape, pixels) - 1
    else:
        # A radius u^(1/d) makes what is uniform on the surface uniform in the ball of d dimensions.
        radius = generator.uniform((), pixels) ** (1 / shape.numel())
        offset = random_direction(pixels, threat.norm, generator) * scale_like(radius, pixels)
    return threat.project(pixels + threat.eps * offset, pixels)


class Best:
    """The strongest image found so far for each of N: misclassified before all, then of the highest loss.

    Where the target is the very model that will judge, the first misclassification ends an image's search, and the
    clean images are the first candidates. On the route ``oblivious`` none ends: the images are meant for a guard the
    attack cannot ask, and one just over the classifier's edge would transfer badly. Under a random target one good draw
    is luck: there only the last image of each start is a candidate, ranked by its loss on fresh draws.

    Parameters
    ----------
    loss
        A name of ``LOSSES``; the attribute ``loss`` is the loss itself, aimed by the clean images' logits.
    """

    def __init__(self, target: Target, pixels: Tensor, labels: Tensor, loss: str) -> None:
        self.pixels = pixels.clone()
        self.random = target.random(pixels)
        self._labels, self._stops = labels, target.route != "oblivious" and not self.random
        self._fooled = torch.zeros_like(labels, dtype=torch.bool)
        self._value = pixels.new_full((len(pixels),), -torch.inf, dtype=torch.float32)
        if self.random and loss != "targeted":
            self.loss = loss_of(loss, labels)
            return
        logits = target.logits(pixels)
        self.loss = loss_of(loss, labels, logits)
        self.note(self.todo(), pixels, logits)

    def note(self, at: Tensor, pixels: Tensor, logits: Tensor, *, last: bool = False) -> Tensor:
        """Take over what is better; say which images still need work, (M,) booleans.

        ``at`` (M,) are positions among the N, ``pixels`` (M, C, H, W) candidates, ``logits`` (M, K) theirs; ``last``
        says that a start ends here.
        """
        if last or not self.random:
            value = self.loss.select(at)(logits).nan_to_num(-torch.inf, torch.inf, -torch.inf)
            fooled, before = (logits.argmax(1) != self._labels[at]) & (not self.random), self._fooled[at]
            better = (fooled & ~before) | ((fooled == before) & (value > self._value[at]))
            rows = better.nonzero().squeeze(1)
            self.pixels[at[rows]] = pixels[rows].detach()
            self._value[at[rows]] = value[rows]
            self._fooled[at[rows]] = fooled[rows]
        return ~self._fooled[at] if self._stops else torch.ones_like(at, dtype=torch.bool)

    def todo(self) -> Tensor:
        """Positions of the images that still need work."""
        return (~self._fooled if self._stops else torch.ones_like(self._fooled)).nonzero().squeeze(1)


def climb(
    best: Best,
    target: Target,
    pixels: Tensor,
    threat: Threat,
    generator: SampleGenerator | None,
    *,
    steps: int,
    length: float,
    decay: float = 0.0,
    moved: float = MOVED,
) -> None:
    """Steepest steps of one ``length``, each projected, for all images still to do; ``best`` notes every iterate.

    With a ``generator`` they begin at a random start. ``decay`` is how much of the step before goes into each
    direction: g <- decay g + gradient / ||gradient||_1 (Dong et al. 2018, equation 6).
    """
    at = best.todo()
    clean, loss, target = pixels[at], best.loss.select(at), target.select(at)
    here = clean if generator is None else random_start(clean, threat, generator.select(at))
    momentum = torch.zeros_like(clean)
    for _ in range(steps):
        gradient, logits = target.gradient(here, loss)
        stays = best.note(at, here, logits)
        if not stays.all():
            at, here, clean, gradient, momentum = (part[stays] for part in (at, here, clean, gradient, momentum))
            loss, target = loss.select(stays), target.select(stays)
        if not len(at):
            return
        if decay:
            gradient = momentum = decay * momentum + unit(gradient.nan_to_num(0), "l1")
        here = threat.project(here + length * steepest(gradient, threat.norm, here, moved=moved), clean)
    best.note(at, here, target.logits(here), last=True)


def check_steps(attack: str, steps: int, step_size: float | None, restarts: int | None = None) -> None:
    """Raise :class:`ConfigError` unless the options of an attack by steps make sense."""
    if restarts is None and steps < 1:
        raise ConfigError(f"attack {attack!r}: steps must be at least 1, got {steps}")
    if restarts is not None and (steps < 1 or restarts < 1):
        raise ConfigError(f"attack {attack!r}: steps and restarts must be at least 1, got {steps} and {restarts}")
    if step_size is not None and not 0 < step_size < math.inf:
        raise ConfigError(f"attack {attack!r}: step_size is a share of eps and must be positive, got {step_size}")
