"""self_check(): every broken guard raises its flags, no healthy one raises any."""

from __future__ import annotations

import copy
import re

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nets
import purifier
from broken import (
    Behind,
    Broken,
    DetachedFactor,
    HiddenRandom,
    Random,
    Reversed,
    StraightThrough,
    StubbornNorm,
    Surrogate,
    normalised,
)
from controls import CONTROLS, Control
from purifier import Threat
from purifier.attacking.target import is_random
from purifier.auditing import gradient_check
from purifier.auditing.audit import audit
from purifier.auditing.likely_causes import _renumbering
from purifier.auditing.memory_check import flags_of_memory
from purifier.auditing.parts import audited_parts
from purifier.auditing.reach_check import flags_of_reach
from purifier.auditing.report import Flag
from purifier.auditing.self_checks import self_check
from purifier.classifiers.loading import load_classifier
from purifier.cli.options import read_preprocessing_option
from purifier.data.images import ImageData
from purifier.data.loading import load_data
from purifier.data.pixels import Preprocessing
from purifier.guards.guard import guard
from purifier.torch_tools.freezing import freeze

LINF = Threat("linf", 0.1)
pytestmark = pytest.mark.usefixtures("one_thread")


def raised(model, filter_, data: ImageData, *threats: Threat, count: int = 32, eot: int = 1) -> list[Flag]:
    return probed(guard(model, filter_), data, *threats, count=count, eot=eot)


def probed(given, data: ImageData, *threats: Threat, count: int = 32, eot: int = 1) -> list[Flag]:
    """The flags of a guard, or of a classifier alone, before anything is attacked."""
    parts = audited_parts(given)
    with freeze(parts.classifier, parts.purifier) as device:
        judgements = 5 if is_random(parts.purifier, data.batch(range(2))[0]) else 1
        setup = parts.setup(device, eot=eot, judgements=judgements)
        memory = list(flags_of_memory(setup, data, threats or (LINF,), count=count))
        return [*memory, *self_check(setup, data, threats or (LINF,), count=count).flags]


def typed(flag: Flag) -> Preprocessing:
    """What the flag tells the user to type, read as the command line and as Python read it."""
    option, code = re.search(r'--preprocessing "([^"]*)", in Python preprocessing=(\S.*)$', flag.evidence).groups()
    found = read_preprocessing_option(option)
    assert found == eval(code, {"purifier": purifier})  # noqa: S307 - what a user would run
    return found


def names(flags: list[Flag]) -> set[str]:
    return {flag.name for flag in flags}


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


class Floats(nn.Module):
    """Takes no doubles."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.float32
        return images


def test_a_module_without_doubles_is_checked_in_float32(classifier, data):
    before = Behind(classifier, before=Floats())
    assert raised(before, Broken(), data) == []
    flags = raised(before, StraightThrough(), data)
    assert names(flags) == {"gradient-wrong"} and "float32" in flags[0].evidence
    (flag,) = raised(before, DetachedFactor(), data)
    factor = float(re.search(r"directions are ([\d.]+) times what the gradient says", flag.evidence)[1])
    assert flag.name == "gradient-wrong" and factor == pytest.approx(2, abs=0.1)  # of pixels * pixels.detach()


class MaxPool(Broken):
    def purify(self, pixels, noise=None):
        return F.max_pool2d(pixels, 3, 1, 1)


class Median(Broken):
    def purify(self, pixels, noise=None):
        patches = F.unfold(F.pad(pixels, (1, 1, 1, 1), mode="reflect"), 3)
        return patches.view(len(pixels), 9, 28, 28).median(1, keepdim=True).values


@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float32), (torch.float32,)], ids=["both", "float32"])
@pytest.mark.parametrize("filter_", [MaxPool, Median, "demo", "vae:image_shape=1x28x28,channels=4,latent=8"])
@pytest.mark.parametrize("name", ["net", "hardened"])
def test_kinks_and_ties_are_no_wrong_gradients(name, filter_, dtypes, data, monkeypatch):
    kept = {dtype: gradient_check.PRECISIONS[dtype] for dtype in dtypes}
    monkeypatch.setattr(gradient_check, "PRECISIONS", kept)
    guarded = guard(nets.trained(name), filter_ if isinstance(filter_, str) else filter_())
    with freeze(guarded.classifier, guarded.purifier) as device:
        setup = audited_parts(guarded).setup(device)
        batch = setup.batch(data, range(32))
        assert list(gradient_check.flags_of_gradient(setup, batch, [LINF], [])) == []
        for threat in (LINF, Threat("linf", 1.0), Threat("l2", 1.5), Threat("l1", 10.0), Threat("linf", 0.0)):
            assert list(flags_of_reach(setup, batch, [threat])) == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_classifier_in_16_bits_has_no_wrong_gradient(dtype, data):
    half = copy.deepcopy(nets.trained("net")).to(getattr(torch, dtype))
    parts = audited_parts(half, preprocessing=Preprocessing(dtype=dtype))
    with freeze(parts.classifier, parts.purifier) as device:
        setup, precisions = parts.setup(device), []
        assert list(gradient_check.flags_of_gradient(setup, setup.batch(data, range(32)), [LINF], precisions)) == []
    assert precisions == ["float64"]


@pytest.mark.parametrize(("single", "precision"), [(False, "float64"), (True, "float32")])
def test_the_report_says_in_which_precision_gradients_were_checked(single, precision, classifier, data):
    model = Behind(classifier, before=Floats()) if single else classifier
    assert audit(model, data, attacks=("fgsm",), eps=0.05, probes=2).gradient_check == precision


def test_no_precision_is_named_where_no_gradient_was_checked(classifier, onnx_classifier, data):
    assert audit(classifier, data, attacks=()).gradient_check is None
    assert audit(onnx_classifier, data, attacks=("square:queries=2",), probes=2).gradient_check is None


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


@pytest.mark.parametrize("shift", [1, -1])
def test_labels_that_start_elsewhere_are_found_without_gradients_too(shift, onnx_classifier, data):
    middle = (data.labels > 0) & (data.labels < 9)
    pixels, labels = data.batch(middle.nonzero().squeeze(1).tolist())
    (flag,) = probed(guard(onnx_classifier, Broken()), ImageData("shifted", pixels, labels + shift))
    assert flag.name == "set-up" and f"one {'higher' if shift == 1 else 'lower'} than its classes" in flag.evidence


class BackToFront(nn.Module):
    """Images in the other order of colours, from 0 to 255."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[1] == 3
        return images.flip(1)[:, :1]


