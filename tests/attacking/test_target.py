"""Targets: what each route shows an attack, and what is counted."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import purifier
from purifier.attacking.target import Target, is_random
from purifier.classifiers.pixel_classifier import PixelClassifier, TorchPixelClassifier
from purifier.data.pixels import Preprocessing
from purifier.errors import AuditError, GradientError
from purifier.seeding import SampleGenerator

PIXELS = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class NoConfig:
    pass


class Square(purifier.Purifier):
    """Not linear, so its own gradient, that of its surrogate and no gradient all differ."""

    Config, gradient = NoConfig, "exact"

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels.square()

    def surrogate(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return 3 * pixels


class Noisy(purifier.Purifier):
    Config, gradient = NoConfig, "exact"

    def draw(self, pixels: Tensor, generator: SampleGenerator) -> Tensor:
        return generator.normal(pixels.shape[1:], pixels)

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels * (1 if noise is None else noise)


class Rounded(Square):
    gradient = "surrogate"

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return (pixels * 7).round() / 7


class Detached(Square):
    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels.detach().square()


class Scoring(Square):
    """Purifies and scores in one pass; counts the calls of its score alone."""

    def __init__(self, config: NoConfig) -> None:
        super().__init__(config)
        self.alone = 0

    def score(self, pixels: Tensor) -> Tensor:
        self.alone += 1
        return pixels.pow(3).sum((1, 2, 3))

    def purify_and_score(self, pixels: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.purify(pixels), pixels.pow(3).sum((1, 2, 3))


class NoisyScoring(Noisy):
    def score(self, pixels: Tensor) -> Tensor:
        return pixels.pow(3).sum((1, 2, 3))


class Deaf(Square):
    def score(self, pixels: Tensor) -> Tensor:
        return pixels.detach().sum((1, 2, 3))


class Blind(PixelClassifier):
    """A classifier without gradients."""

    differentiable = False

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.detach().flatten(1)[:, :3]

    def describe(self) -> str:
        return "blind"


@pytest.fixture(scope="module")
def classifier() -> TorchPixelClassifier:
    torch.manual_seed(0)
    return TorchPixelClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval(), Preprocessing())


def target(classifier, filter_, route, eot=1, count=5) -> Target:
    """With the classifier's own logits."""
    return Target(classifier, filter_(NoConfig()), route, SampleGenerator(7, range(count)), eot=eot).raw()


def first_logit(logits: Tensor) -> Tensor:
    return logits[:, 0]


def weight(classifier) -> Tensor:
    return classifier.module[1].weight[0].view(1, 1, 4, 4)


def test_each_route_follows_its_own_gradient(classifier):
    seen = {
        route: target(classifier, Square, route).gradient(PIXELS, first_logit)
        for route in ("exact", "bpda", "oblivious")
    }
    own = weight(classifier).expand_as(PIXELS)
    torch.testing.assert_close(seen["exact"][0], own * 2 * PIXELS)
    torch.testing.assert_close(seen["bpda"][0], own * 3)
    torch.testing.assert_close(seen["oblivious"][0], own)
    torch.testing.assert_close(seen["exact"][1], classifier(PIXELS.square()))
    torch.testing.assert_close(seen["oblivious"][1], classifier(PIXELS))


def test_bpda_shows_the_purifier_itself_bit_for_bit(classifier):
    rounded = Rounded(NoConfig())
    with torch.no_grad():
        assert torch.equal(target(classifier, Rounded, "bpda")(PIXELS), classifier(rounded.purify(PIXELS)))


def both(logits: Tensor, score: Tensor) -> Tensor:
    return logits[:, 0] - 0.5 * score


def test_exact_and_bpda_differentiate_the_purifiers_own_score(classifier):
    own = weight(classifier).expand_as(PIXELS)
    for route, through in (("exact", 2 * PIXELS), ("bpda", torch.tensor(3.0))):
        asked = target(classifier, Scoring, route)
        (gradient,), logits, score = asked.gradients_with_score(PIXELS, both)
        torch.testing.assert_close(gradient, own * through - 1.5 * PIXELS.square())
        torch.testing.assert_close(logits, classifier(PIXELS.square()).detach())
        torch.testing.assert_close(score, PIXELS.pow(3).sum((1, 2, 3)))
        assert asked.purifier.alone == 0  # image and score come of one pass
        assert not logits.requires_grad and not score.requires_grad
        assert (asked.spent.queries, asked.spent.gradients, asked.spent.scores) == (5, 5, 5)


