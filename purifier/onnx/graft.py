"""Graft a purifier's ONNX graph in front of an ONNX classifier."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import onnx_ir as ir
from onnx import ModelProto

from ..errors import ClassifierError
from ..output import LOGITS, Output
from ..rejection.policy import Rejection
from .blanks import blank_outputs
from .graphs import all_graphs, put_back, set_aside_maps
from .names import BAD, CLASSES, NOISE, PURIFIED, REJECTED
from .opset import copied, explained_reading, opset_of, raise_opset
from .rejection import replace_answer
from .torch_export import to_proto


def graft(
    front: ModelProto,
    classifier: ModelProto,
    input_name: str,
    *,
    shown: Sequence[str] = (),
    rejection: Rejection | None = None,
    output: Output = LOGITS,
) -> ModelProto:
    """The classifier with ``front`` between its input ``input_name`` and all nodes that read it.

    Inputs and outputs keep their names, types, shapes and order. The front's outputs named in ``shown`` become the last
    outputs, and its second input, if it has one, the last input. An output that *is* the input (same name) still
    returns the original images, because one name cannot stand for two values. The answers for rejected images,
    in the output that ``output`` finds, are replaced if ``rejection`` asks for it, and all that is computed from them
    follows. Where the front marks bad images, they get no answer in any output. The ``classifier`` itself is not
    changed.

    Raises
    ------
    ClassifierError
        The classifier cannot be converted to the purifier's opset, already uses one of the new names, is malformed,
        or has no answer to replace.
    ConfigError
        Its number of classes does not fit ``rejection``.
    """
    with explained_reading(classifier):
        return _grafted(front, classifier, input_name, tuple(shown), rejection or Rejection(), output)


def _grafted(
    front: ModelProto,
    classifier: ModelProto,
    input_name: str,
    shown: tuple[str, ...],
    rejection: Rejection,
    output: Output,
) -> ModelProto:
    classifier = raise_opset(classifier, opset_of(front))
    names = _names(classifier)
    for name in (*shown, *(value.name for value in front.graph.input[1:])):
        if name in names:
            raise ClassifierError(
                f"the classifier already has a value called {name!r}; rename it, or guard it without "
                f"{'noise as an input' if name == NOISE else 'score=True and rejection'}",
                classifier.graph.name,
            )
    # A copy of the front, because onnx_ir renames stored tensors in the model they came from.
    aside = set_aside_maps(classifier)
    guarded, piece = ir.from_proto(classifier), ir.from_proto(copied(front))
    graph = guarded.graph
    image = next(value for value in graph.inputs if value.name == input_name)
    batch = image.shape[0] if image.shape is not None else None
    first_input, *extra_inputs = piece.graph.inputs
    made = {value.name: value for value in piece.graph.outputs}
    prefix = _free_prefix(names)
    shape_of_classes = made[CLASSES].shape if CLASSES in made else None
    _prefix(piece.graph, prefix)
    if CLASSES in made:
        made[CLASSES].shape = shape_of_classes

    image.shape = _fixed(image.shape, first_input.shape)
    purified, checks = made[PURIFIED], []
    if _may_change_size(front):
        checks = _size_check(image, purified, prefix)
        purified = checks[-1].outputs[0]
    # uses() includes those inside the bodies of If, Loop and Scan.
    for node, place in image.uses():
        if node not in checks:
            node.replace_input_with(place, purified)
    piece.graph.outputs.clear()
    first_input.replace_all_uses_with(image)
    _give_noise(graph, extra_inputs, batch)
    nodes, first = list(piece.graph), next(iter(graph), None)
    for value in list(piece.graph.initializers.values()):
        del piece.graph.initializers[value.name or ""]
        graph.initializers.add(value)
    piece.graph.remove(nodes)
    nodes += checks
    if first is None:
        graph.extend(nodes)
    else:
        graph.insert_before(first, nodes)
    if rejection.replaces:
        replace_answer(graph, image, made[REJECTED], made.get(CLASSES), rejection, prefix, output)
    if BAD in made and rejection.blanks:
        blank_outputs(graph, made[BAD], image, prefix)
    for name in shown:
        value = made[name]
        value.name = name
        value.type = ir.TensorType(ir.DataType.BOOL if name == REJECTED else ir.DataType.FLOAT)
        value.shape = ir.Shape([batch])
        graph.outputs.append(value)
    graph.sort()  # ONNX requires sorted nodes, but some tools write classifiers that ONNX Runtime accepts unsorted
    made_model = to_proto(guarded)
    put_back(made_model, aside)
    return made_model


def _give_noise(graph: ir.Graph, inputs: Iterable[ir.Value], batch: Any) -> None:
    """Make the front's further inputs, its noise, inputs of the whole graph, with its batch size."""
    for value in inputs:
        sizes = [size if isinstance(size, int) else None for size in value.shape or ()]
        given = ir.Value(name=NOISE, shape=ir.Shape([batch, *sizes[1:]]), type=ir.TensorType(ir.DataType.FLOAT))
        value.replace_all_uses_with(given)
        graph.inputs.append(given)


def _fixed(declared: ir.Shape | None, purifiers: ir.Shape | None) -> ir.Shape:
    """The image's shape with the sizes that the purifier's graph is made for, so that the runtime refuses others."""
    assert purifiers is not None
    sizes = [None] * len(purifiers) if declared is None else list(declared)
    pairs = zip(sizes, purifiers, strict=True)
    return ir.Shape([own if isinstance(own, int) or not isinstance(new, int) else new for own, new in pairs])


def _may_change_size(front: ModelProto) -> bool:
    """Whether the purified images may have another size than the given ones, as after a stride in a free size."""
    given, made = (
        [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in (front.graph.input[0], front.graph.output[0])
    )
    return given != made


def _size_check(image: ir.Value, purified: ir.Value, prefix: str) -> list[ir.Node]:
    """Nodes that fail at a run unless purified images have the size of the given ones, and change nothing else."""
    size = ir.node("Shape", [image], name=f"{prefix}size_of_the_given_images")
    same = ir.node("Reshape", [purified, size.outputs[0]], name=f"{prefix}purified_images_must_keep_their_size")
    for node in (size, same):
        node.outputs[0].name = f"{node.name}_output"
    return [size, same]


def purified_name(classifier: ModelProto) -> str:
    """The name of the purified images in the graph that ``graft`` makes from a classifier."""
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
    """``purifier/``, or else ``purifier_1/`` and so on: the first prefix that no name starts with."""
    prefix, number = "purifier/", 0
    while any(name.startswith(prefix) for name in names):
        number += 1
        prefix = f"purifier_{number}/"
    return prefix


def _prefix(graph: ir.Graph, prefix: str) -> None:
    """Rename all nodes and values; drop their shapes, whose symbols may mean something else in the classifier."""
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
