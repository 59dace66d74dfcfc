"""Shared by the audit's tests: a classifier as a module and as ONNX, its images, and a report."""

from __future__ import annotations

import onnx
import pytest

from audit_helpers import COUNT, PGD, NearestMean
from purifier.auditing.audit import audit
from purifier.auditing.report import AuditReport
from purifier.data.images import ImageData
from purifier.data.loading import load_data
from purifier.guards.guard import guard


@pytest.fixture(scope="session")
def classifier() -> NearestMean:
    return NearestMean().eval()


@pytest.fixture(scope="session")
def data() -> ImageData:
    return load_data(f"fashion-mnist:test:{COUNT}")


@pytest.fixture(scope="session")
def report(classifier, data) -> AuditReport:
    return audit(guard(classifier, "blur"), data, eps=0.05, attacks=(PGD, "fgsm"))


@pytest.fixture(scope="session")
def onnx_classifier(classifier, tmp_path_factory) -> onnx.ModelProto:
    weight, bias = classifier.head.weight.detach().numpy(), classifier.head.bias.detach().numpy()
    nodes = [
        onnx.helper.make_node("Flatten", ["images"], ["flat"], axis=1),
        onnx.helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"], transB=1),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "nearest-mean",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["n", 1, 28, 28])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", 10])],
        [onnx.numpy_helper.from_array(weight, "weight"), onnx.numpy_helper.from_array(bias, "bias")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
