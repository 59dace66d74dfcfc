"""The conformance kit catches plugins that break the contract."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import onnx
import pytest
import torch

from purifier import Attack, Exporter, ExportReport, Purifier
from purifier.testing import check_attack, check_exporter, check_purifier


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


def test_a_good_purifier_passes() -> None:
    check_purifier(Good(Nothing()))


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
        (SelfSeeding, "draw must follow its generator"),
        (BadScore, r"score must be \(N,\)"),
    ],
)
def test_bad_purifiers_are_caught(cls: type, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_purifier(cls(Nothing()))


def test_a_config_that_is_not_frozen_is_caught() -> None:
    with pytest.raises(AssertionError, match="config must be a frozen dataclass"):
        check_purifier(SoftConfig(Soft()))


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


def test_a_good_attack_passes() -> None:
    check_attack(Ascent())


@pytest.mark.parametrize(
    ("cls", "rule"),
    [
        (NoOp, "must change something"),
        (Overwriting, "inputs must stay"),
        (Unseeded, "one seed must give one result"),
        (BatchBound, "must not depend on its batch"),
        (NaN, "finite"),
    ],
)
def test_bad_attacks_are_caught(cls: type, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_attack(cls())


def test_an_attack_outside_its_norms_is_caught() -> None:
    with pytest.raises(AssertionError, match="norms must hold 'l2'"):
        check_attack(Ascent(), norm="l2")


class Boasting(Exporter):
    """Writes something and claims more."""

    def __init__(self, size: int | None, checked: bool) -> None:
        self.claimed, self.checked = size, checked

    def export(self, guard, path, **options):
        graph = onnx.helper.make_graph([], "empty", [], [])
        onnx.save(onnx.helper.make_model(graph), path)
        size = path.stat().st_size if self.claimed is None else self.claimed
        return ExportReport(path, "onnx", size, 18, {1: 0.0} if self.checked else {})


@pytest.mark.parametrize(("size", "checked", "rule"), [(3, True, "file's size"), (None, False, "must be verified")])
def test_exporters_that_claim_too_much(tmp_path: Path, size: int | None, checked: bool, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_exporter(Boasting(size, checked), None, tmp_path / "x.onnx")
