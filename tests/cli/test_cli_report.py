"""``purifier report``: show, diff, schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import purifier
from purifier.auditing.report import AuditReport
from purifier.auditing.report_versions import SCHEMA_VERSION


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    purifier.audit(
        purifier.guard("demo", "demo"), "demo:20", attacks=["pgd:steps=3"], probes=6, out=folder / "audited"
    )  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("to", "begins"),
    [
        ("html", "<!DOCTYPE html>"),
        ("md", "# Audit: demo:20"),
        ("junit", "<testsuites>"),
        ("sarif", "{"),
        ("csv", "kind,model,attack"),
        ("evidence", "# Evidence sheet"),
        ("json", "{"),
    ],
)
def test_a_report_is_written_to_standard_output_or_a_file(command, folder: Path, tmp_path: Path, to, begins) -> None:
    code, shown, complaint = command("report", "show", folder / "audited", "--to", to)
    assert code == 0, complaint
    assert shown.startswith(begins)
    code, nothing, said = command("report", "show", folder / "audited", "--to", to, "--out", tmp_path / "deep" / "file")
    assert (code, nothing) == (0, "") and said.startswith("wrote ")
    assert (tmp_path / "deep" / "file").read_text(encoding="utf-8") == shown


def test_show_is_the_default(command, folder: Path, tmp_path: Path) -> None:
    _, short, _ = command("report", folder / "audited")
    code, full, _ = command("report", "show", folder / "audited")
    assert code == 0 and short == full and "worst case per image" in full
    command("report", folder / "audited", "--out", tmp_path / "tables.txt")
    assert (tmp_path / "tables.txt").read_text() == full
    assert command("report", folder / "audited", "--to", "csv")[1].startswith("kind,")


def test_missed_gates_and_class_names_are_shown(command, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("".join(f"kind {k}\n" for k in range(10)))
    given = ("report", "show", folder / "audited", "--to", "html")
    code, shown, _ = command(*given, "--fail-under", "0.99", "--class-names", tmp_path / "names.txt")
    assert code == 0 and "Gate missed: " in shown and "kind 9" in shown and "Ankle boot" not in shown
    assert "Gate missed" not in command(*given)[1]


def test_gates_are_shown_as_in_audit(command, folder: Path) -> None:
    given = ("report", "show", folder / "audited", "--to", "md", "--fail-under", "clean=0", "--fail-under", "pgd=1")
    code, shown, complaint = command(*given, "--baseline", folder / "audited", "--tolerance", "0.15")
    assert code == 0, complaint
    section = shown.split("## Gates")[1].split("##")[0]
    assert section.count("🟢") == 3 and section.count("🔴") == section.count("- 🔴 missed: pgd") > 0
    code, _, complaint = command(*given, "--baseline", folder / "audited")
    assert code == 2 and "--tolerance: 0.02 needs at least 133 images" in complaint
    assert "expected robust, clean or an attack" in command(*given, "--fail-under", "square=1")[2]


def test_the_report_is_shown_as_json_and_files_are_written_quietly(command, folder: Path, tmp_path: Path) -> None:
    code, shown, _ = command("report", "show", folder / "audited", "--to", "json")
    assert code == 0 and shown == (folder / "audited" / "report.json").read_text()
    old = Path(__file__).parents[1] / "auditing" / "old_reports" / "v1.json"
    shown = command("report", old, "--to", "json")[1]
    assert json.loads(shown)["schema_version"] == SCHEMA_VERSION
    given = ("report", folder / "audited", "--to", "html", "--quiet", "--out", tmp_path / "report.html")
    assert command(*given) == (0, "", "") and (tmp_path / "report.html").exists()


def test_two_reports_are_compared(command, folder: Path) -> None:
    code, shown, complaint = command("report", "diff", folder / "audited", folder / "audited")
    assert code == 0, complaint
    assert "the same was audited in the same way" in shown


def test_the_schema_is_printed(command) -> None:
    assert json.loads(command("report", "schema")[1])["title"] == "purifier report, schema version 10"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("report", "Missing command; `purifier report --help` lists the options"),
        ("report show", "Missing argument 'FILE'; `purifier report show --help` lists the options"),
        ("report show absent --to html", "cannot read absent"),
        ("report diff audited", "Missing argument 'NEW'"),
        ("report diff audited absent", "cannot read absent"),
        ("report audited --to pdf", "'pdf' is not one of"),
        ("report audited --to html --fail-under 7", "--fail-under: expected a share of images in [0, 1]"),
        ("report audited --to html --class-names absent", "cannot read classes absent"),
        ("report audited --to html --out audited", "it is a folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(command, folder: Path, monkeypatch, line: str, message: str) -> None:
    monkeypatch.chdir(folder)
    code, shown, complaint = command(*line.split())
    assert (code, shown) == (2, "") and complaint.startswith("error: ") and complaint.count("\n") == 1
    assert message in complaint


def test_damaged_results_are_an_error(command, folder: Path, tmp_path: Path) -> None:
    AuditReport.load(folder / "audited").save(tmp_path)
    (tmp_path / "results.npz").write_bytes(b"PK")
    code, _, complaint = command("report", "show", tmp_path, "--to", "html")
    assert code == 2 and "results.npz" in complaint and "run the audit again" in complaint
