"""``latent`` along the route bpda: one descent serves forward and backward."""

from __future__ import annotations

import torch
from torch import nn

import purifier
from purifier.attacking.target import Target
from purifier.classifiers.pixel_classifier import TorchPixelClassifier
from purifier.data.pixels import Preprocessing
from purifier.seeding import SampleGenerator


def test_one_pass_where_the_surrogate_purifies_too() -> None:
    """The descents of ``latent`` are expensive; BPDA's forward values are still those of purify."""
    pixels = torch.rand(3, 1, 28, 28)
    latent = purifier.load("latent:base=demo-plain,steps=3,truncate=1")
    plain = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
    calls = []
    latent.purify = lambda *given: calls.append(given)  # type: ignore[assignment,return-value]
    asked = Target(TorchPixelClassifier(plain, Preprocessing()), latent, "bpda", SampleGenerator(0, range(3))).raw()
    gradient, logits = asked.gradient(pixels, lambda logits: logits[:, 0])
    del latent.purify
    assert not calls and gradient.any()
    with torch.no_grad():
        torch.testing.assert_close(logits, plain(latent.purify(pixels)))
