"""What an audit says of a wrong set-up, read back as a user would type it."""

from __future__ import annotations

import re

import pytest
import torch
from flag_helpers import names, probed
from torch import nn

import purifier
from broken import (
    Behind,
    Broken,
)
from purifier.auditing.audit import audit
from purifier.auditing.likely_causes import _renumbering
from purifier.auditing.report import Flag
from purifier.cli.options import read_preprocessing_option
from purifier.data.images import ImageData
from purifier.data.loading import load_data
from purifier.data.pixels import Preprocessing
from purifier.guards.guard import guard

pytestmark = pytest.mark.usefixtures("one_thread")


def typed(flag: Flag) -> Preprocessing:
    """What the flag tells the user to type, read as the command line and as Python read it."""
    option, code = re.search(r'--preprocessing "([^"]*)", in Python preprocessing=(\S.*)$', flag.evidence).groups()
    found = read_preprocessing_option(option)
    assert found == eval(code, {"purifier": purifier})  # noqa: S307 - what a user would run
    return found


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


class Flipped(nn.Module):
    """Images (N, H, W, C) as (N, C, H, W)."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.permute(0, 3, 1, 2)


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
