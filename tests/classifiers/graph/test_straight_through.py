"""Rounding has the gradient of the identity, and the module says where it uses that."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto

from peers import check_agreement
from purifier.classifiers.graph.module import GraphModule

HEAD = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'
QDQ = """
    scale = Constant <value = float {0.1}> ()
    zero = Constant <value = uint8 {10}> ()
    small = Constant <value = int8 {0}> ()
"""


def parsed(body: str, kind: str = "float", made: str = "float") -> ModelProto:
    return onnx.parser.parse_model(f"{HEAD}\nnet ({kind}[N, 4] image) => ({made}[N, M] logits) {{{body}}}")


CASES = {
    "quantise and back": (
        QDQ + "q = QuantizeLinear (image, scale, zero) logits = DequantizeLinear (q, scale, zero)",
        1,
    ),
    "cast": ("q = Cast <to = 3> (image) logits = Cast <to = 1> (q)", 1),
    "round": ("logits = Round (image)", 1),
    "floor": ("half = Constant <value = float {2.0}> () a = Floor (image) logits = Mul (a, half)", 2),
    "reshaped between": (
        QDQ
        + """
        q = QuantizeLinear (image, scale, zero)
        turned = Transpose (q)
        sizes = Constant <value = int64[2] {-1, 4}> ()
        back = Transpose (turned)
        shaped = Reshape (back, sizes)
        both = Concat <axis = 1> (shaped, q)
        logits = DequantizeLinear (both, scale, zero)
        """,
        2,
    ),
    "mixed with constants": (
        QDQ
        + """
        q = QuantizeLinear (image, scale, zero)
        level = Constant <value = float {0.5}> ()
        light = Greater (image, level)
        other = Constant <value = uint8[2, 4] {1, 2, 3, 4, 5, 6, 7, 8}> ()
        chosen = Where (light, q, other)
        both = Concat <axis = 1> (chosen, other)
        logits = DequantizeLinear (both, scale, zero)
        """,
        [[0, 0, 1, 1], [0, 1, 0, 1]],
    ),
    "MatMulInteger": (
        QDQ
        + """
        q = QuantizeLinear (image, scale, zero)
        w = Constant <value = int8[4, 2] {1, 0, 2, 0, 3, 0, 4, 1}> ()
        sums = MatMulInteger (q, w, zero, small)
        real = Cast <to = 1> (sums)
        logits = Mul (real, scale)
        """,
        (1, 2, 3, 5),
    ),
    "DynamicQuantizeLinear": (
        """
        q, s, z = DynamicQuantizeLinear (image)
        real = Cast <to = 1> (q)
        shift = Cast <to = 1> (z)
        centred = Sub (real, shift)
        logits = Mul (centred, s)
        """,
        1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_are_exact_and_gradients_those_without_rounding(name: str) -> None:
    body, slope = CASES[name]
    model = parsed(body)
    given = torch.tensor([[0.234, -0.61, 1.49, 2.23], [0.1, 0.77, -0.9, 1.13]])
    check_agreement(model, {"image": given.numpy()})
    module = GraphModule(model)
    leaf = given.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(leaf)["logits"].sum(), leaf)
    assert torch.allclose(gradient, torch.as_tensor(slope, dtype=torch.float32).expand_as(gradient))
    assert module.straight_through


def test_saturated_values_have_no_gradient() -> None:
    module = GraphModule(parsed(CASES["quantise and back"][0]))
    leaf = torch.tensor([[-9.0, 0.5, 30.0, 1.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(module(leaf)["logits"].sum(), leaf)
    assert gradient.tolist() == [[0, 1, 0, 1]]


def test_integers_wrap_around_with_and_without_gradients() -> None:
    module = GraphModule(parsed("q = Cast <to = 2> (image) logits = Cast <to = 1> (q)"))
    given = torch.tensor([[300.7, 255.9, 0.5, 513.0]])
    assert module(given)["logits"].tolist() == [[44, 255, 0, 1]]
    assert module(given.requires_grad_())["logits"].tolist() == [[44, 255, 0, 1]]


def test_gradients_by_torch_func_are_the_same() -> None:
    module = GraphModule(parsed(CASES["quantise and back"][0]))
    given = torch.tensor([[-9.0, 0.5, 30.0, 1.0]])
    found = torch.func.grad(lambda image: module(image)["logits"].sum())(given)
    assert found.tolist() == [[0, 1, 0, 1]]


def test_values_stay_exact_beyond_float32() -> None:
    """Sums of 300 products of 255 and 127 exceed 2**24."""
    random = np.random.default_rng(0)
    weight = random.integers(90, 128, (300, 2)).astype(np.int8)
    model = onnx.parser.parse_model(f"""{HEAD}
        net (uint8[N, 300] image) => (int32[N, 2] logits) {{ logits = MatMulInteger (image, w) }}""")
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    given = random.integers(250, 256, (3, 300)).astype(np.uint8)
    module = GraphModule(model)
    expected = given.astype(np.int64) @ weight.astype(np.int64)
    assert expected.max() > 2**22
    assert np.array_equal(module(torch.from_numpy(given))["logits"].numpy(), expected)


def test_an_integer_input_takes_floats_with_gradients() -> None:
    module = GraphModule(parsed("logits = Cast <to = 1> (image)", kind="uint8"))
    leaf = torch.tensor([[1.2, 3.7, 250.0, 0.0]], requires_grad=True)
    found = module(leaf)["logits"]
    assert found.tolist() == [[1, 4, 250, 0]]
    assert torch.autograd.grad(found.sum(), leaf)[0].tolist() == [[1, 1, 1, 1]]
    assert module.straight_through == ("uint8 input",)


def test_integers_that_are_no_image_are_not_reported() -> None:
    model = onnx.parser.parse_model(f"""{HEAD}
        net (float[N, 4] image, uint8[N, 1] place) => (float[N, 1] logits) {{
            where = Cast <to = 7> (place)
            logits = GatherElements <axis = 1> (image, where)
        }}""")
    assert GraphModule(model).straight_through == ()


def test_an_integer_output_with_a_gradient_is_given_as_floats() -> None:
    module = GraphModule(parsed(QDQ + "logits = QuantizeLinear (image, scale, zero)", made="uint8"))
    given = torch.tensor([[0.5, 1.0, 1.5, 2.0]])
    assert module(given)["logits"].dtype == torch.uint8
    found = module(given.requires_grad_())["logits"]
    assert found.requires_grad
    assert found.tolist() == [[15, 20, 25, 30]]


def test_sums_of_quantised_numbers_wrap_around() -> None:
    body = QDQ + "q = QuantizeLinear (image, scale, zero) s = Add (q, q) logits = DequantizeLinear (s, scale, zero)"
    leaf = torch.tensor([[0.5, 1.0, 12.0, 13.0]], requires_grad=True)
    found = GraphModule(parsed(body))(leaf)["logits"]
    numbers = np.array([15, 20, 130, 140], np.uint8)
    wanted = ((numbers + numbers).astype(np.float32) - 10) * np.float32(0.1)
    assert torch.allclose(found, torch.from_numpy(wanted))
    assert torch.allclose(torch.autograd.grad(found.sum(), leaf)[0], torch.full((1, 4), 2.0))


def test_the_sign_has_a_gradient_between_its_levels() -> None:
    leaf = torch.tensor([[-2.0, -1.0, 0.3, 1.5]], requires_grad=True)
    module = GraphModule(parsed("logits = Sign (image)"))
    found = module(leaf)["logits"]
    assert found.tolist() == [[-1, -1, 1, 1]]
    assert torch.autograd.grad(found.sum(), leaf)[0].tolist() == [[0, 1, 1, 0]]
    assert module.straight_through == ("Sign",)


def test_parts_of_quantised_numbers_keep_their_gradients() -> None:
    body = """
        q = QuantizeLinear (image, scale, zero)
        a, b = Split <axis = 1> (q)
        parts = SplitToSequence <axis = 1> (q)
        place = Constant <value = int64 {2}> ()
        c = SequenceAt (parts, place)
        both = Concat <axis = 1> (b, c)
        logits = DequantizeLinear (both, scale, zero)"""
    leaf = torch.tensor([[0.2, 0.4, 0.6, 0.8]], requires_grad=True)
    found = GraphModule(parsed(QDQ + body))(leaf)["logits"]
    assert torch.allclose(found, torch.tensor([[0.6, 0.8, 0.6]]))
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    assert gradient.tolist() == [[0, 0, 2, 1]]


EXACT = {
    "none": "logits = Relu (image)",
    "of constants": QDQ
    + """
        q = QuantizeLinear (scale, scale, zero)
        s = DequantizeLinear (q, scale, zero)
        logits = Mul (image, s)""",
    "of a shape": """
        s = Shape (image)
        f = Cast <to = 1> (s)
        c = Floor (f)
        i = Cast <to = 7> (c)
        logits = Expand (image, i)""",
    "of an index": """
        i = ArgMax <axis = 1> (image)
        r = Cast <to = 1> (i)
        j = Round (r)
        k = Cast <to = 7> (j)
        logits = GatherElements <axis = 1> (image, k)""",
    "in an index": "r = Floor (image) i = Cast <to = 7> (r) logits = GatherElements <axis = 1> (image, i)",
}


@pytest.mark.parametrize("name", EXACT)
def test_rounding_that_no_gradient_passes_is_not_reported(name: str) -> None:
    assert GraphModule(parsed(EXACT[name])).straight_through == ()


def test_rounding_in_a_body_is_reported() -> None:
    model = parsed("""
        yes = Constant <value = bool {1}> ()
        total = ReduceSum <keepdims = 0> (image)
        none = Constant <value = float {0.0}> ()
        large = Greater (total, none)
        logits = If (large) <
            then_branch = a () => (float[N, 4] y) { y = Round (image) },
            else_branch = b () => (float[N, 4] z) { z = Neg (image) }
        >""")
    assert GraphModule(model).straight_through == ("Round",)
