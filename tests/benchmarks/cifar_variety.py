"""Two small classifiers for CIFAR-10 that are built otherwise than ``cifar_classifier.py``'s and the published ones.

``python tests/benchmarks/cifar_classifier.py --architecture pooled|strided --out pooled.safetensors`` trains them. A
purifier that learns in front of different classifiers suits those better that it has never seen.
"""

from __future__ import annotations

from torch import Tensor, nn


class Centred(nn.Module):
    """Pixels in [0, 1] -> values of mean 0 and standard deviation 1, roughly."""

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels - 0.47) * 4


def pooled() -> nn.Module:
    """3x32x32 pixels -> logits; batch normalization and max pooling (Simonyan & Zisserman 2015, "VGG")."""
    layers: list[nn.Module] = [Centred()]
    before = 3
    for width in (32, 64, 128):
        for inner in (before, width):
            layers += [nn.Conv2d(inner, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        before = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 10)).eval()


def strided() -> nn.Module:
    """3x32x32 pixels -> logits; large first filters, strides in place of pooling (Springenberg et al. 2015, "Striving
    for simplicity"), and group normalization."""
    layers: list[nn.Module] = [Centred()]
    for before, width, side, stride in (
        (3, 48, 5, 2),
        (48, 96, 3, 1),
        (96, 96, 5, 2),
        (96, 192, 3, 1),
        (192, 192, 3, 1),
    ):
        convolution = nn.Conv2d(before, width, side, stride, padding=side // 2)
        layers += [convolution, nn.GroupNorm(6, width), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, 10)).eval()
