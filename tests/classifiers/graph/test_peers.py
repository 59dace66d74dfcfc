"""Operators of ONNX Runtime against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from peers import by_torch, check_agreement, floats, int64, ints, number, one_node
from purifier.classifiers.graph.module import GraphModule


def seven_bits(*shape: int) -> np.ndarray:
    """Weights whose products do not saturate on CPUs without VNNI, where ONNX Runtime adds pairs of them in 16 bits."""
    return ints(*shape, dtype=np.int8) // 2


MS = "com.microsoft"
IMAGES, WEIGHT, BIAS = floats(2, 4, 7, 7), floats(6, 4, 3, 3), floats(6)
SCALE, ZERO = number(0.02), number(120, np.uint8)
QUANTISED = [ints(2, 3, 5, 5), SCALE, ZERO, number(0.03), number(110, np.uint8)]
TOKENS = floats(2, 5, 8)
SEEN = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
FUSED: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "FusedConv": ("FusedConv", [IMAGES, WEIGHT, BIAS], {"activation": "Relu", "pads": [1, 1, 1, 1]}),
    "FusedConv, sum": (
        "FusedConv",
        [IMAGES, WEIGHT, BIAS, floats(2, 6, 5, 5)],
        {"activation": "LeakyRelu", "activation_params": [0.2]},
    ),
    "FusedConv, clip": (
        "FusedConv",
        [IMAGES, WEIGHT],
        {"activation": "Clip", "activation_params": [0.0, 6.0], "strides": [2, 2]},
    ),
    "FusedConv, hard sigmoid": (
        "FusedConv",
        [IMAGES, WEIGHT],
        {"activation": "HardSigmoid", "activation_params": [0.2, 0.5]},
    ),
    "FusedMatMul": ("FusedMatMul", [floats(2, 3, 4), floats(2, 5, 4)], {"transB": 1, "alpha": 0.5}),
    "FusedMatMul, batch": (
        "FusedMatMul",
        [floats(2, 3, 4, 5), floats(2, 3, 5, 6)],
        {"transBatchA": 0, "transA": 0, "alpha": 2.0},
    ),
    "FusedMatMul, turned batch": (
        "FusedMatMul",
        [floats(2, 3, 4), floats(3, 4, 2)],
        {"transBatchA": 1, "transBatchB": 0, "transA": 0},
    ),
    "TransposeMatMul": ("TransposeMatMul", [floats(2, 4, 3), floats(2, 4, 5)], {"transA": 1}),
    "FusedGemm": (
        "FusedGemm",
        [floats(3, 4), floats(5, 4), floats(5)],
        {"transB": 1, "activation": "LeakyRelu", "activation_alpha": 0.1},
    ),
    "Gelu": ("Gelu", [floats(3, 4)], {}),
    "BiasGelu": ("BiasGelu", [floats(3, 4), floats(4)], {}),
    "FastGelu": ("FastGelu", [floats(3, 4), floats(4)], {}),
    "QuickGelu": ("QuickGelu", [floats(3, 4)], {"alpha": 1.5}),
    "SkipLayerNormalization": (
        "SkipLayerNormalization",
        [TOKENS, floats(2, 5, 8), floats(8), floats(8), floats(8)],
        {"epsilon": 1e-5},
    ),
    "SkipLayerNormalization, plain": ("SkipLayerNormalization", [TOKENS, floats(2, 5, 8), floats(8)], {}),
    "SkipSimplifiedLayerNormalization": (
        "SkipSimplifiedLayerNormalization",
        [TOKENS, floats(2, 5, 8), floats(8), floats(8)],
        {"epsilon": 1e-5},
    ),
    "Attention": ("Attention", [TOKENS, floats(8, 24), floats(24)], {"num_heads": 2}),
    "Attention, mask": ("Attention", [TOKENS, floats(8, 24), floats(24), SEEN], {"num_heads": 2}),
    "Attention, lengths": (
        "Attention",
        [TOKENS, floats(8, 24), floats(24), np.array([3, 5], np.int32)],
        {"num_heads": 2},
    ),
    "Attention, causal": ("Attention", [TOKENS, floats(8, 24), floats(24)], {"num_heads": 4, "unidirectional": 1}),
    "Attention, bias": (
        "Attention",
        [TOKENS, floats(8, 24), floats(24), None, None, floats(2, 2, 5, 5)],
        {"num_heads": 2, "scale": 0.3},
    ),
    "MultiHeadAttention": ("MultiHeadAttention", [TOKENS, floats(2, 6, 8), floats(2, 6, 8)], {"num_heads": 2}),
    "MultiHeadAttention, bias": (
        "MultiHeadAttention",
        [TOKENS, floats(2, 6, 8), floats(2, 6, 8), floats(24)],
        {"num_heads": 2},
    ),
    "NhwcMaxPool": ("NhwcMaxPool", [ints(1, 6, 6, 3)], {"kernel_shape": [3, 3], "strides": [2, 2]}),
    "MatMulNBits": (
        "MatMulNBits",
        [floats(3, 32), ints(5, 2, 8), floats(10), ints(5)],
        {"K": 32, "N": 5, "bits": 4, "block_size": 16},
    ),
    "QGemm": (
        "QGemm",
        [ints(3, 4), SCALE, ZERO, ints(4, 5), SCALE, ZERO, ints(5, dtype=np.int32) // 2**22, number(0.5), ZERO],
        {},
    ),
    "QLinearAdd": ("QLinearAdd", [*QUANTISED[:3], ints(2, 3, 5, 5), *QUANTISED[3:], number(0.05), ZERO], {}),
    "QLinearMul": ("QLinearMul", [*QUANTISED[:3], ints(2, 3, 5, 5), *QUANTISED[3:], number(0.05), ZERO], {}),
    "QLinearSigmoid": ("QLinearSigmoid", QUANTISED, {}),
    "QLinearLeakyRelu": ("QLinearLeakyRelu", QUANTISED, {"alpha": 0.2}),
    "QLinearSoftmax": (
        "QLinearSoftmax",
        [*QUANTISED[:3], number(1 / 256), number(0, np.uint8)],
        {"axis": -1, "opset": 13},
    ),
    "QLinearGlobalAveragePool": ("QLinearGlobalAveragePool", QUANTISED, {"channels_last": 0}),
    "QLinearGlobalAveragePool, last": ("QLinearGlobalAveragePool", QUANTISED, {"channels_last": 1}),
    "QLinearAveragePool": ("QLinearAveragePool", QUANTISED, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "QLinearConcat": ("QLinearConcat", [SCALE, ZERO, *QUANTISED[:3], *QUANTISED[:1], *QUANTISED[3:]], {"axis": 1}),
    "QLinearWhere": (
        "QLinearWhere",
        [ints(2, 3, 5, 5) > 99, *QUANTISED[:3], ints(2, 3, 5, 5), *QUANTISED[3:], number(0.05), ZERO],
        {},
    ),
    "QLinearConv": (
        "QLinearConv",
        [
            *[ints(2, 5, 5, 3), SCALE, ZERO, seven_bits(4, 3, 3, 3), number(0.01), number(0, np.int8)],
            *[number(0.9), ZERO],
        ],
        {"channels_last": 1},
    ),
    "DynamicQuantizeMatMul": (
        "DynamicQuantizeMatMul",
        [floats(3, 8), ints(8, 5), SCALE, ZERO, floats(5)],
        {},
    ),
    "MatMulIntegerToFloat": (
        "MatMulIntegerToFloat",
        [ints(3, 8), seven_bits(8, 5), SCALE, SCALE, ZERO, number(3, np.int8), floats(5)],
        {},
    ),
    "QAttention": (
        "QAttention",
        [ints(2, 5, 8), seven_bits(8, 24), floats(24), SCALE, SCALE, None, ZERO, number(0, np.int8)],
        {"num_heads": 2},
    ),
    "Inverse": ("Inverse", [floats(2, 3, 3) + 3 * np.eye(3, dtype=np.float32)], {}),
    "Trilu": ("Trilu", [floats(3, 4), number(1, np.int64)], {"upper": 0}),
    "Pad": ("Pad", [floats(2, 3), int64(1, 0, 0, 2), number(0.5)], {}),
    "QuantizeLinear": ("QuantizeLinear", [floats(3, 4), SCALE, ZERO], {}),
    "DequantizeLinear": ("DequantizeLinear", [ints(3, 4), SCALE, ZERO], {}),
}
NOT_EXACT = {
    "DynamicQuantizeMatMul": 2e-2,  # the range of a row of floats differs in the last bit
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_operators_agree_with_onnx_runtime(name: str) -> None:
    op_type, inputs, attributes = FUSED[name]
    model, feed = one_node(op_type, inputs, domain=MS, **attributes)
    check_agreement(model, feed, tolerance=NOT_EXACT.get(name, 2e-5), steps=1 if op_type.startswith("Q") else 0)


def test_further_outputs_agree_with_onnx_runtime() -> None:
    skip = [TOKENS, floats(2, 5, 8), floats(8), floats(8), floats(8)]
    check_agreement(*one_node("SkipLayerNormalization", skip, domain=MS, outputs=4, shown=(0, 3), epsilon=1e-5))
    past = [TOKENS, floats(8, 24), floats(24), None, floats(2, 2, 2, 3, 4)]
    check_agreement(*one_node("Attention", past, domain=MS, outputs=2, num_heads=2), tolerance=2e-5)
    keys = [TOKENS, floats(2, 6, 8), floats(2, 6, 8), None, None, None, floats(2, 2, 3, 4), floats(2, 2, 3, 4)]
    check_agreement(*one_node("MultiHeadAttention", keys, domain=MS, outputs=3, num_heads=2), tolerance=2e-5)
    check_agreement(*one_node("SimplifiedLayerNormalization", [TOKENS, floats(8)], outputs=2))
    check_agreement(*one_node("SimplifiedLayerNormalization", [TOKENS, floats(8)]))
    check_agreement(*one_node("LayerNormalization", [TOKENS, floats(8), floats(8)], outputs=3))


def by_formula(op_type: str, given: list[torch.Tensor]) -> torch.Tensor:
    """The same from torch's own functions."""
    first, *others = given
    match op_type:
        case "BiasAdd":
            return first + others[0] + others[1]
        case "BiasSoftmax":
            return torch.softmax(first + others[0], -1)
        case "GroupNorm":
            normed = torch.nn.functional.group_norm(first.movedim(-1, 1), 2, *others, 1e-5)
            return torch.nn.functional.silu(normed).movedim(1, -1)
        case "FusedMatMulActivation":
            return torch.tanh(first @ others[0].T * 0.5)
        case "GemmFastGelu":
            return torch.nn.functional.gelu(first @ others[0] + others[1], approximate="tanh")
        case "NhwcConv" | "NhwcFusedConv":
            made = torch.conv2d(first.movedim(-1, 1), *others[:2]).movedim(1, -1)
            return made if op_type == "NhwcConv" else torch.relu(made + others[2])
        case "MultiHeadAttention":
            parts = [part.transpose(1, 2) for part in first.unbind(3)]
            return torch.nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
    raise ValueError(op_type)


