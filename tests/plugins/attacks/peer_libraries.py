"""What comparisons with other libraries' attacks share: running them, and how much is equal."""

from __future__ import annotations

import warnings
from types import ModuleType

import pytest
from torch import Tensor, nn

from attack_helpers import Same
from purifier.seeding import SampleGenerator

# Both libraries are older than the Pythons they run on.
ignore_deprecations = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:foolbox"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:eagerpy"),
]


class Idle(Same):
    """Draws noise and does not use it: under a random target all images take all steps."""

    def draw(self, pixels: Tensor, generator: SampleGenerator) -> Tensor:
        return generator.normal(pixels.shape[1:], pixels)


def foolbox_finds(name: str, net: nn.Module, images: tuple[Tensor, Tensor], eps: float, **options: object) -> Tensor:
    """The images (N, C, H, W) of foolbox's attack ``name`` at ``eps``."""
    foolbox = pytest.importorskip("foolbox")
    attack = getattr(foolbox.attacks, name)(**options)
    found: Tensor = attack(foolbox.PyTorchModel(net, bounds=(0, 1)), *images, epsilons=eps)[1]
    return found


def torchattacks() -> ModuleType:
    """The library; without it the test is skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        library: ModuleType = pytest.importorskip("torchattacks")
    return library


def equal_share(ours: Tensor, theirs: Tensor) -> float:
    """The share of all values that are equal to 1e-5."""
    return ((ours - theirs).abs() < 1e-5).double().mean().item()
