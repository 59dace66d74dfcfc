"""The conformance kit catches purifiers that break the contract."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from third_party.acme_plugins import Median

import purifier
from purifier import Purifier
from purifier.testing import check_purifier


@dataclass(frozen=True)
class Nothing:
    """No options."""


class Good(Purifier):
    Config = Nothing
    gradient = "exact"

    def purify(self, pixels, noise=None):
        return pixels * 0.5


class Loud(Good):
    def purify(self, pixels, noise=None):
        return pixels * 2


class InPlace(Good):
    def purify(self, pixels, noise=None):
        return pixels.mul_(0.5)


class Restless(Good):
    def purify(self, pixels, noise=None):
        return pixels * torch.rand(())


class Mixing(Good):
    def purify(self, pixels, noise=None):
        return (pixels * 0.5 + pixels.mean(0) * 0.5).clamp(0, 1)


class Cropping(Good):
    def purify(self, pixels, noise=None):
        return pixels[:, :, 1:]


class Detached(Good):
    def purify(self, pixels, noise=None):
        return pixels.detach() * 0.5


class Rounding(Good):
    def purify(self, pixels, noise=None):
        return pixels.round()


class StraightThrough(Good):
    """Rounding with the identity's gradient, which is no gradient of rounding."""

    levels = 1

    def purify(self, pixels, noise=None):
        return pixels + ((pixels * self.levels).round() / self.levels - pixels).detach()


class StraightThroughInFloats(StraightThrough):
    levels = 255

    def purify(self, pixels, noise=None):
        return super().purify(pixels.float(), noise)


class HalfDetached(Good):
    def purify(self, pixels, noise=None):
        return pixels * 0.5 + pixels.flip(3).detach() * 0.1


class SelfSeeding(Good):
    def draw(self, pixels, generator):
        return torch.rand_like(pixels)


class BadScore(Good):
    def score(self, pixels):
        return super().score(pixels).mean()


@dataclass
class Soft:
    """Not frozen."""


class SoftConfig(Good):
    Config = Soft


class InFloats(Good):
    """Always computes in float32, because some operators have no other form."""

    def purify(self, pixels, noise=None):
        return (pixels.float() * 3).sin().square().to(pixels.dtype)


class FloatsOnly(Good):
    def purify(self, pixels, noise=None):
        return (pixels.flatten(2) @ torch.eye(pixels[0, 0].numel())).view_as(pixels)


@pytest.mark.parametrize("cls", [Good, InFloats, FloatsOnly, Median])
def test_a_good_purifier_passes(cls: type) -> None:
    check_purifier(cls(cls.Config()))


@pytest.mark.parametrize(
    ("cls", "rule"),
    [
        (Loud, r"stay in \[0, 1\]"),
        (InPlace, "must not change its input"),
        (Restless, "pure function"),
        (Mixing, "must not depend on its batch"),
        (Cropping, "keep the shape"),
        (Detached, "must be differentiable"),
        (Rounding, "must not be zero everywhere"),
        (StraightThrough, "must agree with finite differences"),
        (StraightThroughInFloats, "must agree with finite differences"),
        (HalfDetached, "must agree with finite differences"),
        (SelfSeeding, "draw must depend only on its generator"),
        (BadScore, r"score must be \(N,\)"),
    ],
)
def test_bad_purifiers_are_caught(cls: type, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_purifier(cls(Nothing()))


def test_a_config_that_is_not_frozen_is_caught() -> None:
    with pytest.raises(AssertionError, match="config must be a frozen dataclass"):
        check_purifier(SoftConfig(Soft()))


class Sharpened(Good):
    """Leaves the range nearly everywhere, and comes back with ``into_range``."""

    def purify(self, pixels, noise=None):
        return purifier.into_range(1.01 * pixels - 0.005)


def test_a_purifier_may_end_in_into_range() -> None:
    check_purifier(Sharpened(Nothing()))
