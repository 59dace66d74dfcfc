"""Transfer: images crafted white-box on a surrogate (Papernot et al. 2016) and tried on the target."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from onnx import ModelProto
from torch import Tensor, nn

from purifier.attacking.attack import Attack
from purifier.attacking.specs import read_attack
from purifier.attacking.target import Target
from purifier.attacking.threat import Threat
from purifier.classifiers.loading import read_classifier
from purifier.classifiers.logits import are_probabilities
from purifier.classifiers.pixel_classifier import PixelClassifier, pixel_classifier
from purifier.data.pixels import Preprocessing
from purifier.errors import ConfigError
from purifier.foreign_code import explained
from purifier.seeding import SampleGenerator

from ._losses import cross_entropy
from ._queries import all_positions, fooled, votes_for
from ._scale import ScaleOption

TRIAL_IMAGES = 64
"""How many images to test a surrogate on."""


@dataclass(frozen=True)
class Transfer(ScaleOption, Attack):
    """Crafts images on a surrogate without a purifier, and asks the target which of them fool it.

    The crafting attacks use all their steps, since an image just beyond the surrogate's decision boundary transfers
    badly. The result is the first image that fools the target, or else the one with the highest cross-entropy on the
    surrogate; an image that is misclassified from the start is returned unchanged. With a random target the majority of
    several queries decides. On the route ``oblivious`` the target is not the judge, so of all images that fool it, the
    result is the one with the highest cross-entropy.

    Parameters
    ----------
    surrogate
        A MODEL spec: a classifier with gradients and with the same images and classes as the attacked one, and, unless
        it is of a library (``timm:NAME``), the same preprocessing. By default the attacked classifier itself, without
        its purifier.
    weights
        A state dict for a ``package.module:factory``, ``torchvision:NAME``, ``timm:NAME`` or ``hf:FOLDER``.
    attacks
        The crafting attacks: specs joined by ``+``. The norms are those that all of them support.
    """

    needs: ClassVar[Literal["labels"]] = "labels"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")

    surrogate: str | None = None
    weights: str | None = None
    attacks: str = "fgsm+mim+pgd"

    def __post_init__(self) -> None:
        if self.weights is not None and self.surrogate is None:
            raise ConfigError("attack 'transfer': weights needs a surrogate; give surrogate=package.module:factory")
        for one in self._crafting:
            if one.needs != "gradient":
                raise ConfigError(
                    f"attack 'transfer': attacks must be gradient attacks joined by +, got {self.attacks!r}, one of "
                    f"which needs {one.needs}"
                )
        common = [norm for norm in type(self).norms if all(norm in one.norms for one in self._crafting)]
        object.__setattr__(self, "norms", tuple(common))

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        if threat.norm not in self.norms:
            raise ConfigError(
                f"attack 'transfer': its attacks {self.attacks!r} all support {', '.join(self.norms) or 'no norm'}, "
                f"not {threat.norm}; choose others"
            )
        votes, stops = votes_for(target, pixels), target.route != "oblivious"
        surrogate = self._classifier(target, pixels)
        crafting = self.seen(Target(surrogate, target.purifier, "oblivious", target.generator))
        if self.surrogate is None:
            crafting.spent = target.spent
        found, at = pixels.clone(), all_positions(labels)
        value, hits = pixels.new_full((len(labels),), -torch.inf), torch.zeros_like(labels, dtype=torch.bool)
        if stops:
            at = at[~fooled(target, at, pixels, labels, votes=votes)]
        for one in self._crafting:
            if not len(at):
                break
            chosen = crafting.select(at)
            crafted = one.perturb(chosen, pixels[at], labels[at], threat, generator.select(at))
            crafted = threat.project(crafted.detach(), pixels[at])
            hit = fooled(target, at, crafted, labels[at], votes=votes)
            with torch.no_grad():
                worth = cross_entropy(chosen.normalised(surrogate(crafted)), labels[at])
            better = (hit & ~hits[at]) | ((hit == hits[at]) & (worth > value[at]))
            found[at[better]], value[at[better]] = crafted[better], worth[better]
            hits[at[hit]] = True
            if stops:
                at = at[~hit]
        return found

    @cached_property
    def _crafting(self) -> list[Attack]:
        return [read_attack(spec.strip()).attack for spec in self.attacks.split("+")]

    @cached_property
    def _model(self) -> tuple[nn.Module, Preprocessing | None]:
        assert self.surrogate is not None
        model, own = read_classifier(self.surrogate, weights=self.weights)
        if isinstance(model, ModelProto):
            raise ConfigError(
                f"attack 'transfer': the surrogate must have gradients, but {self.surrogate!r} is an ONNX model, which "
                "has none; give a torch module (package.module:factory with weights=FILE)"
            )
        return model, own

    def _classifier(self, target: Target, pixels: Tensor) -> PixelClassifier:
        """The surrogate in pixel space, on the device of ``pixels`` (N, C, H, W), after a test on some of them."""
        if self.surrogate is None:
            surrogate = target.classifier
        else:
            model, own = self._model
            surrogate = pixel_classifier(model.to(pixels.device), own or target.classifier.preprocessing)
        if not surrogate.differentiable:
            raise ConfigError(
                f"attack 'transfer': the surrogate must have gradients, but {surrogate.describe()} has none; give "
                "surrogate=package.module:factory of a torch module that takes floats"
            )
        if self.surrogate is None:
            return surrogate
        size = "x".join(map(str, pixels.shape[1:]))
        failure = f"attack 'transfer': the surrogate {self.surrogate!r} fails on the audited images, {size}"
        with explained(failure, ConfigError, "give one for these images", passing=lambda _: False), torch.no_grad():
            logits = surrogate(pixels[:TRIAL_IMAGES])
        with torch.no_grad():
            expected = target.classifier(pixels[:1]).shape[1]
        if logits.shape[1] != expected:
            raise ConfigError(
                f"attack 'transfer': the surrogate must have the classifier's {expected} classes, got "
                f"{logits.shape[1]} from {self.surrogate!r}; give one trained on the same classes"
            )
        # A logit of -inf is a class that is never chosen.
        broken = bool(logits.isnan().any()) or not logits.amax(1).isfinite().all()
        if broken or are_probabilities(logits):
            given = "NaN or infinity" if broken else "probabilities"
            raise ConfigError(
                f"attack 'transfer': the surrogate must return logits, got {given} from {self.surrogate!r}; fix it, or "
                "give another"
            )
        return surrogate
