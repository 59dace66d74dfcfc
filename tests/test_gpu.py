"""On CUDA: the same figures as on the CPU. Skipped where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import purifier
import purifier.training
from purifier.classifier import load_classifier
from purifier.runtime import CUDA, open_session

pytestmark = pytest.mark.gpu


@pytest.fixture
def guarded() -> purifier.GuardedModule:
    classifier = load_classifier("demo")
    assert isinstance(classifier, torch.nn.Module)
    return purifier.guard(classifier.cuda(), "demo")


def test_a_guard_follows_its_classifier_to_the_gpu(guarded, images) -> None:
    pixels, _ = images
    with torch.no_grad():
        found = guarded(pixels.cuda())
        expected = purifier.guard("demo", "demo")(pixels)
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, atol=1e-2, rtol=1e-2)


def test_an_audit_on_the_gpu_counts_as_on_the_cpu(guarded) -> None:
    there = purifier.audit(guarded, "demo:100", attacks=["pgd:steps=10"])
    here = purifier.audit(purifier.guard("demo", "demo"), "demo:100", attacks=["pgd:steps=10"])
    assert there.device.startswith("cuda")
    for one, other in zip(there.rows, here.rows, strict=True):
        assert one.result is not None and other.result is not None
        assert abs(one.result.correct - other.result.correct) <= 2


def test_a_sampling_purifier_draws_the_same_noise_on_both(images) -> None:
    vae = purifier.load("vae:image_shape=1x28x28,sample=true")
    generators = [purifier.seeding.SampleGenerator(0, range(64)) for _ in range(2)]
    here, there = vae.draw(images[0], generators[0]), vae.cuda().draw(images[0].cuda(), generators[1])
    assert there.is_cuda
    assert torch.equal(there.cpu(), here)


def test_an_exported_guard_runs_on_cuda(guarded, images, tmp_path: Path) -> None:
    report = purifier.export(guarded, tmp_path / "guarded.onnx")
    session = open_session(report.path, providers=[CUDA])
    assert session.get_providers()[0] == CUDA
    (logits,) = session.run(None, {session.get_inputs()[0].name: images[0].numpy()})
    with torch.no_grad():
        expected = guarded(images[0].cuda()).cpu()
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-2, rtol=1e-2)


def test_training_on_the_gpu(fashion, tmp_path: Path) -> None:
    config = {"channels": 4, "latent": 8}
    trained = purifier.training.train(
        "vae", fashion, tmp_path / "vae.safetensors", config=config, epochs=1, batch_size=500, device="cuda"
    )
    assert trained.provenance["metrics"]["reconstruction"] < 500
