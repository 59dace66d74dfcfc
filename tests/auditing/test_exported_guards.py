"""Exported guards, audited as they are: attacks on their score find what they find on the torch guard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import purifier
from audit_helpers import rows
from purifier.attacking.specs import read_attack
from purifier.attacking.target import Target
from purifier.attacking.threat import Threat
from purifier.auditing.audit import audit
from purifier.auditing.parts import AuditedParts, audited_parts
from purifier.data.images import ImageData
from purifier.data.loading import load_data
from purifier.errors import AuditError, GradientError
from purifier.guards.guard import guard
from purifier.onnx.inner_output import kept_answer
from purifier.onnx.reader import load_onnx
from purifier.rejection.calibration import calibrate
from purifier.seeding import SampleGenerator

JOINT = "joint:steps=12"
SETTINGS: dict[str, Any] = {"eps": 0.1, "probes": 2, "batch_size": 30}
WAYS = (("flag", True), ("abstain", True), ("ignore", True))


@dataclass(frozen=True)
class Soft:
    pass


class Smooth(purifier.Purifier):
    """Dims images a little, and scores how rough they are, which attacks make them."""

    Config, gradient = Soft, "exact"

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return 0.9 * pixels

    def score(self, pixels: Tensor) -> Tensor:
        return (pixels[..., 1:, :] - pixels[..., :-1, :]).square().flatten(1).sum(1)


@pytest.fixture(scope="module")
def smooth() -> Smooth:
    made = Smooth(Soft())
    calibrate(made, load_data("fashion-mnist:train:200"), fpr=0.1)  # none of these is judged: one is at the threshold
    return made


def exported(guarded: Any, folder: Path) -> Path:
    return purifier.export(guarded, folder / "guarded.onnx", image_shape=(1, 28, 28), batches=(1, 2)).path


def found_by(parts: AuditedParts, pixels: Tensor, labels: Tensor, attack: str = JOINT) -> Tensor:
    """The images of an attack, all of whose random numbers come from its arguments."""
    streams = [SampleGenerator(seed, range(len(pixels))) for seed in (1, 2)]
    target = Target(parts.classifier, parts.purifier, "exact", streams[0], rejection=parts.rejection)
    return read_attack(attack).attack.perturb(target, pixels, labels, Threat("linf", 0.1), streams[1])


@pytest.mark.parametrize(("way", "score"), [*WAYS, ("uncalibrated", True)])
def test_joint_finds_the_same_images_on_the_file_as_on_the_torch_guard(way, score, smooth, classifier, data, tmp_path):
    policy = {} if way == "uncalibrated" else {"on_reject": way}
    guarded = guard(classifier, Smooth(Soft()) if way == "uncalibrated" else smooth, score=score, **policy)
    pixels, labels = data.batch(range(30))
    parts = [audited_parts(given) for given in (guarded, exported(guarded, tmp_path))]
    ours, theirs = (found_by(one, pixels, labels) for one in parts)
    assert (ours - theirs).abs().max() < 1e-3 and (ours - pixels).abs().max() > 0.05
    scores = [smooth.score(images).mean() for images in (ours, found_by(parts[0], pixels, labels, "pgd:steps=12"))]
    assert scores[0] < 0.9 * scores[1]  # it went down the score


@pytest.mark.parametrize("way", ["flag", "abstain"])
def test_audits_of_the_file_count_what_those_of_the_torch_guard_count(way, smooth, classifier, data, tmp_path):
    guarded = guard(classifier, smooth, on_reject=way, score=True)
    attacks = (JOINT, "square:queries=20")
    file = audit(exported(guarded, tmp_path), data, attacks=attacks, **SETTINGS)
    ours = audit(guarded, data, attacks=attacks, routes=("exact", "none"), **SETTINGS)
    for row in rows(ours, model="guarded"):
        (other,) = rows(file, attack=row.attack)
        assert other.error is None and other.route == row.route
        slack = 2 * (row.threat is not None)  # the random starts differ, as the models have other names
        for name in ("result", "right", "rejected"):
            assert abs(getattr(other, name).correct - getattr(row, name).correct) <= slack, (row.attack, name)
    (joint,) = rows(file, attack=JOINT)
    assert joint.scores_per_image > 0 and joint.gradients_per_image > 0
    assert "detector-ignored" not in {flag.name for flag in file.flags}


def test_presets_add_joint_to_a_file_whose_score_has_a_gradient(smooth, classifier, data, tmp_path, monkeypatch):
    from purifier.auditing.plan import plan_preset
    from purifier.auditing.presets import preset_of

    def planned(score: bool) -> set[str]:
        file = exported(guard(classifier, smooth, on_reject="flag", score=score), tmp_path)
        parts = audited_parts(file)
        threats = [Threat("linf", 0.1)]
        jobs, _ = plan_preset(
            parts.classifier, parts.in_front, preset_of("quick"), threats, None, random=False, rejecting=True
        )
        return {job.named.spec for job in jobs}

    assert {"joint", "pgd:steps=20"} <= planned(True)
    assert {"joint-square", "pgd:steps=20"} <= planned(False) and "joint" not in planned(False)


def test_joint_on_a_file_without_a_score_is_an_error_that_says_so(smooth, classifier, data, tmp_path):
    file = exported(guard(classifier, smooth, on_reject="flag"), tmp_path)
    found = audit(file, data, attacks=(JOINT, "joint-square:queries=20"), **SETTINGS)
    (joint,), (queries,) = rows(found, attack=JOINT), rows(found, attack="joint-square:queries=20")
    assert "does not give its score" in joint.error and "joint-square" in joint.error and queries.error is None


def test_a_score_whose_gradient_is_wrong_is_not_followed(smooth, classifier, data, tmp_path, monkeypatch):
    from purifier.classifiers.white_box import WhiteBox

    right = WhiteBox.forward

    def wrong(self: WhiteBox, pixels: Tensor) -> Tensor:
        found = right(self, pixels)
        return 2 * found.detach() - found if self.answer == "purifier_score" else found

    monkeypatch.setattr(WhiteBox, "forward", wrong)
    parts = audited_parts(exported(guard(classifier, smooth, on_reject="flag", score=True), tmp_path))
    assert parts.classifier.differentiable and parts.classifier.hides_score
    with pytest.raises(GradientError, match="score of .* has no gradient .*predicts a rise of .*joint-square"):
        found_by(parts, *data.batch(range(2)))


def test_logits_of_rejected_images_are_attacked_though_the_file_gives_nan(smooth, classifier, data, tmp_path):
    guarded = guard(classifier, smooth, on_reject="abstain")
    parts = audited_parts(exported(guarded, tmp_path))
    pixels = data.batch(range(60))[0]
    verdict = parts.classifier.verdict(pixels)
    rejected = verdict.rejected
    assert 0 < rejected.sum() < 60 and verdict.logits[rejected].isnan().all()
    with torch.no_grad():
        expected = classifier(0.9 * pixels)
    assert torch.allclose(parts.classifier(pixels), expected, atol=1e-4)
    leaf = pixels.clone().requires_grad_()
    (ours,) = torch.autograd.grad(parts.classifier(leaf)[:, 3].sum(), leaf)
    weight = 0.9 * classifier.head.weight[3].reshape(1, 1, 28, 28)
    assert torch.allclose(ours, weight.expand_as(ours), atol=1e-4)


@pytest.mark.parametrize(
    "policy",
    [
        {"on_reject": "abstain", "abstain": 3},
        {"on_reject": "abstain", "abstain": 3, "score": True},
        {"score": True},
    ],
)
def test_a_file_that_answers_rejected_images_is_judged_by_its_answers(policy, smooth, classifier, data, tmp_path):
    guarded = guard(classifier, smooth, **policy)
    file = exported(guarded, tmp_path)
    whole, alone = (audit(given, data, attacks=("noise",), **SETTINGS) for given in (guarded, file))
    clean = [
        next(row for row in rows(found, attack="none") if row.model == model).result.correct
        for found, model in ((whole, "guarded"), (alone, "undefended"))
    ]
    assert clean[0] == clean[1] > 0
    assert all(row.rejected is None for row in alone.rows)


def test_images_of_another_size_are_an_error_that_says_both(onnx_classifier):
    data = ImageData("small", torch.rand(4, 1, 14, 14), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(AuditError, match=r"takes images \(1, 28, 28\), got \(1, 14, 14\) from small.*--resize"):
        audit(onnx_classifier, data, attacks=("fgsm",), eps=0.05)


def test_only_what_becomes_nan_is_undone(smooth, classifier, data, tmp_path):
    model = load_onnx(exported(guard(classifier, smooth, on_reject="abstain"), tmp_path))
    kept = kept_answer(model, "logits")
    assert kept != "logits" and kept_answer(model, kept) == kept
    assert next(node.op_type for node in model.graph.node if kept in node.output) != "Where"
