"""Branches and loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..node import Node
from ..table import Call, operator
from ..values import Value


@operator("If", host=(0,), quantised="itself", shaped=False)
def branch(node: Node) -> Call:
    known = node.constant(0)
    names = ("else_branch", "then_branch")
    if known is not None:
        only = node.body(names[bool(known)])
        return lambda _, *captured: _outputs(node, only([], captured))
    bodies = [node.body(name) for name in names]
    return lambda condition, *captured: _outputs(node, bodies[bool(condition)]([], captured))


@operator("Loop", host=(0, 1), quantised="itself", shaped=False)
def loop(node: Node) -> Call:
    body, given_count = node.body("body"), len(node.inputs)
    states = given_count - 2

    def run(*given: Value) -> Any:
        most, condition, *state = given[:given_count]
        captured = given[given_count:]
        limit = None if most is None else int(most)
        going = condition is None or bool(condition)
        gathered: list[list[Value]] = [[] for _ in range(body.output_count - 1 - states)]
        step = 0
        while going and (limit is None or step < limit):
            again, *found = body([torch.tensor(step), torch.tensor(True), *state], captured)
            state = found[:states]
            for kept, value in zip(gathered, found[states:], strict=True):
                kept.append(value)
            going, step = bool(again), step + 1
        return _outputs(node, [*state, *(_stacked(kept) for kept in gathered)])

    return run


def _outputs(node: Node, found: list[Value]) -> Any:
    return tuple(found) if len(node.outputs) > 1 else found[0]


def _stacked(values: Sequence[Tensor], axis: int = 0) -> Tensor:
    """One tensor of the values of all steps; without steps an empty one."""
    return torch.stack(list(values), axis) if values else torch.zeros(0)


@operator("Scan", since=8, quantised="itself", shaped=False)
def scan_batches(node: Node) -> Call:
    """As it was in opset 8: a batch axis, and the number of steps of each batch as first input."""
    body, given_count, scanned = node.body("body"), len(node.inputs), node.integer("num_scan_inputs")
    backwards = node.integers("directions", [0] * scanned)

    def run(*given: Value) -> Any:
        captured = given[given_count:]
        states = given[1 : given_count - scanned]
        sequences = given[given_count - scanned : given_count]
        lengths = given[0]
        rows = []
        for row in range(len(sequences[0])):
            count = sequences[0].shape[1] if lengths is None else int(lengths[row])
            inner = [value[row].narrow(0, 0, count) for value in sequences]
            rows.append(_scanned(body, [state[row] for state in states], inner, backwards, captured, count))
        return _outputs(node, [_stacked(values) for values in zip(*rows, strict=True)])

    return run


@operator("Scan", since=9, quantised="itself", shaped=False)
def scan(node: Node) -> Call:
    body, given_count, scanned = node.body("body"), len(node.inputs), node.integer("num_scan_inputs")
    states = given_count - scanned
    axes = node.integers("scan_input_axes", [0] * scanned)
    backwards = node.integers("scan_input_directions", [0] * scanned)
    made = body.output_count - states
    out_axes = node.integers("scan_output_axes", [0] * made)
    out_backwards = node.integers("scan_output_directions", [0] * made)

    def run(*given: Value) -> Any:
        captured, sequences = given[given_count:], given[states:given_count]
        moved = [value.movedim(axis, 0) for value, axis in zip(sequences, axes, strict=True)]
        found = _scanned(body, list(given[:states]), moved, backwards, captured, len(moved[0]))
        for place, (axis, turned) in enumerate(zip(out_axes, out_backwards, strict=True)):
            whole = found[states + place]
            found[states + place] = (whole.flip(0) if turned else whole).movedim(0, axis)
        return _outputs(node, found)

    return run


def _scanned(
    body: Any,
    state: list[Value],
    sequences: Sequence[Tensor],
    backwards: Sequence[int],
    captured: Sequence[Value],
    count: int,
) -> list[Value]:
    """Final states, then the outputs of all steps stacked on axis 0."""
    states = len(state)
    gathered: list[list[Value]] = [[] for _ in range(body.output_count - states)]
    for step in range(count):
        parts = [
            value[count - 1 - step if turned else step] for value, turned in zip(sequences, backwards, strict=True)
        ]
        found = body([*state, *parts], captured)
        state = found[:states]
        for kept, value in zip(gathered, found[states:], strict=True):
            kept.append(value)
    return [*state, *(_stacked(kept) for kept in gathered)]
