"""Images without labels: an audit for agreement with the undefended classifier, never called accuracy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from audit_helpers import Masking, NoConfig, printed, rows
from nets import trained
from purifier.auditing.audit import audit
from purifier.auditing.flags import FLAGS
from purifier.auditing.report import AuditReport, Flag
from purifier.data.images import ImageData
from purifier.data.loading import load_data
from purifier.errors import DataError
from purifier.guards.guard import guard

COUNT = 40
PIXELS = load_data(f"demo:{COUNT}").batch(range(COUNT))[0]
ATTACKS = ("fgsm", "pgd:steps=3")


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    return trained("net")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images as files in one folder, with one that is cut off."""
    folder = tmp_path_factory.mktemp("photos")
    for place, image in enumerate(PIXELS):
        Image.fromarray((image[0] * 255).round().to(torch.uint8).numpy()).save(folder / f"{place:03}.png")
    cut = folder / "zzz.png"
    cut.write_bytes((folder / "000.png").read_bytes()[:60])
    return folder


@pytest.fixture(scope="module")
def report(net: torch.nn.Module, photos: Path) -> AuditReport:
    data = load_data(f"folder:{photos}", skip_bad=True)
    return audit(guard(net, Masking(NoConfig())), data, eps=0.05, attacks=ATTACKS, probes=2)


def test_figures_are_those_of_the_classifiers_own_answers_as_labels(net: torch.nn.Module, report: AuditReport) -> None:
    answered = ImageData("answered", PIXELS, net(PIXELS).argmax(1))
    expected = audit(guard(net, Masking(NoConfig())), answered, eps=0.05, attacks=ATTACKS, probes=2)
    found = [(row.model, row.attack, row.route, row.result) for row in report.rows]
    assert found == [(row.model, row.attack, row.route, row.result) for row in expected.rows]
    assert [case.result for case in report.worst_case] == [case.result for case in expected.worst_case]
    assert rows(report, model="undefended", attack="none")[0].result.share == 1


def test_the_report_says_whose_answers_the_labels_are_and_what_was_left_out(
    report: AuditReport, tmp_path: Path
) -> None:
    assert report.agreement and report.data["skipped"] == 1
    assert report.data["labels"] == "answers of the undefended classifier"
    assert AuditReport.load(report.save(tmp_path)).data == report.data
    assert "in agreement" in repr(report)


def test_the_table_says_agreement_and_never_accuracy(report: AuditReport) -> None:
    shown = printed(report)
    assert "agreement" in shown and "accurac" not in shown
    assert "1 image left out that cannot be read" in shown
    clean = next(line for line in shown.splitlines() if line.split()[:1] == ["clean"])
    assert "100.0%" not in clean.split("-")[1] and clean.count("-") >= 2
    assert "agrees with itself on clean images by definition" in " ".join(shown.split())


def test_the_file_never_calls_agreement_accuracy_and_nor_do_the_flags(report: AuditReport) -> None:
    every = [Flag(name, "evidence") for name in FLAGS]
    assert "accurac" not in report.to_json()
    assert "accurac" not in printed(dataclasses.replace(report, flags=every))


def test_with_labels_the_words_are_as_ever(net: torch.nn.Module) -> None:
    labelled = audit(net, f"demo:{COUNT}", eps=0.05, attacks=("fgsm",), probes=1)
    assert not labelled.agreement and {"labels", "skipped"}.isdisjoint(labelled.data)
    assert "accuracy" in printed(labelled) and "agreement" not in printed(labelled)


def test_a_classifier_alone(net: torch.nn.Module) -> None:
    alone = audit(net, PIXELS, eps=0.05, attacks=("fgsm",), probes=1)
    attacked = rows(alone, attack="fgsm")[0].result
    assert alone.agreement and 0 < attacked.share < 1
    assert "accurac" not in printed(alone)


def test_an_image_without_an_answer_is_named() -> None:
    class Silent(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            out = images.flatten(1)[:, :3]
            return torch.where((images.flatten(1).sum(1) == 0)[:, None], torch.nan, out)

    pixels = torch.from_numpy(np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32))
    pixels[3] = 0
    with pytest.raises(DataError, match="the classifier answers image 3 with NaN"):
        audit(Silent(), pixels, attacks=(), probes=1)
