"""Gradients of ONNX classifiers against torch's, and models that have none."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from binary_nets import Binary, as_onnx
from onnx import ModelProto, helper
from torch import Tensor, nn

from nets import trained
from onnx_models import FLOAT, WEIGHT, linear, model_of
from purifier.classifiers.onnx_gradient import OnnxGradientClassifier
from purifier.data.pixels import Preprocessing
from purifier.errors import ConfigError
from purifier.output import Output

onnx_ad = pytest.importorskip("onnx_ad")


def exported(module: nn.Module, path: Path, *, batch: int | None = None) -> ModelProto:
    dynamic = None if batch else [{0: torch.export.Dim("batch")}]
    images = (torch.rand(batch or 2, 1, 28, 28),)
    torch.onnx.export(
        module, images, path, dynamo=True, opset_version=18, dynamic_shapes=dynamic, external_data=False, verbose=False
    )
    return onnx.load(path)


def both(ours: nn.Module, theirs: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    upstream = torch.randn(len(pixels), 10, generator=torch.Generator().manual_seed(1))
    gradients = []
    for classifier in (ours, theirs):
        leaf = pixels.clone().requires_grad_()
        gradients.append(torch.autograd.grad((classifier(leaf) * upstream).sum(), leaf)[0])
    return gradients[0], gradients[1]


@pytest.mark.parametrize("batch", [None, 3], ids=["any batch", "batches of 3"])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_gradients_match_torch(batch, count, images, tmp_path):
    net = trained("net")
    classifier = OnnxGradientClassifier(exported(net, tmp_path / "net.onnx", batch=batch), Preprocessing())
    pixels = images[0][:count]
    assert torch.allclose(classifier(pixels), net(pixels), atol=1e-4)
    ours, theirs = both(classifier, net, pixels)
    assert torch.allclose(ours, theirs, atol=1e-4) and theirs.abs().max() > 0.1
    assert classifier.differentiable and "onnx-ad" in classifier.describe()


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("probabilities", (-1, 1)),
        ("binary-logit", (-1,)),
        ("binary-probability", (-1,)),
        ("binary-probability", (-1, 1)),
    ],
)
def test_gradients_of_every_kind_of_answer_match_torch(kind, shape, images, tmp_path):
    net = Binary(kind, shape, features=True)
    model, output = as_onnx(net, tmp_path / "net.onnx", ("feat", "out")), Output("out", kind)
    classifiers = OnnxGradientClassifier(model, Preprocessing(), output=output), Binary("logits")
    leaves = [images[0][:40].clone().requires_grad_() for _ in classifiers]
    found = [classifier(leaf).diff(dim=1) for classifier, leaf in zip(classifiers, leaves, strict=True)]
    assert torch.allclose(*found, atol=1e-4)
    ours, theirs = (torch.autograd.grad(out.sum(), leaf)[0] for out, leaf in zip(found, leaves, strict=True))
    assert torch.allclose(ours, theirs, atol=1e-3, rtol=1e-3) and theirs.abs().max() > 0.1


def test_gradients_go_through_the_preprocessing(images, tmp_path):
    net, wanted = trained("net"), Preprocessing(mean=(0.3,), std=(0.5,), scale=2.0)
    classifier = OnnxGradientClassifier(exported(net, tmp_path / "net.onnx"), wanted)
    pixels = images[0][:4]
    ours, theirs = both(classifier, nn.Sequential(_Apply(wanted), net), pixels)
    assert torch.allclose(ours, theirs, atol=1e-4) and theirs.abs().max() > 0.1


class _Apply(nn.Module):
    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing

    def forward(self, pixels: Tensor) -> Tensor:
        return self.preprocessing.to_classifier(pixels)


@pytest.mark.parametrize("opset", [11, 17])
def test_other_opsets_and_colours(opset):
    classifier = OnnxGradientClassifier(linear(opset=opset), Preprocessing())
    pixels = torch.rand(2, 3, 8, 8, requires_grad=True)
    (found,) = torch.autograd.grad(classifier(pixels)[:, 2].sum(), pixels)
    assert np.allclose(found.numpy(), WEIGHT[:, 2].reshape(1, 3, 8, 8), atol=1e-5)


def test_a_wrong_adjoint_is_an_error(monkeypatch):
    right = onnx_ad.reverse

    def wrong(*args: object, **kwargs: object) -> ModelProto:
        model = right(*args, **kwargs)
        last = model.graph.output[-1].name
        for node in model.graph.node:
            node.output[:] = ["before" if name == last else name for name in node.output]
        model.graph.node.append(helper.make_node("Neg", ["before"], [last]))
        return model

    monkeypatch.setattr(onnx_ad, "reverse", wrong)
    with pytest.raises(ConfigError, match=r"off by \d+% from finite differences, expected at most 5%; give the torch"):
        OnnxGradientClassifier(linear(), Preprocessing())


def test_an_adjoint_of_zeros_is_an_error(monkeypatch):
    monkeypatch.setattr(OnnxGradientClassifier, "pulled_back", lambda _, images, __: torch.zeros_like(images))
    with pytest.raises(ConfigError, match="gradient of this ONNX model is zero or NaN"):
        OnnxGradientClassifier(linear(), Preprocessing())


def test_weights_listed_as_inputs_are_not_images():
    model = linear()
    model.graph.input.append(helper.make_tensor_value_info("weight", FLOAT, WEIGHT.shape))
    pixels = torch.rand(2, 3, 8, 8, requires_grad=True)
    (found,) = torch.autograd.grad(OnnxGradientClassifier(model, Preprocessing())(pixels)[:, 1].sum(), pixels)
    assert np.allclose(found.numpy(), WEIGHT[:, 1].reshape(1, 3, 8, 8), atol=1e-5)


def test_channels_last_from_0_to_255():
    nodes = [
        helper.make_node("Transpose", ["images"], ["channels_first"], perm=[0, 3, 1, 2]),
        *linear().graph.node,
    ]
    nodes[1].input[0] = "channels_first"
    model = model_of(
        nodes,
        inputs=[("images", FLOAT, ["N", 8, 8, 3])],
        outputs=[("logits", FLOAT, ["N", 5])],
        initializers={"weight": WEIGHT},
    )
    classifier = OnnxGradientClassifier(model, Preprocessing(scale=255, layout="NHWC"))
    pixels = torch.rand(2, 3, 8, 8, requires_grad=True)
    (found,) = torch.autograd.grad(classifier(pixels)[:, 2].sum(), pixels)
    assert np.allclose(found.numpy(), 255 * WEIGHT[:, 2].reshape(1, 3, 8, 8), atol=1e-2)


def test_models_that_cannot_be_differentiated_are_errors_with_advice(monkeypatch):
    node = helper.make_node("Dropout", ["images"], ["flat"])
    unsized = model_of(
        [node, helper.make_node("GlobalAveragePool", ["flat"], ["logits"])],
        inputs=[("images", FLOAT, ["N", 3, "H", "W"])],
        outputs=[("logits", FLOAT, ["N", 3, 1, 1])],
    )
    with pytest.raises(ConfigError, match="need fixed height, width and channels"):
        OnnxGradientClassifier(unsized, Preprocessing())

    def unsupported(*_: object, **__: object) -> ModelProto:
        raise onnx_ad.UnsupportedOperator("no rule for Sorcery")

    with monkeypatch.context() as patched:
        patched.setattr(onnx_ad, "reverse", unsupported)
        with pytest.raises(ConfigError, match=r"cannot differentiate .*Sorcery.*recipe that needs no gradients"):
            OnnxGradientClassifier(linear(), Preprocessing())
    monkeypatch.setitem(sys.modules, "onnx_ad", None)
    with pytest.raises(ConfigError, match=r"need the package onnx-ad: pip install 'adversarial-purifier\[onnx-ad\]'"):
        OnnxGradientClassifier(linear(), Preprocessing())
