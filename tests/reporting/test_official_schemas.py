"""SARIF and JUnit against schemas that others publish, which are not copied here: give their paths to run this.

``SARIF_SCHEMA``: sarif-schema-2.1.0.json of github.com/oasis-tcs/sarif-spec. ``JUNIT_SCHEMA``: JUnit.xsd of
github.com/windyroad/JUnit-Schema.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import jsonschema
import pytest
import xmlschema

from purifier.reporting.formats import render

pytestmark = pytest.mark.integration


def schema(name: str) -> Path:
    if name not in os.environ:
        pytest.skip(f"needs {name}, the path of a published schema")
    return Path(os.environ[name])


@pytest.fixture
def reports(healthy, failing, old_reports) -> list:
    return [(healthy, None), (healthy, 1.0), (failing, 0.0), *((report, None) for report in old_reports)]


def test_sarif_is_valid(reports):
    known = json.loads(schema("SARIF_SCHEMA").read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(known)(known)
    for report, least in reports:
        validator.validate(json.loads(render(report, "sarif", least=least)))


def test_junit_is_valid(reports):
    known = xmlschema.XMLSchema(str(schema("JUNIT_SCHEMA")))
    for report, least in reports:
        known.validate(render(report, "junit", least=least))
