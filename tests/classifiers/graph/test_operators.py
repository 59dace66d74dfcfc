"""Which operators of ONNX are supported."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from purifier.classifiers.graph import operators
from purifier.classifiers.graph.table import find_operator, known_operators, operator
from unsupported_cases import UNSUPPORTED_OPERATORS

operators.load()


def test_all_operators_of_onnx_are_supported_but_those_on_the_list() -> None:
    known, found = set(known_operators()), {}
    for schema in onnx.defs.get_all_schemas():
        described: Any = schema
        if (schema.domain, schema.name) in known or described.has_function:
            continue
        if not described.has_context_dependent_function:
            found.setdefault(schema.domain, []).append(schema.name)
    assert {domain: tuple(sorted(names)) for domain, names in found.items()} == UNSUPPORTED_OPERATORS


def test_operators_have_names_that_onnx_knows() -> None:
    names = {(schema.domain, schema.name) for schema in onnx.defs.get_all_schemas_with_history()}
    own = {("", "SimplifiedLayerNormalization")}  # ONNX Runtime writes it into ONNX's own domain
    assert {key for key in known_operators() if key[0] != "com.microsoft"} - names == own


def test_the_newest_entry_that_an_opset_allows_is_taken() -> None:
    newest, older = find_operator("", "Scan", 20), find_operator("", "Scan", 8)
    assert newest is not None and older is not None
    assert (newest.since, older.since) == (9, 8)
    assert find_operator("", "Gelu", 19) is None


def test_an_entry_is_registered_once() -> None:
    with pytest.raises(ValueError, match="Relu is registered twice for opset 1"):
        operator("Relu")(lambda node: len)
