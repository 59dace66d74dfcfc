"""A classifier with one sigmoid output, guarded, audited, trained for and exported, in torch and as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from binary_nets import Binary, as_onnx, pullovers_and_coats
from torch import Tensor

import purifier
from purifier import ImageData, PurifierError, SampleGenerator, Target, Threat
from purifier.attacking.specs import read_attack
from purifier.classifiers.pixel_classifier import OnnxPixelClassifier
from purifier.testing import check_exporter

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT, EPS = 100, 0.05
KINDS = ("logits", "probabilities", "binary-logit", "binary-probability")


@pytest.fixture(scope="module")
def data() -> ImageData:
    return pullovers_and_coats(COUNT)


@pytest.fixture(scope="module")
def margin(data: ImageData) -> Tensor:
    """The small net's logit of a coat minus that of a pullover, (N,)."""
    return Binary("binary-logit", (-1,))(data.batch(range(COUNT))[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("onnx", [False, True], ids=["torch", "onnx"])
def test_the_answer_becomes_two_logits_with_the_right_margin(
    onnx: bool, kind: Any, data: ImageData, margin: Tensor, tmp_path: Path
) -> None:
    pixels, _ = data.batch(range(COUNT))
    for options in ({}, {"features": True}) if kind == "binary-probability" else ({"features": True},):
        net, given = Binary(kind, **options), {"output": "out"} if options else {}
        names = ("feat", "out") if options else ("out",)
        model = as_onnx(net, tmp_path / "net.onnx", names) if onnx else net
        guarded = purifier.guard(model, "identity", output_kind=kind, **given)
        logits = guarded.pixel_classifier()(pixels)
        assert logits.shape == (COUNT, 2)
        torch.testing.assert_close(logits[:, 1] - logits[:, 0], margin, atol=1e-4, rtol=1e-4)
    if onnx:
        found = guarded.run(None, {"images": pixels.numpy()})
        assert [list(value.shape) for value in found] == [[COUNT, 10], list(net(pixels)["out"].shape)]
    else:
        assert all(torch.equal(value, net(pixels)[name]) for name, value in guarded(pixels).items())


def test_attacks_fool_the_probability_as_they_fool_the_logit(data: ImageData) -> None:
    pixels, labels = data.batch(range(COUNT))
    threat, fooled = Threat("linf", EPS), {}
    for kind in KINDS:
        guarded = purifier.guard(Binary(kind), "blur", output_kind=kind)
        classifier = guarded.pixel_classifier()
        target = Target(classifier, guarded.purifier, "exact", SampleGenerator(0, range(COUNT)))
        found = read_attack("pgd:steps=10").attack.perturb(
            target, pixels, labels, threat, SampleGenerator(1, range(COUNT))
        )
        fooled[kind] = (
            Target(classifier, guarded.purifier, "none", SampleGenerator(0, range(COUNT)))
            .logits(threat.project(found, pixels))
            .argmax(1)
            != labels
        )
    assert fooled["logits"].sum() > 50
    for kind in KINDS[1:]:
        assert (fooled[kind] != fooled["logits"]).sum() <= 1, kind


@pytest.mark.parametrize("onnx", [False, True], ids=["torch", "onnx"])
def test_an_audit_of_a_sigmoid_output(onnx: bool, data: ImageData, margin: Tensor, tmp_path: Path) -> None:
    right = ((margin > 0).long() == data.labels).double().mean().item()
    model = as_onnx(Binary(), tmp_path / "net.onnx") if onnx else Binary()
    guarded = purifier.guard(model, "blur", output_kind="binary-probability")
    report = purifier.audit(guarded, data, eps=EPS, attacks=["pgd:steps=10"], probes=16)
    assert {flag.name for flag in report.flags} == set()
    assert report.classifier["output_kind"] == "binary-probability"
    shares = {(row.model, row.attack == "none"): row.result.share for row in report.rows if row.result}
    assert shares["undefended", True] == pytest.approx(right) and 0.5 < right < 1
    assert shares["undefended", False] < right - 0.05
    assert shares["guarded", False] < shares["guarded", True] - 0.05


def test_one_column_is_not_audited_as_logits(data: ImageData, tmp_path: Path) -> None:
    for model in (Binary(), as_onnx(Binary(shape=(-1,)), tmp_path / "net.onnx")):
        guarded = purifier.guard(model, "blur")
        with pytest.raises(PurifierError, match=r"one number per image, .*output_kind='binary-logit' or 'binary-proba"):
            purifier.audit(guarded, data, eps=EPS, attacks=[])
        with pytest.raises(PurifierError, match="one number per image"):
            purifier.train("vae", data, tmp_path / "out.safetensors", recipe="robust", classifier=model)


def test_probabilities_are_flagged_unless_they_are_declared(data: ImageData) -> None:
    flagged = []
    for given in ({}, {"output_kind": "probabilities"}):
        guarded = purifier.guard(Binary("probabilities"), "blur", **given)
        report = purifier.audit(guarded, data, eps=EPS, attacks=["fgsm"], probes=8)
        flagged.append("probabilities" in {flag.name for flag in report.flags})
    assert flagged == [True, False]


def test_a_probability_declared_as_a_logit_is_flagged(data: ImageData) -> None:
    guarded = purifier.guard(Binary(), "blur", output_kind="binary-logit")
    report = purifier.audit(guarded, data, eps=EPS, attacks=["fgsm"], probes=8)
    assert "probabilities" in {flag.name for flag in report.flags}
    logit = purifier.guard(Binary("binary-logit"), "blur", output_kind="binary-logit")
    report = purifier.audit(logit, data, eps=EPS, attacks=["fgsm"], probes=8)
    assert "probabilities" not in {flag.name for flag in report.flags}


@pytest.mark.parametrize("onnx", [False, True], ids=["torch", "onnx"])
def test_a_purifier_is_trained_for_a_sigmoid_output(onnx: bool, tmp_path: Path) -> None:
    losses = []
    for kind, more in (("logits", {}), ("binary-probability", {}), ("probabilities", {"output": "out"})):
        net = Binary(kind, features=bool(more))
        model: Any = as_onnx(net, tmp_path / "net.onnx", ("feat", "out") if more else ("out",)) if onnx else net
        trained = purifier.train(
            "vae",
            pullovers_and_coats(40),
            tmp_path / "out.safetensors",
            config={"channels": 4, "latent": 3},
            recipe="robust:eps=0.05",
            classifier=model,
            output_kind=kind,
            precision="float32",
            overwrite=True,
            epochs=1,
            batch_size=20,
            **more,
        )
        losses.append(trained.provenance["metrics"]["adversarial"])
        recorded = trained.provenance["classifier"].get("output")
        assert recorded == (None if kind == "logits" else {"which": more.get("output"), "kind": kind})
    assert losses == pytest.approx(losses[:1] * 3, rel=1e-3)


@pytest.mark.parametrize("onnx", [False, True], ids=["torch", "onnx"])
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_an_exported_guard_has_the_classifiers_own_output(
    shape: tuple[int, ...], onnx: bool, data: ImageData, tmp_path: Path
) -> None:
    pixels, _ = data.batch(range(5))
    net = Binary(shape=shape).eval()
    model: Any = as_onnx(net, tmp_path / "net.onnx") if onnx else net
    guarded = purifier.guard(model, "blur", output_kind="binary-probability")
    report = purifier.export(guarded, tmp_path / "guarded.onnx", image_shape=(1, 28, 28))
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": pixels.numpy()})
    with torch.no_grad():
        expected = purifier.guard(net, "blur")(pixels).numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_exported_file_is_checked_by_the_named_output(tmp_path: Path) -> None:
    guarded = purifier.guard(Binary(features=True), "blur", output="out", output_kind="binary-probability")
    check_exporter(purifier.exporters.get("onnx")(), guarded, tmp_path / "guarded.onnx", image_shape=(1, 28, 28))


def test_wrong_options_are_errors(data: ImageData, tmp_path: Path) -> None:
    model = as_onnx(Binary(features=True), tmp_path / "net.onnx", ("feat", "out"))
    for options, message in (
        ({"output": "score"}, r"no output 'score'; it returns 0: 'feat' .*, 1: 'out'"),
        ({"output": 2}, "no output at position 2"),
        ({"output": "feat", "output_kind": "binary-logit"}, "must return one logit per image"),
        ({"output_kind": "sigmoid"}, "output_kind must be one of logits, probabilities, binary-logit"),
    ):
        with pytest.raises(PurifierError, match=message):
            purifier.guard(model, "blur", **options)
    with pytest.raises(PurifierError, match="2 outputs of the classifier can be its logits: 0: 'feat'.*--output"):
        purifier.audit(purifier.guard(model, "blur"), data, eps=EPS, attacks=[])
    with pytest.raises(PurifierError, match="takes no classifier"):
        purifier.train("vae", data, tmp_path / "out.safetensors", output_kind="binary-logit")
    ready = OnnxPixelClassifier(model, purifier.Preprocessing())
    with pytest.raises(PurifierError, match="2 outputs"):
        ready(data.batch([0])[0])
