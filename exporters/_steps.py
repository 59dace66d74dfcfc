"""Find the gradient steps of a purifier that are unrolled in a graph."""

from __future__ import annotations

from collections import defaultdict

from onnx import ModelProto

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def name_steps(model: ModelProto) -> list[str]:
    """The names of the nodes that are part of gradient steps; those without a name get one.

    Each step runs the same decoder forwards and, transposed, backwards, so several nodes share its weights. The steps
    are these nodes and all nodes on a path from one of them to another. A graph in which every layer has weights of
    its own has none.
    """
    nodes = model.graph.node
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    users: dict[str, list[int]] = defaultdict(list)
    for place, node in enumerate(nodes):
        if node.op_type in WEIGHTED:
            for name in weights & {*node.input}:
                users[name].append(place)
    sharing = {place for places in users.values() if len(places) > 1 for place in places}
    made_by = {name: place for place, node in enumerate(nodes) for name in node.output}
    parents = [[made_by[name] for name in node.input if name in made_by] for node in nodes]
    after: set[int] = set()
    for place in range(len(nodes)):  # in topological order, as ONNX demands
        if place in sharing or not after.isdisjoint(parents[place]):
            after.add(place)
    before: set[int] = set()
    waiting = [*sharing]
    while waiting:
        place = waiting.pop()
        if place not in before:
            before.add(place)
            waiting += parents[place]
    steps = sorted(after & before)
    for place in steps:
        nodes[place].name = nodes[place].name or f"step_{place}"
    return [nodes[place].name for place in steps]