@pytest.mark.parametrize("spec", ["vae:image_shape=1x8x8,channels=4,latent=6", "blur"])
def test_the_gradient_with_score_matches_finite_differences(spec):
    torch.manual_seed(1)
    filter_ = purifier.load(spec).double()
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double().eval()
    doubles = TorchPixelClassifier(linear, Preprocessing(dtype="float64"))
    seen = Target(doubles, filter_, "exact", SampleGenerator(0, range(3))).raw()
    generator = torch.Generator().manual_seed(0)
    pixels = 0.1 + 0.8 * torch.rand(3, 1, 8, 8, generator=generator, dtype=torch.float64)
    (gradient,), _, _ = seen.gradients_with_score(pixels, both)
    direction = torch.randn(pixels.shape, generator=generator, dtype=torch.float64)
    there, back = (both(*seen.logits_with_score(pixels + way * 1e-6 * direction)) for way in (1, -1))
    torch.testing.assert_close((gradient * direction).sum((1, 2, 3)), (there - back) / 2e-6, rtol=1e-3, atol=1e-5)


def test_the_route_oblivious_gives_scores_of_0(classifier):
    asked = target(classifier, Scoring, "oblivious")
    (gradient,), logits, score = asked.gradients_with_score(PIXELS, both)
    torch.testing.assert_close(gradient, weight(classifier).expand_as(PIXELS))
    torch.testing.assert_close(logits, classifier(PIXELS).detach())
    assert not score.any() and not asked.logits_with_score(PIXELS)[1].any()
    assert (asked.spent.queries, asked.spent.gradients, asked.spent.scores) == (10, 5, 0)


def test_a_gradient_of_the_logits_alone_computes_no_score(classifier):
    asked = target(classifier, Scoring, "exact")
    gradient, _ = asked.gradient(PIXELS, first_logit)
    (scored,), _, _ = asked.gradients_with_score(PIXELS, lambda logits, score: logits[:, 0])
    assert torch.equal(gradient, scored) and (asked.spent.scores, asked.spent.gradients) == (5, 10)


def test_eot_averages_the_joint_gradient_too(classifier):
    averaged = target(classifier, NoisyScoring, "exact", eot=3)
    gradients, logits, score = averaged.gradients_with_score(PIXELS, both)
    singly = target(classifier, NoisyScoring, "exact")
    parts = [singly.gradients_with_score(PIXELS, both) for _ in range(3)]
    torch.testing.assert_close(gradients[0], torch.stack([part[0][0] for part in parts]).mean(0))
    for found, nth in ((logits, 1), (score, 2)):
        torch.testing.assert_close(found, torch.stack([part[nth] for part in parts]).mean(0))
    assert (averaged.spent.queries, averaged.spent.gradients, averaged.spent.scores) == (15, 15, 15)
    torch.testing.assert_close(target(classifier, NoisyScoring, "exact", eot=3).logits_with_score(PIXELS)[0], logits)


def test_a_score_without_gradient_and_a_route_without_one_are_errors(classifier):
    for route in ("exact", "bpda"):
        with pytest.raises(GradientError, match=r"Deaf.score\(\) has no gradient \(detach, no_grad\); make it"):
            target(classifier, Deaf, route).gradients_with_score(PIXELS, both)
    queries = target(classifier, Scoring, "none")
    with pytest.raises(GradientError, match="route none gives logits only"):
        queries.gradients_with_score(PIXELS, both)
    torch.testing.assert_close(queries.logits_with_score(PIXELS)[1], PIXELS.pow(3).sum((1, 2, 3)))


def test_autograd_follows_the_route(classifier):
    leaf = PIXELS.clone().requires_grad_()
    target(classifier, Square, "bpda")(leaf)[:, 0].sum().backward(inputs=[leaf])
    torch.testing.assert_close(leaf.grad, (weight(classifier) * 3).expand_as(PIXELS))


