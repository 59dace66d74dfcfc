"""On CUDA: the same figures as on the CPU, in float32 on both. Skipped where there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import ModelProto

import purifier
import purifier.training
from purifier.classifiers.loading import load_classifier
from purifier.onnx.runtime import CUDA, open_session
from purifier.onnx.torch_export import export_module

pytestmark = pytest.mark.gpu

IN_FLOAT32 = (CUDA, {"use_tf32": "0"})


@pytest.fixture(autouse=True)
def in_float32() -> Iterator[None]:
    """No TF32: steps of an optimisation make much of its rounding."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


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
    session = open_session(report.path, providers=[IN_FLOAT32])
    assert session.get_providers()[0] == CUDA
    (logits,) = session.run(None, {session.get_inputs()[0].name: images[0].numpy()})
    with torch.no_grad():
        expected = guarded(images[0].cuda()).cpu()
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("plugin", ["vae", "gmvae"])
def test_training_on_the_gpu(fashion, plugin: str, tmp_path: Path) -> None:
    config = {"channels": 4, "latent": 8}

    def losses(device: str) -> torch.Tensor:
        path = tmp_path / f"{device}.safetensors"
        trained = purifier.training.train(
            plugin, fashion, path, config=config, epochs=2, batch_size=500, precision="float32", device=device
        )
        return torch.tensor(trained.provenance["metrics"]["reconstruction"])

    torch.testing.assert_close(losses("cuda"), losses("cpu"), rtol=1e-2, atol=0)


@pytest.mark.parametrize("options", ["", ",start=random,restarts=2,beta=0.1", ",start=bank,bank=50"])
def test_latent_optimisation_finds_the_same_image_on_both(images, options: str) -> None:
    latent, pixels = purifier.load(f"latent:base=demo-plain,steps=5{options}"), images[0]
    noise = latent.draw(pixels, purifier.seeding.SampleGenerator(0, range(64)))
    here, score = latent.purify_and_score(pixels, noise)
    there, its_score = latent.cuda().purify_and_score(pixels.cuda(), None if noise is None else noise.cuda())
    torch.testing.assert_close(there.cpu(), here, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(its_score.cpu(), score, atol=1e-1, rtol=1e-2)


@pytest.mark.parametrize("loop", [False, True])
def test_gradient_steps_run_on_cuda_in_onnxruntime(images, loop: bool, tmp_path: Path) -> None:
    guarded = purifier.guard(load_classifier("demo"), f"latent:base=demo-plain,steps=3,loop={loop}")
    session = open_session(purifier.export(guarded, tmp_path / "guarded.onnx").path, providers=[IN_FLOAT32])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images[0].numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), guarded(images[0]), atol=1e-2, rtol=1e-2)


def test_a_session_takes_and_gives_tensors_on_the_gpu(images) -> None:
    pixels, _ = images
    session = purifier.guard(demo_graph(), "demo", providers=[IN_FLOAT32])
    found = session(pixels.cuda())
    assert found.is_cuda and not session(pixels).is_cuda
    np.testing.assert_allclose(found.cpu(), session.run(None, {session.input: pixels.numpy()})[0], atol=1e-3)
    assert session.placement()[CUDA] > 0
    found.zero_()  # the session's memory is the tensor's own now
    assert session(pixels.cuda()).abs().sum() > 0


def test_cuda_graphs_answer_like_the_session_without(images) -> None:
    pixels = images[0].cuda()
    plain = purifier.guard(demo_graph(), "demo", providers=[IN_FLOAT32])
    captured = purifier.guard(demo_graph(), "demo", providers=[(CUDA, {"use_tf32": "0", "enable_cuda_graph": "1"})])
    for batch in (pixels[:8], pixels[8:16], pixels[:3], pixels[16:24]):
        torch.testing.assert_close(captured(batch), plain(batch), atol=1e-3, rtol=1e-3)


def demo_graph() -> ModelProto:
    """The demo classifier as somebody else's ONNX file."""
    classifier = load_classifier("demo")
    assert isinstance(classifier, torch.nn.Module)
    return export_module(classifier, [torch.rand(2, 1, 28, 28)], free=[[0]], inputs=["image"], outputs=["logits"])
