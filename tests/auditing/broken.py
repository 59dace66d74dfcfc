"""Negative controls: purifiers and classifiers broken on purpose, each in one way an audit must notice."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import purifier
from audit_helpers import NoConfig
from purifier.seeding import SampleGenerator


class Broken(purifier.Purifier):
    """Filters nothing and hides nothing: a healthy one."""

    Config, gradient = NoConfig, "exact"

    def __init__(self) -> None:
        super().__init__(NoConfig())

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels


class Surrogate(Broken):
    """Quantises, with a faithful surrogate: healthy too."""

    gradient = "surrogate"

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return (pixels * 15).round() / 15

    def surrogate(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels


class Rounded(Broken):
    """Its gradient, declared exact, is zero."""

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return (pixels * 15).round() / 15


class Detached(Broken):
    """Its gradient, declared exact, is cut off."""

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels.detach()


class DeadSurrogate(Surrogate):
    """Its surrogate is flat."""

    def surrogate(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return 0 * pixels


class RootOfZero(Broken):
    """Filters nothing, and divides by zero in its gradient at black pixels."""

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels.sqrt().square()


class Random(Broken):
    """Adds much noise, declared."""

    def draw(self, pixels: Tensor, generator: SampleGenerator) -> Tensor:
        return generator.normal(pixels.shape[1:], pixels)

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels if noise is None else (pixels + 0.3 * noise).clamp(0, 1)


class HiddenRandom(Broken):
    """Adds noise that it does not declare."""

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return (pixels + 0.3 * torch.rand_like(pixels)).clamp(0, 1)


class BatchMean(Broken):
    """Subtracts half of the batch's mean image."""

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return (pixels - 0.5 * pixels.mean(0, keepdim=True)).clamp(0, 1)


class Neighbour(Broken):
    """Mixes each image with the next."""

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return 0.8 * pixels + 0.2 * pixels.roll(1, 0)


class Reversed(Surrogate):
    """Its surrogate leads away from every adversarial image."""

    def surrogate(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return -pixels


class OnTheGrid(Surrogate):
    """Its surrogate is right at the values of 8 bits that clean images have, and reversed off them."""

    def surrogate(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        levels = 255 * pixels.detach()
        clean = ((levels - levels.round()).abs() < 1e-3).flatten(1).all(1)
        return torch.where(clean.view(-1, 1, 1, 1), pixels, -pixels)


class Memory(Broken):
    """Gives back, without a gradient, the nearest of the images it knows if that is further than ``reach`` in linf."""

    def __init__(self, known: Tensor, reach: float) -> None:
        super().__init__()
        self.known, self.reach = known, reach

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        distances = (pixels.detach().unsqueeze(1) - self.known).abs().flatten(2).amax(2)
        distance, nearest = distances.min(1)
        near = (distance <= self.reach + 1e-6).view(-1, 1, 1, 1)
        return torch.where(near, pixels, self.known[nearest])


class OtherImage(Broken):
    """Filters only in ``purify_and_score``, which a guard without rejection never calls."""

    def purify_and_score(self, pixels: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return 0.5 * pixels + 0.25, self.score(pixels)


class OtherScore(Broken):
    """Scores the same image in two ways."""

    def score(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1).mean(1)

    def purify_and_score(self, pixels: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return pixels, 2 * self.score(pixels)


class OtherWithGradients(Broken):
    """Filters when nobody differentiates it."""

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels if pixels.requires_grad else 0.5 * pixels + 0.25


class OtherSurrogate(Surrogate):
    """Its surrogate is declared to purify, and does not."""

    surrogate_purifies = True

    def surrogate(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return 0.5 * pixels + 0.25


SEEN: list[Tensor] = []
REACH = 0.11


def recalled(pixels: Tensor, seen: list[Tensor]) -> Tensor:
    """The first image seen within ``REACH`` in linf; each new one is remembered."""
    found = []
    for image in pixels:
        near = (torch.stack(seen) - image.detach()).abs().flatten(1).amax(1) <= REACH if seen else torch.zeros(1)
        if not near.any():
            seen.append(image.detach().clone())
        found.append(seen[int(near.int().argmax())] if near.any() else image)
    return torch.stack(found)


class Remembers(Broken):
    """Gives back the first image it saw near this one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return recalled(pixels, self.seen)


class RemembersInClass(Broken):
    """The same, in a class attribute."""

    seen: ClassVar[dict[str, list[Tensor]]] = {"images": []}

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return recalled(pixels, self.seen["images"])


class RemembersInGlobal(Broken):
    """The same, in a global variable."""

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return recalled(pixels, SEEN)


class Counts(Broken):
    """Answers darker and darker."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        self.calls += 1
        return pixels * 0.99**self.calls


class LastStep(Broken):
    """Diffuses the image in ten steps, of which only the last has a gradient."""

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        smooth = pixels.detach()
        for _ in range(10):
            smooth = 0.5 * F.avg_pool2d(smooth.detach(), 3, 1, 1) + 0.5 * (0.7 * smooth.detach() + 0.3 * pixels)
        return smooth


class StraightThrough(Broken):
    """Rounds, with the gradient of the identity, declared exact."""

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels + ((pixels * 15).round() / 15 - pixels).detach()


class NoSlopeAtBounds(Broken):
    """Clamps, with no gradient for black and white pixels, as ``clamp`` does in torch 2.15."""

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return F.hardtanh(pixels, 0, 1)


class DetachedFactor(Broken):
    """Squares the image, and hides half of the slope."""

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels * pixels.detach()


class Behind(nn.Module):
    """A classifier with a layer before it and one after it."""

    def __init__(self, classifier: nn.Module, before: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.before, self.classifier, self.after = before or nn.Identity(), classifier, after or nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.classifier(self.before(images)))


class Recalls(nn.Module):
    """A layer that remembers images."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        return recalled(images, self.seen)


class StubbornNorm(nn.BatchNorm2d):
    """Always stays in training mode."""

    def train(self, mode: bool = True) -> StubbornNorm:
        return super().train(True)


def normalised(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """A normalisation that changes Fashion-MNIST's images as a whole little: its weights are their mean and spread."""
    nn.init.constant_(norm.weight, 0.353)
    nn.init.constant_(norm.bias, 0.286)
    return norm
