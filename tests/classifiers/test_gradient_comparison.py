"""Gradients that torch computes of an ONNX classifier are compared with ONNX Runtime before they are used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onnx_models import linear
from purifier.classifiers import white_box
from purifier.classifiers.pixel_classifier import OnnxPixelClassifier
from purifier.data.pixels import Preprocessing
from purifier.errors import ClassifierError


class Flipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, answer: Tensor) -> Tensor:
        return answer.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        return -upstream[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (Flipped.apply, "the gradient predicts a rise of"),
        (lambda answer: answer * 1.01, "torch's answers differ from ONNX Runtime's by"),
        (lambda answer: answer.detach(), "no gradient reaches the images"),
    ],
)
def test_wrong_answers_and_gradients_leave_queries_only(change, says, monkeypatch):
    right = white_box.WhiteBox.forward
    monkeypatch.setattr(white_box.WhiteBox, "forward", lambda self, pixels: change(right(self, pixels)))
    classifier = OnnxPixelClassifier(linear(), Preprocessing())
    assert not classifier.differentiable and says in classifier.queries_only
    pixels = torch.rand(2, 3, 8, 8)
    assert classifier(pixels.requires_grad_()).shape == (2, 5)


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_whoever_asks_first_may_want_no_gradients(without):
    classifier = OnnxPixelClassifier(linear(), Preprocessing())
    with without():
        assert classifier.differentiable
    pixels = torch.rand(2, 3, 8, 8, requires_grad=True)
    assert torch.autograd.grad(classifier(pixels).sum(), pixels)[0].abs().max() > 0


class Peaked(nn.Module):
    """Answers whose gradient is a narrow peak at 0.5, which says nothing about the rest of a path in its direction."""

    surrogates = ("Round",)
    preprocessing = Preprocessing()

    def __init__(self, change: Any = None) -> None:
        super().__init__()
        self.peak, self.slope = nn.functional.normalize(torch.randn(2, 192, generator=torch.Generator().manual_seed(0)))
        self.change = change

    def forward(self, pixels: Tensor) -> Tensor:
        moved = pixels.flatten(1) - 0.5
        value = 0.2 * moved @ self.slope + 0.005 * torch.tanh(moved @ self.peak / 0.002)
        answer = torch.stack([value, -value], 1)
        return answer if self.change is None else self.change(answer)


def test_a_peak_in_the_gradient_of_a_classifier_that_rounds_is_no_disagreement():
    pixels, right = torch.full((2, 3, 8, 8), 0.5), Peaked()
    by_runtime = torch.no_grad()(right)
    white_box.compare(right, by_runtime, pixels, by_runtime(pixels))
    with pytest.raises(ClassifierError, match="the gradient predicts a rise of"):
        white_box.compare(Peaked(Flipped.apply), by_runtime, pixels, by_runtime(pixels))
    half = Peaked(lambda answer: answer.detach() + 0.5 * (answer - answer.detach()))
    with pytest.raises(ClassifierError, match="the gradient predicts a rise of"):
        white_box.compare(half, by_runtime, pixels, by_runtime(pixels))


class Winding(Peaked):
    """Answers that turn many times on a long path, where a few gradients cannot follow them."""

    def forward(self, pixels: Tensor) -> Tensor:
        value = 4 * torch.sin(8 * (pixels.flatten(1) - 0.5) @ self.slope)
        answer = torch.stack([value, -value], 1)
        return answer if self.change is None else self.change(answer)


def test_a_short_path_shows_gradients_of_a_winding_classifier_that_rounds():
    pixels, right = torch.full((2, 3, 8, 8), 0.5), Winding()
    by_runtime = torch.no_grad()(right)
    white_box.compare(right, by_runtime, pixels, by_runtime(pixels))
    with pytest.raises(ClassifierError, match="the gradient predicts a rise of"):
        white_box.compare(Winding(Flipped.apply), by_runtime, pixels, by_runtime(pixels))
