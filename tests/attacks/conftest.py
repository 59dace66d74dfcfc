"""Shared by the attacks' tests: a small classifier trained on real images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from purifier.data import load_data


@pytest.fixture(scope="session")
def net() -> nn.Module:
    """A small convolutional classifier, trained for a moment on real images."""
    pixels, labels = load_data("fashion-mnist:train:3000").batch(range(3000))
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 5, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(4):
        for part in torch.arange(3000).split(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(pixels[part]), labels[part]).backward()
            optimizer.step()
    return net.eval().requires_grad_(False)
