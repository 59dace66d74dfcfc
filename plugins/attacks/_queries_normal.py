"""Estimates of a decision boundary's normal from predicted labels at random points nearby."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from purifier.seeding import SampleGenerator
from purifier.torch_tools.norms import norm_of, scale_like

from ._queries import blocks

SMOOTH, FADE = 0.9, 0.9
"""Share of smooth noise in the first estimate, and the factor per round: normals are mostly smooth (Li et al. 2020)."""
SIDE = 28
"""Noise is averaged over windows of about a tenth of the image: 3x3 pixels on one with this side, as measured."""
RECENTRE = 20
"""Answers between corrections of the sampling centre."""
FASTER, SLOWER = 1.5, 0.6
"""The centre's step changes by these factors if it is to move on in the same direction, or back."""
MAX_STEP = 0.1
"""The centre's longest step, as a fraction of the distance to the image."""

Asks = Callable[[Tensor, Tensor], Tensor]
"""Positions (M,) among the N images and variants of them (M, C, H, W) -> which are misclassified, (M,) booleans."""


class Normals:
    """Estimates for N images; remembers for each how far off the boundary its samples have to be centred.

    An estimate learns most if half of the samples are misclassified. On a curved boundary, or with a point that is not
    quite on it, nearly all may fall on one side. So the centre moves along the line through the image until both sides
    occur. ``radius`` is the sampling radius as a fraction of the distance to the image. With ``recentre=False`` the
    samples stay centred at the point itself, for a target whose answers vary.
    """

    def __init__(self, clean: Tensor, radius: float, generator: SampleGenerator, *, recentre: bool) -> None:
        self._clean, self._radius, self._generator, self._recentre = clean, radius, generator, recentre
        self._offset, self._side = clean.new_zeros(len(clean)), clean.new_zeros(len(clean))
        self._step = torch.full_like(self._offset, radius / clean[0].numel() ** 0.5)

    def estimate(self, asks: Asks, at: Tensor, here: Tensor, known: Tensor, samples: int, rounds: int) -> Tensor:
        """Unit vectors to the misclassified side at points ``here`` of the images at ``at`` (M,), (M, C, H, W).

        Only the part of the normal orthogonal to ``known`` (M, C, H, W), vectors of length 1 or 0, is estimated: it is
        all there is to learn, and with ``known`` in them, the samples' answers would say less about it.
        """
        clean, generator = self._clean[at], self._generator.select(at)
        away = here - clean
        reach = norm_of(away, "l2").clamp_min(torch.finfo(here.dtype).tiny)
        outwards, radius = away / scale_like(reach, away), (self._radius * reach).view(-1, 1, 1, 1, 1)
        total = torch.zeros_like(here)
        for count in (part for whole in parts(samples) for part in blocks(whole, here[0].numel())):
            centre = (here + scale_like(self._offset[at] * reach, here) * outwards).clamp(0, 1)
            drawn = smoothed(generator.normal((count, *here.shape[1:]), here), SMOOTH * FADE ** (rounds - 1))
            drawn = drawn - (drawn * known.unsqueeze(1)).flatten(2).sum(2).view(-1, count, 1, 1, 1) * known.unsqueeze(1)
            drawn = drawn / drawn.flatten(2).norm(dim=2).clamp_min(1e-12).view(-1, count, 1, 1, 1)
            around = (centre.unsqueeze(1) + radius * drawn).clamp(0, 1)
            # Use the directions after clamping, because those are the ones queried.
            drawn = (around - centre.unsqueeze(1)) / radius
            answers = 2 * asks(at.repeat_interleave(count), around.flatten(0, 1)).view(-1, count).to(here) - 1
            mean = answers.mean(1)
            # The mean is a baseline against lopsided answers; if all agree, it would leave nothing.
            baseline = torch.where(mean.abs() == 1, 0, mean).unsqueeze(1)
            total += torch.einsum("ns,ns...->n...", answers - baseline, drawn)
            if self._recentre:
                self._move(at, mean)
        total = total - scale_like((total * known).flatten(1).sum(1), known) * known
        return total / scale_like(norm_of(total, "l2").clamp_min(1e-12), total)

    def _move(self, at: Tensor, mean: Tensor) -> None:
        """Move the centres towards the image where most answers were misclassified, else away from it."""
        side = mean.sign()
        turn = side * self._side[at]
        factor = torch.where(turn > 0, FASTER, torch.where(turn < 0, SLOWER, 1.0))
        self._step[at] = (self._step[at] * factor).clamp(1e-6, MAX_STEP)
        self._offset[at] -= self._step[at] * mean
        self._side[at] = side


def parts(samples: int) -> list[int]:
    """``samples`` in parts of ``RECENTRE``, the last one smaller."""
    return [min(RECENTRE, samples - done) for done in range(0, samples, RECENTRE)]


def smoothed(noise: Tensor, share: float) -> Tensor:
    """Mix standard normal noise (N, S, C, H, W) with its average over windows, scaled back to variance 1."""
    reach = max(1, min(noise.shape[3:]) // SIDE)
    width = 2 * reach + 1
    smooth = functional.avg_pool2d(noise.flatten(0, 1), width, 1, reach).view_as(noise) * width
    return torch.lerp(noise, smooth, share)
