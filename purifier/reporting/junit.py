"""A report as JUnit XML: flags, attacks and gates as test cases, in the order of windyroad's JUnit.xsd."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from ..auditing.flags import FLAGS
from ..auditing.report import AuditReport, Row
from .findings import ATTACK_FAILED, Finding, GateResult, findings, missed_of, rule_of
from .summary import counted, verdict, with_count
from .taxonomy import ATLAS_VERSION, EVADE, technique_of

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
PACKAGE = "purifier"


def to_junit(report: AuditReport, gates: Sequence[GateResult] | None = None) -> str:
    """One test case for each flag, each attack and each result that ``gates`` looked at; None without gates.

    A flag that was raised and a missed gate are failures, an attack that failed is an error. Flags that were not looked
    for and undecided gates are skipped. The schema has no place for properties of a test case, so those of the suite
    name MITRE ATLAS' technique of each attack.
    """
    cases = [*_flag_cases(report), *_attack_cases(report), *map(_gate_case, gates or ())]
    broken = {kind: sum(case.find(kind) is not None for case in cases) for kind in ("failure", "error")}
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        {
            "id": "0",
            "package": PACKAGE,
            "name": _text(f"audit of {report.data['name']}"),
            "timestamp": report.created[: len("2026-01-01T00:00:00")],
            "hostname": "localhost",
            "tests": str(len(cases)),
            "failures": str(broken["failure"]),
            "errors": str(broken["error"]),
            "time": f"{sum(row.seconds for row in report.rows):.3f}",
        },
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in _properties(report):
        ElementTree.SubElement(properties, "property", {"name": name, "value": _text(value)})
    suite.extend(cases)
    head = verdict(report, missed_of(gates))
    ElementTree.SubElement(suite, "system-out").text = _text("\n".join([head.title, *head.sentences]))
    ElementTree.SubElement(suite, "system-err")
    ElementTree.indent(root, " ")
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def _case(kind: str, name: str, seconds: float = 0.0) -> ElementTree.Element:
    attributes = {"classname": f"{PACKAGE}.{kind}", "name": _text(name), "time": f"{seconds:.3f}"}
    return ElementTree.Element("testcase", attributes)


def _break(case: ElementTree.Element, kind: str, found: Sequence[Finding]) -> None:
    """Mark a test case as a failure or an error."""
    _, why, what_to_do = rule_of(found[0])
    message = "; ".join(one.text for one in found)
    inner = ElementTree.SubElement(case, kind, {"type": found[0].rule, "message": _text(message)})
    inner.text = _text(f"{message}\n{why}\nWhat to do: {what_to_do}" if why else message)


def _flag_cases(report: AuditReport) -> list[ElementTree.Element]:
    raised: dict[str, list[Finding]] = {name: [] for name in FLAGS}
    for finding in findings(report):
        if finding.rule != ATTACK_FAILED:
            raised.setdefault(finding.rule, []).append(finding)
    cases = []
    for name, found in raised.items():
        cases.append(_case("flags", name))
        if found:
            _break(cases[-1], "failure", found)
        elif not report.probes:
            ElementTree.SubElement(cases[-1], "skipped")
    return cases


def _attack_cases(report: AuditReport) -> list[ElementTree.Element]:
    cases = []
    for row in report.rows:
        figure = "" if row.result is None else f": {counted(report)} {with_count(row.result)}"
        case = _case(f"attacks.{row.model}", f"{_name(row)}{figure}", row.seconds)
        if row.error:
            _break(case, "error", [Finding(ATTACK_FAILED, "error", row.error)])
        cases.append(case)
    return cases


def _name(row: Row) -> str:
    """A row's attack, route and threat."""
    attack = "clean images" if row.threat is None else f"{row.attack}, {row.route}, {row.threat}"
    return f"{attack}, eot {row.eot}" if row.eot > 1 else attack


def _gate_case(result: GateResult) -> ElementTree.Element:
    case = _case("gates", result.text)
    if result.state == "missed":
        _break(case, "failure", [Finding(result.rule, "error", result.text)])
    elif result.state == "undecided":
        ElementTree.SubElement(case, "skipped", {"message": "undecided: the audit is inconclusive"})
    return case


def _properties(report: AuditReport) -> list[tuple[str, str]]:
    found = [(f"version.{name}", version) for name, version in report.versions.items()]
    found += [("data.sha256", str(report.data["sha256"])), ("classifier.sha256", str(report.classifier["sha256"]))]
    if report.purifier is not None:
        found.append(("purifier.sha256", str(report.purifier.get("sha256"))))
    found += [("seed", str(report.seed)), ("atlas.version", ATLAS_VERSION), ("atlas", EVADE.atlas)]
    terms = [(f"atlas.{row.model}.{_name(row)}", technique_of(row)) for row in report.rows]
    return [*found, *((_text(name), f"{term.atlas}; {term.nist}") for name, term in terms if term is not None)]


def _text(text: str) -> str:
    """Text without the characters that XML cannot hold."""
    return NOT_XML.sub("\ufffd", text)
