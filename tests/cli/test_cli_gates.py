"""``purifier audit --baseline``, ``--quiet`` and ``--json``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import purifier
from purifier.auditing.report import AuditReport

GIVEN = {
    "classifier": "demo",
    "purifier": "identity",
    "data": "demo:20",
    "eps": "0.01",
    "attack": "pgd:steps=3",
    "route": "exact",
    "probes": 1,
}


def line(**changed: object) -> list[object]:
    pairs = ((f"--{name.replace('_', '-')}", value) for name, value in {**GIVEN, **changed}.items())
    return ["audit", *(part for pair in pairs for part in pair)]


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an audit of the classifier as it is."""
    folder = tmp_path_factory.mktemp("audited")
    purifier.audit(
        purifier.guard("demo", "identity"), "demo:20", eps=0.01, attacks=["pgd:steps=3"], routes=["exact"], probes=1,
        out=folder,
    )  # fmt: skip
    return folder


def test_an_unchanged_guard_passes_and_a_worse_one_fails(command, audited: Path, tmp_path: Path) -> None:
    options = {"baseline": audited, "tolerance": 0.15, "out": tmp_path / "new"}
    code, shown, complaint = command(*line(**options))
    assert code == 0, shown + complaint
    assert "gate passed, clean images: " in shown and "gate passed, linf 0.01: " in shown
    assert "(0 lost, 0 gained)" in shown and "tolerance 15" in shown
    code, shown, _ = command(*line(**options, purifier="blur:sigma=4"), "--overwrite", "--fail-under", "0")
    assert code == 1
    lost, gained = 0, 0
    old, new = (AuditReport.load(path).results.counted[1] > 0.5 for path in (audited, tmp_path / "new"))
    lost, gained = int((old & ~new).sum()), int((new & ~old).sum())
    assert f"({lost} lost, {gained} gained)" in shown and "gate failed, clean images: " in shown
    found = AuditReport.load(tmp_path / "new").command
    assert found is not None and "--baseline" in found and "0.15" in found


def test_the_baseline_may_be_the_report_that_is_replaced(command, audited: Path, tmp_path: Path) -> None:
    shutil.copytree(audited, tmp_path / "same")
    options = {"baseline": tmp_path / "same", "tolerance": 0.15, "out": tmp_path / "same"}
    code, shown, _ = command(*line(**options), "--overwrite")
    assert code == 0 and "(0 lost, 0 gained)" in shown


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data": "demo:19"}, "baseline: expected the same images, but its number of images is 20, and here it is 19"),
        ({"data": "demo:1-21"}, "expected the same images, but its SHA-256 of images and labels is "),
        ({"eps": "0.02"}, "it is of linf 0.01, and this one of linf 0.02; change --norm and --eps"),
        ({"norm": "l2"}, "it is of linf 0.01, and this one of l2 0.01"),
        ({"attack": "fgsm"}, "it ran pgd, and this audit does not"),
        ({"attack": "none"}, "it ran pgd, and this audit does not"),
        ({"tolerance": 0.02}, "--tolerance: 0.02 needs at least 133 images, and the baseline has 20"),
        ({"tolerance": 0}, "--tolerance: expected a share of images above 0, such as 0.02, got 0.0"),
        ({"baseline": "absent"}, "cannot read absent"),
    ],
)
def test_what_cannot_be_compared_is_an_error_before_anything_runs(changed, said, command, audited, tmp_path) -> None:
    options = {"baseline": audited, "tolerance": 0.15, "out": tmp_path / "new", **changed}
    code, shown, complaint = command(*line(**options))
    assert (code, shown) == (2, "") and said in complaint
    assert not (tmp_path / "new").exists()


def test_foreign_and_newer_baselines_are_errors(command, audited: Path, tmp_path: Path) -> None:
    found = json.loads((audited / "report.json").read_text())
    version = found["schema_version"]
    for text, said in (
        (json.dumps({**found, "schema_version": version + 1}), f"expected a report of schema version 1 to {version}"),
        ('{"a": 1}', "expected a report of schema version"),
        ("no", "is not JSON"),
        (json.dumps(found), "expected results.npz beside report.json"),
    ):
        (tmp_path / "report.json").write_text(text)
        code, _, complaint = command(*line(baseline=tmp_path, tolerance=0.15, out=tmp_path / "new"))
        assert code == 2 and said in complaint
    (tmp_path / "results.npz").write_bytes(b"PK")
    code, _, complaint = command(*line(baseline=tmp_path, tolerance=0.15, out=tmp_path / "new"))
    assert code == 2 and "results.npz" in complaint


def test_a_tolerance_needs_a_baseline(command, tmp_path: Path) -> None:
    code, _, complaint = command(*line(tolerance=0.1, out=tmp_path / "new"))
    assert code == 2 and "--tolerance needs --baseline" in complaint


def test_weaker_options_of_the_same_attack_are_found_at_the_end(command, audited: Path, tmp_path: Path) -> None:
    options = {"baseline": audited, "tolerance": 0.15, "out": tmp_path / "new", "attack": "pgd:steps=2"}
    code, shown, complaint = command(*line(**options))
    assert code == 2 and "worst case per image" in shown and "it ran pgd along a white-box route" in complaint
    assert (tmp_path / "new" / "report.json").exists()
    code, shown, _ = command(*line(**options), "--overwrite", "--fail-under", "1")
    assert code == 1 and "not compared with the baseline: " in shown and "gate failed, " in shown


def test_quiet_prints_nothing_and_json_prints_the_report(command, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "purifier.toml").write_text("[audit]\nquiet = true\nfail-under = 1.0\n")
    code, shown, complaint = command(*line(out="new"))
    assert (code, shown, complaint) == (1, "", "")
    assert AuditReport.load(tmp_path / "new").threats
    (tmp_path / "purifier.toml").write_text("[audit]\njson = true\n")
    code, shown, complaint = command(*line(out="new"), "--overwrite")
    assert code == 0 and shown == (tmp_path / "new" / "report.json").read_text()
    assert "worst case per image" in complaint and "from the configuration: --json" in complaint
    code, shown, complaint = command(*line(out="new"), "--overwrite", "--quiet")
    assert (code, complaint) == (0, "") and json.loads(shown)["schema_version"]
    code, shown, complaint = command(*line(out="new"), "--quiet")
    assert (code, shown) == (2, "") and complaint.startswith("error: ")
