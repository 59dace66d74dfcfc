"""Grafting: a purifier's ONNX graph spliced in front of somebody else's ONNX classifier."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import onnx
import onnx_ir as ir
from onnx import ModelProto, NodeProto, version_converter
from onnx.inliner import inline_local_functions

from .detector import calibration_of
from .errors import ClassifierError, PluginError, PurifierError
from .interfaces import Purifier, purifiers
from .onnx_file import ImageInput as ImageInput
from .onnx_file import all_graphs
from .onnx_file import image_input as image_input
from .onnx_file import infer_preprocessing as infer_preprocessing
from .onnx_file import load_onnx as load_onnx
from .onnx_front import CLASSES, IR_VERSION, NOISE, PURIFIED, REFUSED, cause_of, without_sources
from .onnx_front import OPSET as OPSET
from .onnx_front import purifier_graph as purifier_graph
from .onnx_refusal import replace_logits
from .refusal import Refusal

METADATA_FORMAT = 1


def graft(
    front: ModelProto,
    classifier: ModelProto,
    input_name: str,
    *,
    shown: Sequence[str] = (),
    refusal: Refusal | None = None,
) -> ModelProto:
    """The classifier with ``front`` between its input ``input_name`` and everything that reads it.

    Inputs and outputs keep their names, types, shapes and order. The front's outputs named in ``shown`` are added as
    the last outputs, and its second input, if it has one, as the last input. An output that *is* the input, under its
    name, still gives what was fed: one name cannot carry two values. The logits of refused images are replaced if
    ``refusal`` says so. The classifier given is not changed.

    Raises
    ------
    ClassifierError
        The classifier cannot be brought to the purifier's opset, has a value of one of the new names already, is
        malformed, or has no logits that could be replaced.
    ConfigError
        Its classes are not those that ``refusal`` needs.
    """
    with _readable(classifier):
        return _grafted(front, classifier, input_name, tuple(shown), refusal or Refusal())


def _grafted(
    front: ModelProto, classifier: ModelProto, input_name: str, shown: tuple[str, ...], refusal: Refusal
) -> ModelProto:
    classifier = raise_opset(classifier, opset_of(front))
    names = _names(classifier)
    for name in (*shown, *(value.name for value in front.graph.input[1:])):
        if name in names:
            raise ClassifierError(
                f"the classifier has a value called {name!r} already; rename it, or guard it without "
                f"{'noise as an input' if name == NOISE else 'score=True and refusal'}",
                classifier.graph.name,
            )
    # onnx_ir renames a stored tensor in the model it was read from, which is the caller's.
    guarded, piece = ir.from_proto(classifier), ir.from_proto(_copied(front))
    graph = guarded.graph
    image = next(value for value in graph.inputs if value.name == input_name)
    batch = image.shape[0] if image.shape is not None else None
    entry, *others = piece.graph.inputs
    made = {value.name: value for value in piece.graph.outputs}
    prefix = _free_prefix(names)
    sizes_of_classes = made[CLASSES].shape if CLASSES in made else None
    _prefix(piece.graph, prefix)
    if CLASSES in made:
        made[CLASSES].shape = sizes_of_classes

    # onnx_ir counts the uses inside bodies of If, Loop and Scan too, whatever their own names are.
    for node, place in image.uses():
        node.replace_input_with(place, made[PURIFIED])
    piece.graph.outputs.clear()
    entry.replace_all_uses_with(image)
    for value in others:
        sizes = [size if isinstance(size, int) else None for size in value.shape or ()]
        given = ir.Value(name=NOISE, shape=ir.Shape([batch, *sizes[1:]]), type=ir.TensorType(ir.DataType.FLOAT))
        value.replace_all_uses_with(given)
        graph.inputs.append(given)
    nodes, first = list(piece.graph), next(iter(graph), None)
    for value in list(piece.graph.initializers.values()):
        del piece.graph.initializers[value.name or ""]
        graph.initializers.add(value)
    piece.graph.remove(nodes)
    if first is None:
        graph.extend(nodes)
    else:
        graph.insert_before(first, nodes)
    if refusal.replaces:
        replace_logits(graph, made[REFUSED], made.get(CLASSES), refusal, prefix)
    for name in shown:
        value = made[name]
        value.name = name
        value.type = ir.TensorType(ir.DataType.BOOL if name == REFUSED else ir.DataType.FLOAT)
        value.shape = ir.Shape([batch])
        graph.outputs.append(value)
    graph.sort()  # ONNX wants it, ONNX Runtime does not mind: some tools write classifiers out of order
    return ir.to_proto(without_sources(guarded))


def purified_name(classifier: ModelProto) -> str:
    """What the purified images are called in the graph that :func:`graft` makes of a classifier."""
    return _free_prefix(_names(classifier)) + PURIFIED


def raise_opset(model: ModelProto, opset: int) -> ModelProto:
    """A copy at ``opset`` (or the model's own, if higher) and an IR version to go with it, functions inlined.

    The version number alone is raised where no operator in use changed in between; else onnx's converter
    rewrites those that did.

    Raises
    ------
    ClassifierError
        The converter does not manage, or the model is malformed.
    """
    with _readable(model):
        return _raised(model, opset)


def _raised(model: ModelProto, opset: int) -> ModelProto:
    copy = _copied(model)
    if copy.functions:
        copy = inline_local_functions(copy, convert_version=True)
    _spell_domain(copy)
    if copy.ir_version < 4:
        # There, initializers had to be listed as inputs; now that would let callers overwrite weights.
        stored = {tensor.name for tensor in copy.graph.initializer}
        kept = [value for value in copy.graph.input if value.name not in stored]
        del copy.graph.input[:]
        copy.graph.input.extend(kept)
    copy.ir_version = max(copy.ir_version, IR_VERSION)
    own = opset_of(copy)
    if own >= opset:
        return copy
    nodes = [node for graph in all_graphs(copy.graph) for node in graph.node if node.domain == ""]
    if any(_changed(node, own, opset) for node in nodes):
        copy = _convert(_sorted(copy), opset)
    else:
        next(entry for entry in copy.opset_import if entry.domain == "").version = opset
    return copy


def opset_of(model: ModelProto) -> int:
    """The version of ONNX's own operators a model uses."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=OPSET)


def purifier_metadata(purifier: Purifier, refusal: Refusal | None = None, noise: bool = False) -> dict[str, str]:
    """What a guarded file says of its purifier: its plugin, configuration, checkpoint, calibration and noise."""
    config = json.dumps(dataclasses.asdict(purifier.config), sort_keys=True, separators=(",", ":"))
    try:
        plugin = purifiers.name_of(type(purifier))
    except PluginError:  # a class of the caller's own, never registered, has no name but this
        plugin = type(purifier).__qualname__
    refusal, calibration = refusal or Refusal(), calibration_of(purifier)
    entries = {
        "format": METADATA_FORMAT,
        "version": importlib.metadata.version("adversarial-purifier"),
        "plugin": plugin,
        "config": config,
        "config_hash": hashlib.sha256(config.encode()).hexdigest(),
        "checkpoint": purifier.provenance.get("file"),
        "checkpoint_sha256": purifier.provenance.get("sha256"),
        "threshold": None if calibration is None else calibration.threshold,
        "fpr": None if calibration is None else calibration.fpr,
        "on_reject": refusal.on_reject if refusal.active else None,
        "abstain": refusal.abstain,
        "noise": "the purifier's draw()" if noise else None,
    }
    return {f"purifier.{key}": str(value) for key, value in entries.items() if value is not None}


def add_metadata(model: ModelProto, entries: dict[str, str]) -> None:
    """Set metadata of a model in place; what else it says of itself stays."""
    kept = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**kept, **entries})


