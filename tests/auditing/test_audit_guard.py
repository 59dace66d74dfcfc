"""audit(): the guard is judged by its own answer, whatever it does with rejected images, in torch and in ONNX."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

import purifier
from audit_helpers import PGD, Give, as_linear_onnx, correct, printed, rows, worst
from purifier.auditing.audit import audit
from purifier.auditing.figures import rate_text
from purifier.auditing.parts import audited_parts
from purifier.data.images import ImageData
from purifier.errors import ConfigError, RejectedError
from purifier.guards.guard import guard
from scoring_purifiers import Classes, calibrated

WAYS = [("ignore", None), ("flag", None), ("raise", None), ("abstain", None), ("abstain", 3), ("reclassify", None)]
INVERT = Give(lambda pixels, labels: 1 - pixels)


@pytest.fixture(scope="module")
def filter_(data) -> Classes:
    """Rejects every image brighter than the median one."""
    return calibrated(Classes(), data.batch(range(len(data)))[0].mean((1, 2, 3)).median().item())


def asked(guarded, pixels: Tensor, labels: Tensor) -> tuple[int, int]:
    """How many images the guard itself has right and accepted, and how many it rejects, one image at a time."""
    right = rejections = 0
    for image, label in zip(pixels.split(1), labels.tolist(), strict=True):
        try:
            if isinstance(guarded, purifier.GuardedModule):
                found = guarded(image)
                logits, rejected = found if isinstance(found, tuple) else (found, torch.tensor([False]))
                logits, rejected = logits.numpy(), rejected.numpy()
            else:
                logits, *rest = guarded.run(None, {"images": image.numpy()})
                rejected = rest[0] if rest else np.array([False])
        except RejectedError:
            rejections += 1
            continue
        gone = bool(rejected[0]) or bool(np.isnan(logits).any())
        rejections += gone
        right += int(logits[0].argmax() == label and not gone)
    return right, rejections


@pytest.mark.parametrize("kind", ["torch", "onnx"])
@pytest.mark.parametrize(("on_reject", "abstain"), WAYS)
def test_clean_accuracy_is_the_guards_own(on_reject, abstain, kind, filter_, classifier, onnx_classifier, data):
    model = classifier if kind == "torch" else onnx_classifier
    guarded = guard(model, filter_, on_reject=on_reject, abstain=abstain)
    attacks = (INVERT,) if kind == "torch" else ()
    found = audit(guarded, data, attacks=attacks, routes=("exact",), eps=1, batch_size=25, probes=8)
    pixels, labels = data.batch(range(len(data)))
    with torch.no_grad():
        right, rejections = asked(guarded, pixels, labels)
        after, rejections_after = asked(guarded, 1 - pixels, labels)
    (clean,) = rows(found, model="guarded", attack="none")
    assert clean.result.correct == right
    marks = on_reject in ("flag", "raise") or (on_reject == "abstain" and abstain is None)
    assert (clean.rejected and clean.rejected.correct) == (rejections if marks else None)
    if kind == "torch":
        (row,) = (row for row in rows(found, model="guarded") if row.threat is not None)
        assert row.rejected is None or row.rejected.correct == rejections_after
        assert row.right is None or row.right.correct <= after
        assert worst(found, "guarded", "all") == row.result.correct


def test_the_ways_differ_so_that_the_test_above_can_fail(filter_, classifier, data):
    found = {
        (way, abstain): correct(
            audit(guard(classifier, filter_, on_reject=way, abstain=abstain), data, attacks=()), model="guarded"
        )
        for way, abstain in WAYS
    }
    assert len(set(found.values())) == 4  # all that mark rejected images have the same ones right
    assert found["flag", None] == found["raise", None] == found["abstain", None] < found["ignore", None]


def test_under_attack_a_rejected_image_counts_only_if_it_was_right_and_accepted(filter_, classifier, data):
    """Dimmed images are accepted, inverted ones mostly rejected; counted by hand."""
    guarded = guard(classifier, filter_, on_reject="flag")
    found = audit(guarded, data, attacks=(INVERT,), routes=("exact",), eps=1)
    pixels, labels = data.batch(range(len(data)))
    with torch.no_grad():
        (clean, before), (after, rejected) = guarded(pixels), guarded(1 - pixels)
    held = (clean.argmax(1) == labels) & ~before & (rejected | (after.argmax(1) == labels))
    (row,) = (row for row in rows(found, model="guarded") if row.threat is not None)
    assert row.result.correct == held.sum() > row.right.correct
    assert row.rejected.correct == rejected.sum() and row.rejected.count == len(data)


def test_a_guards_file_is_judged_by_its_own_rejections(filter_, classifier, data, tmp_path):
    pixels, labels = data.batch(range(len(data)))
    for way, scored in (("flag", False), ("flag", True), ("abstain", False)):
        guarded = guard(classifier, filter_, on_reject=way, score=scored)
        purifier.export(guarded, tmp_path / "guarded.onnx", image_shape=(1, 28, 28))
        found = audit(tmp_path / "guarded.onnx", data, attacks=("joint-square:queries=50",), eps=0.1)
        assert found.purifier is None and found.model == "undefended" and found.on_reject is None
        with torch.no_grad():
            right, rejections = asked(guard(classifier, filter_, on_reject=way), pixels, labels)
        (clean,) = rows(found, model="undefended", attack="none")
        assert (clean.result.correct, clean.rejected.correct) == (right, rejections)
        (row,) = rows(found, attack="joint-square:queries=50")
        assert row.scores_per_image > 0 and row.right.correct <= row.result.correct <= right
        lines = [" ".join(line.split()) for line in printed(found, 120).splitlines()]
        headline = next(line for line in lines if line.startswith("linf 0.1 all routes run"))
        assert headline.endswith(f" {rate_text(found.worst_case[0].result)}")
        assert lines[lines.index(headline) - 3 : lines.index(headline) - 1] == ["threat routes right or", "rejected"]
        assert "worst case per image, share of images with 95% interval" in lines
        assert "purifier none: an exported guard, audited as it is" in lines
        assert "right or rejected" in repr(found)


def test_a_classifier_is_audited_alone(classifier, onnx_classifier, data):
    alone = audit(classifier, data, attacks=("pgd:steps=5", "square:queries=50"), eps=0.05)
    assert {row.model for row in alone.rows} == {"undefended"} == {alone.model}
    assert [row.route for row in alone.rows] == [None, "exact", "none"]
    assert alone.purifier is None and alone.calibration is None and all(row.detection is None for row in alone.rows)
    beside = audit(guard(classifier, "blur"), data, attacks=("pgd:steps=5",), routes=("exact",), eps=0.05)
    assert correct(alone, attack="pgd:steps=5") == correct(beside, attack="pgd:steps=5", model="undefended")
    queried = audit(onnx_classifier, data, attacks=("square:queries=50",), eps=0.05)
    assert correct(queried, attack="none") == correct(alone, attack="none")
    assert queried.gate(0.0) == [] and [case.model for case in queried.gate(1.0)] == ["undefended"]


def test_fooled_images_leave_the_batch_of_a_classifier_alone(classifier, data):
    found = audit(classifier, data, attacks=("apgd-t", "square:queries=500"), eps=0.5, probes=6)
    gradients, queries = (row for row in found.rows if row.threat is not None)
    assert correct(found, attack="apgd-t") == 0 and gradients.gradients_per_image < 5
    assert correct(found, attack="square:queries=500") == 0 and queries.queries_per_image < 50


def test_options_for_a_classifier_alone_are_errors_for_a_guard(classifier, data):
    with pytest.raises(ConfigError, match=r"input: the guard has its own, got 0; set it in purifier.guard"):
        audit(guard(classifier, "blur"), data, input=0)


def test_the_report_says_what_was_audited(classifier, onnx_classifier, data):
    found = audit(guard(classifier, "blur", on_reject="ignore"), data, attacks=())
    assert found.classifier["parameters"] == 7850 and len(found.classifier["sha256"]) == 64
    assert found.classifier["description"] == "torch NearestMean" and found.classifier["output_kind"] == "logits"
    again = audit(classifier, data, attacks=())
    assert again.classifier == found.classifier and again.data == found.data
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    assert audit(other, data, attacks=()).classifier["sha256"] != found.classifier["sha256"]
    assert audit(onnx_classifier, data, attacks=()).classifier["parameters"] == 7850
    assert sum(found.data["classes"].values()) == len(data) and len(found.data["sha256"]) == 64


class Exits(torch.nn.Module):
    """Ends the program for images that are not of 8 bits, as adversarial ones are."""

    def __init__(self, classifier: torch.nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        if not torch.equal((255 * images).round() / 255, images):
            sys.exit(0)
        return self.classifier(images)


def test_a_classifier_that_ends_the_program_does_not_end_the_audit(classifier, data):
    found = audit(guard(Exits(classifier), "identity"), data, attacks=(PGD, INVERT), routes=("exact",), probes=8)
    attacked, inverted = (row for row in found.rows if row.model == "guarded" and row.threat is not None)
    assert "torch Exits failed (it exited the program with code 0, at " in attacked.error
    assert inverted.error.startswith("judging failed: it exited the program with code 0") and not found.conclusive


def test_a_row_that_lacks_a_batch_is_no_result(classifier, data):
    class Stops(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = classifier

        def forward(self, images: Tensor) -> Tensor:
            if images.mean() > 0.6:
                raise ValueError("too bright")
            return self.classifier(images)

    found = audit(guard(Stops(), "identity"), data, eps=1, attacks=(INVERT, "fgsm"), batch_size=20, probes=8)
    inverted = [row for row in found.rows if row.attack.startswith("Give")]
    assert inverted and all("too bright" in row.error for row in inverted if row.route != "bpda")
    assert not found.complete and all(row.error is None for row in rows(found, attack="none"))


@pytest.mark.parametrize(
    ("on_reject", "marked"), [("abstain", True), ("raise", True), ("flag", True), ("ignore", False)]
)
def test_a_session_of_a_two_class_classifier_is_judged_by_its_own_rejections(on_reject, marked, filter_, data):
    weight, bias = torch.randn(1, 784, generator=torch.Generator().manual_seed(0)) / 28, torch.zeros(1)
    model = as_linear_onnx(weight.numpy(), bias.numpy())
    pixels, _ = data.batch(range(len(data)))
    dark = filter_.score(pixels) <= filter_.provenance["calibration"]["threshold"]
    labels = ((filter_.purify(pixels).flatten(1) @ weight.T)[:, 0] > 0).long()
    two = ImageData("two classes", pixels, labels)
    guarded = guard(model, filter_, on_reject=on_reject, output_kind="binary-logit")
    found = audit(guarded, two, attacks=("noise",), eps=0.05, routes=("none",), batch_size=25)
    (clean,) = rows(found, model="guarded", attack="none")
    assert clean.result.correct == (dark.sum() if marked else len(data))
    assert (clean.rejected and clean.rejected.correct) == ((~dark).sum() if marked else None)
    (noisy,) = rows(found, model="guarded", attack="noise")
    assert noisy.error is None and (noisy.rejected is not None) == marked
    assert "paths-disagree" not in {flag.name for flag in found.flags}


def test_a_classifier_alone_is_read_as_a_guard_reads_it(classifier):
    """The dtype of a graph's input stands in the graph, whatever preprocessing is given."""
    cast = onnx.helper.make_node("Cast", ["bytes"], ["images"], to=onnx.TensorProto.FLOAT)
    model = as_linear_onnx(classifier.head.weight.detach().numpy() / 255, classifier.head.bias.detach().numpy())
    model.graph.node.insert(0, cast)
    del model.graph.input[:]
    model.graph.input.append(onnx.helper.make_tensor_value_info("bytes", onnx.TensorProto.UINT8, ["n", 1, 28, 28]))
    for wanted in (None, purifier.Preprocessing(scale=255)):
        guarded = guard(model, "identity", preprocessing=wanted)
        alone = audited_parts(model, preprocessing=wanted).classifier
        assert alone.preprocessing == guarded.preprocessing and alone.preprocessing.dtype == "uint8"


