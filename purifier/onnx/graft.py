"""Grafting: a purifier's ONNX graph spliced in front of somebody else's ONNX classifier."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx import ModelProto

from ..errors import ClassifierError
from ..rejection.policy import Rejection
from .graphs import all_graphs
from .names import CLASSES, NOISE, PURIFIED, REJECTED
from .opset import copied, explained_reading, opset_of, raise_opset
from .rejection import replace_logits
from .torch_export import without_sources


def graft(
    front: ModelProto,
    classifier: ModelProto,
    input_name: str,
    *,
    shown: Sequence[str] = (),
    rejection: Rejection | None = None,
) -> ModelProto:
    """The classifier with ``front`` between its input ``input_name`` and everything that reads it.

    Inputs and outputs keep their names, types, shapes and order. The front's outputs named in ``shown`` are added as
    the last outputs, and its second input, if it has one, as the last input. An output that *is* the input, under its
    name, still gives what was fed: one name cannot carry two values. The logits of rejected images are replaced if
    ``rejection`` says so. The classifier given is not changed.

    Raises
    ------
    ClassifierError
        The classifier cannot be brought to the purifier's opset, has a value of one of the new names already, is
        malformed, or has no logits that could be replaced.
    ConfigError
        Its classes are not those that ``rejection`` needs.
    """
    with explained_reading(classifier):
        return _grafted(front, classifier, input_name, tuple(shown), rejection or Rejection())


def _grafted(
    front: ModelProto, classifier: ModelProto, input_name: str, shown: tuple[str, ...], rejection: Rejection
) -> ModelProto:
    classifier = raise_opset(classifier, opset_of(front))
    names = _names(classifier)
    for name in (*shown, *(value.name for value in front.graph.input[1:])):
        if name in names:
            raise ClassifierError(
                f"the classifier has a value called {name!r} already; rename it, or guard it without "
                f"{'noise as an input' if name == NOISE else 'score=True and rejection'}",
                classifier.graph.name,
            )
    # onnx_ir renames a stored tensor in the model it was read from, which is the caller's.
    guarded, piece = ir.from_proto(classifier), ir.from_proto(copied(front))
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
    if rejection.replaces:
        replace_logits(graph, made[REJECTED], made.get(CLASSES), rejection, prefix)
    for name in shown:
        value = made[name]
        value.name = name
        value.type = ir.TensorType(ir.DataType.BOOL if name == REJECTED else ir.DataType.FLOAT)
        value.shape = ir.Shape([batch])
        graph.outputs.append(value)
    graph.sort()  # ONNX wants it, ONNX Runtime does not mind: some tools write classifiers out of order
    return ir.to_proto(without_sources(guarded))


def purified_name(classifier: ModelProto) -> str:
    """What the purified images are called in the graph that :func:`graft` makes of a classifier."""
    return _free_prefix(_names(classifier)) + PURIFIED


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
