"""ONNX classifiers with gradients by torch: against the torch originals, and models that have none."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from binary_nets import Binary, as_onnx
from onnx import ModelProto, TensorProto, helper
from onnxruntime.quantization import quantize_dynamic
from torch import Tensor, nn

import purifier
from nets import trained
from onnx_models import FLOAT, WEIGHT, linear, model_of
from purifier.classifiers.pixel_classifier import OnnxPixelClassifier
from purifier.data.pixels import Preprocessing
from purifier.errors import ConfigError, GradientError
from purifier.onnx.torch_export import export_module
from purifier.output import Output


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
    classifier = OnnxPixelClassifier(exported(net, tmp_path / "net.onnx", batch=batch), Preprocessing())
    pixels = images[0][:count]
    assert torch.allclose(classifier(pixels), net(pixels), atol=1e-4)
    ours, theirs = both(classifier, net, pixels)
    assert torch.allclose(ours, theirs, atol=1e-4) and theirs.abs().max() > 0.1
    assert classifier.differentiable and not classifier.surrogates


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
    classifiers = OnnxPixelClassifier(model, Preprocessing(), output=output), Binary("logits")
    leaves = [images[0][:40].clone().requires_grad_() for _ in classifiers]
    found = [classifier(leaf).diff(dim=1) for classifier, leaf in zip(classifiers, leaves, strict=True)]
    assert torch.allclose(*found, atol=1e-4)
    ours, theirs = (torch.autograd.grad(out.sum(), leaf)[0] for out, leaf in zip(found, leaves, strict=True))
    assert torch.allclose(ours, theirs, atol=1e-3, rtol=1e-3) and theirs.abs().max() > 0.1


def test_gradients_go_through_the_preprocessing(images, tmp_path):
    net, wanted = trained("net"), Preprocessing(mean=(0.3,), std=(0.5,), scale=2.0)
    classifier = OnnxPixelClassifier(exported(net, tmp_path / "net.onnx"), wanted)
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
    classifier = OnnxPixelClassifier(linear(opset=opset), Preprocessing())
    pixels = torch.rand(2, 3, 8, 8, requires_grad=True)
    (found,) = torch.autograd.grad(classifier(pixels)[:, 2].sum(), pixels)
    assert np.allclose(found.numpy(), WEIGHT[:, 2].reshape(1, 3, 8, 8), atol=1e-5)


def test_logits_without_gradients_are_those_of_onnx_runtime(images, tmp_path):
    classifier = OnnxPixelClassifier(exported(trained("net"), tmp_path / "net.onnx"), Preprocessing())
    pixels = images[0][:4]
    by_runtime = classifier.verdict(pixels).logits
    assert torch.equal(classifier(pixels), by_runtime)
    leaf = pixels.clone().requires_grad_()
    with torch.no_grad():
        assert torch.equal(classifier(leaf), by_runtime)
    assert classifier.white_box is None  # nobody has asked for gradients
    torch.testing.assert_close(classifier(leaf), by_runtime, atol=1e-4, rtol=1e-4)
    assert classifier.double()(pixels.double()).dtype == torch.float64


def test_images_that_are_rounded_have_a_straight_through_gradient():
    nodes = [
        helper.make_node("Cast", ["photo"], ["cast"], to=FLOAT),
        helper.make_node("Flatten", ["cast"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    model = model_of(
        nodes,
        inputs=[("photo", TensorProto.UINT8, ["N", 3, 8, 8])],
        outputs=[("logits", FLOAT, ["N", 5])],
        initializers={"weight": WEIGHT},
    )
    classifier = OnnxPixelClassifier(model, Preprocessing(scale=255.0, dtype="uint8"))
    assert classifier.differentiable and classifier.surrogates == ("uint8 input",)
    pixels = torch.rand(2, 3, 8, 8, requires_grad=True)
    (found,) = torch.autograd.grad(classifier(pixels)[:, 2].sum(), pixels)
    assert np.allclose(found.numpy(), 255 * WEIGHT[:, 2].reshape(1, 3, 8, 8), atol=1e-2)


def test_somebody_elses_output_may_be_called_like_the_score():
    model = linear()
    model.graph.node[1].output[0] = model.graph.output[0].name = "purifier_score"
    classifier = OnnxPixelClassifier(model, Preprocessing())
    pixels = torch.rand(2, 3, 8, 8)
    assert classifier.differentiable and not classifier.scores and not classifier.marks
    assert np.allclose(classifier(pixels).numpy(), pixels.flatten(1).numpy() @ WEIGHT, atol=1e-4)


def test_an_operator_without_support_leaves_queries_only_and_is_named():
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["sums"]),
        helper.make_node("RandomUniformLike", ["sums"], ["noise"], low=0.0, high=1e-6, seed=1.0),
        helper.make_node("Add", ["sums", "noise"], ["logits"]),
    ]
    model = model_of(
        nodes,
        inputs=[("images", FLOAT, ["N", 3, 8, 8])],
        outputs=[("logits", FLOAT, ["N", 5])],
        initializers={"weight": WEIGHT},
    )
    classifier = OnnxPixelClassifier(model, Preprocessing())
    if not classifier.differentiable:
        assert "RandomUniformLike" in classifier.queries_only
    labels = OnnxPixelClassifier(linear(), Preprocessing())
    labels.labels_only = True
    assert not labels.differentiable and "a class and nothing else" in labels.queries_only


def rows_of(model: Any, **options: Any) -> list[tuple[Any, ...]]:
    report = purifier.audit(model, "demo:20", attacks=["pgd:steps=5"], eps=0.05, probes=6, **options)
    assert not [flag for flag in report.flags if flag.name == "gradient-wrong"]
    return [(row.model, row.attack, row.route, row.result) for row in report.rows]


def test_audits_find_what_they_find_on_the_torch_original(tmp_path):
    exported(trained("net"), tmp_path / "net.onnx")
    ours = rows_of(purifier.guard(tmp_path / "net.onnx", "demo-plain"))
    assert ours == rows_of(purifier.guard(trained("net"), "demo-plain"))
    assert {route for *_, route, _ in ours} == {None, "exact", "bpda", "oblivious"}


def test_an_exported_guard_is_attacked_through_its_purifier(tmp_path):
    guarded = purifier.guard(trained("net"), "demo-plain")
    path = purifier.export(guarded, tmp_path / "guarded.onnx").path
    alone = {(attack, route): result for _, attack, route, result in rows_of(path)}
    whole = rows_of(guarded, routes=["exact"])
    assert alone == {(attack, route): result for model, attack, route, result in whole if model == "guarded"}


def test_a_quantised_classifier_is_attacked_along_bpda(tmp_path):
    model = export_module(trained("net"), [torch.rand(2, 1, 28, 28)], free=[[0]], inputs=["image"], outputs=["logits"])
    onnx.save(model, tmp_path / "net.onnx")
    quantize_dynamic(tmp_path / "net.onnx", tmp_path / "small.onnx")
    guarded = purifier.guard(tmp_path / "small.onnx", "demo-plain")
    found = rows_of(guarded)
    assert {(model, route) for model, attack, route, _ in found if attack != "none"} == {
        ("guarded", "bpda"),
        ("undefended", "bpda"),
        ("guarded", "oblivious"),
    }
    shares = {model: result.share for model, _, route, result in found if route == "bpda"}
    clean = {model: result.share for model, attack, _, result in found if attack == "none"}
    assert shares["guarded"] < clean["guarded"] and shares["undefended"] < clean["undefended"]
    with pytest.raises(GradientError, match="no exact gradient, because .* round; use the route bpda"):
        rows_of(guarded, routes=["exact"])


@pytest.mark.parametrize("asked", [False, True], ids=["unasked", "asked"])
def test_a_copy_has_gradients_of_its_own(asked, images, tmp_path):
    classifier = OnnxPixelClassifier(exported(trained("net"), tmp_path / "net.onnx"), Preprocessing())
    assert not asked or classifier.differentiable
    copied = copy.deepcopy(classifier).double()
    pixels = images[0][:3]
    ours, theirs = both(copied, trained("net"), pixels)
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert copied(pixels.double()).dtype == torch.float64
    assert classifier.differentiable and classifier(pixels.clone().requires_grad_()).dtype == torch.float32
    assert all(buffer.dtype == torch.float32 for buffer in classifier.buffers())


@pytest.mark.parametrize("asked", [False, True], ids=["unasked", "asked"])
def test_an_onnx_classifier_is_not_pickled(asked):
    classifier = OnnxPixelClassifier(linear(), Preprocessing())
    assert not asked or classifier.differentiable
    for write in (pickle.dumps, lambda one: torch.save(one, io.BytesIO())):
        with pytest.raises(ConfigError, match="cannot be pickled"):
            write(classifier)


def test_an_audit_checks_gradients_in_float64(tmp_path):
    exported(trained("net"), tmp_path / "net.onnx")
    for model in (tmp_path / "net.onnx", purifier.guard(tmp_path / "net.onnx", "demo-plain")):
        report = purifier.audit(model, "demo:12", attacks=["fgsm"], eps=0.05, probes=6)
        assert report.gradient_check == "float64"
        assert not {"gradient-wrong", "probe-failed"} & {flag.name for flag in report.flags}
