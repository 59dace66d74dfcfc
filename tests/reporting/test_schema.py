"""The published JSON Schema of reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError

from purifier.reporting.schema import report_schema, schema_text

PUBLISHED = Path(__file__).parents[2] / "docs" / "report.schema.json"


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    Draft202012Validator.check_schema(report_schema())
    return Draft202012Validator(report_schema())


def test_the_published_schema_is_up_to_date():
    assert PUBLISHED.read_text(encoding="utf-8") == schema_text(), "purifier report schema > docs/report.schema.json"


def test_reports_of_every_version_are_valid(validator, healthy, failing, old_reports):
    for report in (healthy, failing, *old_reports):
        validator.validate(json.loads(report.to_json()))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("schema_version",), 99),
        (("rows", 0, "interval"), [0.1]),
        (("rows", 0, "model"), "other"),
        (("threats", 0, "norm"), 2),
        (("flags",), None),
        (("rows", 0, "surprise"), 1),
        (("worst_case", 0, "share"), None),
    ],
)
def test_what_is_no_report_is_not_valid(validator, healthy, place, value):
    found = json.loads(healthy.to_json())
    inner = found
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    with pytest.raises(ValidationError):
        validator.validate(found)


def test_fields_are_described():
    properties = report_schema()["$defs"]["Row"]["properties"]
    assert properties["attacked"]["description"].startswith("Number of images attacked")
    assert report_schema()["properties"]["flags"]["items"] == {"$ref": "#/$defs/Flag"}
