"""How many steps a Loop can take, as far as its graph says."""

from __future__ import annotations

import math

import numpy as np
from onnx import GraphProto, NodeProto

from .folding import Folded
from .graphs import subgraphs

SAME = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze")
"""Operators that change the form of a counter or a condition, not its value."""
BELOW = {"Less": (0, 1), "LessOrEqual": (0, 1), "Greater": (1, 0), "GreaterOrEqual": (1, 0)}
"""Comparisons, and which of their inputs are the smaller and the larger one."""


def most_steps(loop: NodeProto, folded: Folded) -> float:
    """The trip count of a Loop, or how far its condition counts; infinity if neither is in the graph."""
    trips = _whole(loop.input[0], folded) if loop.input and loop.input[0] else None
    body = next(subgraphs(loop), None)
    counted = math.inf if body is None or not body.output else _Counter(loop, body, folded).steps(body.output[0].name)
    return min(math.inf if trips is None else float(max(0, trips)), counted)


class _Counter:
    """The whole numbers that a Loop carries from step to step, as in ``while i < n: i = i + 1``."""

    def __init__(self, loop: NodeProto, body: GraphProto, folded: Folded) -> None:
        self._loop, self._body, self._folded = loop, body, folded
        self._makers = {output: node for node in body.node for output in node.output}

    def steps(self, condition: str, depth: int = 0) -> float:
        """After how many steps a condition is false at the latest."""
        node = self._maker(condition)
        if node is None or depth > 10:
            return math.inf
        if node.op_type == "And":  # one of the two is enough
            return min(self.steps(name, depth + 1) for name in node.input)
        if node.op_type not in BELOW:
            return math.inf
        smaller, larger = (node.input[place] for place in BELOW[node.op_type])
        end, counted = _whole(larger, self._folded), self._counted(smaller)
        if end is None or counted is None:
            return math.inf
        start, step = counted
        return float(max(0, math.ceil((end - start) / step)) + 1)

    def _counted(self, name: str) -> tuple[int, int] | None:
        """Start and step of a value that grows by the same whole number in each step of the Loop."""
        inputs, outputs = self._body.input, self._body.output
        source = self._source(name)
        if len(inputs) and source == inputs[0].name:
            return 0, 1
        for place in range(1, len(outputs)):
            if place + 1 >= min(len(inputs), len(self._loop.input)):
                return None
            carried, after = inputs[place + 1].name, self._source(outputs[place].name)
            adds = self._makers.get(after)
            if source not in (carried, after) or adds is None or adds.op_type != "Add":
                continue
            others = [given for given in adds.input if self._source(given) != carried]
            step = _whole(others[0], self._folded) if len(others) == 1 else None
            start = _whole(self._loop.input[place + 1], self._folded)
            if start is not None and step is not None and step > 0:
                return start, step
        return None

    def _source(self, name: str) -> str:
        """The value that another one repeats."""
        for _ in range(10):
            node = self._makers.get(name)
            if node is None or node.op_type not in SAME:
                break
            name = node.input[0]
        return name

    def _maker(self, name: str) -> NodeProto | None:
        return self._makers.get(self._source(name))


def _whole(name: str, folded: Folded) -> int | None:
    """A known whole number. Floats do not count, because a small step may not change a large one."""
    value = folded.values.get(name)
    if value is None or value.size != 1 or name in folded.ambiguous or not np.issubdtype(value.dtype, np.integer):
        return None
    return int(value.reshape(-1)[0])
