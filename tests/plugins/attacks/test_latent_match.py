"""Latent-match on the shipped VAE and classifier: stronger than noise, aimed at the latent of another class."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import purifier
from attack_helpers import Noisy, Same
from purifier import Threat
from purifier.attacking.specs import read_attack
from purifier.attacking.target import Target
from purifier.classifiers.loading import load_classifier
from purifier.classifiers.pixel_classifier import TorchPixelClassifier
from purifier.contracts.purifier import Purifier
from purifier.data.pixels import Preprocessing
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator
from purifier.vocabulary import Route
from query_helpers import target_of

THREATS = [Threat("linf", 0.1), Threat("l2", 2)]
SPEC = "latent-match:steps=20,guide_steps=20"


@pytest.fixture(scope="module")
def guard() -> tuple[TorchPixelClassifier, Purifier]:
    model = load_classifier("demo")
    assert isinstance(model, nn.Module)
    vae = purifier.load("demo-plain").eval()
    return TorchPixelClassifier(model.requires_grad_(False), Preprocessing()), vae.requires_grad_(False)


def attacked(
    spec: str,
    guard: tuple[TorchPixelClassifier, Purifier],
    pixels: Tensor,
    labels: Tensor,
    threat: Threat,
    *,
    batch: int = 64,
    route: Route = "exact",
) -> tuple[Tensor, Target]:
    """The attack's images, and the last batch's target."""
    found = []
    for rows in torch.arange(len(labels)).split(batch):
        target = Target(*guard, route, SampleGenerator(1, rows.tolist()))
        streams = SampleGenerator(0, rows.tolist())
        found.append(read_attack(spec).attack.perturb(target, pixels[rows], labels[rows], threat, streams))
    return torch.cat(found), target


def right(guard: tuple[TorchPixelClassifier, Purifier], pixels: Tensor, labels: Tensor) -> Tensor:
    classifier, vae = guard
    return classifier(vae.purify(pixels)).argmax(1) == labels


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_fools_more_than_noise(threat, guard, images):
    pixels, labels = (part[:24] for part in images)
    found, _ = attacked(SPEC, guard, pixels, labels, threat)
    assert (threat.distance(found, pixels) <= threat.eps + 1e-6).all()
    noise, _ = attacked("noise", guard, pixels, labels, threat, route="none")
    assert right(guard, found, labels).sum() < right(guard, threat.project(noise, pixels), labels).sum() - 3


def test_the_encoding_moves_to_the_guide(guard, images):
    pixels, labels = (part[:32] for part in images)
    right_now = right(guard, pixels, labels)
    pixels, labels = pixels[right_now], labels[right_now]
    # A budget of everything: the encoder can be led where it is wished, and decodes to the wrong class.
    found, target = attacked("latent-match:steps=30,guide_steps=40", guard, pixels, labels, Threat("l2", 28))
    assert not right(guard, found, labels).any()
    assert target.spent.gradients > 0 and target.spent.queries > len(labels)
    assert not target.spent.scores


def test_restarts_never_fool_fewer_and_the_fooled_cost_nothing(guard, images):
    pixels, labels = (part[:24] for part in images)
    one, three = (
        right(
            guard,
            attacked(f"latent-match:steps=6,guide_steps=15,restarts={count}", guard, pixels, labels, THREATS[1])[0],
            labels,
        )
        for count in (1, 3)
    )
    assert not (three & ~one).any()
    classifier, vae = guard
    wrong = (classifier(vae.purify(pixels)).argmax(1) + 1) % 10
    found, target = attacked(SPEC, guard, pixels, wrong, THREATS[0])
    assert torch.equal(found, pixels)
    assert (target.spent.queries, target.spent.gradients) == (24, 0)


def test_a_random_purifier_does_not_stop_the_attack_early(images):
    class NoisySpace(Noisy):
        def latent_of(self, pixels: Tensor) -> Tensor:
            return pixels.flatten(1)

        def decoded(self, latent: Tensor) -> Tensor:
            return latent.view(-1, 1, 28, 28)

    pixels, labels = images
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).requires_grad_(False)
    labels = net(pixels).argmax(1)
    target = target_of(net, 64, filter_=NoisySpace, route="exact")
    attack = read_attack("latent-match:steps=5,guide_steps=8,confidence=0.5").attack
    found = attack.perturb(target, pixels, labels, Threat("l2", 3), SampleGenerator(0, range(64)))
    assert target.spent.gradients >= 64 * (5 + 1)
    assert (net(found).argmax(1) != labels).double().mean() > 0.9


def test_a_purifier_without_a_latent_space_is_an_error(net, images):
    target = target_of(net, 64, filter_=Same, route="exact")
    said = r"attack 'latent-match': expected a purifier with a latent space \(latent_of, decoded\); Same has none"
    with pytest.raises(ConfigError, match=said):
        read_attack(SPEC).attack.perturb(target, *images, THREATS[0], SampleGenerator(0, range(64)))


@pytest.mark.parametrize("route", ["none", "oblivious", "bpda"])
def test_routes_without_the_purifier_are_errors(route, guard, images):
    with pytest.raises(ConfigError, match=f"not known along the route '{route}'; use the route exact"):
        attacked(SPEC, guard, *images, THREATS[0], route=route)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("latent-match:steps=0", "attack 'latent-match': steps and restarts must be at least 1, got 0 and 1"),
        ("latent-match:guide_steps=0", "attack 'latent-match': guide_steps must be at least 1, got 0"),
        ("latent-match:guide_step=0", "attack 'latent-match': guide_step must be a positive number, got 0"),
        ("latent-match:confidence=-1", "attack 'latent-match': confidence must be a finite number >= 0, got -1"),
        ("latent-match:step_size=0", "'latent-match': step_size is a fraction of eps and must be positive, got 0"),
    ],
)
def test_impossible_options_are_errors(spec, said):
    with pytest.raises(ConfigError, match=said):
        read_attack(spec)
