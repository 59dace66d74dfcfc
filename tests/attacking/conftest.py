"""Shared by the tests of targets: a small linear classifier."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from purifier.classifiers.pixel_classifier import TorchPixelClassifier
from purifier.data.pixels import Preprocessing


@pytest.fixture(scope="module")
def classifier() -> TorchPixelClassifier:
    torch.manual_seed(0)
    return TorchPixelClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval(), Preprocessing())
