"""ResNet-20 and ResNet-56 for CIFAR-10 (He et al. 2016, section 4.2, shortcuts of option A), for published weights.

``purifier audit --classifier cifar_resnet:resnet20 --weights cifar10-resnet20.safetensors --preprocessing imagenet``
with this folder in ``PYTHONPATH``.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut that skips every other pixel and fills new channels with zeros."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.stride, self.added = (1, 0) if before == width else (2, width - before)
        self.conv1 = nn.Conv2d(before, width, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, features: Tensor) -> Tensor:
        change = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(features)))))
        half = self.added // 2
        kept = F.pad(features[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return F.relu(kept + change)


class ResNet(nn.Module):
    """3x32x32 images -> logits of 10 classes, with ``depth`` layers that have weights: 6 n + 2."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        stages = [
            nn.Sequential(Block(before, width), *(Block(width, width) for _ in range(blocks - 1)))
            for before, width in zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)
        ]
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(WIDTHS[-1], 10)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: Tensor = self.linear(features.mean((2, 3)))
        return logits


def resnet20() -> ResNet:
    """ResNet-20 without weights, for ``package.module:factory``."""
    return ResNet(20).eval()


def resnet56() -> ResNet:
    """ResNet-56 without weights."""
    return ResNet(56).eval()
