"""Classifiers A to D of Defense-GAN (Samangouei et al. 2018, table 6) for images of 1x28x28, and all of them at once.

A MODEL spec when this folder is on PYTHONPATH: ``published_classifiers:a --weights a.safetensors``.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def a() -> nn.Module:
    """Two convolutions, 64 wide, the second strided; 128 hidden units."""
    return nn.Sequential(
        nn.Conv2d(1, 64, 5),
        nn.ReLU(),
        nn.Conv2d(64, 64, 5, stride=2),
        nn.ReLU(),
        nn.Dropout(0.25),
        *_head(64 * 10 * 10),
    )


def b() -> nn.Module:
    """Dropout first, three convolutions with large kernels."""
    return nn.Sequential(
        nn.Dropout(0.2),
        nn.Conv2d(1, 64, 8, stride=2, padding=3),
        nn.ReLU(),
        nn.Conv2d(64, 128, 6, stride=2),
        nn.ReLU(),
        nn.Conv2d(128, 128, 5),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def c() -> nn.Module:
    """Like A with 128 small kernels first."""
    return nn.Sequential(
        nn.Conv2d(1, 128, 3),
        nn.ReLU(),
        nn.Conv2d(128, 64, 5, stride=2),
        nn.ReLU(),
        nn.Dropout(0.25),
        *_head(64 * 11 * 11),
    )


def d() -> nn.Module:
    """No convolution: two layers of 200 units."""
    units = [nn.Linear(784, 200), nn.ReLU(), nn.Dropout(0.5), nn.Linear(200, 200), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(nn.Flatten(), *units, nn.Linear(200, 10))


class Ensemble(nn.Module):
    """Classifiers that share a batch: image k is answered by classifier k modulo their number.

    In shuffled batches a purifier meets them all at the price of one, each with the gradient that an attacker of this
    classifier follows.
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        count, places = len(self.members), torch.arange(len(images), device=images.device)
        answers = [member(images[k::count]) for k, member in enumerate(self.members)]
        return torch.cat(answers)[torch.cat([places[k::count] for k in range(count)]).argsort()]


def _head(features: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(features, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)]
