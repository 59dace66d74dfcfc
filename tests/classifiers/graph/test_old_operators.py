"""Versions of ONNX's operators in older opsets, and usual settings of others, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from peers import by_torch, check_agreement, floats, int64, ints, number, one_node

IMAGES, WEIGHT, BIAS = floats(2, 4, 7, 7), floats(6, 4, 3, 3), floats(6)

OLD: dict[str, tuple[str, int, list[Any], dict[str, Any], tuple[int, ...]]] = {
    "Softmax 11": ("Softmax", 11, [floats(2, 3, 4)], {"axis": 1}, ()),
    "LogSoftmax 11": ("LogSoftmax", 11, [floats(2, 3, 4)], {}, ()),
    "Hardmax 11": ("Hardmax", 11, [floats(2, 3, 4)], {"axis": 1}, ()),
    "Slice 9": ("Slice", 9, [floats(4, 5)], {"starts": [1, -3], "ends": [9, 4], "axes": [0, 1]}, ()),
    "Squeeze 11": ("Squeeze", 11, [floats(1, 3, 1, 4)], {"axes": [0, 2]}, ()),
    "Unsqueeze 11": ("Unsqueeze", 11, [floats(3, 4)], {"axes": [0, 3]}, ()),
    "Clip 6": ("Clip", 10, [floats(3, 4)], {"min": -0.5, "max": 0.5}, ()),
    "Pad 2": ("Pad", 10, [floats(2, 3)], {"pads": [0, 1, 1, 2], "mode": "reflect"}, ()),
    "Pad 11": ("Pad", 11, [floats(2, 3), int64(1, -1, 0, 2), number(0.5)], {}, (1,)),
    "ReduceMean 11": ("ReduceMean", 11, [floats(2, 3, 4)], {"axes": [-1], "keepdims": 0}, ()),
    "ReduceSum 11": ("ReduceSum", 11, [floats(2, 3, 4)], {"axes": [0, 2]}, ()),
    "ReduceMax 11": ("ReduceMax", 11, [floats(2, 3, 4)], {}, ()),
    "Upsample 7": ("Upsample", 7, [floats(1, 2, 3, 3)], {"scales": [1.0, 1.0, 2.0, 2.0], "mode": "nearest"}, ()),
    "Upsample 9": (
        "Upsample",
        9,
        [floats(1, 2, 3, 3), np.array([1, 1, 2, 3], np.float32)],
        {"mode": "linear"},
        (1,),
    ),
    "Resize 10": (
        "Resize",
        10,
        [floats(1, 2, 4, 4), np.array([1, 1, 0.5, 1.5], np.float32)],
        {"mode": "nearest"},
        (1,),
    ),
    "Resize 11": (
        "Resize",
        11,
        [floats(1, 2, 4, 4), np.zeros(0, np.float32), np.zeros(0, np.float32), int64(1, 2, 7, 5)],
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        (1, 2, 3),
    ),
    "Resize 13, asymmetric": (
        "Resize",
        13,
        [floats(1, 2, 4, 4), None, np.array([1, 1, 1.7, 2.5], np.float32)],
        {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
        (2,),
    ),
    "Resize 13, uint8": (
        "Resize",
        13,
        [ints(1, 2, 4, 4), None, None, int64(1, 2, 7, 7)],
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
        (3,),
    ),
    "Resize 18, antialias": (
        "Resize",
        18,
        [floats(1, 2, 9, 9), None, None, int64(1, 2, 5, 4)],
        {"mode": "cubic", "antialias": 1, "exclude_outside": 0},
        (3,),
    ),
    "Resize 18, pytorch": (
        "Resize",
        18,
        [floats(1, 2, 9, 9), None, None, int64(1, 2, 14, 5)],
        {"mode": "cubic", "coordinate_transformation_mode": "pytorch_half_pixel"},
        (3,),
    ),
    "BatchNormalization 7": (
        "BatchNormalization",
        7,
        [IMAGES, floats(4), floats(4), floats(4), np.abs(floats(4))],
        {"epsilon": 1e-3},
        (1, 2, 3, 4),
    ),
    "Split 11": ("Split", 11, [floats(6, 4)], {"axis": 0, "split": [1, 3, 2]}, ()),
    "Flatten 9": ("Flatten", 9, [floats(2, 3, 4, 5)], {"axis": 2}, ()),
    "Gemm 9": ("Gemm", 9, [floats(4, 3), floats(4, 5), floats(1, 5)], {"transA": 1, "alpha": 0.5, "beta": 2.0}, ()),
    "AveragePool, ceil": (
        "AveragePool",
        11,
        [IMAGES],
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 0, 0], "ceil_mode": 1},
        (),
    ),
    "MaxPool, same": (
        "MaxPool",
        12,
        [IMAGES],
        {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        (),
    ),
    "Conv, one side": ("Conv", 11, [IMAGES, WEIGHT, BIAS], {"pads": [0, 0, 1, 1], "strides": [2, 2]}, (1, 2)),
    "Conv, groups": ("Conv", 11, [IMAGES, floats(4, 2, 3, 3)], {"group": 2, "auto_pad": "SAME_LOWER"}, (1,)),
    "ConvTranspose": (
        "ConvTranspose",
        11,
        [IMAGES, floats(4, 3, 3, 3), floats(3)],
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        (1, 2),
    ),
    "GlobalLpPool": ("GlobalLpPool", 11, [IMAGES], {"p": 3}, ()),
    "MaxRoiPool": (
        "MaxRoiPool",
        11,
        [IMAGES, np.array([[0, 0, 0, 5, 5], [1, 1, 2, 6, 6]], np.float32)],
        {"pooled_shape": [2, 2]},
        (),
    ),
    "Trilu": ("Trilu", 14, [floats(4, 4), number(1, np.int64)], {"upper": 0}, ()),
    "Dropout 7": ("Dropout", 7, [floats(3, 4)], {"ratio": 0.5}, ()),
    "TopK 10": ("TopK", 10, [floats(3, 6), int64(2)], {}, (1,)),
    "LSTM": (
        "LSTM",
        14,
        [floats(3, 2, 4), floats(2, 12, 4), floats(2, 12, 3), floats(2, 24), None, None, None, floats(2, 9)],
        {"hidden_size": 3, "direction": "bidirectional"},
        (),
    ),
    "LSTM, both ways": (
        "LSTM",
        14,
        [floats(3, 2, 4), floats(2, 12, 4), floats(2, 12, 3), floats(2, 24), None, floats(2, 2, 3), floats(2, 2, 3)],
        {"hidden_size": 3, "direction": "bidirectional"},
        (),
    ),
    "LSTM, without bias": ("LSTM", 14, [floats(3, 2, 4), floats(1, 12, 4), floats(1, 12, 3)], {"hidden_size": 3}, ()),
    "GRU": (
        "GRU",
        14,
        [floats(4, 2, 3), floats(1, 9, 3), floats(1, 9, 3), floats(1, 18), np.array([4, 2], np.int32)],
        {"hidden_size": 3, "direction": "reverse"},
        (),
    ),
}
SEVERAL = {"Split 11": 3, "TopK 10": 2, "LSTM": 3, "LSTM, both ways": 3, "LSTM, without bias": 1, "GRU": 2}


@pytest.mark.parametrize("name", OLD)
def test_older_operators_agree_with_onnx_runtime(name: str) -> None:
    op_type, opset, inputs, attributes, constants = OLD[name]
    several = SEVERAL.get(name, 1)
    model, feed = one_node(op_type, inputs, version=opset, outputs=several, constants=constants, **attributes)
    check_agreement(model, feed, steps=1 if "uint8" in name else 0)


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div", "Pow"])
def test_before_opset_7_the_second_operand_is_aligned_with_an_axis(op_type: str) -> None:
    first, second = np.abs(floats(2, 3, 4)), np.abs(floats(3))
    model, feed = one_node(op_type, [first, second], version=6, broadcast=1, axis=1)
    call = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power}[op_type]
    found = by_torch(model, feed)["o0"].numpy()
    np.testing.assert_allclose(found, call(first, second.reshape(3, 1)), rtol=1e-5)
