"""Recipe ``robust``: adversarial training of a purifier in front of a frozen classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..answering import answer
from ..attacking.steps import random_offset
from ..attacking.threat import Threat
from ..classifiers.pixel_classifier import PixelClassifier
from ..contracts.purifier import Purifier
from ..errors import ConfigError, TrainingError
from .inner_attack import ascent, climb
from .optimisation import Optimisation
from .recipe import Batch, Recipe, purified_and_loss_of

WATCHED_STEPS = 10
"""Of the attack that watches over training."""
ENOUGH_RIGHT = 32
"""Fewer images right after one step say nothing of a collapse."""
COLLAPSE = 0.5
"""Training has collapsed when less than this share of the images right under one step are right under ten."""


@dataclass(frozen=True)
class Robust(Recipe):
    """Learns to purify what an attacker makes who knows purifier and classifier.

    The images are made along the exact route, with the purifier's noise held, and judged by the classifier, whose
    weights stay as they are (Lin et al. 2024, "AToP", without its random transforms). Gradients reach the purifier
    through the classifier.

    Parameters
    ----------
    eps, norm
        The threat trained for: its budget in pixel units, and ``linf`` or ``l2``.
    loss
        ``ce``: cross-entropy on the adversarial images (Madry et al. 2018). ``trades``: cross-entropy on the clean
        ones and ``beta`` times the KL divergence from their answers to those of the adversarial (Zhang et al. 2019,
        equation 5), which the attack maximises.
    steps
        1: N-FGSM (de Jorge et al. 2022), one step of ``eps`` from uniform noise twice as wide as the threat, which is
        not projected back and so overfits less to one step. More: PGD from uniform noise.
    beta
        Weight of the divergence, ``trades`` only.
    ramp
        The share of training over which eps grows from 0.
    clean
        Weight of the cross-entropy on the clean images, ``ce`` only.
    distillation
        What cross-entropy is taken from: 1: the classifier's own answer to the clean image (Hinton et al. 2015, at
        temperature 1; of adversarial training Chen et al. 2021, "Robust overfitting may be mitigated by properly
        learned smoothening"); 0: the label; between: both, in that share. With ``loss=ce`` attacks go
        against labels all the same.
    reconstruction, kl
        Weights of the purifier's own loss terms: those named ``kl``, and all others. They are taken on the adversarial
        images with the clean ones as target.
    """

    suggested: ClassVar[Optimisation] = Optimisation(
        optimizer="muon", lr=5e-3, schedule="cosine", clip=1.0, ema=0.999, precision="auto"
    )
    needs_classifier: ClassVar[bool] = True
    needs_exact: ClassVar[bool] = True

    eps: float = 0.1
    norm: Literal["linf", "l2"] = "linf"
    loss: Literal["ce", "trades"] = "ce"
    steps: int = 1
    beta: float = 6.0
    ramp: float = 0.1
    clean: float = 0.0
    distillation: float = 1.0
    reconstruction: float = 1e-3
    kl: float = 2e-4

    def __post_init__(self) -> None:
        Threat(self.norm, self.eps)
        if self.steps < 1:
            raise ConfigError(f"robust: steps must be at least 1, got {self.steps}")
        if not 0 <= self.ramp <= 1:
            raise ConfigError(f"robust: ramp is a share of training in [0, 1], got {self.ramp}")
        if not 0 <= self.distillation <= 1:
            raise ConfigError(f"robust: distillation is a share in [0, 1], got {self.distillation}")
        for name in ("beta", "clean", "reconstruction", "kl"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"robust: {name} must be a number of at least 0, got {getattr(self, name)}")
        if self.clean and self.loss == "trades":
            raise ConfigError("robust: clean weighs the clean images of loss=ce; with trades lower beta instead")
        if self.beta != type(self).beta and self.loss == "ce":
            raise ConfigError("robust: beta weighs the divergence of loss=trades; add loss=trades, or leave beta out")

    @property
    def needs_gradients(self) -> bool:
        """Always."""
        return True

    def step(self, purifier: Purifier, batch: Batch) -> dict[str, Tensor]:
        """Classification loss through the classifier, and the purifier's own terms, weighted."""
        assert batch.classifier is not None
        pixels, labels = batch.pixels, batch.labels
        threat = Threat(self.norm, self.eps * min(1.0, batch.done / self.ramp) if self.ramp else self.eps)
        start = random_offset(pixels, threat, batch.generator)
        noise = purifier.draw(pixels, batch.generator)
        answer = _answering(batch.classifier, purifier, noise)
        target = self._target(batch.classifier, pixels, labels)
        terms: dict[str, Tensor] = {}
        if self.loss == "trades":
            clean = answer(pixels)
            aim = clean.detach().softmax(1)
            terms["clean"] = F.cross_entropy(clean, target)
            adversarial = self._adversary(lambda images: _divergence(answer(images), aim), start, pixels, threat)
        else:
            adversarial = self._adversary(lambda images: _errors(answer(images), labels), start, pixels, threat)
            if self.clean:
                terms["clean"] = self.clean * F.cross_entropy(answer(pixels), target)
        purified, own = purified_and_loss_of(purifier, adversarial, pixels, noise, labels)
        logits = batch.classifier(purified).float()
        if self.loss == "trades":
            terms["divergence"] = self.beta * _divergence(logits, clean.softmax(1)) / len(pixels)
        else:
            terms["adversarial"] = F.cross_entropy(logits, target)
        for name, value in own.items():
            terms[name] = terms.get(name, 0) + value * (self.kl if name == "kl" else self.reconstruction)
        return terms

    def watch(self, purifier: Purifier, batches: Iterable[Batch]) -> dict[str, float]:
        """Shares of the images right: clean, after one step, after ten.

        Raises
        ------
        TrainingError
            Most images right after one step fall to ten: catastrophic overfitting (Wong et al. 2020, section 5.4).
        """
        threat, right, count, done = Threat(self.norm, self.eps), [0, 0, 0], 0, 0.0
        for batch in batches:
            assert batch.classifier is not None
            pixels, labels = batch.pixels, batch.labels
            answer = _answering(batch.classifier, purifier, purifier.draw(pixels, batch.generator))
            loss = partial(_loss_of, answer, labels)
            start = pixels + random_offset(pixels, threat, batch.generator)
            one = climb(loss, pixels, pixels, threat, 1, self.eps)
            ten = climb(loss, start, pixels, threat, WATCHED_STEPS, self.eps / 4)
            with torch.no_grad():
                found = [int((answer(images).argmax(1) == labels).sum()) for images in (pixels, one, ten)]
            right = [total + more for total, more in zip(right, found, strict=True)]
            count, done = count + len(pixels), batch.done
        if right[2] < COLLAPSE * right[1] and right[1] >= ENOUGH_RIGHT and done >= self.ramp:
            raise TrainingError(
                f"catastrophic overfitting: {right[1]} of {count} images are right after one step of an attack, but "
                f"{right[2]} after {WATCHED_STEPS}; raise robust:steps, or lower lr"
            )
        names = ("right_clean", "right_after_1", f"right_after_{WATCHED_STEPS}")
        return {name: total / count for name, total in zip(names, right, strict=True)}

    def _target(self, classifier: PixelClassifier, pixels: Tensor, labels: Tensor) -> Tensor:
        """What the guard is to answer: labels (N,), or probabilities (N, classes)."""
        if not self.distillation:
            return labels
        with torch.no_grad():
            own = classifier(pixels).float().softmax(1)
        return torch.lerp(F.one_hot(labels, own.shape[1]).float(), own, self.distillation)

    def _adversary(self, loss: Callable[[Tensor], Tensor], start: Tensor, pixels: Tensor, threat: Threat) -> Tensor:
        """Images in [0, 1] with a large loss; ``start`` is noise within the threat."""
        if self.steps > 1:
            return climb(loss, pixels + start, pixels, threat, self.steps, 2 * threat.eps / self.steps)
        noisy = (pixels + 2 * start).clamp(0, 1)
        return (noisy + threat.eps * ascent(loss, noisy, threat)).clamp(0, 1)


def _answering(classifier: PixelClassifier, purifier: Purifier, noise: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The guard's logits, with the purifier's noise held."""
    return lambda pixels: answer(purifier, classifier, pixels, noise).output.float()


def _errors(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="sum")


def _loss_of(answer: Callable[[Tensor], Tensor], labels: Tensor, pixels: Tensor) -> Tensor:
    return _errors(answer(pixels), labels)


def _divergence(logits: Tensor, aim: Tensor) -> Tensor:
    """KL(aim || softmax(logits)), summed over the batch."""
    return F.kl_div(logits.log_softmax(1), aim, reduction="sum")
