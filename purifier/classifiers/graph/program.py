"""A compiled graph: steps that read and write numbered slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch

from ...errors import ConfigError
from .table import Call
from .types import setting
from .values import Value, is_on_cpu, moved

NOTHING, UNUSED = 0, 1
"""Slots for inputs that are absent, which always hold None, and for outputs that nobody reads."""


@dataclass(frozen=True, slots=True)
class Step:
    """One node: what computes it, and the slots of its inputs and outputs."""

    call: Call
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    frees: tuple[int, ...]
    """Slots that no later step reads."""
    host: frozenset[int]
    title: str
    """Names the node in errors."""
    fixed: bool
    """Whether the shapes of the inputs determine what it makes, as of one that computes a shape."""


@dataclass(frozen=True, slots=True)
class Program:
    """The steps of a graph, in order."""

    steps: tuple[Step, ...]
    size: int
    """The number of slots."""
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    captures: tuple[int, ...] = ()
    """For a subgraph, the slots of values from around it."""

    def __deepcopy__(self, memo: object) -> Program:
        return self  # its steps keep nothing

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise ConfigError(
            "a GraphModule cannot be pickled, because its steps are functions made from an ONNX graph; make it from "
            "the model in each process, and exchange weights by state_dict()"
        )

    def run(self, slots: list[Value]) -> list[Value]:
        """The outputs, for slots that hold inputs, captured values and constants."""
        device = setting().device
        foreign = device.type != "cpu"
        step = None
        try:
            for step in self.steps:
                given = [slots[slot] for slot in step.inputs]
                if foreign:
                    _gather(step, given, device)
                found = step.call(*given)
                if type(found) is tuple:
                    for slot, value in zip(step.outputs, found, strict=False):
                        slots[slot] = value
                else:
                    slots[step.outputs[0]] = found
                for slot in step.frees:
                    slots[slot] = None
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            if step is not None:
                error.add_note(f"in {step.title}")
            raise
        return [slots[slot] for slot in self.outputs]


class Subgraph:
    """A program inside a node; see ``node.Body``."""

    def __init__(self, program: Program, start: int) -> None:
        self.program, self._start = program, start
        self.input_count, self.output_count = len(program.inputs), len(program.outputs)

    def __call__(self, inputs: Sequence[Value], captured: Sequence[Value]) -> list[Value]:
        program = self.program
        slots: list[Value] = [None] * program.size
        for slot, value in zip(program.captures, captured[self._start :], strict=False):
            slots[slot] = value
        for slot, value in zip(program.inputs, inputs, strict=True):
            slots[slot] = value
        return program.run(slots)


def _gather(step: Step, given: list[Value], device: torch.device) -> None:
    """Move inputs from the CPU to the device, in place, unless all are on the CPU, as shapes are."""
    places = [place for place, value in enumerate(given) if value is not None and place not in step.host]
    near = [is_on_cpu(given[place]) for place in places]
    if any(near) and not all(near):
        for place, is_near in zip(places, near, strict=True):
            if is_near:
                given[place] = moved(given[place], device)
