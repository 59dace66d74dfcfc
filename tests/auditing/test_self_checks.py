"""self_check(): every broken guard raises its flags, no healthy one raises any."""

from __future__ import annotations

import onnx
import pytest
import torch
from flag_helpers import LINF, names, probed, raised
from torch import nn

import purifier
from broken import (
    Behind,
    Broken,
    HiddenRandom,
    Random,
    Reversed,
    StubbornNorm,
    Surrogate,
    normalised,
)
from controls import CONTROLS, Control
from purifier import Threat
from purifier.classifiers.loading import load_classifier
from purifier.classifiers.white_box import WhiteBox
from purifier.data.images import ImageData
from purifier.data.loading import load_data
from purifier.guards.guard import guard

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_a_broken_guard_raises_its_flags(control: Control, classifier, data):
    model, filter_ = control.make(classifier, data.batch(range(len(data)))[0])
    assert names(raised(model, filter_, data)) == control.flags


def test_undeclared_randomness_is_not_mistaken_for_batch_dependence(classifier, data):
    torch.manual_seed(0)
    found = names(raised(classifier, HiddenRandom(), data))
    assert "nondeterministic" in found and "batch-dependent" not in found


class Rounding(nn.Module):
    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.round()


class Times(nn.Module):
    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return 1e4 * logits


def trained_norm() -> nn.BatchNorm2d:
    norm = normalised(nn.BatchNorm2d(1))
    norm.running_mean.fill_(0.286)
    norm.running_var.fill_(0.353**2)
    return norm


@pytest.mark.parametrize(
    ("make", "eot"),
    [
        pytest.param(lambda model: (model, Broken()), 1, id="nothing"),
        pytest.param(lambda model: (model, Surrogate()), 1, id="rounded, with a surrogate"),
        pytest.param(lambda model: (model, "blur"), 1, id="blur"),
        pytest.param(lambda model: (model, Random()), 10, id="random, with EOT"),
        pytest.param(lambda model: (Behind(model, after=nn.LogSoftmax(1)), Broken()), 1, id="log-softmax"),
        # Cross-entropy vanishes in float32 here; the model hides nothing.
        pytest.param(lambda model: (Behind(model, after=Times()), Broken()), 1, id="very sure"),
        pytest.param(lambda model: (Behind(model, trained_norm()), Broken()), 1, id="BatchNorm in evaluation mode"),
        pytest.param(lambda model: (Behind(model, nn.InstanceNorm2d(1)), Broken()), 1, id="InstanceNorm"),
    ],
)
def test_a_healthy_guard_raises_no_flag(make, eot, classifier, data):
    assert raised(*make(classifier), data, LINF, Threat("linf", 0.03), eot=eot) == []


@pytest.mark.parametrize(
    ("after", "flags"),
    [
        (nn.Identity(), set()),
        (nn.Softmax(1), {"probabilities"}),
        (Rounding(), {"zero-gradient", "unbounded", "discontinuous"}),
    ],
)
def test_a_classifier_alone_is_checked_too(after, flags, classifier, data):
    assert names(probed(Behind(classifier, after=after), data)) == flags


def test_a_session_that_runs_otherwise_than_attacked_is_found(onnx_classifier, data):
    class Exported(Broken):
        def purify(self, pixels, noise=None):
            return 1 - pixels if torch.compiler.is_exporting() else pixels

    assert probed(guard(onnx_classifier, Broken()), data) == []
    (flag,) = probed(guard(onnx_classifier, Exported()), data)
    assert flag.name == "paths-disagree" and "the guard's answers and the logits that attacks see (" in flag.evidence


def test_the_evidence_names_the_authors_layers(classifier, data):
    (flag, _) = raised(Behind(classifier, StubbornNorm(1)), Broken(), data)
    assert flag.evidence == "classifier: before (StubbornNorm) is in training mode"