@contextmanager
def _readable(model: ModelProto) -> Iterator[None]:
    """Each tool has its own exceptions for a malformed graph: SerdeError, ValidationError, a bare ValueError..."""
    try:
        yield
    except PurifierError:
        raise
    except Exception as error:  # the tools share no base
        raise ClassifierError(
            f"the classifier cannot be read as a graph: {cause_of(error)}; see what onnx.checker.check_model says of "
            "it, and export it again",
            model.graph.name,
        ) from error


def _copied(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def _sorted(model: ModelProto) -> ModelProto:
    ordered = ir.from_proto(model)
    ordered.graph.sort()
    return ir.to_proto(ordered)


def _convert(model: ModelProto, opset: int) -> ModelProto:
    try:
        converted: ModelProto = version_converter.convert_version(model, opset)
    except Exception as error:  # C++, which raises whatever its operators do
        reason = str(error).rpartition("failed: ")[2]
        raise ClassifierError(
            f"the classifier uses opset {opset_of(model)}, and onnx cannot bring it to opset {opset} ({reason}); "
            f"export it again at opset {opset}",
            model.graph.name,
        ) from error
    # The converter forgets these.
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
        then = onnx.defs.get_schema(node.op_type, own, "").since_version
        now = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return True
    return then != now.since_version or now.deprecated


def _spell_domain(model: ModelProto) -> None:
    """Call ONNX's own operators by the empty domain, which is the same as ``ai.onnx``."""
    for graph in all_graphs(model.graph):
        for node in graph.node:
            if node.domain == "ai.onnx":
                node.domain = ""
    others = [entry for entry in model.opset_import if entry.domain not in ("", "ai.onnx")]
    imports = [onnx.helper.make_opsetid("", opset_of(model)), *others]
    del model.opset_import[:]
    model.opset_import.extend(imports)


def _names(model: ModelProto) -> set[str]:
    found: set[str] = set()
    for graph in all_graphs(model.graph):
        found.update(tensor.name for tensor in graph.initializer)
        found.update(value.name for value in (*graph.input, *graph.output))
        for node in graph.node:
            found.update((node.name, *node.input, *node.output))
    return found


def _free_prefix(names: set[str]) -> str:
    """``purifier/``, or ``purifier_1/`` and so on: one that none of the names starts with."""
    prefix, number = "purifier/", 0
    while any(name.startswith(prefix) for name in names):
        number += 1
        prefix = f"purifier_{number}/"
    return prefix


def _prefix(graph: ir.Graph, prefix: str) -> None:
    """Rename all nodes and values; drop their shapes, whose symbols could mean another size elsewhere."""
    for part in (graph, *graph.subgraphs()):
        values = [
            *part.inputs,
            *part.initializers.values(),
            *(value for node in part for value in node.outputs),
        ]
        named = [value for value in values if value.name]
        ir.convenience.rename_values(named, [prefix + (value.name or "") for value in named])
        for node in part:
            node.name = prefix + (node.name or node.op_type)
            for value in node.outputs:
                value.shape, value.type = None, None
