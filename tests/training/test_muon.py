"""Muon's steps: orthogonal, as long as Adam's, and equal to torch's except for precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from purifier.training.muon import Muon, orthogonal
from purifier.training.optimisation import Follower, Optimisation


def test_muon_steps_are_orthogonal_and_as_long_as_adams() -> None:
    chance = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8))
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    slopes = {name: torch.randn(weight.shape, generator=chance) for name, weight in before.items()}
    loss = sum((weight * slopes[name]).sum() for name, weight in module.named_parameters())
    follower = Follower(module, Optimisation(optimizer="muon", lr=0.01))
    follower.backward(loss)
    follower.update(0)
    moved = {name: weight.detach() - before[name] for name, weight in module.named_parameters()}
    for name, columns in {"0.weight": 12, "2.weight": 36}.items():
        lengths = torch.linalg.svdvals(moved[name].flatten(1)) / (0.01 * 0.2 * columns**0.5)
        assert lengths.min() > 0.6 and lengths.max() < 1.3
        assert (moved[name] * slopes[name]).sum() < 0
    for name in ("0.bias", "2.bias", "3.weight", "3.bias"):
        torch.testing.assert_close(moved[name], -0.01 * slopes[name].sign(), rtol=0.01, atol=0)


def test_muon_matches_torch_except_for_precision() -> None:
    chance = torch.Generator().manual_seed(0)
    shapes = (16, 9), (64, 256), (256, 64)
    first = [torch.randn(shape, generator=chance) for shape in shapes]
    models = [[nn.Parameter(weight.clone()) for weight in first] for _ in range(3)]
    same, exact = Muon(models[1], 0.01, torch.bfloat16), Muon(models[2], 0.01)
    reference = torch.optim.Muon(models[0], 0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        slopes = [torch.randn(shape, generator=chance) for shape in shapes]
        for model, optimizer in zip(models, (reference, same, exact), strict=True):
            for weight, slope in zip(model, slopes, strict=True):
                weight.grad = slope.clone()
            optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(models[0], models[1], strict=True))
    for weight, rounded, start in zip(models[2], models[0], first, strict=True):
        assert not torch.equal(weight, rounded)
        assert (weight - rounded).norm() < 0.01 * (weight - start).norm()


@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_muon_iterates_in_the_precision_of_training(precision: str, dtype: torch.dtype) -> None:
    settings = Optimisation(optimizer="muon", precision=precision)
    (muon,) = Follower(nn.Linear(2, 3, bias=False), settings).optimizers
    assert isinstance(muon, Muon) and muon.dtype == dtype


@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
def test_singular_values_come_near_1_but_for_the_smallest(shape: tuple[int, int]) -> None:
    chance = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(side, 8, generator=chance))[0] for side in shape)
    values = torch.tensor([1, 0.5, 0.1, 0.01, 3e-3, 3e-3, 1e-5, 0])
    result = orthogonal(7 * left @ values.diag() @ right.T)
    found = (left.T @ result @ right).diagonal()
    assert found[:6].min() > 0.68 and found[:6].max() < 1.21
    assert 1e-5 < found[6] < 0.01 and abs(found[7]) < 1e-4
    torch.testing.assert_close(result, left @ found.diag() @ right.T, rtol=0, atol=1e-4)
    assert not orthogonal(torch.zeros(shape)).any()


def test_what_a_dead_unit_leaves_counts_as_nothing() -> None:
    """Numbers so small make CPUs slow, and change no step."""
    matrix = torch.randn((8, 20), generator=torch.Generator().manual_seed(0))
    matrix[5:] *= 1e-30
    result = orthogonal(matrix)
    assert not result[5:].any()
    torch.testing.assert_close(result[:5], orthogonal(matrix[:5]), rtol=0, atol=1e-5)