def test_the_number_of_probes_is_respected(classifier, data):
    seen = []

    class Spy(Broken):
        def purify(self, pixels, noise=None):
            seen.append((pixels.requires_grad, len(pixels)))
            return pixels

    for count in (3, 11):
        seen.clear()
        raised(classifier, Spy(), data, count=count)
        assert max(size for with_gradient, size in seen if with_gradient) == count
        assert max(size for _, size in seen) == max(8, count)
    report = purifier.audit(guard(classifier, Broken()), data, attacks=["fgsm"], routes=["exact"], probes=3)
    assert report.probes == 3


@pytest.mark.parametrize(
    "filter_",
    [
        *(pytest.param(name, marks=pytest.mark.integration) for name in ("demo", "demo-plain")),
        "blur",
        "identity",
        "bit-depth",
    ],
)
def test_the_demo_raises_no_flag(filter_):
    assert raised(load_classifier("demo"), filter_, load_data("demo"), LINF, Threat("linf", 0.03), count=8) == []


@pytest.mark.parametrize("threat", [Threat("l2", 1), Threat("l1", 10)], ids=str)
def test_every_norm_is_probed(threat, classifier, data):
    assert raised(classifier, Broken(), data, threat) == []
    found = raised(classifier, Reversed(), data, threat)
    assert "unbounded" in names(found)
    assert all(flag.evidence.count(threat.norm) == 1 for flag in found)


def test_each_threat_is_probed_and_named(classifier, data):
    found = raised(classifier, Reversed(), data, LINF, Threat("linf", 0.2))
    assert [flag.name for flag in found] == ["noise-wins", "noise-wins", "unbounded"]
    assert [
        threat in flag.evidence for flag, threat in zip(found, ("linf 0.1 ", "linf 0.2 ", "linf 0.5 "), strict=True)
    ]


def test_the_evidence_gives_numbers(classifier, data):
    control = next(control for control in CONTROLS if control.name == "rounded, exact")
    zero, unbounded = raised(*control.make(classifier, None), data)
    assert zero.evidence == "the gradient of 32 of 32 images is zero everywhere (exact)"
    assert "at linf 0.5 (exact) leaves 29 of 32 images right, chance 25.0%" in unbounded.evidence


def test_checks_are_reproducible_and_leave_the_guard_unchanged(classifier, data):
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    first, second = (raised(classifier, Random(), data, eot=2) for _ in range(2))
    assert first == second
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())


def with_softmax(model: onnx.ModelProto) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.graph.node.append(onnx.helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    changed.graph.output[0].name = "probabilities"
    return changed


def test_a_classifier_without_gradients_is_probed_as_far_as_possible(onnx_classifier, classifier, data):
    blur = purifier.load("blur")
    assert raised(onnx_classifier, blur, data) == []
    assert names(raised(with_softmax(onnx_classifier), blur, data)) == {"probabilities"}


def test_no_attack_is_judged_where_no_image_is_right(classifier, data):
    pixels, _ = data.batch(range(len(data)))
    with torch.no_grad():
        wrong = ImageData("wrong", pixels, classifier(pixels).argmin(1))
    assert names(raised(classifier, Broken(), wrong)) <= {"set-up"}


def test_budget_0_and_few_images_raise_no_flag(classifier, data):
    assert raised(classifier, Broken(), data, Threat("linf", 0), count=3) == []


def test_kernels_that_round_some_steps_apart_are_no_disagreement(onnx_classifier, data, monkeypatch):
    model = onnx.ModelProto.FromString(onnx_classifier.SerializeToString())
    model.graph.node[-1].output[0] = "exact"
    model.graph.node.append(onnx.helper.make_node("Round", ["exact"], ["logits"]))
    right, steps = WhiteBox.forward, torch.tensor([0.7, -0.7]).repeat(5)
    monkeypatch.setattr(WhiteBox, "forward", lambda self, pixels: right(self, pixels) + steps)
    assert probed(guard(model, Broken()), data) == []
