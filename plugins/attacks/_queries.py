"""Shared by query attacks: decisions that do not depend on one lucky draw, blocks of random numbers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from purifier.attacking.target import Target

VOTES = 5
"""Queries per decision for a random target."""
BLOCK = 2**18
"""Numbers drawn at a time for an image; limits the memory."""


def votes_for(target: Target, pixels: Tensor) -> int:
    """How many queries decide about images like ``pixels`` (N, C, H, W)."""
    return VOTES if target.random(pixels) else 1


def fooled(
    target: Target, at: Tensor, pixels: Tensor, labels: Tensor, *, votes: int, random: bool | None = None
) -> Tensor:
    """Whether most of ``votes`` predictions for each image are wrong, (M,) booleans; uses only predicted labels.

    ``pixels`` (M, C, H, W) are variants of the target's images at positions ``at`` (M,), which may repeat; ``labels``
    (M,) are theirs. By default, the target counts as ``random`` if there is more than one vote.
    """
    random, wrong = votes > 1 if random is None else random, torch.zeros_like(labels)
    if not len(labels):
        return wrong > 0
    for _ in range(votes):
        wrong += answers(target, at, pixels, random=random).argmax(1) != labels
    return 2 * wrong > votes


def answers(target: Target, at: Tensor, pixels: Tensor, *, random: bool) -> Tensor:
    """Logits (M, K) of ``pixels`` (M, C, H, W), variants of the target's images at positions ``at``, which may repeat.

    A target that is not ``random`` uses no streams, so they are not narrowed to the images, which would take time.
    """
    return (target.select(at) if random else target.with_streams(target.generator, at)).logits(pixels)


def blocks(samples: int, features: int) -> Iterator[int]:
    """Split ``samples`` into parts of at most ``BLOCK`` numbers, the same in every batch."""
    most = max(1, BLOCK // features)
    for start in range(0, samples, most):
        yield min(most, samples - start)


def all_positions(labels: Tensor) -> Tensor:
    """The positions of all images, (N,)."""
    return torch.arange(len(labels), device=labels.device)
