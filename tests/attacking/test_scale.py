"""Normalised logits: what stays the same, and the unit of each image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from purifier.attacking.scale import LINEAR, SPREAD, Scale

LOGITS = 4 * torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
FACTORS = (1e-4, 1e-2, 1.0, 1e2, 1e4, 1e20)


def spread(logits: Tensor) -> Tensor:
    return (logits.amax(1) - logits.mean(1)) * logits.shape[1] / (logits.shape[1] - 1)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_first_answer_has_one_spread_whatever_its_scale(classes, factor):
    logits = LOGITS[:, :classes] * factor
    found = Scale(50)(logits)
    torch.testing.assert_close(spread(found), torch.full((50,), SPREAD))
    torch.testing.assert_close(found, Scale(50)(LOGITS[:, :classes]))
    assert torch.equal(found.argsort(1), logits.argsort(1)) and not found.amax(1).any()


@pytest.mark.parametrize("offset", [-100, 100])
def test_an_offset_changes_nothing(offset):
    torch.testing.assert_close(Scale(50)(LOGITS + offset), Scale(50)(LOGITS), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_computes_in_float32_at_least(dtype):
    logits = LOGITS.to(dtype)
    found = Scale(50)(logits)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # No two logits become equal and none change places.
    assert torch.equal(found.unsqueeze(2) > found.unsqueeze(1), logits.unsqueeze(2) > logits.unsqueeze(1))


@pytest.mark.parametrize("factor", FACTORS)
def test_gradients_keep_their_direction(factor):
    leaf = LOGITS.clone().requires_grad_()
    weights = torch.randn(50, 10, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((Scale(50)(leaf * factor) * weights).sum(), leaf)
    torch.testing.assert_close(gradient, weights * SPREAD / spread(LOGITS).unsqueeze(1))


def test_later_answers_have_the_same_unit_up_to_a_larger_spread():
    scale = Scale(50)
    scale(LOGITS)
    later = LOGITS.flip(0)
    ratio = spread(later) / spread(LOGITS)
    linear = ratio <= LINEAR
    assert 30 < linear.sum() < 50
    found = spread(scale(later))
    torch.testing.assert_close(found[linear], (SPREAD * ratio)[linear])
    # Beyond, they grow like a logarithm, so a later answer can be ranked but does not saturate cross-entropy.
    torch.testing.assert_close(found[~linear], (SPREAD * LINEAR * (1 + (ratio / LINEAR).log()))[~linear])
    assert spread(scale(LOGITS * 1e8)).max() < 20 * SPREAD * LINEAR


def test_with_two_classes_a_larger_gap_stays_a_larger_gap():
    gaps = torch.logspace(-6, 6, 200)
    for first in (1e-3, 1.0, 1e3):
        scale = Scale(1)
        scale(torch.tensor([[0.0, first]]))
        found = torch.cat([scale(torch.tensor([[0.0, -gap]])) for gap in gaps.tolist()])
        assert ((found[:, 0] - found[:, 1]).diff() > 0).all()


def test_selections_share_the_units():
    scale = Scale(50)
    keep = torch.arange(50) % 3 == 0
    at = keep.nonzero().squeeze(1)
    scale.select(keep)(LOGITS[keep])
    later = scale(LOGITS * 1.5)
    torch.testing.assert_close(spread(later), torch.where(keep, 1.5 * SPREAD, SPREAD))
    again = scale.select(at.flip(0))(LOGITS[at.flip(0)])
    torch.testing.assert_close(spread(again), torch.full((len(at),), SPREAD))
    twice = scale.select(torch.tensor([4, 4]).repeat(2))
    torch.testing.assert_close(twice(LOGITS[[4, 4, 4, 4]] / 3), scale(LOGITS)[[4, 4, 4, 4]] / 3)


def test_the_first_of_several_answers_about_one_image_does_not_depend_on_their_order():
    answers = torch.stack([LOGITS[0], 1.5 * LOGITS[0]])
    found = [Scale(1).select(torch.tensor([0, 0]))(answers[order])[order] for order in ([0, 1], [1, 0])]
    assert torch.equal(*found)


def test_answers_about_unknown_images_have_their_own_unit():
    scale = Scale(50)
    scale(LOGITS)
    torch.testing.assert_close(spread(scale(2 * LOGITS[:7])), torch.full((7,), SPREAD))


def test_infinite_and_nan_logits_keep_their_meaning():
    logits = LOGITS[:3].clone()
    logits[0, 3], logits[1, 4], logits[2, 5] = -torch.inf, torch.nan, torch.inf
    found = Scale(3)(logits)
    assert found[0, 3] == -torch.inf and found[1, 4].isnan() and found[2, 5] == torch.inf
    for row, bad in ((0, 3), (1, 4), (2, 5)):
        kept = torch.arange(10) != bad
        alone = Scale(1)(logits[row : row + 1, kept])
        torch.testing.assert_close(found[row : row + 1, kept], alone)
    assert Scale(2)(torch.full((2, 4), torch.nan)).isnan().all()
    assert (Scale(2)(torch.full((2, 4), -torch.inf)) == -torch.inf).all()


def test_equal_logits_have_the_unit_1_until_they_differ():
    scale = Scale(1)
    assert not scale(torch.full((1, 4), 7.0)).any()
    alone = torch.tensor([[3.0, -torch.inf, -torch.inf]])
    assert scale(alone)[0, 0] == 0
    torch.testing.assert_close(spread(scale(LOGITS[:1])), torch.tensor([SPREAD]))
