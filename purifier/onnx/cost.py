"""Refuse ONNX files that make their reader spend far more than they weigh: nested functions, giant tensors, loops."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

from ..errors import ClassifierError
from .folding import Folded
from .graphs import subgraphs
from .limits import advice, limits
from .loop_steps import most_steps
from .skeleton import inlined_skeleton

MAX_DEPTH = 100
"""How deep functions may call each other."""
WITH_SHAPE = ("ConstantOfShape", "Expand", "Tile")
"""Operators whose last input says how large their result is."""


def check_cost(model: ModelProto, where: str) -> None:
    """Raise ``ClassifierError`` if the graph alone, whatever its input, takes too much time or memory.

    Everything is counted before it is done: nodes before functions are inlined, sizes of tensors and steps of Loops
    before ONNX Runtime sees the graph.
    """
    _check_nodes(model, where)
    bare = inlined_skeleton(model)
    folded = Folded(bare)
    _check_graph(bare.graph, folded, where, 1.0)


def _check_nodes(model: ModelProto, where: str) -> None:
    functions = {(function.domain, function.name): function for function in model.functions}
    counted: dict[tuple[str, str], int] = {}

    def of_nodes(nodes: Iterable[NodeProto], depth: int) -> int:
        total = 0
        for node in nodes:
            function = functions.get((node.domain, node.op_type))
            total += 1 if function is None else of_function(function, depth)
            total += sum(of_nodes(graph.node, depth) for graph in subgraphs(node))
        return total

    def of_function(function: FunctionProto, depth: int) -> int:
        key = (function.domain, function.name)
        if depth > MAX_DEPTH:
            raise ClassifierError(
                f"{where}: its functions call each other more than {MAX_DEPTH} deep, or {function.name!r} calls "
                "itself; export the classifier again without functions",
                where,
            )
        if key not in counted:
            counted[key] = of_nodes(function.node, depth + 1)
        return counted[key]

    count, limit = of_nodes(model.graph.node, 0), limits().nodes
    if count > limit:
        raise ClassifierError(
            f"{where} has {count:.3g} nodes once its functions are inlined, the limit is {limit:,.0f}; "
            f"export it again without nested functions, or {advice('nodes')}",
            where,
        )


def _check_graph(graph: GraphProto, folded: Folded, where: str, around: float) -> None:
    for node in graph.node:
        _check_elements(node, folded, where)
        steps = around
        if node.op_type == "Loop" and node.domain in ("", "ai.onnx"):
            steps *= most_steps(node, folded)
            if steps > limits().loop_steps:
                raise ClassifierError(_too_many_steps(node, steps, where), where)
        for inner in subgraphs(node):
            _check_graph(inner, folded, where, steps)


def _check_elements(node: NodeProto, folded: Folded, where: str) -> None:
    limit = limits().elements
    for sizes in (_requested(node, folded), *(folded.shapes.get(name, ()) for name in node.output)):
        count = math.prod(int(size) for size in sizes)
        if count > limit:
            raise ClassifierError(
                f"{where}: {node.op_type} {node.name!r} creates {count:.3g} elements whatever the image, the limit is "
                f"{limit:.3g}; such a file can exhaust the memory, so it is not opened; {advice('elements')}",
                where,
            )


def _requested(node: NodeProto, folded: Folded) -> Sequence[int]:
    """The shape that a node asks for, for graphs in which shape inference does not find that of its output."""
    if node.op_type in ("RandomNormal", "RandomUniform"):
        return next((list(attribute.ints) for attribute in node.attribute if attribute.name == "shape"), [])
    if node.op_type in WITH_SHAPE and node.input:
        sizes = folded.values.get(node.input[-1])
        return [] if sizes is None else [int(size) for size in sizes.reshape(-1)]
    if node.op_type == "Range" and len(node.input) == 3:
        ends = [folded.values.get(name) for name in node.input]
        if all(end is not None and end.size == 1 for end in ends):
            start, stop, step = (float(end.reshape(-1)[0]) for end in ends if end is not None)
            return [max(0, math.ceil((stop - start) / step))] if step and math.isfinite((stop - start) / step) else []
    return []


def _too_many_steps(node: NodeProto, steps: float, where: str) -> str:
    limit, loop = limits().loop_steps, f"{where}: Loop {node.name!r}"
    if math.isinf(steps):
        return (
            f"{loop} has no trip count that the file determines, nor a condition that counts up to a known number, so "
            "it may never end; export the classifier with a fixed number of steps, or "
            f"{advice('loop_steps')}, to math.inf for such Loops"
        )
    return f"{loop} runs {steps:.3g} steps, with the Loops around it, the limit is {limit:,.0f}; {advice('loop_steps')}"