@pytest.mark.parametrize("way", ["reject", "clamp"])
def test_what_a_guard_does_with_bad_pixels_is_recorded_and_changes_no_figure(way, filter_, classifier, data):
    plain, other = (
        audit(guard(classifier, filter_, on_reject="flag", on_bad_pixels=policy), data, attacks=("fgsm",), eps=0.1)
        for policy in ("raise", way)
    )
    assert (plain.on_bad_pixels, other.on_bad_pixels) == ("raise", way)
    assert [row.result for row in plain.rows] == [row.result for row in other.rows]
    assert [flag.name for flag in plain.flags] == [flag.name for flag in other.flags]
    assert f"on_bad_pixels {way}" in " ".join(printed(other).split())
    assert "on_bad_pixels" not in printed(plain)


def test_a_session_has_the_gradient_that_its_purifier_declares(classifier, onnx_classifier, data):
    """A surrogate stays one, where rounding in the exact route would hide every attack."""
    found = []
    for model in (classifier, onnx_classifier):
        report = audit(guard(model, "bit-depth"), data, attacks=[PGD], eps=0.1)
        found.append({(row.model, row.route): row.result for row in report.rows if row.threat})
        assert "zero-gradient" not in [flag.name for flag in report.flags]
    assert found[0] == found[1] and ("guarded", "bpda") in found[0] and ("guarded", "exact") not in found[0]
