"""A report in each format that is written to a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from ..auditing.baseline import Baseline
from ..auditing.gates import ROBUST, Gate
from ..auditing.report import AuditReport, check_gate
from ..errors import ConfigError
from .csv_lines import to_csv
from .evidence import to_evidence
from .findings import gate_results, missed_of
from .html import to_html
from .junit import to_junit
from .markdown import to_markdown
from .sarif import to_sarif

Format = Literal["html", "md", "junit", "sarif", "csv", "evidence"]


def render(
    report: AuditReport,
    to: Format,
    *,
    least: float | None = None,
    gates: Sequence[Gate] = (),
    baseline: Baseline | None = None,
    class_names: Sequence[str] | None = None,
) -> str:
    """A report as text in a format.

    Parameters
    ----------
    to
        ``html``: one self-contained page; ``md``: Markdown; ``junit``: JUnit XML; ``sarif``: SARIF 2.1.0; ``csv``: one
        line a figure; ``evidence``: a sheet for reviewers, in Markdown.
    least
        A gate, the smallest share of images that may be right in the worst case: missed gates are findings.
    gates
        Further gates.
    baseline
        An earlier audit, and by how much results may be worse.
    class_names
        Names of the classes in the order of the labels; by default the report's.

    Raises
    ------
    ConfigError
        An unknown format, a gate that is no share or has no attack, or a baseline of something else.
    FileError
        The files beside the report are damaged, or belong to another audit.
    """
    if least is not None:
        check_gate(least)
        gates = [Gate(ROBUST, least), *gates]
    results = gate_results(report, gates, baseline)
    if to == "html":
        return to_html(report, results, class_names=class_names)
    if to == "md":
        return to_markdown(report, results)
    if to == "junit":
        return to_junit(report, results)
    if to == "sarif":
        return to_sarif(report, missed_of(results))
    if to == "csv":
        return to_csv(report)
    if to == "evidence":
        return to_evidence(report)
    raise ConfigError(f"to: expected one of {', '.join(get_args(Format))}, got {to!r}")
