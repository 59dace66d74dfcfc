"""The committed benchmark figures, and the page made from them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

import purifier
from purifier import AuditReport

BENCHMARKS = Path(__file__).parent / "benchmarks"
REPORTS = sorted((BENCHMARKS / "results").rglob("report.json"))


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import benchmarks_page

    return benchmarks_page


def test_the_page_is_up_to_date(page: ModuleType) -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.benchmarks_page()
    assert page.ONNX_PAGE.read_text(encoding="utf-8") == page.onnx_page()


def test_check_fails_if_the_page_is_out_of_date(
    page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(page, "PAGE", tmp_path / "benchmarks.md")
    onnx_page = page.ONNX_PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(page, "ONNX_PAGE", tmp_path / "onnx.md")
    page.ONNX_PAGE.write_text(onnx_page, encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["benchmarks_page.py"])
    page.main()
    monkeypatch.setattr("sys.argv", ["benchmarks_page.py", "--check"])
    page.main()
    page.PAGE.write_text(page.PAGE.read_text(encoding="utf-8").replace("Benchmarks", "Figures"), encoding="utf-8")
    before = page.PAGE.read_bytes()
    with pytest.raises(SystemExit, match="out of date"):
        page.main()
    assert "-# Figures\n+# Benchmarks" in capsys.readouterr().out
    assert page.PAGE.read_bytes() == before
    page.PAGE.write_text(page.benchmarks_page(), encoding="utf-8")
    page.ONNX_PAGE.write_text(onnx_page.replace("refused", "accepted"), encoding="utf-8")
    with pytest.raises(SystemExit, match="onnx.md is out of date"):
        page.main()


def test_all_committed_reports_load() -> None:
    assert len(REPORTS) == 166
    assert all(AuditReport.load(path).complete for path in REPORTS)


@pytest.mark.parametrize("script", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_every_script_can_be_imported(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    importlib.import_module(script)


@pytest.mark.slow
def test_the_figures_of_the_plain_vae() -> None:
    """Audits all 10,000 test images: 17 minutes on two cores."""
    measured = json.loads((BENCHMARKS / "results" / "measured" / "plain-vae.json").read_text(encoding="utf-8"))
    expected = {
        (model, row["attack"].split()[0], row["route"]): row[model]["share"]
        for row in measured["tables"]["accuracy"]
        for model in ("undefended", "guarded")
        if row[model] and "worst case" not in row["attack"]
    }
    report = purifier.audit(
        purifier.guard("demo", "demo-plain"), "fashion-mnist:test", attacks=["pgd", "fgsm", "rfgsm"]
    )
    found = {(row.model, row.attack, row.route): row.result.share for row in report.rows if row.result}
    assert found == pytest.approx(expected, abs=0.003)
