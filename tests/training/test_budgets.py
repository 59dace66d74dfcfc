"""Budgets that no training can hold."""

from __future__ import annotations

import pytest

from purifier.errors import ConfigError
from purifier.training.recipes import build_recipe


@pytest.mark.parametrize("recipe", ["robust:eps=8", "robust:eps=0.5", "robust:eps=1", "denoise:eps=0.1 0.6",
                                    "denoise:attacks=fgsm+pgd:eps=4"])  # fmt: skip
def test_a_budget_within_which_nothing_is_left_is_an_error(recipe: str) -> None:
    with pytest.raises(ConfigError, match=r"\d/255"):
        build_recipe(recipe)


@pytest.mark.parametrize("recipe", ["robust:eps=8/255", "robust:eps=0.49", "robust:eps=2,norm=l2", "denoise:eps=0 0.3"])
def test_others_are_taken(recipe: str) -> None:
    build_recipe(recipe)
