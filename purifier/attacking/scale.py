"""The scale of logits: one unit per image, so that no factor or offset of the logits weakens an attack.

Cross-entropy vanishes in float32 where the logits are large, and its softmax is flat where they are tiny, though the
decisions are the same. So a target divides each image's logits by a unit of that image: the spread of the first answer
about it. Later answers are divided by the same unit, because attacks compare losses of different answers. With two
classes nothing else would do: divided by their own spread, two logits are always the same two numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

SPREAD = 10.0
"""The spread (maximum minus the mean of the others) of an image's normalised logits at its first answer.

About that of a well-trained classifier's own logits, so that losses behave as their authors know them.
"""
LINEAR = 2.0
"""Answers with more than this times the first spread are compressed: their spread grows like a logarithm."""
TINY = 1e-30
"""A spread below this counts as 0: dividing by it would overflow float32."""


class Scale:
    """The units of the logits of N images, each fixed by the first answer about its image."""

    def __init__(self, count: int) -> None:
        self._at = torch.arange(count)
        self._first = [torch.zeros(count)]
        """Shared by all selections; 0 until the first answer."""
        self._known: Tensor | None = None
        """The units of these images once each has one; they never change again."""

    def select(self, keep: Tensor | slice) -> Scale:
        """The units of some of the images: ``keep`` is a mask (N,), positions, which may repeat, or a slice."""
        chosen = Scale(0)
        if isinstance(keep, Tensor):
            self._at = self._at.to(keep.device)
        chosen._at, chosen._first = self._at[keep], self._first
        chosen._known = None if self._known is None else self._known[keep]
        return chosen

    def __call__(self, logits: Tensor) -> Tensor:
        """``(logits - maximum) * SPREAD / unit``, (N, K) in at least float32; maximum and unit have no gradient.

        The largest class, the signs of margins and the direction of gradients stay the same. Infinite and NaN logits
        stay what they are; an image without two different finite logits has the unit 1 until it has.
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        with torch.no_grad():
            finite = logits.isfinite()
            top = torch.where(finite, logits, -torch.inf).amax(1, keepdim=True)
            top = top.where(top > -torch.inf, 0)
            below = torch.where(finite, top - logits, 0).sum(1) / (finite.sum(1) - 1).clamp_min(1)
            unit = self._units(below).unsqueeze(1)
        return (logits - top) / unit * SPREAD

    def _units(self, spread: Tensor) -> Tensor:
        """The units (M,) for answers with these spreads (M,)."""
        usable = spread.isfinite() & (spread >= TINY)
        spread = torch.where(usable, spread, 0)
        # With another number of images, nobody said which they are.
        first = self._firsts(spread) if len(spread) == len(self._at) else torch.where(spread > 0, spread, 1)
        ratio = spread / first / LINEAR
        compressed = spread / LINEAR / (1 + ratio.clamp_min(1).log())
        return torch.where(ratio > 1, compressed, first)

    def _firsts(self, spread: Tensor) -> Tensor:
        """The images' first spreads, (M,), which are ``spread`` (M,) where there was none yet; 1 if that is 0."""
        if self._known is not None:
            return self._known.to(spread)
        self._at, self._first[0] = self._at.to(spread.device), self._first[0].to(spread)
        new = self._first[0][self._at] == 0
        # Of several first answers about one image the largest spread counts, so their order does not.
        self._first[0].scatter_reduce_(0, self._at[new], spread[new], "amax")
        first = self._first[0][self._at]
        if (first > 0).all():
            self._known = first
        return torch.where(first > 0, first, 1)
