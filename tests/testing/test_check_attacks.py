"""The conformance kit catches attacks that break the contract."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from purifier import Attack
from purifier.testing import check_attack


class Ascent(Attack):
    """A correct one-step attack."""

    needs: ClassVar = "gradient"
    norms: ClassVar = ("linf",)

    def step(self, target, pixels, labels, threat, generator):
        gradient, _ = target.gradient(pixels, lambda logits: -logits.gather(1, labels[:, None]).squeeze(1))
        return pixels + threat.eps * gradient.sign()

    perturb = step


class NoOp(Ascent):
    def perturb(self, target, pixels, labels, threat, generator):
        return pixels.clone()


class Overwriting(Ascent):
    def perturb(self, target, pixels, labels, threat, generator):
        return pixels.copy_(self.step(target, pixels, labels, threat, generator))


class Unseeded(Ascent):
    def perturb(self, target, pixels, labels, threat, generator):
        return pixels + threat.eps * torch.randn_like(pixels)


class BatchBound(Ascent):
    def perturb(self, target, pixels, labels, threat, generator):
        found = self.step(target, pixels, labels, threat, generator)
        return pixels + (found - pixels).mean(0)


class NaN(Ascent):
    def perturb(self, target, pixels, labels, threat, generator):
        return pixels * float("nan")


class GoesOn(Ascent):
    """Asks about the images that are left, be they none."""

    def perturb(self, target, pixels, labels, threat, generator):
        found = self.step(target, pixels, labels, threat, generator)
        left = target.logits(found).argmax(1) == labels
        target.select(left).logits(found[left])
        return found


class GoesRound(Ascent):
    """As above, past its target."""

    def perturb(self, target, pixels, labels, threat, generator):
        found = self.step(target, pixels, labels, threat, generator)
        target.classifier(found[target.logits(found).argmax(1) == labels])
        return found


class Oblivious(GoesOn):
    """Only where the target is not the judge."""

    def perturb(self, target, pixels, labels, threat, generator):
        attack = GoesOn.perturb if target.route == "oblivious" else Ascent.perturb
        return attack(self, target, pixels, labels, threat, generator)


def test_a_good_attack_passes() -> None:
    check_attack(Ascent())


@pytest.mark.parametrize(
    ("cls", "rule"),
    [
        (NoOp, "must change something"),
        (Overwriting, "inputs must not change"),
        (Unseeded, "one seed must give one result"),
        (BatchBound, "must not depend on its batch"),
        (NaN, "finite"),
        (GoesOn, r"perturb must accept images .* on the route exact .* asked its target with 0 images"),
        (GoesRound, r"perturb must accept images .* on the route exact \(RuntimeError: cannot reshape"),
        (Oblivious, r"misclassified .* on the route oblivious \(the attack asked .* 0 images"),
    ],
)
def test_bad_attacks_are_caught(cls: type, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_attack(cls())


def test_an_attack_outside_its_norms_is_caught() -> None:
    with pytest.raises(AssertionError, match="norms must contain 'l2'"):
        check_attack(Ascent(), norm="l2")
