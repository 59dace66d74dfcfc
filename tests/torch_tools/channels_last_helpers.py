"""What the tests of channels-last layout share: classifiers that care about layout, and how to compare tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from purifier.auditing.preflight import everything_asked
from purifier.contracts.purifier import Purifier
from purifier.data.loading import load_data
from purifier.torch_tools.channels_last import Ask

PIXELS = load_data("demo:2").batch(range(2))[0]


@dataclass(frozen=True)
class NoConfig:
    """Nothing to choose."""


class Viewing(nn.Module):
    """Calls ``view``, as many classifiers do, where channels-last strides do not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4 * 26 * 26, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images)
        logits: Tensor = self.last(features.view(len(features), -1))
        return logits


class Looking(nn.Module):
    """Its answers depend on the memory layout of its features."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 10, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images)
        return features.mean((2, 3)) * features.stride(1)


class Dead(nn.Conv2d):
    """Fails as soon as a gradient is asked for."""

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            raise ValueError("no gradients here")
        return super().forward(images).mean((2, 3))


def own_tensors(module: nn.Module) -> list[tuple[int, tuple[int, ...], Tensor]]:
    return [(weight.data_ptr(), weight.stride(), weight.detach().clone()) for weight in module.parameters()]


def unchanged(module: nn.Module, own: list[tuple[int, tuple[int, ...], Tensor]]) -> bool:
    pairs = zip(own_tensors(module), own, strict=True)
    return all(new[:2] == old[:2] and torch.equal(new[2], old[2]) for new, old in pairs)


def said(module: nn.Module) -> Ask:
    return everything_asked(module) if isinstance(module, Purifier) else lambda pixels: [module(pixels)]
