"""How far a gradient is from what ONNX Runtime computes, for ``onnx_gradients.py``."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from markdown_table import MISSING
from onnx import ModelProto, ValueInfoProto, numpy_helper
from torch import Tensor
from zoo_table import plain

from purifier.classifiers.graph.module import GraphModule

FINE, COARSE, PARTS = 0.3, 6.0, 24
"""L2 length of half a path, in multiples of the range of the pixels, the second for files that round; its parts."""
LEVELS, MOVED = 2, 0.01
"""How far an element of an integer image is moved, each way, and the share of elements that are, by their gradient."""
MEASURABLE, ROUGH_MEASURABLE = 1e-3, 0.1
"""The smallest change of logits on a path, as a share of their range, that shows well enough beside rounding."""
GROWTHS = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0)


@dataclasses.dataclass(frozen=True)
class Case:
    """A file, ready to be compared: ``images`` as the graph takes them, but floats."""

    module: GraphModule
    session: Any
    name: str
    images: Tensor
    scale: float
    others: Mapping[str, np.ndarray]

    def by_runtime(self, images: Tensor) -> dict[str, Any]:
        kind = next(value.type for value in self.session.get_inputs() if value.name == self.name)
        dtype = {"tensor(uint8)": np.uint8, "tensor(float16)": np.float16}.get(kind, np.float32)
        given = images.detach().double().numpy()
        array = (given.round() if dtype == np.uint8 else given).astype(dtype)
        found = self.session.run(None, {self.name: array, **self.others})
        return dict(zip([value.name for value in self.session.get_outputs()], found, strict=True))

    def by_torch(self, images: Tensor) -> dict[str, Any]:
        others = {name: torch.from_numpy(array) for name, array in self.others.items()}
        found: dict[str, Any] = self.module(**{self.name: images, **others})
        return found


def spread_of(values: Any) -> float:
    return max(float(values.max()) - float(values.min()), 1e-9)


def random_like(values: Tensor) -> Tensor:
    return torch.randn(values.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def sensitive(case: Case, model: ModelProto, answer: str) -> tuple[Case, str, str]:
    """A case that reacts to its images more than float32 rounds, what to look at, and what was done for that."""
    if case.module.straight_through[:1] == ("uint8 input",) or reacts(case, answer):
        return case, answer, MISSING
    for growth in GROWTHS if not case.module.straight_through else ():
        grown = with_model(case, with_larger_weights(model, growth), None)
        if reacts(grown, answer):
            return grown, answer, f"weights x {growth}"
    nodes = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    for place in range(len(nodes) - 1, -1, -max(1, len(nodes) // 16)):
        inner = with_model(case, model, nodes[place].input[0])
        if reacts(inner, nodes[place].input[0]):
            return inner, nodes[place].input[0], f"layer {place + 1} of {len(nodes)}"
    raise ValueError("no value in the graph reacts to the image")


def reacts(case: Case, answer: str) -> bool:
    found = case.by_torch(case.images)[answer].double()
    slope = float(gradient_at(case, case.images, answer, random_like(found)).norm())
    length, least = (COARSE, ROUGH_MEASURABLE) if case.module.straight_through else (FINE, MEASURABLE)
    return 2 * slope * case.scale * length > least * spread_of(found) * found.numel() ** 0.5


def with_larger_weights(model: ModelProto, growth: float) -> ModelProto:
    larger = ModelProto()
    larger.CopyFrom(model)
    for tensor in larger.graph.initializer:
        if len(tensor.dims) == 4:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(growth), tensor.name))
    return larger


def with_model(case: Case, model: ModelProto, shown: str | None) -> Case:
    """The case of another model, or with a value inside the graph as its only output."""
    if shown is None:
        module = GraphModule(model)
    else:
        inner = ModelProto()
        inner.CopyFrom(model)
        inner.graph.output.append(ValueInfoProto(name=shown))
        module, model = GraphModule(inner, [shown]), inner
    return dataclasses.replace(case, module=module, session=plain(model.SerializeToString()))


def error_along(case: Case, answer: str, upstream: Tensor, rough: bool) -> float:
    start = gradient_at(case, case.images, answer, upstream)
    if case.module.straight_through[:1] == ("uint8 input",):
        largest = start.abs() >= start.abs().flatten().kthvalue(int(start.numel() * (1 - MOVED))).values
        ahead, parts = LEVELS * start.sign() * largest, 2 * LEVELS
    else:
        ahead, parts = start / start.norm() * case.scale * (COARSE if rough else FINE), PARTS
    places = [2 * place / parts - 1 for place in range(parts + 1)]
    gradients = (gradient_at(case, case.images + place * ahead, answer, upstream) for place in places)
    slopes = [float((gradient * ahead).sum()) for gradient in gradients]
    expected = sum((first + second) / parts for first, second in itertools.pairwise(slopes))
    ends = [case.by_runtime(case.images + sign * ahead)[answer].astype(np.float64) for sign in (1, -1)]
    rise = float(((ends[0] - ends[1]) * upstream.numpy()).sum())
    return abs(rise - expected) / abs(expected)


def gradient_at(case: Case, images: Tensor, answer: str, upstream: Tensor) -> Tensor:
    """Of the sum of the logits times ``upstream``, float64, shaped like the images."""
    leaf = images.detach().float().requires_grad_()
    (gradient,) = torch.autograd.grad((case.by_torch(leaf)[answer].double() * upstream).sum(), leaf)
    return gradient.double()


def error_across(case: Case, answer: str, upstream: Tensor) -> float:
    """The smallest relative error over several lengths of step."""
    module, images = copy.deepcopy(case.module).double(), case.images.double()
    others = {name: torch.from_numpy(array) for name, array in case.others.items()}
    direction = torch.randn(case.images.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    direction = direction / direction.norm() * case.scale

    def value(given: Tensor) -> Tensor:
        found: Tensor = (module(**{case.name: given, **others})[answer] * upstream).sum()
        return found

    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    expected, errors = float((gradient * direction).sum()), []
    for step in (1e-3, 1e-4, 1e-5, 1e-6):
        with torch.no_grad():
            rise = float(value(images + step * direction) - value(images - step * direction)) / (2 * step)
        errors.append(abs(rise - expected) / max(abs(expected), 1e-300))
    return min(errors)
