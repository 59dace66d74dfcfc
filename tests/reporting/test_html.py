"""The HTML report: complete, self-contained, and safe whatever names the report has."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest

import purifier
from purifier.auditing.baseline import Baseline
from purifier.auditing.flags import FLAGS
from purifier.auditing.gates import Gate
from purifier.auditing.report import Flag
from purifier.reporting.formats import render
from purifier.reporting.strips import data_uri
from report_helpers import HOSTILE, NoConfig, Noisy, audited

VOID = {"meta", "img", "br", "link", "input", "hr"}
FIGURE = re.compile(r"\d+\.\d%")


class Page(HTMLParser):
    """Tags, attributes and text; asserts that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self._open[-1] if self._open else "", data))

    @property
    def text(self) -> str:
        return " ".join(" ".join(text for tag, text in self.texts if tag not in ("style", "title")).split())


@pytest.fixture(scope="module")
def page(healthy) -> Page:
    return Page(render(healthy, "html"))


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(page):
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        if tag == "img":
            assert attributes["src"].startswith("data:image/png;base64,")
        assert "href" not in attributes
    style = "".join(text for tag, text in page.texts if tag == "style")
    assert "url(" not in style and "@import" not in style
    policy = [attributes for _, attributes in page.tags if attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0]["content"].startswith("default-src 'none'")


def test_the_page_has_every_section(page, healthy):
    for part in ("Undefended and guarded", "Every attack", "Examples", "Can the figures be trusted?", "Detection"):
        assert part in page.text
    for part in ("Each class", "What was audited, and how", "Limits of the claim", "purifier audit --data demo:20"):
        assert part in page.text
    for value in (healthy.classifier["sha256"], healthy.data["sha256"], healthy.versions["torch"]):
        assert value in page.text


def check_figures(text: str) -> None:
    """Every share has its interval and the number of images, but for the share that a gate asks for."""
    shares = re.findall(r"(?<!less than )(?<!\d)(\d+\.\d)%( \[\d+\.\d, \d+\.\d\])?( n = \d+| of \d+ images?)?", text)
    assert len(shares) > 10
    assert [share for share in shares if not share[1] or not share[2]] == []


def test_no_figure_comes_without_its_interval_and_count(page, failing, old_reports):
    check_figures(page.text)
    for report in (failing, *old_reports):
        check_figures(Page(render(report, "html", least=0.9)).text)


def test_a_random_guard_in_a_preset_has_its_judgements(tmp_path):
    noisy = purifier.guard("demo", Noisy(NoConfig()))
    report = purifier.audit(noisy, "demo:6", preset="standard", judgements=2, eot=2, probes=2, out=tmp_path)
    assert any(row.sequence for row in report.rows) and any(row.worst_of_n for row in report.rows)
    text = Page(render(dataclasses.replace(report, flags=[]), "html")).text  # flags of six images quote shares
    check_figures(text)
    assert "right in every judgement: " in text and "> apgd-ce" in text


def test_every_row_and_worst_case_is_shown(page, healthy):
    for row in healthy.rows:
        low, high = row.result.interval
        assert f"{row.result.share:.1%} [{100 * low:.1f}, {100 * high:.1f}] n = {row.result.count}" in page.text
    for case in healthy.worst_case:
        assert f"{case.result} n = {case.result.count}" in page.text


def test_strips_show_the_examples_with_class_answer_and_confidence(page, healthy):
    found = healthy.examples
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 4 * len(found.rows)
    names = healthy.class_names
    for index, label, (_, after), (_, sure) in zip(
        found.indices, found.labels, found.answers, found.confidences, strict=True
    ):
        assert f"Image {index}, true class {names[label]} ." in page.text
        assert f"attacked: {names[after]} ({sure:.0%})" in page.text
    assert data_uri(found.clean[0]) in [image["src"] for image in images]


def test_other_class_names_can_be_given(healthy):
    text = Page(render(healthy, "html", class_names=[f"kind {k}" for k in range(10)])).text
    assert "true class kind " in text and "Ankle boot" not in text
    assert "true class 9" in Page(render(healthy, "html", class_names=["only one"])).text


def test_flags_say_what_they_mean_and_what_to_do(failing):
    page = Page(render(failing, "html"))
    kind = FLAGS["unbounded"]
    for part in (kind.why, f"What to do: {kind.what_to_do}.", "PGD leaves 3 of 6 images right", "it broke"):
        assert part in page.text
    assert "Inconclusive: at most" in page.text and "error, see below" in page.text
    assert f"{len(FLAGS) - 1} signs that were looked for and not found" in page.text


