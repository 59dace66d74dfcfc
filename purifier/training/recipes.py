"""The recipes by name."""

from __future__ import annotations

from ..errors import ConfigError
from ..specs import build, split_spec
from .certified import Certified
from .denoise import Denoise
from .elbo import Elbo
from .recipe import Recipe
from .robust import Robust

RECIPES: dict[str, type[Recipe]] = {"elbo": Elbo, "denoise": Denoise, "robust": Robust, "certified": Certified}


def build_recipe(spec: str) -> Recipe:
    """Build the recipe ``NAME`` or ``NAME:key=value,...``.

    Raises
    ------
    ConfigError, SpecError
        The recipe or an option does not exist, or the spec cannot be read.
    """
    name, options = split_spec(spec)
    if name not in RECIPES:
        raise ConfigError(f"no recipe {name!r}; the recipes are: {', '.join(RECIPES)}")
    return build(RECIPES[name], options, what=f"recipe {name!r}")
