"""What certify() by bounds does not cover, and bounds that break their contract."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_certified import random_certified, small_certified
from torch import Tensor, nn

import purifier
from nets import trained
from purifier.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")
DATA, COUNT = "demo:60", 60


@pytest.fixture(scope="module")
def guarded() -> nn.Module:
    return purifier.guard(trained("net"), small_certified())


class Renamed(nn.Module):
    """The classifier `net` with two classes exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trained("net")

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits[:, [0, 1, 3, 2, 4, 5, 6, 7, 8, 9]]


class OfBytes(nn.Module):
    """The classifier `net` for images of 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trained("net")

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images.float() / 255)
        return logits


class Undecided(nn.Module):
    """Gives all classes the same logit."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :1].expand(-1, 10) * 1.0


@pytest.mark.parametrize(
    ("classifier", "says"),
    [
        (Renamed(), "answers that of component 2 with class 3, 3 with class 2; train the purifier for this classifier"),
        (Undecided(), "component 0 with no class clearly, 1 with no class clearly, .* and 7 others"),
    ],
)
def test_a_classifier_that_answers_components_wrongly_is_named(classifier: nn.Module, says: str) -> None:
    guarded = purifier.guard(classifier, small_certified())
    with pytest.raises(ConfigError, match=says):
        purifier.certify(guarded, DATA)
    report = purifier.audit(guarded, DATA, attacks=())
    assert report.certificates == [] and "certificates: the classifier must answer" in report.left_out[0]


def test_what_bounds_do_not_cover_is_an_error(guarded: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="norm: Certified has bounds for linf, l2, got 'l1'"):
        purifier.certify(guarded, DATA, norm="l1")
    for eps in (-0.1, float("nan")):
        with pytest.raises(ConfigError, match="eps must be"):
            purifier.certify(guarded, DATA, eps=eps)
    for eps in ([], "much", [0.1, 0.1]):
        with pytest.raises(ConfigError, match="eps: expected one or more different budgets"):
            purifier.certify(guarded, DATA, eps=eps)
    with pytest.raises(ConfigError, match="the purifier Vae has no bounds; randomised smoothing needs none"):
        purifier.certify(purifier.guard(trained("net"), "demo-plain"), DATA)
    with pytest.raises(ConfigError, match="smoothing finds radii in l2; leave norm and eps out"):
        purifier.certify(guarded, DATA, sigma=0.1, norm="linf")
    calibrated = small_certified()
    purifier.calibrate(calibrated, "demo:40", fpr=0.1)
    rejecting = purifier.guard(trained("net"), calibrated, on_reject="abstain")
    with pytest.raises(ConfigError, match="bounds do not cover rejection"):
        purifier.certify(rejecting, DATA)
    alone = purifier.guard(trained("net"), "identity")
    path = purifier.export(alone, tmp_path / "net.onnx", image_shape=(1, 28, 28)).path
    session = purifier.guard(path, small_certified())
    session.get_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    with pytest.raises(ConfigError, match=r"CUDAExecutionProvider, .* may compute with less.*providers=\['CPUEx"):
        purifier.certify(session, DATA)
    taken = purifier.Preprocessing(dtype="uint8", scale=255)
    bytes_ = purifier.guard(OfBytes(), small_certified(), preprocessing=taken)
    with pytest.raises(ConfigError, match="takes images of uint8, so that the guard rounds pixels"):
        purifier.certify(bytes_, DATA)
    with pytest.raises(ConfigError, match="eps must be at most 1 for linf"):
        purifier.certify(guarded, DATA, eps=1.1)
    for name in ("samples", "first", "alpha"):
        with pytest.raises(ConfigError, match=f"{name}: for randomised smoothing only; give sigma"):
            purifier.certify(guarded, DATA, **{name: 1})
    half = purifier.guard(trained("net"), small_certified())
    half.purifier.half()
    with pytest.raises(ConfigError, match=r"bounds hold for float32, but the purifier's weights are torch.float16"):
        purifier.certify(half, DATA)


@pytest.mark.parametrize(
    ("reachable", "says"),
    [
        (lambda *given: torch.zeros(len(given[1]), 10, dtype=torch.bool), "must find an output for each image"),
        (lambda *given: torch.ones(len(given[1]), 1, dtype=torch.bool), r"must return bool \(60, 10\)"),
        (lambda *given: torch.ones(len(given[1]), 10), r"must return bool \(60, 10\)"),
        (lambda *given: 1 / 0, "the bounds of Certified fail .*division by zero.*; fix outputs"),
    ],
)
def test_bounds_that_break_their_contract_are_errors(reachable, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = small_certified()
    guarded = purifier.guard(trained("net"), broken)
    monkeypatch.setattr(type(broken), "reachable", reachable)
    with pytest.raises(purifier.PurifierError, match=says):
        purifier.certify(guarded, DATA)


def test_scores_that_may_overflow_in_float32_are_not_certified(images) -> None:
    pixels, _ = images
    made = random_certified((1, 28, 28), channels=4, hidden=8)
    eps = torch.full((len(pixels),), 1e-9)
    assert not made.reachable(pixels, "linf", eps).all()
    with torch.no_grad():
        made.maps[0].weight.mul_(1e19)
        made.hidden.weight.mul_(1e19)
    assert made.eval().reachable(pixels, "linf", eps).all()


@pytest.mark.parametrize("outputs", [torch.full((10, 1, 28, 28), torch.nan), torch.zeros(0, 1, 28, 28)])
def test_outputs_that_are_no_images_are_errors(outputs: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = small_certified()
    monkeypatch.setattr(type(broken), "outputs", lambda self: outputs)
    with pytest.raises(purifier.PurifierError, match="outputs must return one or more images in"):
        purifier.certify(purifier.guard(trained("net"), broken), DATA)
