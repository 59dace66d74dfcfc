"""A program for inputs of certain shapes: what these determine is computed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from .program import Program
from .values import Value

MOST = 8
"""Shapes of inputs that are kept for one module."""


class Specialised(NamedTuple):
    """A program without the steps whose results are known, and these results, by slot."""

    program: Program
    values: Mapping[int, Value]


def keeping(program: Program) -> Program:
    """The program, but what the shapes of the inputs determine stays in its slot."""
    kept = {slot for step in program.steps if step.fixed for slot in step.outputs}
    steps = [dataclasses.replace(step, frees=tuple(set(step.frees) - kept)) for step in program.steps]
    return dataclasses.replace(program, steps=tuple(steps))


def specialised(program: Program, slots: list[Value]) -> Specialised | None:
    """What to run from now on for inputs of the same shapes, from the slots after a run of ``keeping(program)``.

    None if the values belong to this run alone, as those of ``torch.inference_mode`` and of fake tensors do.
    """
    steps = [step for step in program.steps if not step.fixed]
    read = {slot for step in steps for slot in step.inputs} | set(program.outputs)
    values = {slot: slots[slot] for step in program.steps if step.fixed for slot in step.outputs if slot in read}
    if any(type(value) is not Tensor or value.is_inference() for value in values.values()):
        return None
    return Specialised(dataclasses.replace(program, steps=tuple(steps)), values)
