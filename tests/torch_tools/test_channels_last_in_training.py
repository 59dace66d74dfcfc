"""Convolutions that get channels-last images in training: the same results, and unchanged afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from channels_last_helpers import PIXELS, Dead, Looking, NoConfig, Viewing, own_tensors, said, unchanged
from purifier.contracts.purifier import Purifier, purifiers
from purifier.data.images import ImageData
from purifier.torch_tools.channels_last import fed_channels_last
from purifier.training.loop import train


class Counting(nn.Conv2d):
    """Its answers depend on how often it was called; the first is not finite."""

    asked = 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += 1
        return super().forward(images).mean((2, 3)) / (self.asked - 1)


class Told(nn.Conv2d):
    """Records the layout of its images."""

    last: ClassVar[list[bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.last.append(images.stride(1) == 1)
        return super().forward(images)


@pytest.fixture
def told() -> list[bool]:
    Told.last.clear()
    return Told.last


def test_convolutions_get_channels_last_images_and_learn_the_same(told: list[bool]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Told(1, 8, 3), Told(8, 4, 3), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * 24 * 24, 10)).train()
    own = own_tensors(net)

    def gradients() -> list[Tensor]:
        told.clear()
        torch.manual_seed(1)
        batch = PIXELS.clone().requires_grad_()
        net.zero_grad()
        net(batch).logsumexp(1).sum().backward()
        return [weight.grad for weight in (batch, *net.parameters()) if weight.grad is not None]

    before = gradients()
    assert told == [False, False]
    state = torch.get_rng_state()
    with fed_channels_last(net, said, PIXELS) as used:
        assert used and net.training and net[3].training and torch.equal(torch.get_rng_state(), state)
        after = gradients()
        assert told == [True, True]
        assert all(slope.stride() == weight.stride() for slope, weight in zip(after[1:], net.parameters(), strict=True))
    assert unchanged(net, own)
    for new, old in zip(after, before, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-5)
    gradients()
    assert told == [False, False]


class ViewingInTraining(nn.Conv2d):
    """Calls ``view`` on its features only in training."""

    def forward(self, images: Tensor) -> Tensor:
        features = super().forward(images)
        if self.training:
            features.view(len(features), -1)
        return features.mean((2, 3))


class Hidden(nn.Module):
    """Calls its convolution by a reference that a copy does not follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.way = lambda images: self.first(images)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.way(images)
        return features.view(len(features), -1)


@pytest.mark.parametrize(
    "module",
    [
        Viewing(),
        Looking(),
        Dead(1, 10, 3),
        Counting(1, 10, 3),
        ViewingInTraining(1, 10, 3),
        Hidden(),
        nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten()),
        nn.Linear(28, 10),
    ],
)
def test_modules_that_cannot_take_channels_last_images_get_none(module: nn.Module) -> None:
    module.train()
    hooks = [dict(part._forward_pre_hooks) for part in module.modules()]
    with fed_channels_last(module, said, PIXELS) as used:
        assert not used and module.training
        assert [dict(part._forward_pre_hooks) for part in module.modules()] == hooks
        assert not isinstance(module, Counting) or module.asked == 0


class Untaught(torch.autograd.Function):
    """The weight that it multiplies by gets no gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, images: Tensor) -> Tensor:
        return images * weight.mean()

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[None, Tensor]:
        return None, given[0]


class Learning(Purifier):
    """Calls a convolution by keyword, which no check sees, and has a weight that never learns."""

    Config = NoConfig
    gradient: ClassVar[Literal["exact", "surrogate"]] = "exact"

    def __init__(self, config: NoConfig) -> None:
        super().__init__(config)
        self.first, self.second = Told(1, 1, 3, padding=1), nn.Conv2d(1, 1, 1)

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        images = Untaught.apply(self.second.weight, self.first(pixels))
        return images.sigmoid()

    def loss(self, pixels: Tensor, target: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
        return {"reconstruction": (self.purify(pixels, noise) - target).square().mean()}

    def begin_epoch(self, epoch: int, epochs: int, data: ImageData) -> None:
        self.first(images=data.batch([0])[0])

    def figures(self) -> dict[str, float]:
        return {}


def test_training_hands_over_channels_last_images(told: list[bool], tmp_path: Path) -> None:
    purifiers.register("learning", Learning)
    try:
        train("learning", "demo:20", tmp_path / "a.safetensors", epochs=1, batch_size=10)
    finally:
        purifiers.unregister("learning")
    assert told[-2:] == [True, True]
