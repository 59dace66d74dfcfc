"""audit(): its errors, and what it records when an attack fails."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import purifier
from audit_helpers import COUNT, PGD, Ends, Give, OnlySome, audit_quickly, correct, printed, worst
from purifier.auditing.audit import audit
from purifier.auditing.report import AuditReport
from purifier.data.images import ImageData
from purifier.errors import AuditError, ClassifierError, ConfigError, OutputError, PixelError, PluginError
from purifier.guards.guard import guard


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"routes": ("sideways",)}, ConfigError, "route must be one of exact, bpda, oblivious, none, got 'sideways'"),
        ({"routes": ("none",)}, ConfigError, "needs gradient: expected one of the routes exact, bpda, oblivious"),
        ({"attacks": ("fgsm", "fgsm")}, ConfigError, "attack 'fgsm' is given twice"),
        ({"attacks": "fgsm"}, ConfigError, r"expected a list of ATTACK specs, got 'fgsm'; write \['fgsm'\]"),
        ({"attacks": (OnlySome(),), "norm": "l2"}, ConfigError, "attack 'OnlySome' supports linf, not l2"),
        ({"attacks": ("fgms",)}, purifier.PurifierError, "no plugin 'fgms'; did you mean 'fgsm'"),
        ({"eps": ()}, ConfigError, r"expected one or more different budgets, got \(\)"),
        ({"eps": (0.1, 0.1)}, ConfigError, "more different budgets"),
        ({"eps": 8}, ConfigError, "try 8/255"),
        ({"batch_size": 0}, ConfigError, "batch_size must be a whole number of at least 1, got 0"),
        ({"eot": 0}, ConfigError, "eot must be a whole number"),
        ({"judgements": 0}, ConfigError, "judgements must be a whole number"),
        ({"probes": 0}, ConfigError, "probes must be a whole number of at least 1, got 0"),
        ({"probes": True}, ConfigError, "probes must be a whole number of at least 1, got True"),
        ({"device": "abacus"}, ConfigError, "device 'abacus' cannot be used"),
        ({"device": "meta"}, ConfigError, "weights moved there are lost"),
        ({"eps": None}, ConfigError, "eps: expected one or more different budgets"),
        ({"attacks": 3}, ConfigError, "expected a list of ATTACK specs, got 3"),
        ({"preset": "quick", "attacks": ("fgsm",)}, ConfigError, "attack 'fgsm' is already in the preset 'quick'"),
        ({"attacks": (5,)}, ConfigError, "expected ATTACK specs or attacks, got int"),
        ({"batch_size": 1.5}, ConfigError, "batch_size must be a whole number"),
        (
            {"attacks": ("fgsm", "joint-square:queries=9")},
            ConfigError,
            "'joint-square:queries=9' evades the threshold .* Blur is not calibrated; run `purifier calibrate blur ",
        ),
    ],
)
def test_impossible_options_are_errors_before_any_work(options, error, said):
    with pytest.raises(error, match=said):
        audit_quickly(progress=lambda *_: pytest.fail("work began"), **options)


@dataclass(frozen=True)
class Evading(OnlySome):
    needs_threshold: ClassVar[bool] = True


def test_any_attack_that_needs_a_threshold_is_an_error_where_there_is_none(classifier, data):
    with pytest.raises(ConfigError, match="attack 'Evading' evades the threshold .* there is no purifier"):
        audit(classifier, data, attacks=(Evading(),), progress=lambda *_: pytest.fail("work began"))
    filter_ = purifier.load("blur")
    with pytest.raises(ConfigError, match="Blur is not calibrated"):
        audit(guard(classifier, filter_), data, attacks=(Evading(),), progress=lambda *_: pytest.fail("work began"))
    purifier.calibrate(filter_, data, fpr=0.05)
    assert audit(guard(classifier, filter_), data, attacks=(Evading(),), eps=0.05, probes=2).complete


def test_data_that_does_not_fit_is_an_error(classifier, data):
    images, _ = data.batch(range(COUNT))
    many = ImageData("many", images, torch.arange(COUNT))
    with pytest.raises(
        AuditError,
        match=r"many: expected labels from 0 to 9, because torch NearestMean has 10 classes, got 0 to 59",
    ):
        audit(guard(classifier, "identity"), many, attacks=())
    small = ImageData("small", images[:, :, :20, :20], torch.zeros(COUNT, dtype=torch.int64))
    with pytest.raises(
        AuditError, match=r"torch NearestMean fails on images \(1, 1, 20, 20\) of small .*_helpers.py:\d+"
    ):
        audit(guard(classifier, "identity"), small, attacks=())
    with pytest.raises(PixelError, match=r"small: expected images \(N, 1, 28, 28\), got \(2, 1, 20, 20\)"):
        audit(guard(classifier, "vae:image_shape=1x28x28,channels=4,latent=8"), small, attacks=())


def test_a_grey_classifier_of_colour_images_is_told_apart(data):
    grey = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.LazyLinear(10)).eval()
    grey(data.batch(range(1))[0])
    colour = ImageData("colour", data.batch(range(4))[0].expand(-1, 3, -1, -1), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(AuditError, match="takes images with 1 channel, and these have 3; give others, or a classifier"):
        audit(guard(grey, "identity"), colour, attacks=())
    small = ImageData("small", colour.batch(range(4))[0][..., :20, :20], colour.labels)
    with pytest.raises(AuditError, match="check that it takes this size"):
        audit(guard(grey, "identity"), small, attacks=())


def test_errors_about_an_onnx_file_name_it(onnx_classifier, data, tmp_path, queries_only):
    file = tmp_path / "mine.onnx"
    broken = onnx.ModelProto()
    broken.CopyFrom(onnx_classifier)
    for tensor in broken.graph.initializer:
        if tensor.name == "bias":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(10, np.nan, np.float32), "bias"))
    onnx.save(broken, file)
    pixels, labels = data.batch(range(2))
    small = ImageData("small", pixels[:, :, 1:], labels)
    for given, images, options, said in (
        (file, data, {}, "the ONNX model .*mine.onnx on .* returns NaN"),
        (guard(file, "identity"), data, {}, "the ONNX model .*mine.onnx on .* returns NaN"),
        (file, small, {}, "the ONNX model .*mine.onnx on .* takes images"),
        (file, data, {"input": "nothing"}, "mine.onnx: the classifier has no input 'nothing'"),
        (file, data, {"output": "nothing"}, "mine.onnx: the classifier has no output 'nothing'"),
        (file, data, {"output_kind": "probabilities"}, "mine.onnx: output_kind='probabilities': expected"),
        (file, data, {"attacks": ("pgd",)}, "needs gradients of the classifier, but the ONNX model .*mine.onnx on"),
    ):
        if "output_kind" in options:
            onnx.save(onnx_classifier, file)
        with pytest.raises(purifier.PurifierError, match=said) as caught:
            audit(given, images, **{"attacks": (), **options})
        assert str(caught.value).count("mine.onnx") == 1
    with pytest.raises(ClassifierError, match="mine.onnx: the classifier has no input 'nothing'"):
        guard(file, "identity", input="nothing")


def test_arguments_of_the_wrong_type_are_errors(classifier, data):
    with pytest.raises(
        ConfigError, match=r"audit: expected a guard, a torch.nn.Module, .*, got int; make a guard with purifier.guard"
    ):
        audit(3, data)
    with pytest.raises(ConfigError, match="data: expected a DATA spec, ImageData, .*, got int"):
        audit(guard(classifier, "identity"), 5)


def test_an_attack_must_declare_needs_and_norms():
    with pytest.raises(PluginError, match="must declare needs"):
        type("Silent", (purifier.Attack,), {"norms": ("linf",)})
    with pytest.raises(PluginError, match="must declare norms, a tuple"):
        type("Text", (purifier.Attack,), {"needs": "labels", "norms": "linf"})


def test_an_unwritable_folder_is_an_error_before_any_work(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError, match="cannot write .*taken"):
        audit_quickly(out=tmp_path / "taken", progress=lambda *_: pytest.fail("work began"))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x, y: x[:, :, 1:], r"attack 'Give:.*': expected images \(60, 1, 28, 28\), got \(60, 1, 27, 28\)"),
        (lambda x, y: None, "expected images .*, got NoneType"),
        (lambda x, y: x * float("nan"), "attack 'Give:.*' returned NaN or infinity on the route"),
        (
            lambda x, y: x.double(),
            r"attack 'Give:.*': .*float32 on cpu, got torch.float64 .*found.to\(pixels\)",
        ),
    ],
)
def test_an_attack_that_breaks_its_contract_is_named(make, said, classifier, data):
    found = audit(guard(classifier, "identity"), data, attacks=(Give(make), "fgsm"))
    failed = [row for row in found.rows if row.attack.startswith("Give")]
    assert failed and all(re.search(said, row.error) and row.result is None for row in failed)
    assert not found.complete and all(row.error is None for row in found.rows if row.attack == "fgsm")


@pytest.mark.parametrize("error", [Ends("no"), GeneratorExit("no"), asyncio.CancelledError("no")], ids=type)
def test_an_attack_that_ends_by_whatever_means_is_named_and_the_others_go_on(error, classifier, data):
    def fail(pixels: Tensor, labels: Tensor) -> Tensor:
        raise error

    found = audit(guard(classifier, "identity"), data, attacks=(Give(fail), PGD), routes=("exact",), probes=2)
    failed = {row.error for row in found.rows if row.attack.startswith("Give")}
    assert len(failed) == 1 and failed.pop().startswith(f"{type(error).__name__}: no, at ") and not found.conclusive
    assert all(row.error is None for row in found.rows if row.attack == PGD)


def test_an_attack_that_fails_is_recorded_and_the_others_go_on(classifier, data, tmp_path):
    def fail(pixels: Tensor, labels: Tensor) -> Tensor:
        raise ValueError("no such luck")

    found = audit(guard(classifier, "identity"), data, eps=0.1, attacks=(Give(fail), "fgsm"), batch_size=25)
    assert not found.complete
    failed = [row for row in found.rows if row.error]
    assert "nothing-attacked" not in {flag.name for flag in found.flags}
    (error,) = {row.error for row in failed}
    assert re.fullmatch(r"ValueError: no such luck, at .*test_audit_errors.py:\d+", error) and len(failed) == 4
    assert all(row.result is None and row.threat for row in failed)
    assert correct(found, model="guarded", attack="fgsm", route="exact") == worst(found, "guarded", "all")
    assert not any(case.complete for case in found.worst_case)
    shown = printed(found)
    assert "error in Give" in shown and ": ValueError: no such luck" in shown and "only an upper bound" in shown
    assert AuditReport.load(found.save(tmp_path)) == found
