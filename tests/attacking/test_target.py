"""Targets: what each route shows an attack, and what is counted."""

from __future__ import annotations

import pytest
import torch
from target_helpers import PIXELS, NoConfig, Noisy, NoisyScoring, Rounded, Scoring, Square, both, first_logit, target
from torch import Tensor, nn

import purifier
from purifier.attacking.target import Target, is_random
from purifier.classifiers.pixel_classifier import TorchPixelClassifier
from purifier.data.pixels import Preprocessing
from purifier.seeding import SampleGenerator


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


def test_logits_are_normalised_and_raw_gives_the_classifiers_own(classifier):
    seen = Target(classifier, Noisy(NoConfig()), "exact", SampleGenerator(7, range(5)), eot=2)
    raw = seen.raw()
    assert raw.spent is seen.spent and raw.generator is seen.generator and raw.eot == 2
    gradient, logits = seen.gradient(PIXELS, first_logit)
    own_gradient, own = target(classifier, Noisy, "exact", eot=2).gradient(PIXELS, first_logit)
    first = target(classifier, Noisy, "exact").logits(PIXELS)
    unit = 10 / (first.amax(1) - first.mean(1)) * 2 / 3
    torch.testing.assert_close(gradient, own_gradient * unit.view(-1, 1, 1, 1))
    gaps = (one - one[:, :1] for one in (logits, own * unit.unsqueeze(1)))
    torch.testing.assert_close(*gaps)
    keep = torch.tensor([4, 1])
    torch.testing.assert_close(
        seen.select(keep).normalised(own[keep]).diff(dim=1), (own * unit.unsqueeze(1))[keep].diff(dim=1)
    )
    assert raw.normalised(own) is own and raw.select(keep).normalised(own[keep]).equal(own[keep])
