"""The printed report: every figure whole on one line at any width, and the right figures beside each other."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from torch import Tensor

import purifier
from audit_helpers import COUNT, NoConfig, Noisy, printed, rows
from purifier.attacking.threat import Threat
from purifier.auditing.audit import audit
from purifier.auditing.detection import Detection
from purifier.auditing.figures import area_text, cost_text, rate_text
from purifier.auditing.report import AuditReport
from purifier.auditing.statistics import Area, Rate
from purifier.guards.guard import guard
from purifier.rejection.calibration import calibrate

WIDTHS = (40, 60, 69, 70, 80, 100, 120, 160)
FULL = Rate(1.0, 8, 8, (0.676, 1.0))
WIDEST = Rate(1.0, 10000, 10000, (0.9996, 1.0))
LONG = "adapter:name=SomeAttackOfALibrary,steps=1000,restarts=25,loss=margin,step_size=0.0078125"
OLD_REPORTS = Path(__file__).with_name("old_reports")


@dataclass(frozen=True)
class Level:
    scale: float = 1.0


class Brightness(purifier.Purifier):
    """Scores the mean, so that a threshold rejects the brightest images."""

    Config, gradient = Level, "exact"

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels

    def score(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1).mean(1)


@pytest.fixture(scope="module")
def rejecting(classifier, data) -> AuditReport:
    filter_ = Brightness(Level())
    calibrate(filter_, data, fpr=0.2)
    return audit(
        guard(classifier, filter_, on_reject="flag"), data, eps=0.05, attacks=("fgsm", "joint:steps=3"), probes=2
    )


@pytest.fixture(scope="module")
def alone(classifier, data) -> AuditReport:
    return replace(audit(classifier, data, eps=0.05, attacks=("fgsm", "pgd:steps=3"), probes=2), flags=[])


@pytest.fixture(scope="module")
def noisy(classifier, data) -> AuditReport:
    return audit(guard(classifier, Noisy(NoConfig())), data, eps=0.05, attacks=("fgsm",), eot=2, judgements=3, probes=2)


def widest(report: AuditReport, rate: Rate) -> AuditReport:
    """The report with its widest possible figures, a long spec, an error, a sequence, and a second threat."""
    large = Threat("l2", 0.123456)
    held = Detection(10000, Area(0.555, (0.444, 0.666)), rate, rate)
    random = {"worst_of_n": rate, "majority": rate}

    def changed(row):
        mine = random if row.model == "guarded" else {}
        new = {**mine, "result": rate, "attacked": 10000, "queries_per_image": 5000.0}
        if row.threat:
            new["attack"] = LONG
        if row.right:
            new |= {"right": rate, "rejected": rate}
        return replace(row, **new, detection=held if row.detection and row.threat else row.detection)

    wide = [changed(row) for row in report.rows]
    more = [replace(row, threat=large, eot=25, sequence="informed") for row in wide if row.threat]
    failed = replace(wide[-1], attack="failing", result=None, worst_of_n=None, majority=None, error="no luck")
    cases = [replace(case, result=rate, **(random if case.model == "guarded" else {})) for case in report.worst_case]
    return replace(
        report,
        threats=[*report.threats, large],
        rows=[*wide, *more, failed],
        worst_case=[*cases, *(replace(case, threat=large, complete=False) for case in cases)],
        calibration=report.calibration or {"fpr": 0.05, "threshold": 0.5, "data": "folder:held-out", "count": 400},
    )


def figures(report: AuditReport) -> set[str]:
    """Every figure of a report as it is to be printed."""
    texts = {str(case.result and rate_text(case.result)) for case in report.worst_case}
    rejects = any(row.rejected for row in report.rows)
    for row in report.rows:
        texts |= {rate_text(rate) for rate in (row.result, row.right, row.rejected) if rate}
        if row.detection and row.threat:
            texts |= {area_text(row.detection.auc)} if row.detection.auc else set()
            shown = [row.detection.rejected, *([] if rejects else [row.detection.held])]
            texts |= {rate_text(rate) for rate in shown if rate}
        if row.worst_of_n and row.majority:
            texts.add(f"({row.worst_of_n.share:.1%}, {row.majority.share:.1%})")
    for case in report.worst_case:
        texts |= {rate_text(rate) for rate in (case.worst_of_n, case.majority) if rate}
    return texts


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["report", "rejecting", "alone", "noisy", "v1", "v2", "v3", "v4", "v5"])
def test_every_figure_is_whole_and_on_one_line_at_any_width(name, width, request):
    found = AuditReport.load(OLD_REPORTS / f"{name}.json") if name[0] == "v" else request.getfixturevalue(name)
    for shown_report in (found, widest(found, FULL), widest(found, WIDEST)):
        shown = printed(shown_report, width)
        lines = shown.splitlines()
        assert max(map(len, lines)) <= width
        for figure in figures(shown_report):
            assert figure in shown, figure
        # Nothing but whole figures: no line ends or begins inside one.
        for line in lines:
            rest = re.sub(r"\d[\d.]*%? \[[\d.]+, [\d.]+\]|95% interval in \[\]", "", line)
            assert not re.search(r"\[\d|\d\]|…", rest), line
        assert LONG.replace(",", "") in re.sub(r"[\s,]", "", shown) or shown_report is found or width >= 70


@pytest.mark.parametrize("width", [120, 160])
def test_at_120_columns_the_tables_stand_side_by_side(width, report, rejecting, noisy):
    for found in (report, rejecting, noisy):
        wide = widest(found, FULL)
        headers = [line.split()[:2] for line in printed(wide, width).splitlines()]
        assert headers.count(["attack", "route"]) == 4  # results and detection, for two threats


def test_below_70_columns_each_row_is_a_block(report):
    (row,) = rows(report, model="guarded", attack="fgsm", route="oblivious")
    (bare,) = rows(report, model="undefended", attack="fgsm")
    for width in (40, 69):
        lines = [" ".join(line.split()) for line in printed(report, width).splitlines()]
        assert "attack route attacked undefended guarded" not in lines
        at = lines.index("fgsm, oblivious")
        assert lines[at + 1 : at + 4] == [f"attacked {COUNT}", "1 g", f"guarded {rate_text(row.result)}"]
        at = lines.index("fgsm, exact")
        assert lines[at + 3] == f"undefended {rate_text(bare.result)}"
    assert "attack route attacked undefended guarded" in [
        " ".join(line.split()) for line in printed(report, 80).splitlines()
    ]


def test_a_classifier_alone_has_one_column_and_no_detection(alone):
    shown = printed(alone, 100)
    assert "behind" not in shown and "guarded" not in shown and "AUC" not in shown and "undefended" not in shown
    assert "none: the classifier was audited alone" in shown
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "attack route attacked accuracy" in lines and "threat routes accuracy" in lines
    for row in alone.rows:
        name = "clean - -" if row.threat is None else f"{row.attack} {row.route} {row.attacked}"
        assert f"{name} {rate_text(row.result)}" in lines
    assert len([line for line in lines if line.startswith("fgsm")]) == 1


def test_clean_rows_are_called_clean(report, alone):
    for found in (report, alone):
        lines = [line.split() for line in printed(found).splitlines()]
        assert [line[:3] for line in lines if line and line[0] in ("clean", "none")] == [["clean", "-", "-"]]


def test_undefended_figures_stand_beside_the_guards_in_any_sequence(classifier, data):
    found = audit(guard(classifier, "blur"), data, eps=0.05, attacks=("fgsm",), routes=("exact",), probes=2)
    numbers = iter(range(1, 40))
    distinct = []
    for row in found.rows:
        number = next(numbers)
        rate = Rate(number / 40, number, 40, (0.0, 1.0))
        sequence = None if row.threat is None else {"undefended": "undefended", "guarded": "informed"}[row.model]
        distinct.append(replace(row, result=rate, sequence=sequence))
    lines = [" ".join(line.split()) for line in printed(replace(found, rows=distinct)).splitlines()]
    bare, guarded = (
        next(row for row in distinct if row.model == model and row.threat) for model in ("undefended", "guarded")
    )
    assert f"> fgsm exact {COUNT} {rate_text(bare.result)} {rate_text(guarded.result)}" in lines
    # A figure with nothing beside it is not lost.
    unmatched = [replace(row, attack="other") if row is bare else row for row in distinct]
    lines = [" ".join(line.split()) for line in printed(replace(found, rows=unmatched)).splitlines()]
    assert f"> other exact {COUNT} {rate_text(bare.result)} -" in lines


def test_a_rejecting_guard_shows_right_and_rejected_and_their_sum(rejecting):
    shown = printed(rejecting, 120)
    (row,) = rows(rejecting, model="guarded", attack="fgsm", route="exact")
    (bare,) = rows(rejecting, model="undefended", attack="fgsm")
    assert row.right.correct + row.rejected.correct >= row.result.correct > row.right.correct
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    cells = (bare.result, row.right, row.rejected, row.result)
    assert f"fgsm exact {COUNT} {' '.join(map(rate_text, cells))}" in lines
    plain = " ".join(shown.split())
    (clean,) = rows(rejecting, model="guarded", attack="none")
    assert any(line.endswith(f" {rate_text(clean.right)} {rate_text(clean.rejected)} -") for line in lines)
    assert '"right or rejected" is about attacks' in plain
    assert "on_reject flag" in plain
    detection = shown.split("detection, linf")[1]
    assert "right or" not in detection.splitlines()[1] and "rejected at" in detection


def test_a_random_guard_names_what_repeated_submission_leaves(noisy):
    (case,) = (case for case in noisy.worst_case if case.model == "guarded" and case.scope == "all")
    lines = [" ".join(line.split()) for line in printed(noisy, 120).splitlines()]
    assert f"attacker who submits each image 3 times - {rate_text(case.worst_of_n)}" in lines
    assert f"majority vote of 3 judgements - {rate_text(case.majority)}" in lines
    plain = " ".join(lines)
    assert "first what remains against an attacker who submits each image 3 times" in plain
    assert "then what a majority vote gives (right in most)" in plain


def test_the_head_says_what_was_audited(classifier, data, tmp_path):
    vae = purifier.load("vae:image_shape=1x28x28,channels=4,latent=8")
    purifier.save(vae, tmp_path / "vae.safetensors")
    found = audit(guard(classifier, tmp_path / "vae.safetensors"), data, attacks=())
    found = replace(
        found,
        classifier={
            **found.classifier,
            "spec": "nets:make",
            "weights_file": "nets.pt",
            "output": "boxes",
            "output_kind": "probabilities",
        },
    )
    head = " ".join(printed(found).split("\n\n")[0].split())
    weights_hash = found.purifier["sha256"][:12]
    count = sum(weights.numel() for weights in classifier.parameters())
    for part in (
        f"classifier torch NearestMean; MODEL nets:make; weights nets.pt; sha256 {found.classifier['sha256'][:12]}; ",
        f"; {count:,} parameters; output boxes; output kind probabilities ",
        f"; image_shape=1x28x28, channels=4, latent=8; sha256 {weights_hash} ",
        f"data {data.name}; {COUNT} images; sha256 {found.data['sha256'][:12]}",
    ):
        assert part in head
    assert found.data["sha256"][:13] not in head and "on_reject" not in head
    for spec, said in (("my/vae.safetensors", "PURIFIER my/vae.safetensors"), ("demo", "PURIFIER demo"), (None, "")):
        given = replace(found, purifier={**found.purifier, "spec": spec})
        shown = " ".join(printed(given).split("\n\n")[0].split())
        file = "" if spec and spec.startswith("my") else "; vae.safetensors"
        said = f"; {said}" if said else said
        assert f"purifier vae{said}; image_shape=1x28x28, channels=4, latent=8{file}; sha256" in shown
    plain = printed(replace(found, classifier={**dict.fromkeys(found.classifier), "description": "a net"}))
    assert "classifier  a net\n" in plain
    blurred = audit(guard(classifier, "blur:sigma=3"), data, attacks=())
    assert "purifier    blur; sigma=3.0\n" in printed(blurred)
    unknown = replace(found, purifier={**found.purifier, "plugin": "elsewhere", "config": {"a": True}})
    assert f"purifier    elsewhere; PURIFIER {tmp_path}" in printed(unknown) and "; a=true; sha256" in printed(unknown)


def test_the_head_says_what_happens_to_rejected_images(rejecting):
    for abstain, said in ((None, "abstain, NaN"), (3, "abstain, class 3")):
        assert f"on_reject   {said}\n" in printed(replace(rejecting, on_reject="abstain", abstain=abstain))


def test_costs_are_those_of_the_attacks_kind(report):
    (row,) = rows(report, model="guarded", attack="fgsm", route="exact")
    none_right = replace(row, gradients_per_image=0.0, queries_per_image=1.0)
    assert cost_text(none_right) == f"{COUNT}\n0 g"
    assert cost_text(replace(none_right, needs="scores")) == f"{COUNT}\n1 q"
    assert cost_text(replace(none_right, attacked=0)) == "0"
    assert cost_text(replace(row, gradients_per_image=2.345)) == f"{COUNT}\n2.3 g"
    assert cost_text(replace(row, gradients_per_image=22.345)) == f"{COUNT}\n22 g"


def test_the_table_says_whether_draws_matter_and_in_which_precision_gradients_were_checked(report, noisy):
    said = "The purifier draws no noise, so --eot and --judgements (eot= and judgements= in Python) change nothing"
    assert said in " ".join(printed(report).split()) and said not in " ".join(printed(noisy).split())
    assert "compared with finite differences in float64\n" in printed(report)
    single = " ".join(printed(replace(report, gradient_check="float32")).split())
    assert "in float32 only, where only gross errors show" in single
    assert "finite differences" not in printed(replace(report, gradient_check=None))
