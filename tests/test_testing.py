"""The conformance kit catches plugins that break the contract."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
import torch
from third_party.acme_plugins import Median

import purifier
from onnx_models import FLOAT, WEIGHT, linear, model_of
from purifier import Attack, Exporter, ExportReport, Purifier
from purifier.atomic import atomic_write
from purifier.errors import OutputError
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
    """Computes in float32 whatever it is given, as some operators must."""

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
        (Oblivious, r"perturb must accept images that are misclassified .* on the route oblivious \(PluginError"),
    ],
)
def test_bad_attacks_are_caught(cls: type, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_attack(cls())


def test_an_attack_outside_its_norms_is_caught() -> None:
    with pytest.raises(AssertionError, match="norms must contain 'l2'"):
        check_attack(Ascent(), norm="l2")


class Pixels(torch.nn.Module):
    def forward(self, images):
        return images.flatten(1) @ torch.from_numpy(WEIGHT)


class Writing(Exporter):
    """Writes a given ONNX model for any guard."""

    def __init__(self, model: onnx.ModelProto, size: int | None = None, checked: bool = True) -> None:
        self.content, self.claimed, self.checked = model.SerializeToString(), size, checked

    def export(self, guard, path, **options):
        atomic_write(path, self.content)
        size = len(self.content) if self.claimed is None else self.claimed
        return ExportReport(path, "onnx", size, 18, {1: 0.0} if self.checked else {})


class Littering(Writing):
    def export(self, guard, path, **options):
        try:
            return super().export(guard, path, **options)
        except OutputError:
            path.parent.with_name("partial.onnx").write_bytes(self.content[:10])
            raise


class Crashing(Writing):
    def export(self, guard, path, **options):
        path.write_bytes(self.content)
        return super().export(guard, path, **options)


def scaled(factor: float) -> onnx.ModelProto:
    """The linear classifier with other weights."""
    model = linear()
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(WEIGHT * np.float32(factor), "weight"))
    return model


def tiny() -> onnx.ModelProto:
    """A valid model that has nothing to do with images."""
    node = onnx.helper.make_node("Neg", ["x"], ["y"])
    return model_of([node], inputs=[("x", FLOAT, [1])], outputs=[("y", FLOAT, [1])])


def one_image() -> onnx.ModelProto:
    """The linear classifier of one image, whatever the batch."""
    model = linear()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return model


@pytest.fixture(scope="module", params=["torch", "onnx"])
def guarded(request: pytest.FixtureRequest):
    return purifier.guard(Pixels() if request.param == "torch" else linear(), "identity")


def test_a_good_exporter_passes(guarded, tmp_path: Path) -> None:
    # The identity's guard is the classifier, so that its own file is a faithful export.
    check_exporter(Writing(linear()), guarded, tmp_path / "x.onnx")


@pytest.mark.parametrize(
    ("exporter", "rule"),
    [
        (Writing(linear(), size=3), "file's size"),
        (Writing(linear(), checked=False), "must be verified"),
        (Writing(scaled(1.01)), "must answer as the guard at batch 1; got 0.0"),
        (Writing(one_image()), "must run at batch 2"),
        (Writing(tiny()), "must take the guard's images"),
        (Littering(linear()), "a failed export must leave no files.*partial.onnx"),
        (Crashing(linear()), "must raise a PurifierError; got NotADirectoryError"),
    ],
)
def test_bad_exporters_are_caught(exporter: Exporter, rule: str, guarded, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_exporter(exporter, guarded, tmp_path / "x.onnx")


def test_a_fixed_batch_is_the_only_one_that_must_run(tmp_path: Path) -> None:
    check_exporter(Writing(one_image()), purifier.guard(one_image(), "identity"), tmp_path / "x.onnx")
