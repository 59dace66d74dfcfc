"""The JSON Schema of ``report.json``, made from the dataclasses that a report is made of."""

from __future__ import annotations

import ast
import collections.abc
import dataclasses
import inspect
import json
import re
import textwrap
import types
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..auditing.report import AuditReport, Row, WorstCase
from ..auditing.report_versions import SCHEMA_VERSION
from ..auditing.statistics import Rate

DIALECT = "https://json-schema.org/draft/2020-12/schema"
PLAIN: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
OPTIONAL = ("class_names", "probes", "command", "gradient_check")
"""Fields that a report may leave out."""


def report_schema() -> dict[str, Any]:
    """The schema of a report of today's version, JSON Schema 2020-12."""
    parts: dict[str, Any] = {}
    whole = _object_of(AuditReport, parts)
    del whole["properties"]["details"]
    whole["required"] = [name for name in whole["required"] if name not in (*OPTIONAL, "details")]
    whole["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    return {
        "$schema": DIALECT,
        "title": f"purifier report, schema version {SCHEMA_VERSION}",
        **whole,
        "$defs": dict(sorted(parts.items())),
    }


def schema_text() -> str:
    """The schema as it is published."""
    return json.dumps(report_schema(), indent=1, ensure_ascii=False) + "\n"


def _object_of(cls: type, parts: dict[str, Any]) -> dict[str, Any]:
    """The schema of a dataclass; those that it names are added to ``parts``."""
    hints, texts = get_type_hints(cls), _texts_of(cls)
    properties = {}
    for field in dataclasses.fields(cls):
        text = {"description": texts[field.name]} if field.name in texts else {}
        properties[field.name] = {**text, **_schema_of(hints[field.name], parts)}
    if cls in (Row, WorstCase):  # the fields of ``result`` are merged into it
        del properties["result"]
        rate = _object_of(Rate, parts)["properties"]
        properties.update({name: _or_null(one) if cls is Row else one for name, one in rate.items()})
    found = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"description": _plain(inspect.getdoc(cls) or ""), **found}


def _schema_of(hint: Any, parts: dict[str, Any]) -> dict[str, Any]:
    if hint in PLAIN:
        return {"type": PLAIN[hint]}
    if hint is Any:
        return {}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if hint.__name__ not in parts:
            parts[hint.__name__] = {}  # in case it names itself
            parts[hint.__name__] = _object_of(hint, parts)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema_of(one, parts) for one in arguments]}
    if origin is collections.abc.Sequence:
        return {"type": "array", "items": _schema_of(arguments[0], parts)}
    if origin is collections.abc.Mapping:
        return {"type": "object", "additionalProperties": _schema_of(arguments[1], parts) or True}
    if origin is tuple:
        size = len(arguments)
        return {
            "type": "array",
            "prefixItems": [_schema_of(one, parts) for one in arguments],
            "minItems": size,
            "maxItems": size,
        }
    return {}  # not in the JSON


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    text = {name: schema[name] for name in schema if name == "description"}
    return {**text, "anyOf": [{name: schema[name] for name in schema if name != "description"}, {"type": "null"}]}


@cache
def _texts_of(cls: type) -> dict[str, str]:
    """The texts below the fields of a dataclass."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = _plain(str(text.value.value))
    return found


def _plain(text: str) -> str:
    """A docstring as plain text on one line."""
    return " ".join(re.sub(r"`+([^`]*)`+", r"\1", text).split())
