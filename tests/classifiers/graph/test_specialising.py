"""What the shapes of the inputs determine is computed once for each of them."""

from __future__ import annotations

import copy

import onnx
import pytest
import torch

from peers import by_runtime
from purifier.classifiers.graph.module import GraphModule

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[N, C, H, W] image) => (float[N, M] logits) {
        shape = Shape (image)
        first = Constant <value = int64[1] {0}> ()
        count = Gather (shape, first)
        rest = Constant <value = int64[1] {-1}> ()
        sizes = Concat <axis = 0> (count, rest)
        flat = Reshape (image, sizes)
        width = Constant <value = int64[1] {3}> ()
        last = Gather (shape, width)
        real = Cast <to = 1> (last)
        scale = Sqrt (real)
        logits = Div (flat, scale)
    }"""
BY_DATA = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[N] image) => (float[M] logits) {
        zero = Constant <value = float {0.0}> ()
        large = Greater (image, zero)
        kept = Compress <axis = 0> (image, large)
        shape = Shape (kept)
        real = Cast <to = 1> (shape)
        logits = Mul (kept, real)
    }"""


def test_each_shape_has_its_own_values() -> None:
    model = onnx.parser.parse_model(TEXT)
    module = GraphModule(model)
    for shape in 2 * [(2, 3, 4, 5), (1, 3, 4, 5), (2, 3, 4, 7)]:
        given = torch.rand(shape)
        expected = by_runtime(model, {"image": given.numpy()})["logits"]
        assert torch.allclose(module(given)["logits"], torch.from_numpy(expected))


def test_sizes_that_depend_on_the_values_are_computed_each_time() -> None:
    module = GraphModule(onnx.parser.parse_model(BY_DATA))
    assert module(torch.tensor([1.0, -1.0, 2.0]))["logits"].tolist() == [2, 4]
    assert module(torch.tensor([1.0, 1.0, 2.0]))["logits"].tolist() == [3, 3, 6]


def test_nothing_is_kept_that_gradients_cannot_use() -> None:
    module = GraphModule(onnx.parser.parse_model(TEXT))
    with torch.inference_mode():
        module(torch.rand(2, 3, 4, 5))
    leaf = torch.rand(2, 3, 4, 5, requires_grad=True)
    for _ in range(2):
        (gradient,) = torch.autograd.grad(module(leaf)["logits"].sum(), leaf)
        assert torch.allclose(gradient, torch.full_like(gradient, 5**-0.5))


def test_a_conversion_computes_them_anew() -> None:
    module = GraphModule(onnx.parser.parse_model(TEXT))
    given = torch.rand(2, 3, 4, 5)
    module(given)
    exact = copy.deepcopy(module).double()(given.double())["logits"]
    assert torch.equal(exact, given.double().flatten(1) / torch.tensor(5.0, dtype=torch.float64).sqrt())


@pytest.mark.parametrize("count", [20])
def test_few_shapes_are_kept(count: int) -> None:
    module = GraphModule(onnx.parser.parse_model(TEXT))
    for size in range(1, count):
        module(torch.rand(size, 1, 2, 2))
    assert len(module._specialised) <= 8
