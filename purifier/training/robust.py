"""Recipe ``robust``: adversarial training of a purifier in front of a frozen classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..classifier import PixelClassifier
from ..errors import ConfigError, TrainingError
from ..interfaces import Purifier
from ..threat import Threat, norm_of, scale_like
from .adversary import ascent, climb
from .optimisation import Optimisation
from .recipe import Batch, Recipe

WATCHED_STEPS = 10
"""Of the attack that watches over training."""
ENOUGH = 32
"""Fewer images say nothing of a collapse."""
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
        The threat trained for, ``linf`` or ``l2``.
    loss
        ``ce``: cross-entropy on the adversarial images (Madry et al. 2018). ``trades``: cross-entropy on the clean
        ones and ``beta`` times the KL divergence from their answers to those of the adversarial (Zhang et al. 2019,
        equation 5), which the attack maximises.
    steps
        1: N-FGSM (de Jorge et al. 2022), one step of ``eps`` from uniform noise twice as wide as the threat, which is
        not projected back and so does not overfit to one step. More: PGD from a random start.
    beta
        Weight of TRADES' divergence.
    ramp
        The share of training over which eps grows from 0.
    clean
        Weight of the cross-entropy on the clean images, ``ce`` only.
    reconstruction, kl
        Weights of the purifier's own loss terms: those named ``kl``, and all others. They are taken on the adversarial
        images with the clean ones as target.
    """

    suggested: ClassVar[Optimisation] = Optimisation(
        lr=2e-3, schedule="cosine", clip=1.0, ema=0.999, precision="bfloat16"
    )
    needs_classifier: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = True

    eps: float = 0.1
    norm: Literal["linf", "l2"] = "linf"
    loss: Literal["ce", "trades"] = "ce"
    steps: int = 1
    beta: float = 6.0
    ramp: float = 0.1
    clean: float = 0.0
    reconstruction: float = 2.5e-5
    kl: float = 2e-3

    def __post_init__(self) -> None:
        Threat(self.norm, self.eps)
        if self.steps < 1:
            raise ConfigError(f"robust: steps must be at least 1, got {self.steps}")
        if not 0 <= self.ramp <= 1:
            raise ConfigError(f"robust: ramp is a share of training in [0, 1], got {self.ramp}")
        for name in ("beta", "clean", "reconstruction", "kl"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"robust: {name} must be a number of at least 0, got {getattr(self, name)}")

    def step(self, purifier: Purifier, batch: Batch) -> dict[str, Tensor]:
        """Classification loss through the classifier, and the purifier's own terms, weighted."""
        assert batch.classifier is not None
        pixels, labels = batch.pixels, batch.labels
        threat = Threat(self.norm, self.eps * min(1.0, batch.done / self.ramp) if self.ramp else self.eps)
        start = _within(batch.generator.uniform(pixels.shape[1:], pixels) * 2 - 1, threat)
        noise = purifier.draw(pixels, batch.generator)
        answer = _answering(batch.classifier, purifier, noise)
        terms: dict[str, Tensor] = {}
        if self.loss == "trades":
            clean = answer(pixels)
            aim = clean.detach().softmax(1)
            terms["clean"] = F.cross_entropy(clean, labels)
            adversarial = self._adversary(lambda images: _divergence(answer(images), aim), start, pixels, threat)
        else:
            adversarial = self._adversary(lambda images: _errors(answer(images), labels), start, pixels, threat)
            if self.clean:
                terms["clean"] = self.clean * F.cross_entropy(answer(pixels), labels)
        purified, own = purifier.purify_and_loss(adversarial, pixels, noise, labels)
        logits = batch.classifier(purified).float()
        if self.loss == "trades":
            terms["divergence"] = self.beta * _divergence(logits, clean.softmax(1)) / len(pixels)
        else:
            terms["adversarial"] = F.cross_entropy(logits, labels)
        weights = {name: self.kl if name == "kl" else self.reconstruction for name in own}
        return terms | {name: weights[name] * value for name, value in own.items()}

    def watch(self, purifier: Purifier, batch: Batch) -> dict[str, float]:
        """Shares of the images right: clean, after one step, after ten.

        Raises
        ------
        TrainingError
            Most images right after one step fall to ten: catastrophic overfitting (Wong et al. 2020, section 5.4).
        """
        assert batch.classifier is not None
        pixels, labels, threat = batch.pixels, batch.labels, Threat(self.norm, self.eps)
        answer = _answering(batch.classifier, purifier, purifier.draw(pixels, batch.generator))

        def loss(images: Tensor) -> Tensor:
            return _errors(answer(images), labels)

        start = _within(batch.generator.uniform(pixels.shape[1:], pixels) * 2 - 1, threat)
        one = climb(loss, pixels, pixels, threat, 1, self.eps)
        ten = climb(loss, pixels + start, pixels, threat, WATCHED_STEPS, self.eps / 4)
        with torch.no_grad():
            clean, after_one, after_ten = (_share_right(answer(images), labels) for images in (pixels, one, ten))
        if after_ten < COLLAPSE * after_one and len(pixels) >= ENOUGH and batch.done >= self.ramp:
            raise TrainingError(
                f"catastrophic overfitting: {after_one:.0%} of the images are right after one step of an attack, but "
                f"{after_ten:.0%} after {WATCHED_STEPS}; raise robust:steps, or lower lr"
            )
        return {"right_clean": clean, "right_after_1": after_one, f"right_after_{WATCHED_STEPS}": after_ten}

    def _adversary(self, loss: Callable[[Tensor], Tensor], start: Tensor, pixels: Tensor, threat: Threat) -> Tensor:
        """Images in [0, 1] with a large loss; ``start`` is noise within the threat."""
        if self.steps > 1:
            return climb(loss, pixels + start, pixels, threat, self.steps, 2 * threat.eps / self.steps)
        noisy = pixels + 2 * start
        return (noisy + threat.eps * ascent(loss, noisy, threat)).clamp(0, 1)


def _answering(classifier: PixelClassifier, purifier: Purifier, noise: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The guard's logits, with the purifier's noise held."""
    return lambda pixels: classifier(purifier.purify(pixels, noise)).float()


def _within(cube: Tensor, threat: Threat) -> Tensor:
    """Uniform numbers in [-1, 1], (N, ...) -> noise within a threat around nothing."""
    if threat.norm == "linf":
        return threat.eps * cube
    return cube * scale_like(threat.eps / norm_of(cube, "l2").clamp_min(1e-12), cube)


def _errors(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="sum")


def _divergence(logits: Tensor, aim: Tensor) -> Tensor:
    """KL(aim || softmax(logits)), summed over the batch."""
    return F.kl_div(logits.log_softmax(1), aim, reduction="sum")


def _share_right(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).float().mean())
