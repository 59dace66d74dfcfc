"""Recipe ``denoise``: learns to turn adversarial images of the classifier back into the clean ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ..answering import draw
from ..attacking.attack import Attack
from ..attacking.specs import read_attack
from ..attacking.target import Target
from ..attacking.threat import Threat
from ..contracts.purifier import Purifier
from ..errors import ConfigError, TrainingError
from ..foreign_code import explained
from ..seeding import SampleGenerator
from ..specs import build, split_spec
from .budgets import check_trainable
from .failures import explains_itself
from .recipe import Batch, Recipe, loss_of, purified_and_loss_of

COPIES = 2
"""Noisy copies of an image in a step that compares the answers to them."""
ENTROPY = 0.5
"""Weight of the entropy of their mean."""
OF_ATTACKS = ("attacks", "eps", "norm", "cached")
"""The options that say which attacks."""


@dataclass(frozen=True)
class Denoise(Recipe):
    """The purifier's own loss with adversarial images as input and clean images as target (Li & Ji 2018, Defense-VAE).

    The attacks see the classifier alone, so the purifier does not learn to resist an attacker who knows it. Each image
    gets one attack and one of its budgets at a time, both drawn uniformly.

    Parameters
    ----------
    attacks
        ATTACK specs joined by ``+``, with ``;`` between the options of an attack: ``fgsm+pgd:steps=10;restarts=2``.
        Attacks that need no gradients (``square``, ``transfer`` from a surrogate) work with any classifier. An attack
        for another norm needs its own budget: ``fgsm+cw:norm=l2;eps=1.5``.
    eps
        The budgets in pixel units; include 0 for clean images.
    norm
        The norm in which eps is measured.
    noise
        Standard deviation of the normal noise, in pixel units, that takes the place of attacks; images are clamped to
        [0, 1] again. For certificates by randomised smoothing with that sigma (Salman et al. 2020, "Denoised
        smoothing").
    stability
        With ``noise``: weight of the cross-entropy from the classifier's answers to the clean images to those to the
        purified noisy ones (their stability objective), beside the purifier's own loss.
    consistency
        With ``noise``: how much more the KL divergence from the mean answer to two noisy copies of each image to each
        of the two counts than the stability objective; above 0 also, half as much as that, the entropy of the mean
        (Jeong & Shin 2020, "Consistency regularization for certified robustness of smoothed classifiers"). Images are
        certified further, but fewer at small radii. A step asks about twice as many images.
    cached
        Craft the adversarial version of each image once and keep it in memory, as bytes; for slow attacks, and without
        augmentation. A resumed run crafts them again, the same except for rounding; under torchrun each process keeps
        those of its share of the images. By default they are crafted again in each epoch.
    """

    needs_classifier: ClassVar[bool] = True

    attacks: str = "fgsm+rfgsm+pgd"
    eps: tuple[float, ...] = (0.1, 0.2, 0.3)
    norm: Literal["linf", "l2", "l1"] = "linf"
    noise: float = 0.0
    stability: float = 1.0
    consistency: float = 0.0
    cached: bool = False
    _cache: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("noise", "stability", "consistency"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"denoise: {name} must be a number of at least 0, got {getattr(self, name)}")
        given = [name for name in OF_ATTACKS if getattr(self, name) != getattr(type(self), name)]
        if self.noise and given:
            raise ConfigError(f"denoise: noise takes the place of attacks; leave out noise, or {', '.join(given)}")
        if not self.noise and self.stability != type(self).stability:
            raise ConfigError("denoise: stability is for noise; give noise too, such as noise=0.25, or leave it out")
        if self.consistency and not self.needs_exact:
            raise ConfigError("denoise: consistency is for noise with stability; give both, or leave it out")
        if not self.eps:
            raise ConfigError("denoise: eps: expected one or more budgets, such as 0.1 0.2, got none")
        for attack, (threat, *others) in self._choices:
            for one in (threat, *others):
                check_trainable(one, "denoise")
            if threat.norm not in attack.norms:
                raise ConfigError(
                    f"denoise: {type(attack).__name__} supports {', '.join(attack.norms)}, not {threat.norm}; "
                    "choose another attack or norm"
                )
            if attack.needs == "latent":
                raise ConfigError(
                    f"denoise: {type(attack).__name__} attacks the purifier; choose an attack on the classifier"
                )

    @property
    def needs_gradients(self) -> bool:
        """Whether one of the attacks needs gradients, or the stability objective."""
        if self.noise:
            return self.needs_exact
        return any(attack.needs == "gradient" for attack, _ in self._choices)

    @property
    def needs_exact(self) -> bool:
        """Whether there is a stability objective."""
        return self.noise > 0 and self.stability > 0

    @property
    def input_files(self) -> tuple[str, ...]:
        """The weights of surrogates."""
        found = (getattr(attack, "weights", None) for attack, _ in self._choices)
        return tuple(file for file in found if file is not None)

    @property
    def allows_augmentation(self) -> bool:
        """Whether images are not cached."""
        return not self.cached

    def step(self, purifier: Purifier, batch: Batch) -> dict[str, Tensor]:
        """The purifier's own loss terms, and with noise the stability objective."""
        if self.noise:
            return self._from_noise(purifier, batch)
        adversarial = (
            self._from_cache(purifier, batch) if self.cached else self._crafted(purifier, batch, batch.generator)
        )
        noise = draw(purifier, batch.pixels, batch.generator)
        return loss_of(purifier, adversarial, batch.pixels, noise, batch.labels)

    def memory_step(self, purifier: Purifier, batch: Batch) -> dict[str, Tensor]:
        """A gradient of the classifier, which is what attacks take memory for, and the purifier's loss terms."""
        assert batch.classifier is not None
        if self.noise:
            return self.step(purifier, batch)
        pixels = batch.pixels.detach().clone().requires_grad_(self.needs_gradients)
        with torch.enable_grad(), torch.autocast(pixels.device.type, enabled=False):
            logits = batch.classifier(pixels)
            if self.needs_gradients:
                torch.autograd.grad(logits.sum(), pixels)
        del logits
        noise = draw(purifier, batch.pixels, batch.generator)
        return loss_of(purifier, batch.pixels, batch.pixels, noise, batch.labels)

    def _from_noise(self, purifier: Purifier, batch: Batch) -> dict[str, Tensor]:
        assert batch.classifier is not None
        copies = COPIES if self.consistency else 1
        clean, labels = batch.pixels.repeat(copies, 1, 1, 1), batch.labels.repeat(copies)
        normal = [batch.generator.normal(clean.shape[1:], batch.pixels) for _ in range(copies)]
        noisy = (clean + self.noise * torch.cat(normal)).clamp(0, 1)
        drawn = [draw(purifier, batch.pixels, batch.generator) for _ in range(copies)]
        noise = None if drawn[0] is None else torch.cat([each for each in drawn if each is not None])
        if not self.stability:
            return loss_of(purifier, noisy, clean, noise, labels)
        with torch.no_grad():
            own = batch.classifier(batch.pixels).float().softmax(1).repeat(copies, 1)
        purified, terms = purified_and_loss_of(purifier, noisy, clean, noise, labels)
        answers = batch.classifier(purified).float()
        terms = {**terms, "stability": self.stability * functional.cross_entropy(answers, own)}
        if self.consistency:
            terms["consistency"] = self.stability * _inconsistency(answers, self.consistency)
        return terms

    @cached_property
    def _choices(self) -> list[tuple[Attack, list[Threat]]]:
        """The attacks, each with its budgets."""
        return [self._choice(spec.strip()) for spec in self.attacks.split("+")]

    def _choice(self, spec: str) -> tuple[Attack, list[Threat]]:
        name, colon, rest = spec.partition(":")
        options = rest.split(";") if colon else []
        threat = [option for option in options if option.partition("=")[0].strip() in ("norm", "eps")]
        own: dict[str, Any] = split_spec(f"{name}:{','.join(threat)}")[1] if threat else {}
        if "norm" in own and "eps" not in own:
            raise ConfigError(f"denoise: {name}: norm={own['norm']} needs its own eps, such as ;eps=1.5")
        others = ",".join(option for option in options if option not in threat)
        attack = read_attack(f"{name}:{others}" if others or (colon and not threat) else name).attack
        budgets = [own["eps"]] if "eps" in own else self.eps
        given = [{"norm": self.norm, **own, "eps": eps} for eps in budgets]
        return attack, [build(Threat, one, what=f"denoise: {name}") for one in given]

    def _from_cache(self, purifier: Purifier, batch: Batch) -> Tensor:
        missing = [position for position, index in enumerate(batch.indices) if index not in self._cache]
        if missing:
            at = torch.tensor(missing, device=batch.pixels.device)
            part = replace(
                batch,
                pixels=batch.pixels[at],
                labels=batch.labels[at],
                lasting=batch.lasting.select(at),
                indices=[batch.indices[position] for position in missing],
            )
            crafted = (self._crafted(purifier, part, part.lasting) * 255).round().to(torch.uint8).cpu()
            self._cache.update(zip(part.indices, crafted, strict=True))
        return torch.stack([self._cache[index] for index in batch.indices]).to(batch.pixels) / 255

    def _crafted(self, purifier: Purifier, batch: Batch, generator: SampleGenerator) -> Tensor:
        assert batch.classifier is not None
        found = batch.pixels.clone()
        random = generator.uniform((2,), batch.pixels)
        counts = torch.tensor([len(threats) for _, threats in self._choices], device=random.device)
        chosen = (random[:, 0] * len(counts)).long()
        budget = (random[:, 1] * counts[chosen]).long()
        for choice, nth in ((choice, nth) for choice, count in enumerate(counts.tolist()) for nth in range(count)):
            attack, threat = self._choices[choice][0], self._choices[choice][1][nth]
            at = ((chosen == choice) & (budget == nth)).nonzero().squeeze(1)
            if not len(at) or threat.eps == 0:
                continue
            streams, pixels = generator.select(at), batch.pixels[at]
            target = Target(batch.classifier, purifier, "oblivious", streams)
            with explained(
                f"denoise: {type(attack).__name__} failed",
                TrainingError,
                "fix the classifier, or choose another attack",
                passing=explains_itself,
            ):
                # Attacks compare losses that differ by less than the precision of bfloat16.
                with torch.autocast(pixels.device.type, enabled=False):
                    crafted = attack.perturb(target, pixels, batch.labels[at], threat, streams).detach()
                if crafted.shape != pixels.shape or not crafted.isfinite().all():
                    raise ValueError(f"expected finite images {tuple(pixels.shape)}, got {tuple(crafted.shape)}")
                found[at] = threat.project(crafted, pixels)
        return found


def _inconsistency(answers: Tensor, weight: float) -> Tensor:
    """How far the answers to the copies of an image are from their mean, and how undecided that is."""
    logs = answers.log_softmax(1)
    mean = logs.view(COPIES, -1, logs.shape[1]).logsumexp(0) - math.log(COPIES)
    divergence = functional.kl_div(logs, mean.repeat(COPIES, 1), reduction="batchmean", log_target=True)
    return weight * divergence - ENTROPY * (mean.exp() * mean).sum(1).mean()
