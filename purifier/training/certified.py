"""Recipe ``certified``: trains a purifier with bounds, so that its answers can be certified."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..attacking.steps import random_offset
from ..attacking.threat import Threat
from ..classifiers.pixel_classifier import PixelClassifier
from ..contracts.bounded import Bounded, BoundTrained, TrainingBounds
from ..contracts.purifier import Purifier
from ..data.images import ImageData
from ..errors import ConfigError
from .budgets import check_trainable
from .component_images import component_images
from .inner_attack import as_used, climb
from .optimisation import Optimisation
from .recipe import Batch, Recipe

BALANCE = 0.5
"""Regularisation stops where intervals have grown to less than twice the input's, and where the smaller of the active
and inactive parts of a ReLU is at least half the other (Shi et al. 2021, section 3.3)."""


@dataclass(frozen=True)
class Certified(Recipe):
    """Interval bound propagation (Gowal et al. 2018) with the short warm-up of Shi et al. 2021.

    The loss is ``clean`` times the cross-entropy of the components' scores, plus the rest times that of the worst
    scores that the bounds allow within the purifier's own threat. The classifier only decides which images the
    components become: typical ones of their class, which it answers with the class. So queries are enough.

    Parameters
    ----------
    clean
        Weight of the cross-entropy on the images themselves once the budget is whole, in [0, 1]; 1 before.
    steps
        With 1 or more that cross-entropy is on images attacked by so many steps of PGD on the scores, within what the
        budget has grown to (MTL-IBP, De Palma et al. 2024); 0 for none.
    warmup
        The share of training before the budget grows from 0.
    ramp
        The share of training during which it grows.
    excess
        The budget trained for is this many times the purifier's eps.
    regularisation
        Weight of what keeps intervals narrow and ReLUs balanced while the budget grows; 0 for none.
    answers
        Learn the classifier's own answers instead of the labels.
    """

    suggested: ClassVar[Optimisation] = Optimisation(optimizer="muon", lr=5e-3, schedule="cosine", clip=1.0, ema=0.99)
    needs_classifier: ClassVar[bool] = True

    clean: float = 0.3
    steps: int = 0
    warmup: float = 0.05
    ramp: float = 0.5
    excess: float = 1.0
    regularisation: float = 0.5
    answers: bool = False

    def __post_init__(self) -> None:
        for name in ("clean", "warmup", "ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"certified: {name} must be a share in [0, 1], got {getattr(self, name)}")
        if self.steps < 0:
            raise ConfigError(f"certified: steps must be a number of at least 0, got {self.steps}")
        if not 0 < self.excess < float("inf"):
            raise ConfigError(f"certified: excess must be a number above 0, got {self.excess}")
        if not 0 <= self.regularisation < float("inf"):
            raise ConfigError(f"certified: regularisation must be a number of at least 0, got {self.regularisation}")

    def begin(
        self, purifier: Purifier, data: ImageData, classifier: PixelClassifier | None, device: torch.device
    ) -> None:
        """Choose the images of the components."""
        assert classifier is not None
        trained = _bound_trained(purifier)
        check_trainable(_threat(trained, self.excess * trained.trained_for[1]), "certified")
        trained.images.copy_(component_images(data, classifier, len(trained.images), device, answers=self.answers))

    def step(self, purifier: Purifier, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy on clean or attacked images and on bounds, and the regularisation, weighted."""
        trained, labels = _bound_trained(purifier), self._labels(batch)
        grown = self._grown(batch.done)
        eps = self.excess * grown * trained.trained_for[1]
        points = self._attacked(purifier, batch, labels, eps) if self.steps and eps else batch.pixels
        bounds = trained.training_bounds(batch.pixels, labels, eps, points)
        clean = 1 - (1 - self.clean) * grown
        name = "attacked" if self.steps else "clean"
        terms = {
            name: clean * F.cross_entropy(bounds.scores.float(), labels),
            "bounds": (1 - clean) * F.cross_entropy(-bounds.margins.float(), labels),
        }
        if self.regularisation:
            weight = self.regularisation * (1 - grown)
            terms["tightness"] = weight * _tightness(bounds) if eps else terms[name].new_zeros(())
            terms["balance"] = weight * _balance(bounds)
        return terms

    def watch(self, purifier: Purifier, batches: Iterable[Batch]) -> dict[str, float]:
        """The shares of images whose component is right, and certified within the purifier's threat."""
        if not isinstance(purifier, Bounded):
            return {}
        right, certified, count = 0, 0, 0
        for batch in batches:
            assert batch.classifier is not None
            labels = self._labels(batch)
            with torch.no_grad():
                right += int((batch.classifier(purifier.purify(batch.pixels)).argmax(1) == labels).sum())
                norm, eps = _bound_trained(purifier).trained_for
                reachable = purifier.reachable(batch.pixels, norm, batch.pixels.new_full((len(labels),), eps))
            certified += int((reachable == F.one_hot(labels, reachable.shape[1]).bool()).all(1).sum())
            count += len(labels)
        return {"right_clean": right / count, "certified": certified / count}

    def _attacked(self, purifier: Purifier, batch: Batch, labels: Tensor, eps: float) -> Tensor:
        """Images within ``eps`` that the scores are wrong about, if a few steps find any."""
        trained = _bound_trained(purifier)
        threat = _threat(trained, eps)
        start = batch.pixels + random_offset(batch.pixels, threat, batch.generator)

        def loss(pixels: Tensor) -> Tensor:
            return F.cross_entropy(trained.scores(pixels).float(), labels, reduction="sum")

        with as_used(purifier):
            return climb(loss, start, batch.pixels, threat, self.steps, 2 * eps / self.steps)

    def _labels(self, batch: Batch) -> Tensor:
        if not self.answers:
            return batch.labels
        assert batch.classifier is not None
        with torch.no_grad():
            answers: Tensor = batch.classifier(batch.pixels).argmax(1)
        return answers

    def _grown(self, done: float) -> float:
        """The share of the budget after the share ``done`` of training."""
        if not self.ramp:
            return float(done >= self.warmup)
        return min(1.0, max(0.0, (done - self.warmup) / self.ramp))


def _bound_trained(purifier: Purifier) -> BoundTrained:
    if not isinstance(purifier, BoundTrained):
        raise ConfigError(
            f"the recipe certified needs a purifier with bounds, such as 'certified'; {type(purifier).__name__} has "
            "none"
        )
    return purifier


def _threat(trained: BoundTrained, eps: float) -> Threat:
    return Threat("l2" if trained.trained_for[0] == "l2" else "linf", eps)


def _tightness(bounds: TrainingBounds) -> Tensor:
    """How much wider than the image's interval those inside are (Shi et al. 2021, equation 8)."""
    (_, first), *others = bounds.intervals
    return torch.stack([F.relu(BALANCE - first.mean() / radius.mean()) for _, radius in others]).mean()


def _balance(bounds: TrainingBounds) -> Tensor:
    """How unequal the ReLUs' surely active and surely inactive values are (Shi et al. 2021, equation 9)."""
    return torch.stack([_imbalance(centre, radius) for centre, radius in bounds.intervals[1:]]).mean()


def _imbalance(centre: Tensor, radius: Tensor) -> Tensor:
    active, inactive = (centre * (centre > radius)).sum(), (-centre * (-centre > radius)).sum()
    return F.relu(BALANCE - torch.minimum(active, inactive) / torch.maximum(active, inactive).clamp(min=1e-6))
