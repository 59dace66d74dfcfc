"""Shared by the audit's tests: a classifier as a module and as ONNX, its images, and a report."""

from __future__ import annotations

import onnx
import pytest

from audit_helpers import COUNT, PGD, NearestMean, as_linear_onnx
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
def onnx_classifier(classifier) -> onnx.ModelProto:
    return as_linear_onnx(classifier.head.weight.detach().numpy(), classifier.head.bias.detach().numpy())