def test_eot_averages_gradients_and_logits_over_fresh_draws(classifier):
    averaged, logits = target(classifier, Noisy, "exact", eot=3).gradient(PIXELS, first_logit)
    singly = target(classifier, Noisy, "exact")
    parts = [singly.gradient(PIXELS, first_logit) for _ in range(3)]
    assert not torch.allclose(parts[0][0], parts[1][0])
    torch.testing.assert_close(averaged, torch.stack([part[0] for part in parts]).mean(0))
    torch.testing.assert_close(logits, torch.stack([part[1] for part in parts]).mean(0))
    torch.testing.assert_close(target(classifier, Noisy, "exact", eot=3).logits(PIXELS), logits)


def test_forward_and_backward_use_the_same_noise(classifier):
    gradient, logits = target(classifier, Noisy, "exact").gradient(PIXELS, first_logit)
    noise = Noisy(NoConfig()).draw(PIXELS, SampleGenerator(7, range(5)))
    torch.testing.assert_close(gradient, weight(classifier) * noise)
    torch.testing.assert_close(logits, classifier(PIXELS * noise).detach())


def test_a_selection_keeps_each_images_own_stream_and_the_counts(classifier):
    whole = target(classifier, Noisy, "exact").logits(PIXELS)
    narrowing = target(classifier, Noisy, "exact")
    keep = torch.tensor([False, True, False, True, True])
    torch.testing.assert_close(narrowing.select(keep).logits(PIXELS[keep]), whole[keep])
    narrowing.select(torch.tensor([0])).gradient(PIXELS[:1], first_logit)
    assert (narrowing.spent.queries, narrowing.spent.gradients) == (4, 1)


def test_fewer_images_without_select_are_an_error(classifier):
    with pytest.raises(AuditError, match=r"noise for 2 images, got a generator for 5; narrow the target with select"):
        target(classifier, Noisy, "exact")(PIXELS[:2])


def test_oblivious_sees_no_purifier_and_is_never_random(classifier):
    oblivious = target(classifier, Noisy, "oblivious", eot=9)
    torch.testing.assert_close(oblivious(PIXELS), classifier(PIXELS))
    assert oblivious.eot == 1 and not oblivious.random(PIXELS)
    assert target(classifier, Noisy, "exact").random(PIXELS)
    assert is_random(Noisy(NoConfig()), PIXELS) and not is_random(Square(NoConfig()), PIXELS)


def test_asking_whether_it_is_random_does_not_advance_the_streams(classifier):
    asked = target(classifier, Noisy, "exact")
    asked.random(PIXELS)
    torch.testing.assert_close(asked.logits(PIXELS), target(classifier, Noisy, "exact").logits(PIXELS))


def test_the_route_none_gives_logits_only(classifier):
    queries = target(classifier, Square, "none")
    leaf = PIXELS.clone().requires_grad_()
    assert not queries(leaf).requires_grad
    with pytest.raises(GradientError, match="route none gives logits only"):
        queries.gradient(PIXELS, first_logit)


@pytest.mark.parametrize("route", ["exact", "bpda"])
def test_a_classifier_without_gradients_has_no_white_box_route(route):
    with pytest.raises(GradientError, match=r"needs gradients of the classifier, but blind has none; use the torch"):
        target(Blind(Preprocessing()), Square, route)


def test_a_classifier_without_gradients_can_be_queried():
    for route in ("none", "oblivious"):
        asked = target(Blind(Preprocessing()), Square, route)
        assert asked(PIXELS).shape == (5, 3)
        with pytest.raises(GradientError):
            asked.gradient(PIXELS, first_logit)


def test_unknown_routes_are_errors(classifier):
    with pytest.raises(GradientError, match=r"Rounded has no exact gradient .* use the route bpda"):
        target(classifier, Rounded, "exact")
    with pytest.raises(GradientError, match="route must be one of exact, bpda, oblivious, none, got 'secret'"):
        target(classifier, Square, "secret")


def test_a_purifier_that_cuts_its_gradient_is_caught(classifier):
    with pytest.raises(GradientError, match="no gradient reaches the pixels along the route 'exact'"):
        target(classifier, Detached, "exact").gradient(PIXELS, first_logit)


def test_an_attack_cannot_switch_modes(classifier):
    """The habit of other libraries: evaluation mode, attack, back to the mode found - which must not be training."""
    seen = target(classifier, Square, "exact")
    seen.purifier.eval(), classifier.eval()
    was_training = seen.training
    seen.eval()
    seen.train(was_training)
    seen.train()
    assert not was_training
    assert not any(module.training for module in (classifier, classifier.module, seen.purifier))
