"""``purifier audit`` where there is a report, and reports that were damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from purifier.exclusive import exclusive

AUDIT = ("audit", "--classifier", "demo", "--data", "demo:5", "--attack", "none")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_another_audits_report_is_replaced_on_request_only(command, folder):
    line = [*AUDIT, "--purifier", "identity"]
    path = folder / "out" / "report.json"
    path.parent.mkdir()
    path.write_text("precious")
    code, _, err = command(*line, "--out", "out")
    assert code == 2 and "--overwrite" in err and path.read_text() == "precious"
    with exclusive(path):
        code, _, err = command(*line, "--out", "out", "--overwrite")
        assert code == 2 and "another run is writing it" in err
    command(*line, "--out", "out", "--overwrite")
    assert json.loads(path.read_text())["schema_version"]
    assert {file.name for file in path.parent.iterdir()} == {"report.json", "results.npz"}
    before = path.read_bytes()
    code, _, err = command(*line, "--out", "out")
    made = json.loads(before)["created"]
    assert code == 2 and path.read_bytes() == before
    assert f"out/report.json already has the report of an audit of {made} (" in err
    assert "demo:5, linf 0.1); replace it by --overwrite, or choose another --out" in err
    _, shown, _ = command("report", "out")
    assert shown.splitlines()[-1].startswith("made by purifier audit --classifier demo")


@pytest.mark.parametrize("line", ["abc", 5, {"a": 1}, [None], [["audit"]]])
def test_a_report_with_a_damaged_command_line_is_an_error(line, command, folder):
    command(*AUDIT, "--purifier", "none", "--out", "out")
    path = folder / "out" / "report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "command": line}))
    code, _, err = command("report", "out")
    assert code == 2 and "is not a complete report" in err and "command: expected a list of words" in err
