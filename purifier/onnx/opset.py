"""Convert an ONNX model to a newer opset."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial

import onnx
import onnx_ir as ir
from onnx import ModelProto, NodeProto, version_converter
from onnx.inliner import inline_local_functions

from ..errors import ClassifierError
from ..foreign_code import explained
from .graphs import all_graphs, put_back, set_aside_maps
from .names import IR_VERSION, OPSET
from .torch_export import innermost_cause


def raise_opset(model: ModelProto, opset: int) -> ModelProto:
    """A copy at ``opset`` (or the model's own, if higher) with a matching IR version, its functions inlined.

    If no operator in use changed in between, only the version number is raised; otherwise onnx's converter rewrites
    those that did.

    Raises
    ------
    ClassifierError
        The converter fails, or the model is malformed.
    """
    with explained_reading(model):
        return _raised(model, opset)


def _raised(model: ModelProto, opset: int) -> ModelProto:
    copy = copied(model)
    aside = set_aside_maps(copy)
    raised = _at_opset(copy, opset)
    put_back(raised, aside)
    return raised


def _at_opset(copy: ModelProto, opset: int) -> ModelProto:
    if copy.functions:
        copy = inline_local_functions(copy, convert_version=True)
    _use_empty_domain(copy)
    if copy.ir_version < 4:
        # In those versions initializers had to be listed as inputs; now that would let callers overwrite weights.
        stored = {tensor.name for tensor in copy.graph.initializer}
        kept = [value for value in copy.graph.input if value.name not in stored]
        del copy.graph.input[:]
        copy.graph.input.extend(kept)
    copy.ir_version = max(copy.ir_version, IR_VERSION)
    own = opset_of(copy)
    if own >= opset:
        return copy
    if is_rewritten(copy, opset):
        copy = _convert(_sorted(copy), opset)
    else:
        next(entry for entry in copy.opset_import if entry.domain == "").version = opset
    return copy


def is_rewritten(model: ModelProto, opset: int) -> bool:
    """Whether operators in use changed between a model's opset and a newer one, so that onnx's converter is needed."""
    own = opset_of(model)
    nodes = (node for graph in all_graphs(model.graph) for node in graph.node if node.domain in ("", "ai.onnx"))
    return own < opset and any(_changed(node, own, opset) for node in nodes)


def opset_of(model: ModelProto) -> int:
    """The version of ONNX's own operators a model uses."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=OPSET)


def explained_reading(model: ModelProto) -> AbstractContextManager[None]:
    """Turn what tools raise for a malformed graph (SerdeError, ValidationError, ValueError...) into one error."""
    return explained(
        "the classifier cannot be read as a graph",
        partial(ClassifierError, path=model.graph.name),
        "run onnx.checker.check_model on it, and export it again",
        describe=innermost_cause,
    )


def copied(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def _sorted(model: ModelProto) -> ModelProto:
    ordered = ir.from_proto(model)
    ordered.graph.sort()
    return ir.to_proto(ordered)


def _convert(model: ModelProto, opset: int) -> ModelProto:
    with explained(
        f"onnx cannot convert the classifier from opset {opset_of(model)} to opset {opset}",
        partial(ClassifierError, path=model.graph.name),
        f"export it again at opset {opset}",
        describe=lambda error: str(error).rpartition("failed: ")[2],
    ):
        converted: ModelProto = version_converter.convert_version(model, opset)
    # The converter drops these.
    converted.ir_version = model.ir_version
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(converted, name, getattr(model, name))
    for kept, field in ((converted, "metadata_props"), (converted.graph, "quantization_annotation")):
        source = model if kept is converted else model.graph
        kept.ClearField(field)
        getattr(kept, field).extend(getattr(source, field))
    return converted


def _changed(node: NodeProto, own: int, opset: int) -> bool:
    try:
        before = onnx.defs.get_schema(node.op_type, own, "").since_version
        now = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return True
    return before != now.since_version or now.deprecated


def _use_empty_domain(model: ModelProto) -> None:
    """Put ONNX's own operators into the empty domain, which means the same as ``ai.onnx``."""
    for graph in all_graphs(model.graph):
        for node in graph.node:
            if node.domain == "ai.onnx":
                node.domain = ""
    others = [entry for entry in model.opset_import if entry.domain not in ("", "ai.onnx")]
    imports = [onnx.helper.make_opsetid("", opset_of(model)), *others]
    del model.opset_import[:]
    model.opset_import.extend(imports)
