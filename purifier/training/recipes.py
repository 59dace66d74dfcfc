"""Recipes: what a training step asks of a purifier. Their fields are their options (``NAME:key=value``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import ConfigError
from ..interfaces import Purifier
from ..seeding import SampleGenerator
from ..specs import build, split_spec


class Recipe(ABC):
    """One way to train a purifier; a frozen dataclass."""

    @abstractmethod
    def step(self, purifier: Purifier, pixels: Tensor, labels: Tensor, generator: SampleGenerator) -> dict[str, Tensor]:
        """The weighted scalar terms, batch means, whose sum is minimised.

        ``pixels`` (N, C, H, W) in [0, 1], ``labels`` (N,) int64; the purifier is in training mode.
        """


@dataclass(frozen=True)
class Elbo(Recipe):
    """The purifier's own loss on clean images: it learns to give them back."""

    def step(self, purifier: Purifier, pixels: Tensor, labels: Tensor, generator: SampleGenerator) -> dict[str, Tensor]:
        return loss_of(purifier, pixels, pixels, purifier.draw(pixels, generator), labels)


def loss_of(
    purifier: Purifier, pixels: Tensor, target: Tensor, noise: Tensor | None, labels: Tensor
) -> dict[str, Tensor]:
    """``purifier.loss``, with the labels for one that uses them."""
    extra: dict[str, Any] = {"labels": labels} if purifier.uses_labels else {}
    return purifier.loss(pixels, target, noise, **extra)


RECIPES: dict[str, type[Recipe]] = {"elbo": Elbo}


def build_recipe(spec: str) -> Recipe:
    """The recipe ``NAME`` or ``NAME:key=value,...``.

    Raises
    ------
    ConfigError, SpecError
        No such recipe or option.
    """
    name, options = split_spec(spec)
    if name not in RECIPES:
        raise ConfigError(f"no recipe {name!r}; the recipes are: {', '.join(RECIPES)}")
    return build(RECIPES[name], options, what=f"recipe {name!r}")
