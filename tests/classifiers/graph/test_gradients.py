"""The gradient of every operator against finite differences, on the inputs of ONNX's own cases."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from conformance import all_cases, as_value
from purifier.classifiers.graph import operators
from purifier.classifiers.graph.module import GraphModule
from purifier.classifiers.graph.table import find_operator, known_operators

operators.load()
NEWEST = 100
CASES, LARGEST = 3, 40_000
"""How many cases of an operator are differentiated, and the most elements that the inputs of one have."""
NO_FLOATS = {
    *("ConvInteger", "DequantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"),
    *("If", "Loop", "Scan"),  # these three have tests of their own
    *("Constant", "ConstantOfShape", "Optional", "SequenceEmpty", "SequenceInsert", "Trilu"),
}
"""Operators of whose cases no float is an input."""
NO_CASE = {
    *("ConcatFromSequence", "GlobalLpPool", "MaxRoiPool", "SequenceAt", "SequenceConstruct", "SequenceErase"),
    "SimplifiedLayerNormalization",
}
"""Operators without a case in ONNX; ``test_peers.py`` compares them with ONNX Runtime."""
START = {"Acosh": 1.0}
"""What is added to inputs so that they lie where an operator is defined."""
STRAIGHT_THROUGH = {"Ceil", "DynamicQuantizeLinear", "Floor", "QuantizeLinear", "Round", "Sign"}
DIFFERENTIABLE = [
    name
    for domain, name in known_operators()
    if domain == ""
    and name not in NO_FLOATS | NO_CASE | STRAIGHT_THROUGH
    and (found := find_operator(domain, name, NEWEST)) is not None
    and found.differentiable
    and not found.random
]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    checked = 0
    for case in sorted(cases_of(name), key=lambda case: (size_of(case), case.name)):
        checked += is_differentiated(case, name)
        if checked == CASES:
            break
    assert checked, "no case has a float that the output depends on"


def cases_of(name: str) -> list[Any]:
    return [
        case
        for case in all_cases().values()
        if [node.op_type for node in case.model.graph.node] == [name]
        and size_of(case) <= LARGEST
        and all(getattr(array, "size", 1) for array in case.data_sets[0][0])
    ]


def size_of(case: Any) -> int:
    return sum(getattr(array, "size", 0) for array in case.data_sets[0][0])


def is_differentiated(case: Any, name: str) -> bool:
    """Whether a case has floats on which a float output depends; its gradient is checked if so."""
    node = case.model.graph.node[0]
    found = find_operator("", name, NEWEST)
    assert found is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = GraphModule(case.model).double()
    if module.straight_through:
        return False
    closed = {node.input[place] for place in found.host | found.blind if place < len(node.input)}
    given = {
        value.name: as_value(array, value.type)
        for value, array in zip(case.model.graph.input, case.data_sets[0][0], strict=True)
    }
    floats = [
        key
        for key, value in given.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and key not in closed
    ]
    generator = torch.Generator().manual_seed(0)
    leaves = [(moved_a_little(given[key], generator) + START.get(name, 0)).requires_grad_() for key in floats]

    def outputs(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        made = module(**given | dict(zip(floats, values, strict=True)))
        flat = [part for value in made.values() for part in (value if isinstance(value, list) else [value])]
        return tuple(part for part in flat if isinstance(part, torch.Tensor) and part.requires_grad)

    if not leaves or not outputs(*leaves):
        return False
    return torch.autograd.gradcheck(outputs, leaves, fast_mode=True, atol=1e-4, rtol=1e-3)


def moved_a_little(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Away from ties and kinks, towards 0, so that it stays where the operator is defined."""
    noise = torch.rand(value.shape, generator=generator, dtype=torch.float64)
    finite = torch.where(value.isfinite(), value, 0.5).double()
    return finite * (1 - 0.05 * noise) + 0.003
