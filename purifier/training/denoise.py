"""Recipe ``denoise``: from adversarial images of the classifier back to the clean ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..attacking.attack import Attack
from ..attacking.specs import read_attack
from ..attacking.target import Target
from ..attacking.threat import Threat
from ..contracts.purifier import Purifier
from ..errors import ConfigError, TrainingError
from ..foreign_code import explained
from ..seeding import SampleGenerator
from ..specs import build, split_spec
from .epoch import explains_itself
from .recipe import Batch, Recipe, loss_of


@dataclass(frozen=True)
class Denoise(Recipe):
    """The purifier's own loss with adversarial images given and the clean ones as target (Li & Ji 2018, Defense-VAE).

    The images are made against the classifier alone, so an attacker who knows the purifier is not what is learned.
    Each image meets one attack and one of its budgets at a time, both drawn evenly.

    Parameters
    ----------
    attacks
        ATTACK specs joined by ``+``, an attack's own options by ``;``: ``fgsm+pgd:steps=10;restarts=2``. With those
        that need no gradients (``square``, ``transfer`` from a surrogate) any classifier will do. One that works in
        another norm brings its own budget: ``fgsm+cw:norm=l2;eps=1.5``.
    eps
        The budgets, in pixel units; 0 for clean images among them.
    norm
        What eps measures.
    cached
        Make each image's adversarial twin once and keep it, as bytes, in memory: for slow attacks, and without
        augmentation. A resumed run makes them again, the same but for rounding; under torchrun each process keeps
        those of the images that were its share. Otherwise they are made anew in each epoch.
    """

    needs_classifier: ClassVar[bool] = True

    attacks: str = "fgsm+rfgsm+pgd"
    eps: tuple[float, ...] = (0.1, 0.2, 0.3)
    norm: Literal["linf", "l2", "l1"] = "linf"
    cached: bool = False
    _cache: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.eps:
            raise ConfigError("denoise: eps: expected one budget or several, such as 0.1 0.2, got none")
        for attack, (threat, *_) in self._choices:
            if threat.norm not in attack.norms:
                raise ConfigError(
                    f"denoise: {type(attack).__name__} works in {', '.join(attack.norms)}, not in {threat.norm}; "
                    "choose another attack or norm"
                )
            if attack.needs == "latent":
                raise ConfigError(
                    f"denoise: {type(attack).__name__} attacks the purifier; choose one of the classifier"
                )

    @property
    def needs_gradients(self) -> bool:
        """Whether one of the attacks does."""
        return any(attack.needs == "gradient" for attack, _ in self._choices)

    @property
    def reads(self) -> tuple[str, ...]:
        """The weights of surrogates."""
        found = (getattr(attack, "weights", None) for attack, _ in self._choices)
        return tuple(file for file in found if file is not None)

    @property
    def takes_moved(self) -> bool:
        """Not if what was made once is given again."""
        return not self.cached

    def step(self, purifier: Purifier, batch: Batch) -> dict[str, Tensor]:
        """The purifier's own terms."""
        adversarial = self._remembered(purifier, batch) if self.cached else self._made(purifier, batch, batch.generator)
        noise = purifier.draw(batch.pixels, batch.generator)
        return loss_of(purifier, adversarial, batch.pixels, noise, batch.labels)

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
            raise ConfigError(f"denoise: {name}: norm={own['norm']} needs an eps of its own, such as ;eps=1.5")
        others = ",".join(option for option in options if option not in threat)
        attack = read_attack(f"{name}:{others}" if others or (colon and not threat) else name).attack
        budgets = [own["eps"]] if "eps" in own else self.eps
        given = [{"norm": self.norm, **own, "eps": eps} for eps in budgets]
        return attack, [build(Threat, one, what=f"denoise: {name}") for one in given]

    def _remembered(self, purifier: Purifier, batch: Batch) -> Tensor:
        missing = [place for place, index in enumerate(batch.indices) if index not in self._cache]
        if missing:
            at = torch.tensor(missing, device=batch.pixels.device)
            part = replace(
                batch,
                pixels=batch.pixels[at],
                labels=batch.labels[at],
                lasting=batch.lasting.select(at),
                indices=[batch.indices[place] for place in missing],
            )
            made = (self._made(purifier, part, part.lasting) * 255).round().to(torch.uint8).cpu()
            self._cache.update(zip(part.indices, made, strict=True))
        return torch.stack([self._cache[index] for index in batch.indices]).to(batch.pixels) / 255

    def _made(self, purifier: Purifier, batch: Batch, generator: SampleGenerator) -> Tensor:
        assert batch.classifier is not None
        found = batch.pixels.clone()
        chance = generator.uniform((2,), batch.pixels)
        counts = torch.tensor([len(threats) for _, threats in self._choices], device=chance.device)
        chosen = (chance[:, 0] * len(counts)).long()
        budget = (chance[:, 1] * counts[chosen]).long()
        for place, nth in ((place, nth) for place, count in enumerate(counts.tolist()) for nth in range(count)):
            attack, threat = self._choices[place][0], self._choices[place][1][nth]
            at = ((chosen == place) & (budget == nth)).nonzero().squeeze(1)
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
                # Attacks compare losses that differ by less than bfloat16 can tell.
                with torch.autocast(pixels.device.type, enabled=False):
                    made = attack.perturb(target, pixels, batch.labels[at], threat, streams).detach()
                if made.shape != pixels.shape or not made.isfinite().all():
                    raise ValueError(f"expected finite images {tuple(pixels.shape)}, got {tuple(made.shape)}")
                found[at] = threat.project(made, pixels)
        return found
