"""Recipes: what a training step asks of a purifier. Their fields are their options (``NAME:key=value``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

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
        return purifier.loss(pixels, pixels, purifier.draw(pixels, generator))


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
