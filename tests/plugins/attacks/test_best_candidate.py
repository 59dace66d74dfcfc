"""Which candidate gradient attacks keep."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import purifier
from attack_helpers import NoConfig, Noisy, Same
from purifier.attacking.target import Target
from purifier.classifiers.pixel_classifier import TorchPixelClassifier
from purifier.data.pixels import Preprocessing
from purifier.seeding import SampleGenerator


@pytest.fixture(scope="module")
def steps() -> ModuleType:
    """The plugins' module of climbs: beside the class that the name ``pgd`` stands for."""
    return importlib.import_module(purifier.attacks.get("pgd").__module__.rpartition(".")[0] + "._steps")


def target_of(filter_: type[purifier.Purifier], route: str) -> Target:
    """The logits are the first three pixels."""
    module = TorchPixelClassifier(nn.Flatten(), Preprocessing())
    return Target(module, filter_(NoConfig()), route, SampleGenerator(0, range(1)))


def candidates() -> list[Tensor]:
    """For label 0: clearly right, misclassified, misclassified by more, barely right."""
    rows = ([0.9, 0, 0.1], [0.4, 0, 0.5], [0, 0.9, 0], [0.5, 0.49, 0])
    return [torch.tensor(row).view(1, 1, 1, 3) for row in rows]


@pytest.mark.parametrize(
    ("filter_", "route", "loss", "kept"),
    [
        (Same, "exact", "margin", 1),  # the first success ends the search
        (Same, "oblivious", "margin", 2),
        (Same, "oblivious", "ce", 2),
        # Nearest to class 2, which the first image comes closest to, is the success that reaches it.
        (Same, "oblivious", "targeted", 1),
        (Noisy, "exact", "margin", 3),  # the last of a start alone
    ],
)
def test_which_candidate_is_kept(steps, filter_, route, loss, kept):
    first, *later = candidates()
    best = steps.Best(target_of(filter_, route), first, torch.tensor([0]), loss)
    for place, pixels in enumerate(later):
        at = best.todo()
        if len(at):
            best.note(at, pixels, pixels.flatten(1), last=place == len(later) - 1)
    assert torch.equal(best.pixels, candidates()[kept])
    assert len(best.todo()) == (0 if route == "exact" and filter_ is Same else 1)


def test_a_misclassified_image_is_kept_before_any_loss(steps):
    first = torch.tensor([0.9, 0, 0.1]).view(1, 1, 1, 3)
    best = steps.Best(target_of(Same, "oblivious"), first, torch.tensor([0]), "targeted")
    near, wrong = torch.tensor([[[[10.0, 0, 9.9]]]]), torch.tensor([[[[0.0, 1e6, -1e6]]]])
    for pixels in (wrong, near):
        best.note(best.todo(), pixels, pixels.flatten(1))
        assert torch.equal(best.pixels, wrong)
