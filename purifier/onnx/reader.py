"""Read an untrusted ONNX file safely."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from ..errors import ClassifierError
from .graphs import all_graphs, subgraphs

MAX_BYTES = 1_500_000_000
"""Protobuf's limit is 2 GB, and the purifier and a margin must fit too."""
MAX_ELEMENTS = 2**28
"""The largest tensor (1 GiB of float32) that a graph may create from a constant shape."""
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


def load_onnx(source: str | Path | ModelProto) -> ModelProto:
    """Read an ONNX model and check that it can be guarded and is safe to open.

    Raises
    ------
    ClassifierError
        The file is missing, damaged or over 1.5 GB, keeps data in other files, uses operators that are not
        ONNX's or ONNX Runtime's own, holds nodes compiled for one device, or creates a giant tensor from a
        constant shape.
    """
    where = "ONNX model" if isinstance(source, ModelProto) else str(source)
    model = source if isinstance(source, ModelProto) else _read(Path(source))
    if model.ByteSize() > MAX_BYTES:
        raise _too_large(where, model.ByteSize())
    if not model.graph.output or not model.opset_import:
        raise ClassifierError(
            f"{where} is not an ONNX model (no outputs or no opset); copy or export it again",
            where,
        )
    if not isinstance(model.graph.name, str):  # protobuf returns bytes if it is not UTF-8
        raise ClassifierError(f"{where} is damaged (its graph's name is not text); copy or export it again", where)
    local = {(function.domain, function.name) for function in model.functions}
    for graph in _all_graphs(model):
        if graph.sparse_initializer:
            raise ClassifierError(
                f"{where} stores {graph.sparse_initializer[0].values.name!r} as a sparse tensor, which cannot be "
                "grafted; save it with dense weights",
                where,
            )
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            raise ClassifierError(
                f"{where} keeps {tensor.name!r} in another file, which is not read; save it in one file with "
                "onnx.save(onnx.load(path), new_path)",
                where,
            )
    shapes = _shapes(model)
    for node in _nodes(model):
        if node.op_type == "EPContext":
            raise ClassifierError(
                f"{where} holds an EPContext node, a blob compiled for one device; give the model it was compiled from",
                where,
            )
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in local:
            raise ClassifierError(
                f"{where} uses {node.domain}.{node.op_type}, which is not an operator of ONNX or ONNX Runtime; export "
                "the classifier with standard operators (domains ai.onnx, ai.onnx.ml, com.microsoft)",
                where,
            )
        count = _elements_created(node, shapes)
        if count > MAX_ELEMENTS:
            raise ClassifierError(
                f"{where}: {node.op_type} {node.name!r} creates {count:.3g} elements from a constant shape, the limit "
                f"is {MAX_ELEMENTS:.3g}; such a file can exhaust the memory, so it is not opened",
                where,
            )
    return model


def _read(path: Path) -> ModelProto:
    try:
        if not path.is_file():
            raise ClassifierError(f"no file {path}; expected an .onnx file", path)
        if path.stat().st_size > MAX_BYTES:
            raise _too_large(str(path), path.stat().st_size)
        return onnx.load(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise ClassifierError(f"cannot read {path}: {error.strerror or error}", path) from error
    except DecodeError as error:
        raise ClassifierError(f"{path} is damaged or not ONNX ({error}); copy or export it again", path) from error


def _too_large(where: str, size: int) -> ClassifierError:
    return ClassifierError(
        f"{where} is {size / 1e9:.1f} GB, the limit is {MAX_BYTES / 1e9:.1f} GB; "
        "guard the torch module, or a half-precision copy",
        where,
    )


def _all_graphs(model: ModelProto) -> Iterator[GraphProto]:
    yield from all_graphs(model.graph)
    for function in model.functions:
        for node in function.node:
            for inner in subgraphs(node):
                yield from all_graphs(inner)


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    for graph in _all_graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    for graph in _all_graphs(model):
        yield from graph.initializer
    for node in _nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _shapes(model: ModelProto) -> dict[str, list[int]]:
    """Stored vectors that can be a shape (up to 16 integers), by name."""
    found = {tensor.name: tensor for graph in _all_graphs(model) for tensor in graph.initializer}
    for node in _nodes(model):
        if node.op_type == "Constant" and node.output:
            for attribute in node.attribute:
                if attribute.name == "value":
                    found[node.output[0]] = attribute.t
                elif attribute.name in ("value_ints", "value_int"):
                    values = attribute.ints or [attribute.i]
                    found[node.output[0]] = numpy_helper.from_array(np.array(values, dtype=np.int64))
    shapes = {}
    for name, tensor in found.items():
        if tensor.data_type == TensorProto.INT64 and math.prod(tensor.dims) <= 16:
            # ONNX Runtime reports tensors whose shape and data disagree.
            with contextlib.suppress(ValueError):
                shapes[name] = [int(size) for size in numpy_helper.to_array(tensor).reshape(-1)]
    return shapes


def _elements_created(node: NodeProto, shapes: Mapping[str, list[int]]) -> int:
    """How many elements a node creates, if the file alone determines it and not the input."""
    if node.op_type in ("RandomNormal", "RandomUniform"):
        sizes = next((list(a.ints) for a in node.attribute if a.name == "shape"), [])
    elif node.op_type in ("ConstantOfShape", "Expand", "Tile") and node.input:
        sizes = shapes.get(node.input[-1], [])
    else:
        sizes = []
    return math.prod(sizes)
