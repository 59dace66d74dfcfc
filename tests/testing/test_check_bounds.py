"""check_purifier() on purifiers with bounds: one that is right, and those that claim too much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor

from purifier.contracts.bounded import Bounded
from purifier.contracts.purifier import Purifier
from purifier.testing import check_purifier


@dataclass(frozen=True)
class NoOptions:
    pass


class Lamp(Purifier):
    """A dark image or a bright one, by which side of 0.5 the mean is on."""

    Config = NoOptions
    gradient: ClassVar[Literal["exact", "surrogate"]] = "surrogate"
    bounded_norms: ClassVar[tuple[str, ...]] = ("linf",)

    def outputs(self) -> Tensor:
        return torch.stack([torch.full((1, 28, 28), level) for level in (0.2, 0.8)])

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.outputs().to(pixels)[(pixels.flatten(1).mean(1) > 0.5).long()]

    def surrogate(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels * pixels

    def reachable(self, pixels: Tensor, norm: str, eps: Tensor, factors: float = 0.0) -> Tensor:
        mean = pixels.flatten(1).mean(1)
        return torch.stack([mean - eps <= 0.5, mean + eps >= 0.5], 1)


class Overconfident(Lamp):
    def reachable(self, pixels: Tensor, norm: str, eps: Tensor, factors: float = 0.0) -> Tensor:
        return super().reachable(pixels, norm, 0 * eps)


class Elsewhere(Lamp):
    def reachable(self, pixels: Tensor, norm: str, eps: Tensor, factors: float = 0.0) -> Tensor:
        return ~super().reachable(pixels, norm, 0 * eps)


class Narrowing(Lamp):
    def reachable(self, pixels: Tensor, norm: str, eps: Tensor, factors: float = 0.0) -> Tensor:
        return super().reachable(pixels, norm, torch.where(eps < 0.02, 1.0, 0.0))


class Another(Lamp):
    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return 0.9 * super().purify(pixels)


class TooBright(Lamp):
    def outputs(self) -> Tensor:
        return super().outputs() * 2


class Unknown(Lamp):
    bounded_norms: ClassVar[tuple[str, ...]] = ("lp",)


class Shares(Lamp):
    def reachable(self, pixels: Tensor, norm: str, eps: Tensor, factors: float = 0.0) -> Tensor:
        return super().reachable(pixels, norm, eps).float()


def test_right_bounds_pass() -> None:
    lamp = Lamp(NoOptions())
    assert isinstance(lamp, Bounded)
    check_purifier(lamp)


@pytest.mark.parametrize(
    ("cls", "rule"),
    [
        (Overconfident, "what purify returns within linf .* must be reachable"),
        (Elsewhere, "an image's own output must be reachable"),
        (Narrowing, "a larger budget must reach no less"),
        (Another, "purify must return one of the outputs"),
        (TooBright, r"(outputs|purify) must (be|stay) in \[0, 1\]"),
        (Unknown, "bounded_norms must be among linf, l2, l1"),
        (Shares, r"reachable must be bool \(5, 2\)"),
    ],
)
def test_wrong_bounds_are_caught(cls: type[Lamp], rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_purifier(cls(NoOptions()))
