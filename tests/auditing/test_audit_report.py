"""The audit's report: saved, loaded and printed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import purifier
from audit_helpers import COUNT, NoConfig, Noisy, printed, rows
from purifier.auditing.audit import audit
from purifier.auditing.figures import rate_text
from purifier.auditing.report import AuditReport, Flag
from purifier.auditing.report_versions import SCHEMA_VERSION
from purifier.errors import FileError
from purifier.guards.guard import guard

OLD_REPORTS = Path(__file__).with_name("old_reports")


def test_a_report_is_saved_and_loaded_as_it_was(report, classifier, data, tmp_path):
    noisy = audit(guard(classifier, Noisy(NoConfig())), data, attacks=("fgsm",), out=tmp_path / "new" / "noisy")
    assert AuditReport.load(tmp_path / "new" / "noisy") == noisy
    commanded = replace(report, command=["purifier", "audit"])
    assert AuditReport.load(commanded.save(tmp_path)) == commanded
    raw = json.loads((tmp_path / "report.json").read_text())
    assert next(iter(raw)) == "schema_version" and raw["schema_version"] == SCHEMA_VERSION
    _, labels = data.batch(range(COUNT))
    counts = {str(label): int((labels == label).sum()) for label in range(10)}
    assert raw["data"]["name"] == f"fashion-mnist:test:{COUNT}" and raw["data"]["count"] == COUNT
    assert raw["data"]["classes"] == counts
    assert raw["preprocessing"]["layout"] == "NCHW"
    known = {"plugin": "blur", "config": {"sigma": 1.0}, "surrogate": "identity", "random": False}
    assert raw["purifier"] == {**known, "spec": "blur", "file": None, "sha256": None}
    assert raw["gradient_check"] == "float64"
    assert [row["needs"] for row in raw["rows"]] == [None, None, *["gradient"] * (len(raw["rows"]) - 2)]
    assert set(raw["versions"]) == {"purifier", "torch", "onnxruntime", "python"}
    assert raw["rows"][2]["share"] == raw["rows"][2]["correct"] / COUNT
    assert len(raw["rows"][2]["interval"]) == 2 and raw["rows"][2]["route"] == "exact"


def test_a_report_names_the_checkpoint(classifier, data, tmp_path):
    vae = purifier.load("vae:image_shape=1x28x28,channels=4,latent=8")
    purifier.save(vae, tmp_path / "vae.safetensors")
    found = audit(guard(classifier, tmp_path / "vae.safetensors"), data, attacks=())
    assert found.purifier["plugin"] == "vae" and found.purifier["file"] == "vae.safetensors"
    assert found.purifier["spec"] == str(tmp_path / "vae.safetensors")
    assert len(found.purifier["sha256"]) == 64 and found.purifier["config"]["latent"] == 8


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read .*report.json: No such file"),
        ("{", "report.json is not JSON"),
        ('{"rows": ' + "[" * 100_000, "report.json is not JSON"),
        ("[]", "expected a report of schema version 1 to 10, got None"),
        ('{"schema_version": 99}', "expected a report of schema version 1 to 10, got 99"),
        ('{"schema_version": 1}', "is not a complete report"),
        ('{"schema_version": 3, "rows": 3}', "is not a complete report"),
    ],
)
def test_files_that_are_not_reports_are_errors(content, said, tmp_path):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(FileError, match=said):
        AuditReport.load(tmp_path / "report.json")


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ("audit.journal", "the audit in this folder is not at its end"),
        ("certificates.json", "the folder holds certificates.json of `purifier certify`, not a report"),
        ("other.json", "create a report with `purifier audit --out`"),
    ],
)
def test_a_folder_without_a_report_says_what_it_holds(beside, said, tmp_path):
    (tmp_path / beside).write_text("{}")
    with pytest.raises(FileError, match=said):
        AuditReport.load(tmp_path)


def test_the_table_shows_the_worst_case_first_and_both_models_side_by_side(report):
    lines = printed(report).split("detection, ")[0].splitlines()
    places = [
        next(i for i, line in enumerate(lines) if part in line)
        for part in (
            f"; {COUNT} images; sha256 ",
            "all routes run (exact, bpda, oblivious)",
            "white-box (exact, bpda)",
            "fgsm",
        )
    ]
    assert places == sorted(places)
    (row,) = rows(report, model="guarded", attack="fgsm", route="oblivious")
    (line,) = (line for line in lines if "fgsm" in line and "oblivious" in line)
    assert line.endswith(f" {rate_text(row.result)}")
    (row,) = rows(report, model="guarded", attack="fgsm", route="exact")
    (alone,) = rows(report, model="undefended", attack="fgsm")
    (line,) = (line for line in lines if "fgsm" in line and "exact" in line)
    assert line.endswith(f"  {rate_text(alone.result)}  {rate_text(row.result)}")


def test_a_report_is_one_short_line_in_python(report):
    line = repr(report)
    assert str(report) == line and "\n" not in line and len(line) < 300
    (case,) = (case for case in report.worst_case if case.model == "guarded" and case.scope == "all")
    for part in (f"{COUNT} images of fashion-mnist:test:{COUNT}", f"{len(report.rows)} rows", str(case.threat)):
        assert part in line
    assert f"worst case {rate_text(case.result)} right" in line and line.endswith("; conclusive>")
    doubted = replace(report, flags=[Flag("set-up", "a"), Flag("set-up", "b")])
    assert repr(doubted).endswith("; inconclusive (set-up)>")
    failed = replace(report, rows=[*report.rows, replace(report.rows[-1], error="no")])
    assert repr(failed).endswith("; inconclusive (an attack failed)>")


def test_the_table_mentions_repeated_judgements(classifier, data):
    found = audit(guard(classifier, Noisy(NoConfig())), data, attacks=("fgsm",), eot=2)
    assert "means over 5 judgements" in printed(found) and "means over 2 draws" in printed(found)


def test_the_table_mentions_few_probes(report):
    assert "at most 7 images" in printed(replace(report, probes=7))
    assert "were looked for on" not in printed(report)


def test_a_report_without_a_number_of_probes_loads(report, tmp_path):
    path = report.save(tmp_path)
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "probes"}))
    assert AuditReport.load(path) == report


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6, 7])
def test_reports_of_older_versions_load(version):
    found = AuditReport.load(OLD_REPORTS / f"v{version}.json")
    assert found.schema_version == SCHEMA_VERSION
    assert AuditReport.load(OLD_REPORTS / f"v{version}.json").to_json() == found.to_json()
    assert found.data["count"] == 20 and found.rows[0].attack == "none"
    assert found.worst_case[0].result.count == 20
    takes_steps = ("pgd:steps=", "joint:steps=")
    steps = {row.threat for row in found.rows if row.model == "guarded" and row.attack.startswith(takes_steps)}
    assert {case.threat for case in found.worst_case if case.model == "guarded" and case.multi_step} == steps
    assert found.conclusive is (version >= 3 and not found.flags)
    assert "worst case per image" in printed(found)
    if version >= 3:
        (row, *_) = [row for row in found.rows if row.detection and row.threat]
        assert row.detection.rejected is not None or not row.detection.fooled