def test_the_gates_stand_below_the_verdict_with_their_results(healthy):
    gates = [Gate("robust", 0.0), Gate("clean", 0.99)]
    page = Page(render(healthy, "html", gates=gates, baseline=Baseline(healthy, 0.3)))
    begin, end = page.text.index("Gates"), page.text.index("Undefended and guarded")
    section = page.text[begin:end]
    assert page.text.index("Gate missed: ") < begin and section.count("missed : ") == 1
    assert section.count("passed : ") == 2 * len(healthy.threats) + 1
    assert "missed : clean images: " in section and "the interval begins below 99%" in section
    assert "passed : against the baseline, linf 0.1: " in section and "(0 lost, 0 gained)" in section
    assert section.count("What to do: ") == 1
    check_figures(page.text)
    assert "Nothing is wrong" in page.text  # a missed gate is no doubt about the figures
    assert "Gates" not in Page(render(healthy, "html")).text


def test_the_cost_of_the_guard_comes_from_the_times_of_clean_images(healthy, old_reports):
    rows = [dataclasses.replace(row, seconds={"guarded": 0.5, "undefended": 0.02}[row.model]) for row in healthy.rows]
    text = (
        "the guard, its score included, took 25 ms for a clean image, and the classifier alone 1 ms, in batches of 20"
    )
    for to in ("html", "md"):
        assert text in " ".join(render(dataclasses.replace(healthy, rows=rows), to).split())
        untimed = [dataclasses.replace(row, seconds=0.0) for row in rows]
        assert "Cost of the guard" not in render(dataclasses.replace(healthy, rows=untimed), to)
        assert "Cost of the guard" not in render(dataclasses.replace(healthy, purifier=None), to)
    noisy = dataclasses.replace(healthy, rows=rows, judgements=5)
    assert "took 5 ms for a clean image" in render(noisy, "md")


def test_a_missed_gate_comes_first(healthy):
    assert "Gate missed: " in Page(render(healthy, "html", least=0.99)).text
    assert "Gate passed: " in Page(render(healthy, "html", least=0.0)).text


@pytest.mark.parametrize("name", [HOSTILE, "{{ 7 * 7 }}", "</style><script>x</script>", '"><img src=x onerror=y>'])
def test_hostile_names_stay_text(healthy, name):
    rows = [dataclasses.replace(row, attack=name if row.threat else row.attack) for row in healthy.rows]
    rows[-1] = dataclasses.replace(rows[-1], result=None, detection=None, error=name)
    purifier_facts = {**healthy.purifier, "plugin": name, "file": name, "spec": name}
    found = dataclasses.replace(
        healthy,
        data={**healthy.data, "name": name},
        classifier={**healthy.classifier, "description": name, "weights_file": name, "spec": name},
        purifier=purifier_facts,
        flags=[Flag(name, name)],
        left_out=[name],
        command=["purifier", name],
        versions={**healthy.versions, "purifier": name},
        rows=rows,
    )
    page = Page(render(found, "html", class_names=[name] * 10))
    assert not {tag for tag, _ in page.tags} & {"script", "iframe"}
    assert not [attributes for _, attributes in page.tags if any(key.startswith("on") for key in attributes)]
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert images and all(source.startswith("data:image/png;base64,") for source in images)
    assert " ".join(name.split()) in page.text and "49" not in re.findall(r"true class (\S+)", page.text)


def test_reports_without_kept_results_have_no_strips_and_no_classes(healthy, old_reports):
    for report in (dataclasses.replace(healthy, details=None), *old_reports):
        text = Page(render(report, "html")).text
        assert "Examples" not in text and "Each class" not in text and "Every attack" in text


def test_rejections_are_shown():
    calibrated = purifier.load("demo")
    purifier.calibrate(calibrated, "demo:40", fpr=0.1)
    guarded = purifier.guard("demo", calibrated, on_reject="flag")
    report = purifier.audit(guarded, "demo:20", attacks=["pgd:steps=3"], probes=6)
    text = Page(render(report, "html")).text
    assert "Rejections" in text and "to reject 10% of clean images" in text
    assert "right or rejected" in text and "Adversarial Input Detection" in text


def test_a_classifier_alone_has_no_guard_beside_it():
    report = purifier.audit("demo", "demo:12", attacks=["fgsm"], probes=6)
    text = Page(render(report, "html")).text
    assert "The classifier" in text and "Undefended and guarded" not in text and "purified" not in text
    assert "the undefended classifier is right on" in text


def test_clean_images_alone_are_no_verdict():
    text = Page(render(purifier.audit("demo", "demo:12", attacks=()), "html")).text
    assert "Nothing was attacked" in text and "Every attack" not in text


def test_colour_images_become_pngs():
    rng = np.random.default_rng(0)
    assert data_uri(rng.random((3, 300, 200), dtype=np.float32)).startswith("data:image/png;base64,")


def test_a_query_audit_is_not_called_white_box(tmp_path):
    report = audited("demo", tmp_path, attacks=["square:queries=20"], eps=0.1, routes=["none", "oblivious"])
    text = Page(render(report, "html")).text
    assert "No white-box attack is among them" in text
    assert "worst case of white-box attacks" not in text and "white-box evasion attack" not in text
