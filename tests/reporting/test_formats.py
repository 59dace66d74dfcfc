"""Reports as Markdown, CSV, JUnit, SARIF and evidence sheets."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import junitparser
import pytest
from pydantic_sarif.model import StaticAnalysisResultsFormatSarifVersion210JsonSchema as SarifLog

from purifier.auditing.baseline import Baseline
from purifier.auditing.flags import FLAGS
from purifier.auditing.gates import Gate
from purifier.auditing.report import Flag
from purifier.errors import ConfigError
from purifier.reporting.findings import OTHER_RULES
from purifier.reporting.formats import render
from purifier.reporting.summary import verdict
from purifier.reporting.taxonomy import technique_of
from report_helpers import HOSTILE

FORMATS = ("html", "md", "junit", "sarif", "csv", "evidence")


@pytest.mark.parametrize("to", FORMATS)
def test_reports_of_every_version_can_be_written(old_reports, to):
    for report in old_reports:
        assert str(report.data["name"]) in render(report, to) or to == "csv"


def test_an_unknown_format_is_an_error(healthy):
    with pytest.raises(ConfigError, match="expected one of html, md, .* got 'pdf'"):
        render(healthy, "pdf")


def test_the_verdict_carries_the_worst_case_with_interval_and_count(healthy, failing):
    worst = min(
        (case.result for case in healthy.worst_case if (case.model, case.scope) == ("guarded", "all")),
        key=lambda rate: rate.share,
    )
    head = verdict(healthy)
    assert (head.light, head.title) == ("plain", f"{worst} of 20 images stay right under attack")
    assert (
        f"right on {worst} of 20 images" in head.sentences[0] and "every pixel value by up to 0.1" in head.sentences[0]
    )
    assert verdict(healthy, []).light == "good" and verdict(healthy, []).title.startswith("Gate passed: ")
    doubted = verdict(failing)
    assert doubted.light == "doubt" and doubted.title.startswith("Inconclusive: at most ")
    assert "flag unbounded, an attack failed" in doubted.sentences[-1]


def test_only_routes_with_all_gradients_are_called_white_box(healthy):
    for row in healthy.rows:
        term = technique_of(row)
        if row.threat is None:
            assert term is None
            continue
        assert ("white-box" in term.nist) == (row.route in ("exact", "bpda"))
        assert (term.id == "AML.T0043.000") == (row.route in ("exact", "bpda"))
        if row.route == "oblivious":
            assert term.id == "AML.T0043.002"
        if row.route == "none" and row.model == "guarded":
            assert term.id == "AML.T0043.001" and term.nist.endswith("score-based")


def test_an_audit_without_white_box_attacks_says_so(healthy):
    blind = dataclasses.replace(
        healthy, worst_case=[case for case in healthy.worst_case if case.scope == "all"]
    )  # fmt: skip
    assert any(sentence.startswith("No white-box attack is among them") for sentence in verdict(blind).sentences)
    assert "White-box attacks alone" not in render(blind, "html")


def test_csv_has_every_figure(healthy):
    lines = list(csv.DictReader(io.StringIO(render(healthy, "csv"))))
    assert len(lines) == len(healthy.rows) + len(healthy.worst_case)
    for line, row in zip(lines, healthy.rows, strict=False):
        assert (line["model"], line["attack"], line["route"]) == (row.model, row.attack, row.route or "")
        assert float(line["share"]) == row.result.share and int(line["count"]) == row.result.count
        assert (float(line["low"]), float(line["high"])) == row.result.interval


def test_csv_cells_are_not_formulas(healthy):
    rows = [dataclasses.replace(healthy.rows[-1], attack="=HYPERLINK(1)", error="@x")]
    (line,) = csv.DictReader(io.StringIO(render(dataclasses.replace(healthy, rows=rows, worst_case=[]), "csv")))
    assert line["attack"] == "'=HYPERLINK(1)" and line["error"] == "'@x"


def test_sarif_is_valid_and_has_a_result_for_each_finding(healthy, failing):
    for report, gate, expected in (
        (healthy, None, []),
        (healthy, 1.0, ["gate", "gate"]),
        (failing, None, ["attack-failed", "unbounded"]),
    ):
        text = render(report, "sarif", least=gate)
        SarifLog.model_validate_json(text)
        (run,) = json.loads(text)["runs"]
        rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
        assert set(rules) == {*FLAGS, *OTHER_RULES}
        assert [result["ruleId"] for result in run["results"]] == expected
        assert all(rules[result["ruleIndex"]] == result["ruleId"] for result in run["results"])
        assert run["taxonomies"][0]["version"] == "5.6.0"
        assert run["invocations"][0]["executionSuccessful"] is report.complete


def test_junit_is_read_by_another_program(healthy, failing):
    for report, gate, failures, errors in ((healthy, None, 0, 0), (healthy, 1.0, 2, 0), (failing, 0.0, 1, 1)):
        text = render(report, "junit", least=gate)
        (suite,) = junitparser.JUnitXml.fromstring(text)
        gates = 0 if gate is None else len(report.threats)
        assert suite.tests == len(list(suite)) == len(FLAGS) + len(report.rows) + gates
        assert (suite.failures, suite.errors) == (failures, errors)
        broken = [kind for case in suite for kind in case.result]
        assert sum(isinstance(kind, junitparser.Failure) for kind in broken) == failures
        assert sum(isinstance(kind, junitparser.Error) for kind in broken) == errors


def test_junit_names_the_technique_of_each_attack(healthy):
    (suite,) = ElementTree.fromstring(render(healthy, "junit"))
    properties = {one.get("name"): one.get("value") for one in suite.find("properties")}
    assert properties["atlas.version"] == "5.6.0" and properties["atlas"] == "AML.T0015 Evade AI Model"
    named = [name.split(":")[0] for case in suite.findall("testcase") if (name := case.get("name")).startswith("pgd")]
    assert len(named) > 0
    for row in healthy.rows:
        term = technique_of(row)
        if term is not None:
            name = f"atlas.{row.model}.{row.attack}, {row.route}, {row.threat}"
            assert properties.pop(name) == f"{term.id} {term.name}; {term.nist}"
    assert not any(name.startswith("atlas.guarded") for name in properties)


def test_every_gate_is_a_test_case_and_a_missed_one_a_finding(healthy, failing):
    gates = [Gate("clean", 0.0), Gate("pgd", 1.0)]
    pgd = [row for row in healthy.rows if row.model == "guarded" and row.attack.startswith("pgd")]
    (suite,) = junitparser.JUnitXml.fromstring(render(healthy, "junit", gates=gates, baseline=Baseline(failing, 0.3)))
    cases = [case for case in suite if case.classname == "purifier.gates"]
    assert len(cases) == 1 + len(pgd) + 1 + len(healthy.threats)
    broken = [case.name for case in cases if case.result]
    assert len(broken) == len(pgd) and all(name.startswith("pgd") for name in broken)
    nothing_right = dataclasses.replace(healthy.results, counted=0 * healthy.results.counted)
    worse = dataclasses.replace(healthy, details=SimpleNamespace(results=nothing_right))
    text = render(worse, "sarif", gates=gates[:1], baseline=Baseline(healthy, 0.2))
    SarifLog.model_validate_json(text)
    (run,) = json.loads(text)["runs"]
    missed = [result["message"]["text"] for result in run["results"] if result["ruleId"] == "baseline"]
    assert [one.split(": ")[0] for one in missed] == [
        f"against the baseline, {where}" for where in ("clean images", *healthy.threats)
    ]
    lines = render(worse, "md", gates=gates[:1], baseline=Baseline(healthy, 0.2)).split("## Gates")[1].split("##")[0]
    assert (lines.count("🔴"), lines.count("🟢")) == (len(missed), 1)


def test_gates_of_an_inconclusive_audit_are_undecided_unless_missed(failing):
    gates = [Gate("clean", 0.0), Gate("robust", 1.0)]
    (suite,) = junitparser.JUnitXml.fromstring(render(failing, "junit", gates=gates))
    cases = [case for case in suite if case.classname == "purifier.gates"]
    assert [case.is_skipped for case in cases] == [True, *(False for _ in failing.threats)]
    for to in ("html", "md"):
        text = re.sub("<.*?>", "", render(failing, to, gates=gates))
        assert text.count("undecided: clean images") == 1 and text.count("missed: worst case") == len(failing.threats)
        assert "passed: " not in text


def test_flags_that_were_not_looked_for_are_skipped(old_reports):
    (suite,) = junitparser.JUnitXml.fromstring(render(old_reports[0], "junit"))
    assert sum(case.is_skipped for case in suite) == len(FLAGS)


def hostile(report):
    """A report whose names come from somebody who means harm."""
    return dataclasses.replace(
        report,
        data={**report.data, "name": HOSTILE},
        classifier={**report.classifier, "description": HOSTILE},
        flags=[Flag(HOSTILE, HOSTILE + "\x00")],
        rows=[*report.rows, dataclasses.replace(report.rows[-1], attack=HOSTILE, result=None, error=HOSTILE)],
        left_out=[HOSTILE],
        command=["purifier", HOSTILE],
    )


def test_hostile_names_stay_text_in_xml_and_json(healthy):
    found = hostile(healthy)
    root = ElementTree.fromstring(render(found, "junit"))
    assert root.find("testsuite").get("name") == f"audit of {HOSTILE}"
    (run,) = json.loads(render(found, "sarif"))["runs"]
    assert {"id": HOSTILE} in run["tool"]["driver"]["rules"]
    SarifLog.model_validate_json(render(found, "sarif"))


@pytest.mark.parametrize("to", ["md", "evidence"])
def test_hostile_names_stay_text_in_markdown(healthy, to):
    text = render(hostile(healthy), to)
    assert "<script" not in text and not re.search(r"(?<!\\)\]\(javascript", text)
    for block in text.split("\n\n"):
        if block.startswith("| "):  # a pipe in a name would begin another cell
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_the_evidence_sheet_claims_no_compliance(healthy):
    text = render(healthy, "evidence")
    assert "does not state that any law, standard or policy is complied with" in text
    for digest in (healthy.classifier["sha256"], healthy.purifier["sha256"], healthy.data["sha256"]):
        assert digest in text
    for word in ("## Metrics", "## Threat model", "## Environment", "## Limits", "AML.M0010 Input Restoration"):
        assert word in text
    assert healthy.versions["torch"] in text
