"""ONNX's own test cases of single nodes, run through ``GraphModule`` with the tolerances of ONNX's backend runner."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, TypeProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases

from purifier.classifiers.graph.module import GraphModule
from purifier.classifiers.graph.values import Quantised, from_array

BFLOAT16_TOLERANCE = 2**-6


@functools.cache
def all_cases() -> dict[str, Any]:
    """Every case by its name, without the prefix ``test_``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name.removeprefix("test_"): case for case in collect_testcases(None)}


def check_case(case: Any) -> None:
    """Raise if the outputs of a case are not as they should be."""
    module = GraphModule(case.model, file=case.name)
    kinds = [value.type for value in case.model.graph.input]
    for inputs, outputs in case.data_sets:
        given = [as_value(array, kind) for array, kind in zip(inputs, kinds, strict=False)]
        with torch.no_grad():
            found = module(*given)
        compare(list(found.values()), outputs, case.model.graph.output, case)


def as_value(array: Any, kind: TypeProto) -> Any:
    """An input of a case as a value for the module."""
    if array is None:
        return None
    match kind.WhichOneof("value"):
        case "sequence_type":
            return [as_value(part, kind.sequence_type.elem_type) for part in array]
        case "optional_type":
            return as_value(array, kind.optional_type.elem_type)
    if isinstance(array, TensorProto):
        array = numpy_helper.to_array(array)
    return from_array(np.asarray(array), kind.tensor_type.elem_type)


def compare(found: list[Any], wanted: Any, declared: Any, case: Any) -> None:
    assert len(found) == len(wanted)
    for value, array, output in zip(found, wanted, declared, strict=True):
        compare_value(value, array, output.type, case)


def compare_value(value: Any, array: Any, kind: TypeProto, case: Any) -> None:
    match kind.WhichOneof("value"):
        case "optional_type":
            return compare_value(value, array, kind.optional_type.elem_type, case)
        case "sequence_type":
            assert isinstance(value, list)
            assert len(value) == len(array)
            for part, wanted in zip(value, array, strict=True):
                compare_value(part, wanted, kind.sequence_type.elem_type, case)
            return None
    if array is None or value is None:
        assert array is None and value is None
        return None
    wanted = as_value(array, kind)
    if isinstance(wanted, Quantised):
        wanted = wanted.genuine()
    assert tuple(value.shape) == tuple(wanted.shape)
    assert value.dtype == wanted.dtype
    relative = max(case.rtol, BFLOAT16_TOLERANCE) if value.dtype == torch.bfloat16 else case.rtol
    numbers = [_array(part) for part in (value, wanted)]
    np.testing.assert_allclose(*numbers, rtol=relative, atol=case.atol)
    return None


def _array(value: torch.Tensor) -> Any:
    return value.detach().cpu().float().numpy() if value.dtype == torch.bfloat16 else value.detach().cpu().numpy()
