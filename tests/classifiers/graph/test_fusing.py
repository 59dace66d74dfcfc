"""Patterns become one step, and what comes near a pattern does not."""

from __future__ import annotations

import onnx
import pytest
import torch

from peers import check_agreement
from purifier.classifiers.graph.module import GraphModule

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
CONSTANTS = """
    half = Constant <value = float {0.5}> ()
    one = Constant <value = float {1.0}> ()
    root = Constant <value = float {1.4142135}> ()
    two = Constant <value = float {2.0}> ()
    epsilon = Constant <value = float {0.001}> ()
    weight = Constant <value = float[4] {1.0, 2.0, -1.0, 0.5}> ()
    bias = Constant <value = float[4] {0.1, 0.2, 0.3, 0.4}> ()
    matrix = Constant <value = float[4, 4] {1.0, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6, 5, 4, 3, 2}> ()
"""
GELU = "a = Div (image, root) b = Erf (a) c = Add (b, one)"
CENTRED = "m = ReduceMean <axes = [-1]> (image) d = Sub (image, m)"
NORM = CENTRED + " s = Pow (d, two) v = ReduceMean <axes = [-1]> (s) w = Add (v, epsilon) r = Sqrt (w) n = Div (d, r)"
SCORES = "t = Transpose <perm = [0, 1, 3, 2]> (image) q = Mul (image, half) k = Mul (t, two) s = MatMul (q, k)"
FUSED = {
    "gelu, half last": GELU + " d = Mul (image, c) logits = Mul (d, half)",
    "gelu, half first": GELU + " d = Mul (half, image) logits = Mul (d, c)",
    "gelu, half inside": GELU + " d = Mul (c, half) logits = Mul (d, image)",
    "silu": "s = Sigmoid (image) logits = Mul (image, s)",
    "hard swish": "s = HardSigmoid <alpha = 0.16666667, beta = 0.5> (image) logits = Mul (s, image)",
    "layer norm": NORM + " p = Mul (n, weight) logits = Add (p, bias)",
    "linear": "p = MatMul (image, matrix) logits = Add (bias, p)",
    "attention": SCORES + " p = Softmax <axis = -1> (s) logits = MatMul (p, image)",
    "attention, mask": SCORES + " u = Add (s, matrix) p = Softmax <axis = 3> (u) logits = MatMul (p, image)",
}
NOT_FUSED = {
    "gelu of something else": GELU + " f = Neg (image) d = Mul (f, c) logits = Mul (d, half)",
    "another root": "a = Div (image, two) b = Erf (a) c = Add (b, one) d = Mul (image, c) logits = Mul (d, half)",
    "another gate": "f = Neg (image) s = Sigmoid (f) logits = Mul (image, s)",
    "another hard swish": "s = HardSigmoid (image) logits = Mul (s, image)",
    "another variance": CENTRED
    + """
        s = Mul (d, image) v = ReduceMean <axes = [-1]> (s) w = Add (v, two) r = Sqrt (w) n = Div (d, r)
        p = Mul (n, weight) logits = Add (p, bias)""",
    "softmax over rows": SCORES + " p = Softmax <axis = 2> (s) logits = MatMul (p, image)",
    "bias of a matrix": "p = MatMul (image, matrix) logits = Add (matrix, p)",
}


def parsed(body: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f"{HEAD} net (float[2, 3, 4, 4] image) => (float[2, 3, 4, 4] logits) {{ {CONSTANTS} {body} }}"
    )


def image() -> torch.Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FUSED)
def test_patterns_become_one_step_with_the_same_values_and_gradients(name: str) -> None:
    model = parsed(FUSED[name])
    check_agreement(model, {"image": image().numpy()})
    module = GraphModule(model)
    assert module.count_steps() == (2 if name.startswith("attention") else 1)
    leaf = image().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda given: module.double()(given)["logits"], [leaf], fast_mode=True)


@pytest.mark.parametrize("name", NOT_FUSED)
def test_what_is_near_a_pattern_is_computed_as_it_is(name: str) -> None:
    model = parsed(NOT_FUSED[name])
    check_agreement(model, {"image": image().numpy()})
    assert GraphModule(model).count_steps() > 1


def test_steps_that_others_read_stay() -> None:
    model = parsed(FUSED["gelu, half last"])
    model.graph.output.append(onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, None))
    check_agreement(model, {"image": image().numpy()})