NO_KERNEL: dict[str, tuple[list[np.ndarray], dict[str, Any]]] = {
    "BiasAdd": ([floats(2, 3, 4), floats(4), floats(2, 3, 4)], {}),
    "BiasSoftmax": ([floats(2, 3, 4), floats(2, 1, 4)], {"axis": 2, "is_inner_broadcast": 1}),
    "FusedMatMulActivation": (
        [floats(3, 4), floats(5, 4)],
        {"transB": 1, "activation": "Tanh", "alpha": 0.5},
    ),
    "GemmFastGelu": ([floats(3, 4), floats(4, 5), floats(5)], {}),
    "GroupNorm": ([floats(2, 5, 5, 4), floats(4), floats(4)], {"groups": 2, "activation": 1, "channels_last": 1}),
    "MultiHeadAttention": ([floats(2, 5, 2, 3, 4)], {"num_heads": 2}),
    "NhwcConv": ([floats(2, 7, 7, 4), WEIGHT, BIAS], {}),
    "NhwcFusedConv": ([floats(2, 7, 7, 4), WEIGHT, BIAS, floats(2, 5, 5, 6)], {"activation": "Relu"}),
}
"""Operators that ONNX Runtime has for GPUs alone, or in this form."""


@pytest.mark.parametrize("name", NO_KERNEL)
def test_fused_operators_of_gpus_agree_with_their_formula(name: str) -> None:
    inputs, attributes = NO_KERNEL[name]
    model, feed = one_node(name, inputs, domain=MS, **attributes)
    given = [torch.from_numpy(array) for array in inputs]
    found = by_torch(model, feed)["o0"]
    assert torch.allclose(found, by_formula(name, given), rtol=1e-4, atol=1e-5)


EXACT = [name for name, (op_type, _, _) in FUSED.items() if not op_type.startswith(("Q", "Dynamic", "Dequantize"))]


@pytest.mark.parametrize("name", EXACT)
def test_gradients_of_fused_operators_agree_with_finite_differences(name: str) -> None:
    op_type, inputs, attributes = FUSED[name]
    model, feed = one_node(op_type, inputs, domain=MS, **attributes)
    module = GraphModule(model).double()
    first, *others = (torch.from_numpy(array) for array in feed.values())
    if not first.is_floating_point():
        pytest.skip("takes integers")
    leaf = first.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda given: module(given, *others)["o0"], [leaf], fast_mode=True)
