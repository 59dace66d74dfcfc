"""The demo's classifier: a small convolutional network for Fashion-MNIST that takes pixels (N, 1, 28, 28)."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from torch import Tensor, nn

from ..contracts.checkpoint import read_tensors

WEIGHTS = Path(str(files("purifier.assets") / "fashion-classifier.safetensors"))


class FashionClassifier(nn.Module):
    """Four convolutions with batch normalisation, global average pooling and ten logits; 131 thousand weights."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*_block(1, 32, 1), *_block(32, 64, 2), *_block(64, 64, 1), *_block(64, 128, 2))
        self.head = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)))  # type: ignore[no-any-return]


def demo_classifier() -> FashionClassifier:
    """The shipped classifier with its weights, in evaluation mode."""
    classifier = FashionClassifier()
    classifier.load_state_dict(read_tensors(WEIGHTS)[0])
    return classifier.eval()


def _block(inner: int, outer: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inner, outer, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()
