"""Classifiers and purifiers that break their contract are named."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

import purifier
from audit_helpers import Ends, NoConfig
from purifier.auditing.audit import audit
from purifier.auditing.parts import audited_parts
from purifier.errors import AuditError, ClassifierError, PluginError
from purifier.guards.guard import guard


class Broken(purifier.Purifier):
    Config, gradient = NoConfig, "exact"

    def __init__(self, act) -> None:
        super().__init__(NoConfig())
        self.act = act

    def purify(self, pixels, noise=None):
        return self.act(pixels)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda pixels: pixels[:1], r"Broken.purify must return images \(2, 1, 28, 28\), got \(1, 1, 28, 28\)"),
        (lambda pixels: pixels.mul_(0.5), r"Broken.purify changed its input in place; .* \(clone, inplace=False\)"),
        (lambda pixels: pixels.mul_(0.5) if pixels.requires_grad else pixels + 0, "Broken.purify .* in place"),
        (lambda pixels: pixels * float("nan"), "Broken.purify returns NaN for an image of"),
        (lambda pixels: pixels + 1, r"Broken.purify: expected purified pixels in \[0, 1\], got \[1, 2\]"),
        (lambda pixels: None, r"Broken.purify must return images \(1, 1, 28, 28\), got NoneType"),
        (lambda pixels: pixels.double(), "Broken.purify must keep dtype and device: expected torch.float32 on cpu"),
        (lambda pixels: [][0], r"Broken.purify fails on images .*IndexError: .*test_audit_broken_models.py:\d+"),
    ],
)
def test_a_purifier_that_breaks_its_contract_is_named(act, said, classifier, data):
    with pytest.raises((AuditError, PluginError), match=said):
        audit(guard(classifier, Broken(act)), data, attacks=("fgsm",))


@pytest.mark.parametrize(
    ("method", "act", "said"),
    [
        ("score", lambda *_: None, r"Odd.score must return scores \(1,\), got NoneType"),
        ("purify_and_score", lambda pixels, noise: pixels, "Odd.purify_and_score must return images and scores, got T"),
        (
            "purify_and_score",
            lambda pixels, noise: (pixels[:, :, 1:], pixels[:, 0, 0, 0]),
            "purify_and_score must return",
        ),
        ("surrogate", lambda pixels, noise: pixels.half(), "Odd.surrogate must keep dtype and device"),
        (
            "draw",
            lambda pixels, generator: [0] * len(pixels),
            "Odd.draw must return noise as a tensor, or None, got list",
        ),
        ("draw", lambda pixels, generator: 1 // 0, r"Odd.draw fails on images .*ZeroDivisionError.*_models.py:\d+"),
    ],
)
def test_every_method_of_a_purifier_is_tried(method, act, said, classifier, data):
    odd = type("Odd", (Broken,), {method: lambda self, *given: act(*given), "Config": NoConfig, "gradient": "exact"})
    with pytest.raises((AuditError, PluginError), match=said):
        audit(guard(classifier, odd(lambda pixels: pixels)), data, attacks=())


class Careless(nn.Module):
    """A linear classifier behind something that it does to its images."""

    def __init__(self, act) -> None:
        super().__init__()
        self.act, self.head = act, nn.Linear(784, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.act(images).flatten(1))


def shifted_in_place(images: Tensor) -> Tensor:
    return images.sub_(0.5)


def not_alone(images: Tensor) -> Tensor:
    if len(images) == 1:
        raise ValueError("two are company")
    return images


def not_tracked(images: Tensor) -> Tensor:
    return torch.from_numpy(images.numpy())


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (
            shifted_in_place,
            r"torch Careless changed its input in place; make it work on a copy \(clone, inplace=False\)",
        ),
        (nn.ReLU(inplace=True), None),
        (not_alone, r"torch Careless fails on images \(1, 1, 28, 28\) of .*two are company, at .*_models.py:\d+"),
        (not_tracked, r"torch Careless fails .* with gradients \(RuntimeError: .*test_audit_broken_models.py:\d+"),
        (lambda images: images * float("nan"), "torch Careless returns NaN"),
    ],
)
@pytest.mark.parametrize("alone", [False, True])
def test_a_classifier_that_cannot_be_audited_is_named(act, said, alone, data):
    model = Careless(act)
    given = model if alone else guard(model, "identity")
    if said is None:  # harmless: no pixel is below 0
        assert audit(given, data, attacks=("fgsm",), eps=0.05, probes=8).complete
        return
    with pytest.raises(AuditError, match=said):
        audit(given, data, attacks=())


class Foreign(nn.Module):
    """Answers with something that is no tensor."""

    def __init__(self, make) -> None:
        super().__init__()
        self.make = make

    def forward(self, images: Tensor) -> object:
        return self.make(images.flatten(1)[:, :10].detach().numpy())


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda logits: logits, r"got numpy.ndarray float32 \(1, 10\);"),
        (lambda logits: (logits, logits), r"got 0: numpy.ndarray float32 \(1, 10\), 1: numpy"),
        (lambda logits: {"logits": logits}, r"got 'logits' numpy.ndarray float32 \(1, 10\);"),
        (lambda logits: logits.tolist(), "got list;"),
        (lambda logits: (), "got nothing;"),
    ],
)
@pytest.mark.parametrize("alone", [False, True])
def test_a_classifier_that_returns_no_tensor_is_told_to(make, got, alone, data):
    model = Foreign(make)
    with pytest.raises(
        ClassifierError, match=rf"torch Foreign must return a torch tensor, .*{got}.*leave out \.numpy\(\)"
    ):
        audit(model if alone else guard(model, "identity"), data, attacks=())


def test_no_error_names_a_class_of_this_project(onnx_classifier, data):
    class Loud(Broken):
        def score(self, pixels):
            return pixels

    for given in (guard(Careless(nn.Identity()), Loud(lambda pixels: pixels)), Careless(shifted_in_place)):
        with pytest.raises(purifier.PurifierError) as caught:
            audit(given, data, attacks=())
        assert not re.search("PixelClassifier|MeanPurifier|Unpurified", str(caught.value))
    parts = audited_parts(guard(onnx_classifier, "blur"))
    assert type(parts.purifier).__name__ == "Blur"


@pytest.mark.parametrize("error", [Ends("no"), GeneratorExit("no"), SystemExit("no")], ids=type)
def test_a_classifier_or_purifier_that_ends_by_whatever_means_is_named(error, data):
    def fail(images: Tensor) -> Tensor:
        raise error

    with pytest.raises(purifier.PurifierError, match="torch Careless fail"):
        audit(Careless(fail), data, attacks=("fgsm",))
    with pytest.raises(purifier.PurifierError, match="Broken.purify fails"):
        audit(guard(Careless(nn.Identity()), Broken(fail)), data, attacks=("fgsm",))
