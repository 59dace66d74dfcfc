"""The conformance check of attacks."""

from __future__ import annotations

import dataclasses
import itertools
from typing import get_args

import torch
from torch import Tensor, nn

from ..attacking.attack import Attack
from ..attacking.target import Target
from ..attacking.threat import Threat
from ..classifiers.pixel_classifier import TorchPixelClassifier
from ..contracts.purifier import Purifier
from ..data.pixels import Preprocessing
from ..foreign_code import explained
from ..rejection.policy import Rejection
from ..seeding import SampleGenerator
from ..vocabulary import Needs, Norm, Route
from .rules import check, close, images

ROUTES: dict[Needs, tuple[Route, ...]] = {
    "gradient": ("exact", "bpda", "oblivious"),
    "latent": ("exact",),
    "scores": ("none", "oblivious"),
    "labels": ("none", "oblivious"),
}
"""The routes that an attack can follow, the strongest first."""
COUNT = 24
"""Images to check on."""


def check_attack(attack: Attack, *, norm: Norm = "linf", eps: float = 0.1) -> None:
    """Check an attack on a linear classifier: inputs unchanged, eps 0 the identity, seeds, batches, some success.

    On every route that the attack can follow it must also accept images that are misclassified from the start, and
    never ask its target with 0 images.
    """
    check(attack.needs in get_args(Needs), "needs must be declared", getattr(attack, "needs", None))
    check(norm in attack.norms, f"norms must contain {norm!r}", attack.norms)
    classifier = TorchPixelClassifier(_linear(48, 4), Preprocessing())
    pixels = images(COUNT, (3, 4, 4))
    labels, everything = classifier(pixels).argmax(1), slice(0, COUNT)
    trial = _Trial(attack, classifier, pixels, labels)
    before, threat = (pixels.clone(), labels.clone()), Threat(norm, eps)
    found = trial.run(threat, everything)
    same = torch.equal(pixels, before[0]) and torch.equal(labels, before[1])
    check(same, "inputs must not change", "a change")
    check(close(trial.run(Threat(norm, 0.0), everything), pixels), "eps 0 must be the identity", "a change")
    check(torch.equal(found, trial.run(threat, everything)), "one seed must give one result", "a different result")
    halves = torch.cat([trial.run(threat, slice(0, 7)), trial.run(threat, slice(7, COUNT))])
    check(
        close(found, halves),
        "an image's result must not depend on its batch",
        "a different result in smaller batches",
    )
    weak = threat.distance(found, pixels).max().item()
    check(weak > 0, "the attack must change something on a linear classifier", "no change")
    huge = Threat(norm, 1.0 if norm == "linf" else 10.0)
    fooled = (classifier(trial.run(huge, everything)).argmax(1) != labels).float().mean().item()
    check(fooled > 0.5, "with a huge budget most images of a linear classifier must be fooled", f"{fooled:.0%}")
    _check_few_images(trial, threat, huge)


def _check_few_images(trial: _Trial, threat: Threat, huge: Threat) -> None:
    rows = slice(0, 5)
    wrong = (trial.labels + 1) % 4
    one_left = torch.where(torch.arange(COUNT) == 2, trial.labels, wrong)
    cases = (wrong, "images that are misclassified from the start"), (one_left, "one image left to work on")
    for route, (labels, what), budget in itertools.product(ROUTES[trial.attack.needs], cases, (threat, huge)):
        dataclasses.replace(trial, labels=labels).run(budget, rows, route=route, what=what)


@dataclasses.dataclass(frozen=True)
class _Trial:
    attack: Attack
    classifier: TorchPixelClassifier
    pixels: Tensor
    labels: Tensor

    def run(
        self, threat: Threat, rows: slice, *, route: Route | None = None, what: str = "images classified correctly"
    ) -> Tensor:
        """The attack's images for some of the images, projected."""
        indices = range(COUNT)[rows]
        route = ROUTES[self.attack.needs][0] if route is None else route
        streams = SampleGenerator(1, indices)
        # No score reaches this threshold, but an attack may want to evade one.
        target = Target(self.classifier, _Unchanged(_NoConfig()), route, streams, rejection=Rejection(threshold=1e9))
        pixels, generator = self.pixels[rows], SampleGenerator(0, indices)
        with explained(
            f"perturb must accept {what}, here at {threat} on the route {route}",
            AssertionError,
            passing=lambda _: False,
        ):
            found = self.attack.perturb(target, pixels, self.labels[rows], threat, generator)
        check(found.shape == pixels.shape, "perturb must keep the shape", found.shape)
        check(bool(found.isfinite().all()), "perturb must give finite pixels", "NaN or infinity")
        return threat.project(found.detach(), pixels)


@dataclasses.dataclass(frozen=True)
class _NoConfig:
    """No options."""


class _Unchanged(Purifier):
    Config = _NoConfig
    gradient = "exact"

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels

    def latent_of(self, pixels: Tensor) -> Tensor:
        return pixels

    def decoded(self, latent: Tensor) -> Tensor:
        return latent.clamp(0, 1)

    def score(self, pixels: Tensor) -> Tensor:
        # The inherited score would be 0 here and give attacks on a detector no gradient.
        return pixels.square().flatten(1).mean(1)


def _linear(features: int, classes: int) -> nn.Module:
    """A linear classifier that assigns images around mid-grey to all of its classes."""
    linear = nn.Linear(features, classes)
    with torch.no_grad():
        linear.weight.copy_(images(classes, (features,), seed=2) - 0.5)
        linear.bias.copy_(-0.5 * linear.weight.sum(1))
    return nn.Sequential(_Rows(), linear).eval()


class _Rows(nn.Module):
    """Flattens images in a way that fails on none, as many classifiers do."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.view(pixels.size(0), -1)
