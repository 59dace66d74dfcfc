"""What the audit's tests share: made-up attacks and purifiers, a classifier, and ways to read a report."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx
import torch
from rich.console import Console
from torch import Tensor, nn

import purifier
from purifier import Attack
from purifier.attacking.specs import read_attack
from purifier.auditing.audit import audit
from purifier.auditing.report import AuditReport
from purifier.auditing.table import print_report
from purifier.data.loading import load_data
from purifier.guards.guard import guard
from purifier.seeding import SampleGenerator

COUNT = 60
PGD = "pgd:steps=5"


@dataclass(frozen=True)
class NoConfig:
    pass


class Noisy(purifier.Purifier):
    Config, gradient = NoConfig, "exact"

    def draw(self, pixels: Tensor, generator: SampleGenerator) -> Tensor:
        return generator.normal(pixels.shape[1:], pixels)

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels if noise is None else (pixels + 0.3 * noise).clamp(0, 1)


class Masking(purifier.Purifier):
    """A broken defence: it hides its gradient by rounding and filters nothing."""

    Config, gradient = NoConfig, "exact"

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return (pixels * 255).round() / 255


@dataclass(frozen=True)
class Give(Attack):
    """Returns made-up images."""

    make: object = None
    needs: ClassVar[str] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")

    def perturb(self, target, pixels, labels, threat, generator):
        return self.make(pixels, labels)


@dataclass(frozen=True)
class OnlySome(Attack):
    """FGSM on the images of some classes, nothing on the others."""

    parity: int = 0
    needs: ClassVar[str] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf",)

    def perturb(self, target, pixels, labels, threat, generator):
        found = read_attack("fgsm").attack.perturb(target, pixels, labels, threat, generator)
        return torch.where((labels % 2 == self.parity).view(-1, 1, 1, 1), found, pixels)


@dataclass(frozen=True)
class Queries(Attack):
    """Random noise, kept where it changes the prediction."""

    needs: ClassVar[str] = "scores"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")

    def perturb(self, target, pixels, labels, threat, generator):
        sign = 2 * (generator.uniform(pixels.shape[1:], pixels) > 0.5) - 1
        tried = threat.project(pixels + threat.eps * sign, pixels)
        return torch.where((target(tried).argmax(1) != labels).view(-1, 1, 1, 1), tried, pixels)


class NearestMean(nn.Module):
    """The nearest class mean, a linear classifier: real, and made without training."""

    def __init__(self) -> None:
        super().__init__()
        means = _class_means().clone()
        self.head = nn.Linear(784, 10)
        self.head.weight.data, self.head.bias.data = means, -0.5 * means.square().sum(1)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.drop(images.flatten(1)))


@functools.cache
def _class_means() -> Tensor:
    """The mean image of each class, (10, 784)."""
    train = load_data("fashion-mnist:train:2000")
    pixels, labels = train.batch(range(len(train)))
    return torch.stack([pixels[labels == k].mean(0).flatten() for k in range(10)])


def as_linear_onnx(weight: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    """A linear classifier of images (n, 1, 28, 28), with weights (K, 784) and biases (K,)."""
    nodes = [
        onnx.helper.make_node("Flatten", ["images"], ["flat"], axis=1),
        onnx.helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"], transB=1),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "linear",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["n", 1, 28, 28])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", len(bias)])],
        [onnx.numpy_helper.from_array(weight, "weight"), onnx.numpy_helper.from_array(bias, "bias")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)


def audit_quickly(**options) -> AuditReport:
    """A small audit of the blur purifier: one budget, one attack and few probes by default."""
    settings = {"eps": 0.05, "attacks": ("fgsm",), "probes": 8, **options}
    return audit(guard(NearestMean(), "blur"), load_data(f"fashion-mnist:test:{COUNT}"), **settings)


def rows(report: AuditReport, **wanted) -> list:
    return [row for row in report.rows if all(getattr(row, key) == value for key, value in wanted.items())]


def correct(report: AuditReport, **wanted) -> float:
    (row,) = rows(report, **wanted)
    return row.result.correct


def worst(report: AuditReport, model: str, scope: str) -> float:
    (case,) = (case for case in report.worst_case if case.model == model and case.scope == scope)
    return case.result.correct


def comparable(report: AuditReport) -> list:
    return [replace(row, seconds=0.0) for row in report.rows]


def printed(report: AuditReport, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_report(report, console)
    return console.file.getvalue()


class Ends(BaseException):
    """An author's class that no ``except Exception`` catches."""
