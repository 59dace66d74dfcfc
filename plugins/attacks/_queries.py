"""What attacks share that ask only for answers: verdicts that a lucky draw does not pass, blocks of random numbers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from purifier.attacking.target import Target

VOTES = 5
"""How often a random target is asked for one verdict."""
BLOCK = 2**18
"""Numbers drawn at a time for an image: bounds the memory."""


def votes_for(target: Target, pixels: Tensor) -> int:
    """How many answers make a verdict on images like ``pixels`` (N, C, H, W)."""
    return VOTES if target.random(pixels) else 1


def fooled(
    target: Target, at: Tensor, pixels: Tensor, labels: Tensor, *, votes: int, random: bool | None = None
) -> Tensor:
    """Whether most of ``votes`` answers for each image are wrong, (M,) booleans; uses predicted labels only.

    ``pixels`` (M, C, H, W) stand for the target's images at ``at`` (M,), in any number; ``labels`` (M,) are theirs.
    A ``random`` target can be asked for a single vote too; unless said, more than one means that it is.
    """
    random, wrong = votes > 1 if random is None else random, torch.zeros_like(labels)
    for _ in range(votes):
        wrong += answers(target, at, pixels, random=random).argmax(1) != labels
    return 2 * wrong > votes


def answers(target: Target, at: Tensor, pixels: Tensor, *, random: bool) -> Tensor:
    """Logits (M, K) of ``pixels`` (M, C, H, W), which stand for the target's images at ``at`` (M,), in any number.

    A target that is not ``random`` follows no image's stream and need not be narrowed, which takes time.
    """
    return (target.select(at) if random else target).logits(pixels)


def blocks(samples: int, features: int) -> Iterator[int]:
    """``samples`` in parts of at most :data:`BLOCK` numbers: the same for an image in every batch."""
    most = max(1, BLOCK // features)
    for start in range(0, samples, most):
        yield min(most, samples - start)


def everyone(labels: Tensor) -> Tensor:
    """The positions of all images, (N,)."""
    return torch.arange(len(labels), device=labels.device)
