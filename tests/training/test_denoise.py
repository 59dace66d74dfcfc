"""From adversarial images back to clean ones: what the purifier is trained on, and what it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

import purifier
from nets import trained
from purifier.attacking.attack import attacks
from purifier.attacking.threat import Threat
from purifier.data.images import ImageData
from purifier.data.loading import load_data
from purifier.data.pixels import Preprocessing
from purifier.errors import ConfigError, SpecError, TrainingError
from purifier.training.denoise import Denoise
from purifier.training.loop import train
from purifier.training.recipe import Batch
from purifier.training.recipes import build_recipe
from training_helpers import NoConfig, OfBytes, Recorder, batch_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("fashion-mnist:train:120")


def shown(recipe: Denoise, batch: Batch) -> Tensor:
    recorder = Recorder(NoConfig())
    recipe.step(recorder, batch)
    (given, target), *_ = recorder.seen
    assert torch.equal(target, batch.pixels)
    return given


def test_each_image_meets_one_attack_and_budget_drawn_evenly(data: ImageData) -> None:
    batch = batch_of(data, range(120))
    given = shown(build_recipe("denoise:attacks=fgsm+pgd:steps=3,eps=0 0.05 0.1"), batch)
    lengths = Threat("linf", 0.1).distance(given, batch.pixels)
    counts = [int(((lengths - eps).abs() < 1e-5).sum()) for eps in (0, 0.05, 0.1)]
    assert sum(counts) > 110 and min(counts) > 20
    net, at = trained("net"), lengths > 0.01
    right = [int((net(images[at]).argmax(1) == batch.labels[at]).sum()) for images in (batch.pixels, given)]
    assert right[1] < right[0] / 2


def test_an_attack_in_another_norm_brings_its_budget(data: ImageData) -> None:
    batch = batch_of(data, range(120))
    given = shown(build_recipe("denoise:attacks=fgsm+fgsm:norm=l2; eps=1.5,eps=0.05 0.1"), batch)
    linf, l2 = (Threat(norm, 1).distance(given, batch.pixels) for norm in ("linf", "l2"))
    other = ~sum(((linf - eps).abs() < 1e-5 for eps in (0.05, 0.1)), torch.zeros(120, dtype=torch.bool))
    assert (l2[other] < 1.5001).all() and (l2[other] > 0.8).float().mean() > 0.9
    assert 40 < other.sum() < 80, "attacks are drawn evenly, however many budgets they have"


def test_noise_takes_the_place_of_attacks(data: ImageData) -> None:
    batch = batch_of(data, range(120))
    change = (shown(build_recipe("denoise:noise=0.25,stability=0"), batch) - batch.pixels).flatten()
    grey = ((batch.pixels > 0.4) & (batch.pixels < 0.6)).flatten()  # where clamping cuts off little
    assert abs(float(change[grey].std()) - 0.25) < 0.02 and float(change[grey].mean()) < 0.02
    assert float((batch.pixels.flatten() + change).max()) == 1.0


def test_consistency_compares_the_answers_to_two_noisy_copies(data: ImageData) -> None:
    made, net, seen = purifier.load("vae:image_shape=1x28x28,channels=4,latent=4"), trained("net"), list[Tensor]()
    handle = net.register_forward_hook(lambda module, given, logits: seen.append(logits))
    batch = batch_of(data, range(40), net=net)
    terms = build_recipe("denoise:noise=0.5,stability=2,consistency=3").step(made.train(), batch)
    handle.remove()
    (one, other) = (Categorical(logits=part) for part in seen[-1].chunk(2))
    assert len(one.logits) == 40 and not torch.equal(one.logits, other.logits)
    mean = Categorical(probs=(one.probs + other.probs) / 2)
    divergence = (kl_divergence(mean, one) + kl_divergence(mean, other)).mean() / 2
    expected = 2 * (3 * divergence + 0.5 * mean.entropy().mean())
    assert terms["consistency"].item() == pytest.approx(expected.item(), 1e-4)
    assert divergence.item() > 0 and "consistency" not in build_recipe("denoise:noise=0.5").step(made, batch)


@pytest.mark.integration
def test_noise_teaches_to_leave_the_classifiers_answers(tmp_path: Path) -> None:
    made = train(
        "vae",
        "fashion-mnist:train:2000",
        tmp_path / "p.safetensors",
        config={"channels": 8, "latent": 16},
        recipe="denoise:noise=1.0",
        classifier=trained("net"),
        epochs=8,
        lr=3e-3,
    )
    pixels, labels = load_data("fashion-mnist:test:300").batch(range(300))
    noisy = (pixels + torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    net = trained("net")
    with torch.no_grad():
        alone, behind = ((net(images).argmax(1) == labels).sum() for images in (noisy, made.purify(noisy)))
    assert behind > alone + 50


def test_images_are_made_once_or_in_each_epoch(data: ImageData) -> None:
    for cached in (False, True):
        recipe = build_recipe(f"denoise:attacks=rfgsm,eps=0.1,cached={cached}")
        first, second = (shown(recipe, batch_of(data, range(20), epoch=epoch)) for epoch in (1, 2))
        assert torch.equal(first, second) == cached
    part = shown(recipe, batch_of(data, range(5, 12), epoch=3))
    assert torch.equal(part, first[5:12])
    fresh = shown(build_recipe("denoise:attacks=rfgsm,eps=0.1,cached=true"), batch_of(data, range(5, 12), epoch=4))
    assert torch.equal(fresh, part), "a resumed run makes other images"
    across = shown(recipe, batch_of(data, range(15, 25), epoch=3))
    assert torch.equal(across[:5], first[15:]) and not torch.equal(across[5:], batch_of(data, range(20, 25)).pixels)
    assert ((first * 255 - (first * 255).round()).abs() < 1e-3).all()


@pytest.mark.integration
def test_undoes_an_oblivious_attack_better_than_clean_training(tmp_path: Path) -> None:
    net = trained("net")
    options = {"config": {"channels": 4, "latent": 16}, "epochs": 6, "batch_size": 20, "lr": 5e-3}
    plain = train("vae", "fashion-mnist:train:1000", tmp_path / "plain.safetensors", **options)
    recipe = "denoise:attacks=fgsm+pgd:steps=5,eps=0.1 0.2"
    taught = train(
        "vae", "fashion-mnist:train:1000", tmp_path / "d.safetensors", recipe=recipe, classifier=net, **options
    )
    rates = []
    for filter_ in (plain, taught):
        guarded = purifier.guard(net, filter_)
        report = purifier.audit(
            guarded, "fashion-mnist:test:300", eps=0.2, attacks=["pgd"], routes=["oblivious"], probes=8
        )
        rates.append(next(row for row in report.rows if row.route == "oblivious").result.share)
    assert rates[1] > rates[0] + 0.07


def test_query_attacks_work_without_gradients(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    torch.onnx.export(
        trained("net"),
        (torch.rand(2, 1, 28, 28),),
        path,
        dynamo=True,
        dynamic_shapes=[{0: torch.export.Dim("batch")}],
        external_data=False,
        verbose=False,
    )
    made = train(
        "vae",
        "fashion-mnist:train:20",
        tmp_path / "p.safetensors",
        config={"channels": 2, "latent": 4},
        recipe="denoise:attacks=square:queries=20,eps=0.1,cached=true",
        classifier=path,
        epochs=2,
    )
    how = made.provenance["training"]
    options = {"attacks": "square:queries=20", "eps": [0.1], "norm": "linf", "cached": True}
    assert how["options"] == {**options, "noise": 0.0, "stability": 1.0, "consistency": 0.0}
    assert (how["epochs"], how["batch_size"], how["optimizer"]) == (2, 128, "adam")


@pytest.mark.parametrize(
    ("recipe", "error", "says"),
    [
        ("denoise:eps=", ConfigError, "option .eps.: expected numbers such as"),
        ("denoise:eps=-1", ConfigError, "eps must be a finite number >= 0"),
        ("denoise:attacks=cw", ConfigError, "CarliniWagner supports l2, not linf; choose another"),
        ("denoise:attacks=cw:norm=l1;eps=9", ConfigError, "CarliniWagner supports l2, not l1"),
        ("denoise:attacks=cw:norm=l2", ConfigError, "denoise: cw: norm=l2 needs its own eps"),
        ("denoise:attacks=fgsm:eps=1;eps=2", SpecError, "'eps' is given twice"),
        ("denoise:attacks=fgsm:", SpecError, "cannot read ''"),
        ("denoise:attacks=fgsm:eps=much", ConfigError, "denoise: fgsm: option 'eps': expected float, got 'much'"),
        (
            "denoise:attacks=latent-match",
            ConfigError,
            "LatentMatch attacks the purifier; choose an attack on the classifier",
        ),
        ("denoise:attacks=magic", purifier.PurifierError, "magic"),
        ("denoise:attacks=", SpecError, "no plugin name"),
        ("denoise:noise=-1", ConfigError, "noise must be a number of at least 0, got -1"),
        ("denoise:noise=0.1,eps=0.2", ConfigError, "noise takes the place of attacks; leave out noise, or eps"),
        ("denoise:stability=2", ConfigError, "stability is for noise; give noise too"),
        ("denoise:consistency=1", ConfigError, "consistency is for noise with stability; give both"),
        ("denoise:noise=0.1,stability=0,consistency=1", ConfigError, "consistency is for noise with stability"),
        ("denoise:noise=0.1,consistency=-1", ConfigError, "consistency must be a number of at least 0, got -1"),
        ("denoise:cached=maybe", ConfigError, "option 'cached': expected bool, got 'maybe'"),
    ],
)
def test_errors(recipe: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        build_recipe(recipe)


class Falls(purifier.Attack):
    needs = "labels"
    norms = ("linf",)

    def perturb(self, target, pixels, labels, threat, generator):
        raise KeyError("ladder")


class Breaks(Falls):
    def perturb(self, target, pixels, labels, threat, generator):
        return pixels * torch.nan


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        (Falls, r"denoise: Falls failed \(KeyError: 'ladder', at .*\); fix the classifier, or choose another"),
        (
            Breaks,
            r"denoise: Breaks failed \(ValueError: expected finite images .*; fix the classifier, or choose another",
        ),
    ],
)
def test_an_attack_that_fails_is_named(attack: type[purifier.Attack], says: str, data: ImageData) -> None:
    attacks.register("bad", attack)
    try:
        with pytest.raises(TrainingError, match=says):
            shown(build_recipe("denoise:attacks=bad"), batch_of(data, range(9)))
    finally:
        attacks.unregister("bad")


def test_an_attacks_own_options_and_precision(data: ImageData) -> None:
    recipe = build_recipe("denoise:attacks=pgd:steps=2;restarts=2+fgsm,eps=0.1")
    assert [attack.restarts for attack, _ in recipe._choices if type(attack).__name__ == "Pgd"] == [2]
    plain = shown(recipe, batch_of(data, range(40)))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(shown(recipe, batch_of(data, range(40))), plain)


def test_cached_images_cannot_be_augmented(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the same images in each epoch; leave out augment or cached"):
        train(
            "vae",
            "fashion-mnist:train:20",
            tmp_path / "p.safetensors",
            recipe="denoise:cached=true",
            classifier=trained("net"),
            augment="shift",
        )


def test_a_classifier_without_gradients_is_an_error_with_alternatives(tmp_path: Path) -> None:
    wanted = Preprocessing(dtype="uint8", scale=255)
    with pytest.raises(ConfigError, match=r"needs gradients .*denoise:attacks=square, or denoise:attacks=transfer:sur"):
        train(
            "vae",
            "fashion-mnist:train:20",
            tmp_path / "p.safetensors",
            recipe="denoise",
            classifier=OfBytes(),
            preprocessing=wanted,
        )
