"""The conformance check of purifiers with bounds."""

from __future__ import annotations

import torch
from torch import Tensor

from ..contracts.bounded import Bounded
from ..contracts.purifier import Purifier
from .rules import check, close, images, span

BUDGETS = {"linf": (0.01, 0.05, 0.5), "l2": (0.1, 0.5, 5.0), "l1": (0.5, 5.0, 50.0)}
"""For each norm, budgets from small to one that leaves little of an image."""
POINTS = 50


def check_bounds(purifier: Purifier, pixels: Tensor) -> None:
    """Check a purifier that has bounds on pixels (n, C, H, W): at random points, what they exclude must not happen."""
    assert isinstance(purifier, Bounded)
    outputs = purifier.outputs()
    shape = tuple(pixels.shape[1:])
    check(
        outputs.ndim == 4 and tuple(outputs.shape[1:]) == shape, f"outputs must be images (K, {shape})", outputs.shape
    )
    check(bool(((outputs >= 0) & (outputs <= 1)).all()), "outputs must be in [0, 1]", span(outputs))
    check(len(purifier.bounded_norms) > 0, "bounded_norms must name a norm", purifier.bounded_norms)
    found = _places(purifier, pixels, outputs)
    check(bool((found >= 0).all()), "purify must return one of the outputs", "another image")
    for norm in purifier.bounded_norms:
        check(norm in BUDGETS, f"bounded_norms must be among {', '.join(BUDGETS)}", norm)
        before = torch.zeros((len(pixels), len(outputs)), dtype=torch.bool)
        for eps in BUDGETS[norm]:
            reachable = purifier.reachable(pixels, norm, torch.full((len(pixels),), eps))
            wanted = (len(pixels), len(outputs))
            right = reachable.dtype == torch.bool and tuple(reachable.shape) == wanted
            check(right, f"reachable must be bool {wanted}", (reachable.dtype, tuple(reachable.shape)))
            check(
                bool(reachable.gather(1, found[:, None]).all()), "an image's own output must be reachable", "it is not"
            )
            check(not (before & ~reachable).any(), "a larger budget must reach no less", f"less at {norm} {eps}")
            before = reachable
            for place, image in enumerate(pixels):
                at = _places(purifier, _within(image, outputs, norm, eps), outputs)
                missed = ~reachable[place][at]
                check(
                    not missed.any(), f"what purify returns within {norm} {eps} must be reachable", at[missed].tolist()
                )


def _places(purifier: Purifier, pixels: Tensor, outputs: Tensor) -> Tensor:
    """Which output each image becomes, (n,); -1 for none of them."""
    with torch.no_grad():
        purified = purifier.purify(pixels)
    nearest = torch.cdist(purified.flatten(1).double(), outputs.flatten(1).double()).argmin(1)
    same = torch.tensor([close(one, outputs[at]) for one, at in zip(purified, nearest.tolist(), strict=True)])
    return nearest.where(same, torch.full_like(nearest, -1))


def _within(image: Tensor, outputs: Tensor, norm: str, eps: float) -> Tensor:
    """Points (n, C, H, W) in [0, 1] within a budget: at random, and on the way to the first outputs."""
    noise = torch.cat([images(POINTS, tuple(image.shape), seed=5) * 2 - 1, outputs[:POINTS].to(image) - image])
    order = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}[norm]
    change = noise.sign() * eps if norm == "linf" else noise * eps / noise.flatten(1).norm(order, 1).view(-1, 1, 1, 1)
    return (image + change * (1 - 1e-6)).clamp(0, 1)
