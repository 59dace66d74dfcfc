"""Reading somebody else's ONNX file: what is refused and why, and which of its inputs is the image."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from .errors import ClassifierError, ConfigError
from .pixels import Preprocessing

MAX_BYTES = 1_500_000_000
"""Protobuf stops at 2 GB; the purifier and a margin must fit too."""
MAX_ELEMENTS = 2**28
"""The largest tensor (1 GiB of float32) a graph may make from nothing."""
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
IMAGE_TYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.DOUBLE: "float64",
    TensorProto.UINT8: "uint8",
}


@dataclass(frozen=True)
class ImageInput:
    """The input of an ONNX classifier that takes the images.

    Parameters
    ----------
    name, position
        Its name, and its place among the inputs a caller feeds.
    dtype
        ``float32``, ``float16``, ``float64`` or ``uint8``.
    shape
        Four sizes as the graph declares them; None where they are free.
    """

    name: str
    position: int
    dtype: str
    shape: tuple[int | None, ...]


def load_onnx(source: str | Path | ModelProto) -> ModelProto:
    """Read an ONNX model and refuse what cannot be guarded or is not safe to open.

    Raises
    ------
    ClassifierError
        The file is missing, damaged, over 1.5 GB, keeps data outside itself, uses operators that are not
        ONNX's or ONNX Runtime's own, holds nodes compiled for one device, or makes a giant tensor from a
        constant.
    """
    where = "ONNX model" if isinstance(source, ModelProto) else str(source)
    model = source if isinstance(source, ModelProto) else _read(Path(source))
    if model.ByteSize() > MAX_BYTES:
        raise _too_large(where, model.ByteSize())
    if not model.graph.output or not model.opset_import:
        raise ClassifierError(
            f"{where} is not an ONNX model (no outputs or no opset): is it whole? Copy or export it again",
            where,
        )
    if not isinstance(model.graph.name, str):  # protobuf gives bytes for what is no UTF-8
        raise ClassifierError(f"{where} is damaged (its graph's name is no text); copy or export it again", where)
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
                f"{where} keeps {tensor.name!r} in another file, which is not followed; save it in one file with "
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
                f"{where} uses {node.domain}.{node.op_type}, which is no operator of ONNX or ONNX Runtime; export "
                "the classifier with standard operators (their domains: ai.onnx, ai.onnx.ml, com.microsoft)",
                where,
            )
        count = _made_from_nothing(node, shapes)
        if count > MAX_ELEMENTS:
            raise ClassifierError(
                f"{where}: {node.op_type} {node.name!r} makes {count:.3g} elements from a constant shape, the limit "
                f"is {MAX_ELEMENTS:.3g}; such a file can exhaust the memory, so it is not opened",
                where,
            )
    return model


def image_input(model: ModelProto, input: int | str | None = 0) -> ImageInput:
    """The input that takes the images.

    Parameters
    ----------
    input
        Its position among the inputs a caller must feed, or its name. None finds the only one that can be an
        image: four dimensions, float or uint8.

    Raises
    ------
    ClassifierError
        There is none, there are several and none was chosen, or the chosen one takes no images.
    ConfigError
        ``input`` is neither a position nor a name.
    """
    if isinstance(input, bool) or not isinstance(input, int | str | None):
        raise ConfigError(f"input: expected a position or a name, got {input!r}")
    stored = {tensor.name for tensor in model.graph.initializer}
    values = [value for value in model.graph.input if value.name not in stored]
    candidates = [place for place, value in enumerate(values) if _can_be_image(value)]
    described = [f"{place}: {describe_input(value)}" for place, value in enumerate(values)]
    listed = ", ".join(described) or "there are none"
    if input is None:
        if len(candidates) != 1:
            possible = ", ".join(described[place] for place in candidates)
            raise ClassifierError(
                f"{len(candidates)} of the classifier's inputs can be images: {possible}; "
                "say which with input= (on the command line --input)"
                if candidates
                else f"none of the classifier's inputs can be images: {listed}; "
                "expected one of floats or uint8, (N, C, H, W) or (N, H, W, C)",
                model.graph.name,
            )
        chosen = candidates[0]
    elif isinstance(input, str):
        names = [value.name for value in values]
        if input not in names:
            raise ClassifierError(f"the classifier has no input {input!r}; its inputs: {listed}", model.graph.name)
        chosen = names.index(input)
    else:
        if not 0 <= input < len(values):
            raise ClassifierError(
                f"the classifier has no input at position {input}; its inputs: {listed}", model.graph.name
            )
        chosen = input
    if chosen not in candidates:
        raise ClassifierError(
            f"input {describe_input(values[chosen])} takes no images: expected float or uint8 with 4 dimensions; the "
            f"inputs are {listed}",
            model.graph.name,
        )
    value = values[chosen]
    kind = value.type.tensor_type
    shape = _sizes(value) or (None,) * 4
    return ImageInput(value.name, chosen, IMAGE_TYPES[kind.elem_type], shape)


def infer_preprocessing(image: ImageInput) -> Preprocessing:
    """What type and shape say: uint8 is 0-255, and 1 or 3 channels at the end only are NHWC; else pixels."""
    last = image.shape[3] in (1, 3) and image.shape[1] not in (1, 3)
    layout: Literal["NCHW", "NHWC"] = "NHWC" if last else "NCHW"
    return Preprocessing(scale=255.0 if image.dtype == "uint8" else 1.0, layout=layout, dtype=image.dtype)


def describe_input(value: ValueInfoProto) -> str:
    """``name float32 (N, 3, 32, 32)``, for messages."""
    kind = value.type.tensor_type
    sizes = [str(d.dim_param or (d.dim_value if d.HasField("dim_value") else "?")) for d in kind.shape.dim]
    names = {int(number): name.lower() for name, number in TensorProto.DataType.items()}
    type_name = IMAGE_TYPES.get(kind.elem_type) or names.get(kind.elem_type, "unknown")
    return f"{value.name} {type_name} ({', '.join(sizes)})"


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The bodies a node carries (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and all graphs within it."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from all_graphs(inner)


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
        f"{where} has {size / 1e9:.1f} GB, the limit is {MAX_BYTES / 1e9:.1f} GB; "
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
    """The stored vectors, by name, that can be a shape: up to 16 integers."""
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
            # A tensor that contradicts itself is for ONNX Runtime to refuse.
            with contextlib.suppress(ValueError):
                shapes[name] = [int(size) for size in numpy_helper.to_array(tensor).reshape(-1)]
    return shapes


def _made_from_nothing(node: NodeProto, shapes: Mapping[str, list[int]]) -> int:
    """How many elements the node makes, if that is written in the file and not in the data."""
    if node.op_type in ("RandomNormal", "RandomUniform"):
        sizes = next((list(a.ints) for a in node.attribute if a.name == "shape"), [])
    elif node.op_type in ("ConstantOfShape", "Expand", "Tile") and node.input:
        sizes = shapes.get(node.input[-1], [])
    else:
        sizes = []
    return math.prod(sizes)


def _can_be_image(value: ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return kind.elem_type in IMAGE_TYPES and (not kind.HasField("shape") or len(kind.shape.dim) == 4)


def _sizes(value: ValueInfoProto) -> tuple[int | None, ...]:
    """The declared sizes; a symbol, or no positive size, is None."""
    return tuple(d.dim_value if d.dim_value > 0 else None for d in value.type.tensor_type.shape.dim)
