"""Adversarial training on real images: what it learns, what it leaves unchanged, when it stops."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import purifier
from nets import trained
from purifier.attacking.threat import Threat
from purifier.contracts.purifier import Purifier, purifiers
from purifier.data.images import ImageData
from purifier.data.loading import load_data
from purifier.errors import TrainingError
from purifier.seeding import SampleGenerator
from purifier.training.inner_attack import climb
from purifier.training.loop import train
from purifier.training.recipes import build_recipe
from training_helpers import NoConfig, Recorder, batch_of

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"channels": 4, "latent": 8, "spatial": True}
EPS = 0.06


class Shield(Recorder):
    """Holds against one step from the clean image, where its slope is reversed, and against little else."""

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        away = pixels - 0.5
        return (0.5 + self.weight * (away - 2 * away.clamp(-0.002, 0.002))).clamp(0, 1)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("fashion-mnist:train:1000")


@pytest.fixture
def few_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check each epoch, on 30 images."""
    monkeypatch.setattr("purifier.training.check.WATCHED", 30)
    monkeypatch.setattr("purifier.training.check.SHARE", 1)


def robust_accuracy(classifier: nn.Module, filter_: Purifier) -> float:
    report = purifier.audit(
        purifier.guard(classifier, filter_),
        "fashion-mnist:test:200",
        eps=EPS,
        attacks=["pgd:steps=10"],
        routes=["exact"],
        probes=8,
    )
    return next(case.result.share for case in report.worst_case if case.model == "guarded")


@pytest.mark.integration
def test_a_robust_vae_holds_where_a_plain_one_fails(data: ImageData, tmp_path: Path) -> None:
    net = trained("net").train()
    before = copy.deepcopy(net.state_dict())
    options = {"config": SMALL, "batch_size": 25, "lr": 1e-2}
    plain = train("vae", data, tmp_path / "plain.safetensors", epochs=3, **options)
    recipe = f"robust:eps={EPS},kl=1e-4"
    held = train("vae", data, tmp_path / "robust.safetensors", recipe=recipe, classifier=net, epochs=6, **options)
    assert net.training and not any(weight.grad is not None for weight in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net.eval()
    assert robust_accuracy(net, held) > robust_accuracy(net, plain) + 0.15
    figures = held.provenance["metrics"]
    assert 0.3 < figures["right_after_10"] <= figures["right_after_1"] <= figures["right_clean"]
    assert {"adversarial", "reconstruction", "kl"} < set(figures)


@pytest.mark.usefixtures("few_watched")
@pytest.mark.parametrize(
    ("plugin", "config", "recipe", "options"),
    [
        ("vae", {"latent": 4, "spatial": True}, "robust:steps=2", {"optimizer": "adam", "lr": 1e-2, "batch_size": 20}),
        (
            "vae",
            {"latent": 4, "spatial": True},
            "robust:norm=l2,eps=1,clean=0.5",
            {"optimizer": "adam", "lr": 1e-2, "batch_size": 20},
        ),
        pytest.param(
            "gmvae",
            {"components": 3},
            "robust:loss=trades",
            {"optimizer": "muon", "lr": 2e-2, "batch_size": 10},
            marks=pytest.mark.integration,
        ),
    ],
)
def test_every_kind_learns(
    plugin: str, config: dict[str, object], recipe: str, options: dict[str, object], tmp_path: Path
) -> None:
    given = {
        "config": {"channels": 4, "latent": 8, **config},
        "recipe": recipe,
        "classifier": trained("net"),
        **options,
    }
    train(plugin, "fashion-mnist:train:200", tmp_path / "p.safetensors", epochs=2, **given)
    lines = (tmp_path / "p.log.jsonl").read_text().splitlines()
    shares = [json.loads(line)["figures"]["right_clean"] for line in lines[1:]]
    assert shares[-1] > max(0.3, shares[0] + 0.1)


def test_training_for_an_onnx_classifier_matches_torch(tmp_path: Path) -> None:
    net = trained("net")
    images = (torch.rand(2, 1, 28, 28),)
    torch.onnx.export(net, images, tmp_path / "net.onnx", dynamo=True, external_data=False, verbose=False)
    before = (tmp_path / "net.onnx").read_bytes()
    options = {"recipe": "robust", "config": SMALL, "epochs": 1, "batch_size": 20, "precision": "float32"}
    some = load_data("fashion-mnist:train:40")
    ours = train("vae", some, tmp_path / "a.safetensors", classifier=tmp_path / "net.onnx", **options)
    theirs = train("vae", some, tmp_path / "b.safetensors", classifier=net, **options)
    assert (tmp_path / "net.onnx").read_bytes() == before
    for name, value in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], value, atol=1e-3), name


