"""The shipped purifiers: `demo` is robust along the exact route and exports, `demo-certified` certifies, `colour-32`
serves any classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import nn

import purifier
from purifier.assets.build import CERTIFIED, CERTIFIED_ON, SELECTED_DATA
from purifier.assets.robust import TOGETHER
from purifier.attacking.specs import read_attack
from purifier.attacking.target import Target
from purifier.attacking.threat import Threat
from purifier.classifiers.loading import load_classifier
from purifier.data.loading import load_data
from purifier.guards.module import GuardedModule
from purifier.seeding import SampleGenerator

COUNT = 100


@pytest.mark.integration
def test_the_shipped_purifier_holds_and_its_onnx_file_agrees(tmp_path: Path) -> None:
    guarded = purifier.guard(load_classifier("demo"), "demo")
    assert isinstance(guarded, GuardedModule)
    made = guarded.purifier.provenance
    assert (made["recipe"], made["data"]) == (TOGETHER["recipe"], SELECTED_DATA)
    assert made["config"]["encoder"] == "bounded"
    pixels, labels = load_data("demo").batch(range(COUNT))
    threat, streams = Threat("linf", 0.1), [SampleGenerator(seed, range(COUNT)) for seed in (0, 1)]
    target = Target(guarded.pixel_classifier(), guarded.purifier, "exact", streams[0])
    attack = read_attack("apgd-ce:steps=20").attack
    adversarial = threat.project(attack.perturb(target, pixels, labels, threat, streams[1]).detach(), pixels)
    exported = purifier.export(guarded, tmp_path / "guarded.onnx")
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    rates = []
    for images in (pixels, adversarial):
        with torch.no_grad():
            expected = guarded(images)
        logits = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
        assert torch.equal(logits.argmax(1), expected.argmax(1))
        rates.append((logits.argmax(1) == labels).double().mean().item())
    assert rates[0] > 0.8 and rates[0] - 0.05 > rates[1] > 0.6
    plain = purifier.guard(load_classifier("demo"), "demo-plain")
    assert isinstance(plain, GuardedModule)
    target = Target(plain.pixel_classifier(), plain.purifier, "exact", streams[0])
    fooling = threat.project(attack.perturb(target, pixels, labels, threat, streams[1]).detach(), pixels)
    with torch.no_grad():
        assert (plain(fooling).argmax(1) == labels).double().mean() < 0.2


def test_the_colour_purifier_serves_any_classifier_of_its_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7 * 7, 6)).eval()
    guarded = purifier.guard(classifier, "colour-32")
    pixels = torch.rand(5, 3, 32, 32)
    exported = purifier.export(guarded, tmp_path / "guarded.onnx")
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    (logits, *_) = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), guarded(pixels).detach(), atol=1e-4, rtol=1e-4)
    made = purifier.load("colour-32").provenance
    assert made["recipe"].startswith("robust:eps=8/255") and made["data"].startswith("folder:cifar/train")


def test_training_can_begin_with_the_colour_purifier(tmp_path: Path) -> None:
    start = purifier.load("colour-32")
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)).eval()
    data = (torch.rand(8, 3, 32, 32), torch.arange(8) % 4)
    options: dict[str, Any] = {"recipe": "robust:eps=4/255", "classifier": classifier, "epochs": 1, "batch_size": 4}
    made = purifier.train("vae", data, tmp_path / "p.safetensors", init="colour-32", **options)
    assert made.provenance["config"] == start.provenance["config"]
    assert not torch.equal(made.purify(data[0]), start.purify(data[0]))


@pytest.mark.integration
def test_the_certified_purifier_certifies_in_front_of_the_shipped_classifier() -> None:
    guarded = purifier.guard("demo", "demo-certified")
    made = purifier.certify(guarded, f"demo:{COUNT}")
    assert (made.norm, made.budgets) == ("linf", (0.1,))
    assert made.certified(0).share > 0.75 and made.certified(0.1).share > 0.65
    filter_ = purifier.load("demo-certified")
    trained = filter_.provenance
    assert (trained["recipe"], trained["data"]) == (CERTIFIED_ON["recipe"], SELECTED_DATA)
    assert CERTIFIED["config"].items() <= trained["config"].items()
    pixels, _ = load_data("demo").batch(range(COUNT))
    sure = torch.tensor(made.radii) >= 0.1
    shift = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0)).round() * 0.2 - 0.1
    with torch.no_grad():
        assert torch.equal(guarded((pixels + shift).clamp(0, 1)).argmax(1)[sure], torch.tensor(made.answers)[sure])
