"""Recipe ``robust``: adversarial training of a purifier in front of a frozen classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..answering import answer, draw
from ..attacking.steps import random_offset
from ..attacking.threat import Threat
from ..classifiers.pixel_classifier import PixelClassifier
from ..contracts.bounded import ScoresBounded, TrainingBounds
from ..contracts.purifier import Purifier
from ..data.images import ImageData
from ..errors import ConfigError
from .budgets import check_trainable
from .inner_attack import as_used, ascent, climb
from .mixing import Labels, cut_mixed
from .optimisation import Optimisation
from .recipe import Batch, Collapse, Recipe, purified_and_loss_of

WATCHED_STEPS = 10
"""Number of steps of the attack that checks training after each epoch."""
ENOUGH_RIGHT = 32
"""With fewer images right after one step, a collapse cannot be detected."""
COLLAPSE = 0.5
"""Training has collapsed if less than this share of the images right after one step are right after ten."""


@dataclass(frozen=True)
class Robust(Recipe):
    """Adversarial training against an attacker who knows purifier and classifier.

    The attack follows the exact route, with the purifier's noise held fixed. The loss is that of the classifier, whose
    weights do not change (Lin et al. 2024, "AToP", without its random transforms); gradients reach the purifier through
    it.

    Parameters
    ----------
    eps, norm
        The threat to train for: the budget in pixel units, and the norm ``linf`` or ``l2``.
    loss
        ``ce``: cross-entropy on the adversarial images (Madry et al. 2018). ``trades``: cross-entropy on the clean
        images, plus ``beta`` times the KL divergence from their answers to the answers to the adversarial images
        (Zhang et al. 2019, equation 5); the attack maximises the divergence.
    steps
        1: N-FGSM (de Jorge et al. 2022), one step of ``eps`` from uniform noise twice as wide as the threat; the result
        is not projected back, which reduces overfitting to a single step. More: PGD from uniform noise.
    beta
        Weight of the divergence; for ``trades`` only.
    ramp
        The share of training during which eps grows from 0.
    clean
        Weight of the cross-entropy on the clean images; for ``ce`` only.
    bounds
        Weight of the cross-entropy of the worst scores that interval bounds allow within the threat, from 0 to below 1,
        grown with eps; the cross-entropy of the adversarial images, here of the guard's answers and of the scores, has
        the rest (MTL-IBP, De Palma et al. 2024, "Expressive losses for verified robustness via convex combinations").
        For linf, ``loss=ce``, and purifiers whose encoder has bounds (``vae:encoder=bounded``).
    distillation
        The target of the cross-entropy. 1: the classifier's own answer to the clean image (Hinton et al. 2015, at
        temperature 1; for adversarial training Chen et al. 2021, "Robust overfitting may be mitigated by properly
        learned smoothening"). 0: the label. Between: a mix with that share of the answer. With ``loss=ce`` the attack
        always uses the label.
    cutmix
        The share of images that get a rectangle of another, and its label as a share of theirs (Yun et al. 2019,
        "CutMix"; for adversarial training Rebuffi et al. 2021, "Data augmentation can improve robustness"). The other
        is the one before it in the batch. Without ``bounds``.
    reconstruction, kl
        Weights of the purifier's own loss terms: ``kl`` of the term named ``kl``, ``reconstruction`` of all others. The
        terms take the adversarial images as input and the clean ones as target.
    """

    suggested: ClassVar[Optimisation] = Optimisation(
        optimizer="muon", lr=5e-3, schedule="cosine", clip=1.0, ema=0.999, precision="auto"
    )
    needs_classifier: ClassVar[bool] = True

    eps: float = 0.1
    norm: Literal["linf", "l2"] = "linf"
    loss: Literal["ce", "trades"] = "ce"
    steps: int = 1
    beta: float = 6.0
    ramp: float = 0.1
    clean: float = 0.0
    bounds: float = 0.0
    distillation: float = 1.0
    cutmix: float = 0.0
    reconstruction: float = 0.784
    kl: float = 0.1568

    def __post_init__(self) -> None:
        check_trainable(Threat(self.norm, self.eps), "robust")
        if self.steps < 1:
            raise ConfigError(f"robust: steps must be at least 1, got {self.steps}")
        if not 0 <= self.ramp <= 1:
            raise ConfigError(f"robust: ramp must be a share of training in [0, 1], got {self.ramp}")
        if not 0 <= self.distillation <= 1:
            raise ConfigError(f"robust: distillation must be a share in [0, 1], got {self.distillation}")
        if not 0 <= self.cutmix <= 1:
            raise ConfigError(f"robust: cutmix must be a share of the images in [0, 1], got {self.cutmix}")
        if self.cutmix and self.bounds:
            raise ConfigError("robust: bounds hold for one label; leave out cutmix or bounds")
        for name in ("beta", "clean", "reconstruction", "kl"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"robust: {name} must be a number of at least 0, got {getattr(self, name)}")
        if not 0 <= self.bounds < 1:
            raise ConfigError(f"robust: bounds must be a weight of at least 0 and below 1, got {self.bounds}")
        if self.bounds and (self.loss, self.norm) != ("ce", "linf"):
            raise ConfigError("robust: bounds goes with loss=ce and norm=linf only; leave one or the other out")
        if self.clean and self.loss == "trades":
            raise ConfigError("robust: clean is an option of loss=ce; with loss=trades lower beta instead")
        if self.beta != type(self).beta and self.loss == "ce":
            raise ConfigError("robust: beta is an option of loss=trades; add loss=trades, or leave beta out")

    @property
    def needs_gradients(self) -> bool:
        """Always True."""
        return True

    @property
    def needs_exact(self) -> bool:
        """Always True."""
        return True

    def begin(
        self, purifier: Purifier, data: ImageData, classifier: PixelClassifier | None, device: torch.device
    ) -> None:
        """Check that the purifier has the bounds that it is to be trained with, for all labels."""
        if not self.bounds:
            return
        pixels, labels = data.batch([0, 1][: len(data)])
        scores = _bounds_of(purifier, pixels.to(device), labels.clamp(max=0).to(device), 0.0, pixels.to(device)).scores
        if int(data.labels.max()) >= scores.shape[1]:
            raise ConfigError(
                f"robust: bounds: {data.name} has labels from 0 to {int(data.labels.max())}, but "
                f"{type(purifier).__name__} classes={scores.shape[1]}; set as many classes as there are"
            )

    def step(self, purifier: Purifier, batch: Batch) -> dict[str, Tensor]:
        """Classification loss through the classifier, and the purifier's own terms, weighted."""
        assert batch.classifier is not None
        pixels, labels = cut_mixed(batch.pixels, batch.labels, batch.generator, self.cutmix)
        threat = Threat(self.norm, self.eps * min(1.0, batch.done / self.ramp) if self.ramp else self.eps)
        start = random_offset(pixels, threat, batch.generator)
        noise = draw(purifier, pixels, batch.generator)
        logits_of = _logits_function(batch.classifier, purifier, noise)
        target = self._target(batch.classifier, pixels, labels)
        terms: dict[str, Tensor] = {}
        if self.loss == "trades":
            clean = logits_of(pixels)
            clean_answer = clean.detach().softmax(1)
            terms["clean"] = F.cross_entropy(clean, target)
            adversarial = self._attack(
                lambda images: _divergence(logits_of(images), clean_answer), start, pixels, threat
            )
        else:
            # Published figures of other networks with batch normalisation are from attacks in training mode.
            with as_used(purifier) if self.bounds else nullcontext():
                adversarial = self._attack(
                    lambda images: _cross_entropy(logits_of(images), labels), start, pixels, threat
                )
            if self.clean:
                terms["clean"] = self.clean * F.cross_entropy(logits_of(pixels), target)
        purified, own = purified_and_loss_of(purifier, adversarial, pixels, noise, labels.larger)
        logits = batch.classifier(purified).float()
        if self.loss == "trades":
            terms["divergence"] = self.beta * _divergence(logits, clean.softmax(1)) / len(pixels)
        else:
            terms["adversarial"] = F.cross_entropy(logits, target)
        if self.bounds:
            share = self.bounds * threat.eps / self.eps
            found = _bounds_of(purifier, pixels, labels.own, threat.eps, adversarial)
            terms["adversarial"] = (1 - share) * terms["adversarial"]
            terms["scores"] = (1 - share) * F.cross_entropy(found.scores, target)
            terms["bounds"] = share * F.cross_entropy(-found.margins, labels.own)
        for name, value in own.items():
            terms[name] = terms.get(name, 0) + value * (self.kl if name == "kl" else self.reconstruction)
        return terms

    def watch(self, purifier: Purifier, batches: Iterable[Batch]) -> dict[str, float]:
        """The shares of images right when clean, after one step of an attack, and after ten.

        Raises
        ------
        Collapse
            Ten steps fool most images that are right after one: catastrophic overfitting (Wong et al. 2020, section
            5.4).
        """
        threat, right, count, done = Threat(self.norm, self.eps), [0, 0, 0], 0, 0.0
        for batch in batches:
            assert batch.classifier is not None
            pixels, labels = batch.pixels, batch.labels
            logits_of = _logits_function(batch.classifier, purifier, draw(purifier, pixels, batch.generator))
            loss = partial(_loss_of, logits_of, labels)
            start = pixels + random_offset(pixels, threat, batch.generator)
            one = climb(loss, pixels, pixels, threat, 1, self.eps)
            ten = climb(loss, start, pixels, threat, WATCHED_STEPS, self.eps / 4)
            with torch.no_grad():
                found = [int((logits_of(images).argmax(1) == labels).sum()) for images in (pixels, one, ten)]
            right = [total + more for total, more in zip(right, found, strict=True)]
            count, done = count + len(pixels), batch.done
        if right[2] < COLLAPSE * right[1] and right[1] >= ENOUGH_RIGHT and done >= self.ramp:
            raise Collapse(
                f"catastrophic overfitting: {right[1]} of {count} images are right after one step of an attack, but "
                f"only {right[2]} after {WATCHED_STEPS}; raise robust:steps, or lower lr"
            )
        names = ("right_clean", "right_after_1", f"right_after_{WATCHED_STEPS}")
        return {name: total / count for name, total in zip(names, right, strict=True)}

    def _target(self, classifier: PixelClassifier, pixels: Tensor, labels: Labels) -> Tensor:
        """The target of the guard's answers: labels (N,), or probabilities (N, classes)."""
        if not self.distillation and labels.kept is None:
            return labels.own
        with torch.no_grad():
            own = classifier(pixels).float().softmax(1)
        return torch.lerp(labels.shares(own.shape[1]), own, self.distillation)

    def _attack(self, loss: Callable[[Tensor], Tensor], start: Tensor, pixels: Tensor, threat: Threat) -> Tensor:
        """Adversarial images in [0, 1] with a large loss; ``start`` is noise within the threat."""
        if self.steps > 1:
            return climb(loss, pixels + start, pixels, threat, self.steps, 2 * threat.eps / self.steps)
        noisy = (pixels + 2 * start).clamp(0, 1)
        return (noisy + threat.eps * ascent(loss, noisy, threat)).clamp(0, 1)


def _bounds_of(purifier: Purifier, pixels: Tensor, labels: Tensor, eps: float, points: Tensor) -> TrainingBounds:
    if not isinstance(purifier, ScoresBounded):
        raise ConfigError(
            f"robust: bounds needs a purifier that has some, such as vae with encoder=bounded; "
            f"{type(purifier).__name__} has none"
        )
    return purifier.training_bounds(pixels, labels, eps, points)


def _logits_function(
    classifier: PixelClassifier, purifier: Purifier, noise: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """A function from pixels to the guard's logits, with the purifier's noise held fixed."""
    return lambda pixels: answer(purifier, classifier, pixels, noise).output.float()


def _cross_entropy(logits: Tensor, labels: Labels) -> Tensor:
    return F.cross_entropy(logits, labels.target(logits.shape[1]), reduction="sum")


def _loss_of(logits_of: Callable[[Tensor], Tensor], labels: Tensor, pixels: Tensor) -> Tensor:
    return F.cross_entropy(logits_of(pixels), labels, reduction="sum")


def _divergence(logits: Tensor, target: Tensor) -> Tensor:
    """KL(target || softmax(logits)), summed over the batch."""
    return F.kl_div(logits.log_softmax(1), target, reduction="sum")
