"""Small ONNX classifiers of several kinds, and changes of single fields in them, for ``fuzz.py``."""

from __future__ import annotations

import functools
import random
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
NUMBERS = (-1, 0, 1, 2, 3, 7, 127, 2**31 - 1, -(2**31))
LONG_NUMBERS = (*NUMBERS, 2**40, 2**63 - 1, -(2**63))
TEXTS = ("", "x", "images", "logits", "Relu", "Loop", "ai.onnx.ml", "../weights.bin", "N", "\0", "a" * 300)


@functools.cache
def onnx_seeds() -> tuple[ModelProto, ...]:
    weight = np.random.default_rng(0).normal(size=(192, 5)).astype(np.float32)
    flat = helper.make_node("Flatten", ["images"], ["flat"])
    product = helper.make_node("MatMul", ["flat", "weight"], ["logits"])
    kernel = np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype(np.float32)
    convolution = [
        helper.make_node("Conv", ["images", "kernel"], ["features"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["features"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
    ]
    shape = helper.make_node("Shape", ["images"], ["shape"])
    filled = helper.make_node("ConstantOfShape", ["shape"], ["zeros"], value=helper.make_tensor("v", FLOAT, [1], [0.0]))
    added = helper.make_node("Add", ["images", "zeros"], ["sum"])
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["goes"]), helper.make_node("Relu", ["was"], ["is"])],
        "body",
        [helper.make_tensor_value_info(*one) for one in (("at", INT64, []), ("go", TensorProto.BOOL, []))]
        + [helper.make_tensor_value_info("was", FLOAT, None)],
        [helper.make_tensor_value_info("goes", TensorProto.BOOL, []), helper.make_tensor_value_info("is", FLOAT, None)],
    )
    loop = helper.make_node("Loop", ["steps", "yes", "images"], ["looped"], body=body)
    stored = {"weight": weight}
    function = helper.make_function(
        "local", "Twice", ["a"], ["c"], [helper.make_node("Add", ["a", "a"], ["c"])], [helper.make_opsetid("", 18)]
    )
    with_function = _model(
        [helper.make_node("Twice", ["images"], ["twice"], domain="local"), _flatten("twice"), product], stored
    )
    with_function.functions.append(function)
    with_function.opset_import.append(helper.make_opsetid("local", 1))
    outside = _model([flat, helper.make_node("MatMul", ["flat", "weight"], ["big"]), _end()], stored)
    tensor = numpy_helper.from_array(np.ones(5, np.float32), "bias")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", "20")):
        tensor.external_data.add(key=key, value=value)
    outside.graph.initializer.append(tensor)
    steps = {"steps": np.array(2), "yes": np.array(True), **stored}
    return (
        _model([flat, product], stored),
        _model(convolution, {"kernel": kernel}, [("logits", FLOAT, ["N", 4]), ("label", INT64, ["N"])]),
        _model([shape, filled, added, _flatten("sum"), product], stored),
        _model([loop, _flatten("looped"), product], steps),
        with_function,
        outside,
    )


def _flatten(name: str) -> Any:
    return helper.make_node("Flatten", [name], ["flat"])


def _end() -> Any:
    return helper.make_node("Add", ["big", "bias"], ["logits"])


def _model(nodes: Any, stored: dict[str, Any], outputs: Any = (("logits", FLOAT, ["N", 5]),)) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("images", FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info(*one) for one in outputs],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def field_changed(message: Any, chance: random.Random) -> None:
    """Change, remove or repeat one field of a protobuf message or of one inside it, in place."""
    fields = [field for field, _ in message.ListFields()]
    if not fields or chance.random() < 0.05:
        fields = list(message.DESCRIPTOR.fields)
    field = chance.choice(fields)
    value = getattr(message, field.name)
    # As generated code has it in all versions of protobuf: repeated fields are containers.
    if hasattr(value, "MergeFrom") and hasattr(value, "__len__") and not isinstance(value, bytes | str):
        _repeated_changed(value, field, chance)
    elif field.message_type is not None:
        if chance.random() < 0.1:
            message.ClearField(field.name)
        else:
            field_changed(value, chance)
    elif chance.random() < 0.1:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _odd(field, value, chance))


def _repeated_changed(values: Any, field: Any, chance: random.Random) -> None:
    if not len(values):
        if field.message_type is not None:
            values.add()
        else:
            values.append(_odd(field, None, chance))
        return
    at = chance.randrange(len(values))
    way = chance.random()
    if way < 0.1:
        del values[at]
    elif way < 0.2:
        values.append(values[at])
    elif field.message_type is not None:
        field_changed(values[at], chance)
    else:
        values[at] = _odd(field, values[at], chance)


def _odd(field: Any, value: Any, chance: random.Random) -> Any:
    kind = field.cpp_type
    if kind == field.CPPTYPE_ENUM:
        return chance.choice([one.number for one in field.enum_type.values])
    if kind == field.CPPTYPE_STRING:
        if field.type == field.TYPE_BYTES:
            return chance.choice((b"", b"\0" * 7, bytes(value or b"")[:-1], b"\xff" * 8))
        return chance.choice(TEXTS)
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return chance.choice((0.0, -1.0, float("nan"), float("inf")))
    if kind in (field.CPPTYPE_UINT64, field.CPPTYPE_UINT32):
        return chance.choice((0, 1, 2**31))
    return chance.choice(LONG_NUMBERS if kind == field.CPPTYPE_INT64 else NUMBERS)