def test_a_wrong_order_of_colours_is_found(classifier, data):
    pixels, labels = data.batch(range(len(data)))
    colour = ImageData("colour", torch.cat([pixels, 0 * pixels, 0 * pixels], 1), labels)
    model = Behind(classifier, before=BackToFront())
    (flag,) = probed(guard(model, Broken()), colour)
    assert flag.name == "set-up" and flag.evidence.startswith("the classifier wants BGR images, not RGB: ")
    assert typed(flag) == Preprocessing(channels="BGR")
    assert probed(guard(model, Broken(), preprocessing=Preprocessing(channels="BGR")), colour) == []


class Moves(nn.Module):
    """Undoes a mean and a deviation, so that the classifier behind wants images to which they were applied."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], scale: float = 1.0) -> None:
        super().__init__()
        self.scale, self.added = scale, torch.tensor(mean).view(-1, 1, 1)
        self.factor = torch.tensor(std).view(-1, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return ((images * self.factor + self.added) / self.scale)[:, -1:]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (Preprocessing(), Preprocessing(mean=(0.286,), std=(0.353,))),
        (Preprocessing(scale=255.0), Preprocessing()),
        (Preprocessing(scale=255.0), Preprocessing(mean=(0.1307 * 255,), std=(0.3081 * 255,), scale=255.0)),
        (Preprocessing(), Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))),
        (
            Preprocessing(layout="NHWC"),
            Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), layout="NHWC"),
        ),
        (Preprocessing(layout="NHWC"), Preprocessing(layout="NHWC", scale=255.0)),
    ],
)
def test_the_evidence_says_what_to_type(given, wanted, classifier, data):
    pixels, labels = data.batch(range(len(data)))
    channels = max(1, len(wanted.mean))
    images = ImageData("images", pixels.expand(-1, channels, -1, -1).contiguous(), labels)
    steps = [Moves(wanted.mean or (0.0,), wanted.std or (1.0,), wanted.scale)]
    if wanted.layout == "NHWC":
        steps.insert(0, Flipped())
    model = nn.Sequential(*steps, classifier)
    (flag,) = [one for one in audit(model, images, attacks=(), preprocessing=given).flags if one.name == "set-up"]
    found = typed(flag)
    assert found.layout == wanted.layout and found.scale == wanted.scale and found.channels == wanted.channels
    assert found.mean == pytest.approx(wanted.mean) and found.std == pytest.approx(wanted.std)
    assert "set-up" not in names(audit(model, images, attacks=(), preprocessing=found).flags)


class Flipped(nn.Module):
    """Images (N, H, W, C) as (N, C, H, W)."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "change", [lambda labels: labels + 1, lambda labels: labels - 1, lambda labels: (3 * labels + 1) % 10]
)
def test_the_evidence_renumbers_the_labels(change, classifier):
    pixels, labels = load_data("fashion-mnist:test:200").batch(range(200))
    kept = (change(labels) >= 0) & (change(labels) < 10)
    wrong = ImageData("renumbered", pixels[kept], change(labels[kept]))
    (flag,) = [one for one in audit(classifier, wrong, attacks=()).flags if one.name == "set-up"]
    code = re.search(r"in Python data\.labels = ([^;]*);", flag.evidence)[1]
    fixed = eval(code, {"torch": torch, "data": wrong})  # noqa: S307 - what a user would run
    assert (fixed == labels[kept]).double().mean() > 0.95


def test_an_order_of_many_classes_is_shown_in_part():
    many = torch.arange(40).flip(0)
    said = _renumbering(many, torch.arange(40))
    assert said.startswith("renumber the labels of the data, label: class as in 0: 39, 1: 38, ")
    assert said.endswith("19: 20, ...")
    few = _renumbering(torch.tensor([2, -1, 0]), torch.tensor([0, 1, 2]))
    assert few == "renumber the labels of the data, label: class as in 0: 2, 2: 0"


def test_no_attack_is_judged_where_no_image_is_right(classifier, data):
    pixels, _ = data.batch(range(len(data)))
    with torch.no_grad():
        wrong = ImageData("wrong", pixels, classifier(pixels).argmin(1))
    assert names(raised(classifier, Broken(), wrong)) <= {"set-up"}


def test_budget_0_and_few_images_raise_no_flag(classifier, data):
    assert raised(classifier, Broken(), data, Threat("linf", 0), count=3) == []