def test_one_step_is_n_fgsm(data: ImageData) -> None:
    recorder, batch = Recorder(NoConfig()), batch_of(data, range(20))
    build_recipe(f"robust:eps={EPS}").step(recorder, batch)
    (found, target), net = recorder.seen[0], trained("net")
    assert torch.equal(target, batch.pixels)
    uniform = SampleGenerator(1, range(20)).uniform((1, 28, 28), batch.pixels)
    noisy = (batch.pixels + 2 * EPS * (2 * uniform - 1)).clamp(0, 1)
    leaf = noisy.requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(net(leaf), batch.labels, reduction="sum"), leaf)
    expected = (noisy.detach() + EPS * gradient.sign()).clamp(0, 1)
    assert ((found - expected).abs() < 1e-6).float().mean() > 0.999
    assert all(pixels.min() >= 0 and pixels.max() <= 1 for pixels in recorder.asked)


@pytest.mark.parametrize(("loss", "term"), [("ce", "adversarial"), ("trades", "clean")])
def test_distillation_is_from_the_answer_to_the_clean_image(loss: str, term: str, data: ImageData) -> None:
    net, found = trained("net"), {}
    for share in (0, 0.25, 1):
        recorder, batch = Recorder(NoConfig()), batch_of(data, range(20))
        found[share] = build_recipe(f"robust:loss={loss},distillation={share}").step(recorder, batch)[term].item()
    with torch.no_grad():
        logits = net(recorder.purify(recorder.seen[0][0] if loss == "ce" else batch.pixels))
        own = net(batch.pixels).softmax(1)
    assert found[0] == pytest.approx(nn.functional.cross_entropy(logits, batch.labels).item(), rel=1e-5)
    assert found[1] == pytest.approx(nn.functional.cross_entropy(logits, own).item(), rel=1e-5)
    assert found[0.25] == pytest.approx(0.75 * found[0] + 0.25 * found[1], rel=1e-5)


@pytest.mark.parametrize("recipe", [f"robust:eps={EPS},steps=3", "robust:eps=0.8,norm=l2,steps=3,loss=trades"])
def test_several_steps_stay_in_the_threat_and_fool_images(recipe: str, data: ImageData) -> None:
    recorder, batch, net = Recorder(NoConfig()), batch_of(data, range(50)), trained("net")
    threat = Threat("linf", EPS) if "l2" not in recipe else Threat("l2", 0.8)
    build_recipe(recipe).step(recorder, batch)
    found = recorder.seen[0][0]
    assert (threat.distance(found, batch.pixels) <= threat.eps + 1e-5).all()
    assert found.min() >= 0 and found.max() <= 1
    right = [int((net(images).argmax(1) == batch.labels).sum()) for images in (batch.pixels, found)]
    assert right[1] < right[0] - 8


def test_eps_grows_over_the_ramp(data: ImageData) -> None:
    lengths = []
    for done in (0.0, 0.1, 0.2, 0.9):
        recorder, batch = Recorder(NoConfig()), batch_of(data, range(10), done=done)
        build_recipe("robust:eps=0.1,steps=2,ramp=0.2").step(recorder, batch)
        lengths.append(float((recorder.seen[0][0] - batch.pixels).abs().max()))
    assert lengths == pytest.approx([0, 0.05, 0.1, 0.1], abs=1e-6)


def test_climbing_a_linear_loss_reaches_the_corner() -> None:
    weights = torch.tensor([[[[1.0, -2.0], [3.0, -4.0]]]])
    pixels = torch.full((1, 1, 2, 2), 0.5)
    for norm, corner in (("linf", weights.sign()), ("l2", weights / weights.norm())):
        found = climb(lambda images: (images * weights).sum(), pixels, pixels, Threat(norm, 0.2), 5, 0.1)
        assert torch.allclose(found, pixels + 0.2 * corner, atol=1e-6)


def test_catastrophic_overfitting_stops_training(data: ImageData, tmp_path: Path) -> None:
    grey = ImageData("grey", 0.5 + 0.001 * torch.randn(64, 1, 28, 28), torch.zeros(64, dtype=torch.int64))
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
    net[1].weight.data, net[1].bias.data = (
        torch.stack([-torch.ones(784), torch.ones(784)]),
        torch.tensor([396.0, -392.0]),
    )
    batch = batch_of(grey, range(64), net=net.requires_grad_(False))
    recipe = build_recipe("robust:eps=0.1")
    with pytest.raises(TrainingError, match=r"catastrophic overfitting: 64 of 64 images .* but only 0 after 10; raise"):
        recipe.watch(Shield(NoConfig()), [batch])
    assert recipe.watch(Shield(NoConfig()), [batch_of(grey, range(20), net=net)])["right_after_10"] == 0
    purifiers.register("shield", Shield)
    try:
        with pytest.raises(TrainingError, match=r"catastrophic overfitting.*; nothing has been saved yet"):
            train(
                "shield", grey, tmp_path / "p.safetensors", recipe="robust", classifier=net, epochs=1, lr=1e-9, clip=0
            )
    finally:
        purifiers.unregister("shield")
    assert not list(tmp_path.glob("*.safetensors"))
