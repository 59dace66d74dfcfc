"""audit(): detection figures, compared with a count by hand."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

import purifier
from audit_helpers import COUNT, Give, NoConfig, Noisy, correct, printed, rows
from purifier.auditing.audit import audit
from purifier.auditing.figures import area_text, rate_text
from purifier.auditing.report import AuditReport
from purifier.auditing.statistics import wilson
from purifier.data.loading import load_data
from purifier.errors import CheckpointError, FileError, PluginError
from purifier.guards.guard import guard
from purifier.rejection.calibration import calibrate


class Bright(purifier.Purifier):
    """Filters nothing; an image is unusual by its mean."""

    Config, gradient = NoConfig, "exact"

    def __init__(self, config: NoConfig | None = None) -> None:
        super().__init__(config or NoConfig())
        self.scored = 0

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels

    def score(self, pixels: Tensor) -> Tensor:
        self.scored += 1
        return pixels.mean((1, 2, 3))


class BrightNoisy(Noisy):
    def score(self, pixels: Tensor) -> Tensor:
        return pixels.mean((1, 2, 3))


class Nan(Bright):
    """Scores NaN for images brighter than any clean one."""

    def score(self, pixels: Tensor) -> Tensor:
        score = super().score(pixels)
        return torch.where(score > 0.8, torch.nan, score)


INVERT = Give(lambda pixels, labels: 1 - pixels)


def calibrated(cls: type[purifier.Purifier]) -> purifier.Purifier:
    made = cls(NoConfig())
    calibrate(made, load_data("fashion-mnist:train:400"), fpr=0.1)
    return made


def test_figures_match_a_count_by_hand(classifier, data):
    filter_ = calibrated(Bright)
    found = audit(guard(classifier, filter_), data, eps=1, attacks=(INVERT,), routes=("exact",))
    pixels, labels = data.batch(range(COUNT))
    right, wrong = classifier(pixels).argmax(1) == labels, classifier(1 - pixels).argmax(1) != labels
    threshold = filter_.provenance["calibration"]["threshold"]
    clean, inverted = pixels.mean((1, 2, 3)), (1 - pixels).mean((1, 2, 3))
    fooled, rejected = right & wrong, inverted > threshold
    (row,) = rows(found, model="guarded", attack="Give:" + found.rows[2].attack.partition(":")[2])
    assert row.detection.fooled == fooled.sum() > 10
    assert row.detection.auc.value == pytest.approx(
        roc_auc_score([1] * int(fooled.sum()) + [0] * COUNT, torch.cat([inverted[fooled], clean]))
    )
    assert row.detection.rejected.correct == (fooled & rejected).sum()
    assert row.detection.rejected.count == fooled.sum()
    assert 0 < row.detection.rejected.correct < row.detection.rejected.count
    assert row.detection.held.correct == (rejected | (right & ~wrong)).sum()
    assert row.detection.held.interval == wilson(row.detection.held.correct, COUNT)
    clean_row = found.rows[1].detection
    assert (clean_row.fooled, clean_row.auc) == (0, None)
    assert (clean_row.rejected.correct, clean_row.rejected.count) == ((clean > threshold).sum(), COUNT)
    assert clean_row.held.correct == ((clean > threshold) | right).sum()
    assert found.calibration == {
        "fpr": 0.1,
        "threshold": threshold,
        "data": "fashion-mnist:train:400",
        "count": 400,
    }


def test_without_calibration_there_is_an_auc_but_no_rejection_rate(report):
    assert report.calibration is None
    for row in report.rows:
        if row.model == "undefended":
            assert row.detection is None
        else:
            assert (row.detection.auc is None) == (row.detection.fooled == 0)
            assert row.detection.rejected is None and row.detection.held is None
    assert any(row.detection.fooled for row in rows(report, model="guarded"))


def test_fooled_images_are_the_accuracy_lost(report):
    clean = correct(report, model="guarded", attack="none")
    for row in rows(report, model="guarded"):
        assert row.detection.fooled == clean - row.result.correct


def test_no_fooled_images_means_no_auc(classifier, data):
    found = audit(guard(classifier, calibrated(Bright)), data, eps=0, attacks=("fgsm",), routes=("exact",))
    (row,) = rows(found, model="guarded", route="exact")
    assert (row.detection.fooled, row.detection.auc, row.detection.rejected) == (0, None, None)
    assert row.detection.held == found.rows[1].detection.held
    assert re.search(r"fgsm +exact +0 +-", printed(found))


def test_a_nan_score_counts_as_rejected_and_highest(classifier, data):
    white = Give(lambda pixels, labels: torch.full_like(pixels, 0.9))
    found = audit(guard(classifier, calibrated(Nan)), data, eps=1, attacks=(white,), routes=("exact",))
    (row,) = rows(found, model="guarded", route="exact")
    assert row.detection.fooled > 10 and row.detection.auc.value == 1
    assert row.detection.rejected.share == row.detection.held.share == 1


def test_a_random_purifier_is_fooled_by_majority_and_scored_once(classifier, data):
    noisy = calibrated(BrightNoisy)
    found = audit(guard(classifier, noisy), data, eps=0.1, attacks=("fgsm",), routes=("exact",), judgements=5)
    (row,) = rows(found, model="guarded", route="exact")
    lost = correct(found, model="guarded", attack="none") - row.result.correct
    assert 0 < row.detection.fooled < COUNT and abs(row.detection.fooled - lost) < 6
    # A rejected image counts once, an accepted one by its judgements.
    assert row.detection.held.correct >= row.result.correct and (5 * row.detection.held.correct) % 1 < 1e-9
    bright = Bright()
    bright.draw = lambda pixels, generator: generator.normal(pixels.shape[1:], pixels)
    settings = {"attacks": ("fgsm",), "routes": ("exact",), "batch_size": 30, "probes": 8}
    audit(guard(classifier, bright), data, judgements=5, **settings)
    once = bright.scored
    audit(guard(classifier, bright), data, judgements=9, **settings)
    assert bright.scored == 2 * once  # however many judgements


def test_the_batch_changes_nothing(classifier, data):
    filter_ = calibrated(Bright)
    whole, sevens = (
        audit(guard(classifier, filter_), data, eps=0.1, attacks=("joint:steps=5",), batch_size=size)
        for size in (COUNT, 7)
    )
    assert [row.detection for row in whole.rows] == [row.detection for row in sevens.rows]


def test_the_joint_attack_evades_the_detector_better_than_pgd(classifier, data):
    filter_ = calibrated(Bright)
    attacks = ("pgd:steps=20", "joint:steps=50")
    found = audit(guard(classifier, filter_), data, eps=0.1, attacks=attacks, routes=("exact", "oblivious"))
    pgd, joint = (rows(found, model="guarded", attack=attack, route="exact")[0] for attack in attacks)
    assert joint.detection.fooled >= pgd.detection.fooled > 10
    assert joint.detection.auc.value < pgd.detection.auc.value - 0.05
    assert joint.scores_per_image > 50 and pgd.scores_per_image == 0
    (oblivious,) = rows(found, model="guarded", attack=attacks[1], route="oblivious")
    assert oblivious.scores_per_image == 0


def test_a_session_is_judged_by_its_purifiers_score(classifier, onnx_classifier, data):
    filter_ = calibrated(Bright)
    clean = [audit(guard(model, filter_), data, attacks=()) for model in (classifier, onnx_classifier)]
    assert clean[0].calibration == clean[1].calibration is not None
    assert clean[0].rows[1].detection == clean[1].rows[1].detection


def test_a_calibrated_report_is_saved_and_loaded_as_it_was(classifier, data, tmp_path):
    found = audit(guard(classifier, calibrated(Bright)), data, attacks=("fgsm",), out=tmp_path)
    assert AuditReport.load(tmp_path) == found
    raw = json.loads((tmp_path / "report.json").read_text())
    assert set(raw["rows"][2]["detection"]) == {"fooled", "auc", "rejected", "held"}
    assert set(raw["rows"][2]["detection"]["auc"]) == {"value", "interval"}


@pytest.fixture(scope="module")
def calibrated_report(classifier, data) -> AuditReport:
    guarded = guard(classifier, calibrated(Bright))
    return audit(guarded, data, eps=0.1, attacks=("fgsm",), routes=("exact",), probes=8)


def damaged(raw: dict, place: str, value: object) -> dict:
    *path, last = place.split("/")
    inner = raw
    for step in path:
        inner = inner[int(step) if step.isdigit() else step]
    if value is None and last != "calibration":
        del inner[last]
    else:
        inner[last] = value
    return raw


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("rows/2/detection", 7),
        ("rows/2/detection", None),
        ("rows/2/detection/fooled", -1),
        ("rows/2/detection/fooled", 0),
        ("rows/2/detection/auc", None),
        ("rows/2/detection/auc/value", 1.5),
        ("rows/2/detection/auc/interval", [0.9]),
        ("rows/2/detection/held/share", 2),
        ("rows/2/detection/rejected/count", None),
        ("rows/2/scores_per_image", None),
        ("calibration", None),
        ("calibration", {"fpr": 0.1}),
        ("calibration/threshold", "high"),
    ],
)
def test_a_damaged_detection_is_an_error(place, value, calibrated_report, tmp_path):
    path = calibrated_report.save(tmp_path)
    assert AuditReport.load(tmp_path) == calibrated_report
    path.write_text(json.dumps(damaged(json.loads(path.read_text()), place, value)))
    with pytest.raises(FileError, match="is not a complete report"):
        AuditReport.load(tmp_path)


def test_the_table_shows_detection_and_its_limits(classifier, data, report):
    filter_ = calibrated(Bright)
    found = audit(guard(classifier, filter_), data, eps=0.1, attacks=("fgsm", "joint:steps=5"))
    shown = printed(found, width=100)
    assert max(map(len, shown.splitlines())) <= 100
    detection = " ".join(shown.split("detection, linf 0.1")[1].split())
    (row,) = rows(found, model="guarded", attack="fgsm", route="exact")
    for part in (
        f"fgsm exact {row.detection.fooled} {area_text(row.detection.auc)} {rate_text(row.detection.rejected)}",
        "along the exact route; here: joint:steps=5",
        "calibrated on 400 images of fashion-mnist:train:400 to reject 10% of clean images; here it rejects",
        f"rejects {found.rows[1].detection.rejected.share:.1%} [",
    ):
        assert part in detection
    assert "white-box" not in detection
    plain = " ".join(printed(report).split("detection, ")[1].split())
    assert "none here (add joint, or joint-square without gradients), so these attacks did not try to evade it" in plain
    assert "not calibrated, so nothing is rejected" in plain and "rejected at" not in plain
    bpda = audit(guard(classifier, "bit-depth"), data, attacks=("joint:steps=2",))
    assert "strongest that this purifier has; here: joint:steps=2" in " ".join(printed(bpda).split())
    weaker = audit(guard(classifier, "blur"), data, attacks=("joint:steps=2",), routes=("bpda",))
    assert "the exact route; here along bpda only: joint:steps=2" in " ".join(printed(weaker).split())
    clean = audit(guard(classifier, filter_), data, attacks=())
    assert "threshold: calibrated on" in printed(clean) and "detection, " not in printed(clean)


def test_a_failed_attack_has_no_detection(classifier, data):
    broken = Give(lambda pixels, labels: None)
    found = audit(guard(classifier, Bright()), data, attacks=(broken,), routes=("exact",))
    assert rows(found, model="guarded")[1].detection is None
    printed(found)


class Wide(Bright):
    def score(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1)


def test_bad_scores_are_an_error_before_any_attack(classifier, data):
    with pytest.raises(PluginError, match=r"Wide must return scores \(1,\), got \(1, 784\)"):
        audit(guard(classifier, Wide()), data)
    bad = Bright()
    bad.provenance = {"calibration": {"fpr": math.inf}}
    with pytest.raises(CheckpointError, match="calibrate it again"):
        audit(guard(classifier, bad), data)


@pytest.mark.integration
def test_a_calibrated_checkpoint_end_to_end(tmp_path):
    vae = purifier.load("demo-plain")
    calibrate(vae, load_data("fashion-mnist:test:300"), fpr=0.1)
    purifier.save(vae, tmp_path / "vae.safetensors")
    guarded = guard("demo", tmp_path / "vae.safetensors")
    attacks = ("pgd:steps=10", "joint:steps=40")
    found = audit(guarded, "demo:24", eps=0.3, attacks=attacks, routes=("exact", "oblivious"), probes=4)
    oblivious = rows(found, model="guarded", attack=attacks[0], route="oblivious")[0].detection
    joint = rows(found, model="guarded", attack=attacks[1], route="exact")[0].detection
    assert found.calibration["fpr"] == 0.1 and found.rows[1].detection.rejected.share < 0.3
    assert oblivious.auc.value > 0.9 and joint.auc.value < 0.6
    assert joint.rejected.share < 0.1 < oblivious.rejected.share
    assert joint.fooled > 10
