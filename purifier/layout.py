"""Convolutions in channels-last layout, in which a CPU computes them faster, for as long as a module is attacked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .interfaces import LatentSpace, Purifier
from .seeding import SampleGenerator

ROUNDING = 1e-4
"""How far answers in another layout may be from the first, in shares of the largest."""

Ask = Callable[[Tensor], Sequence[Tensor]]
"""Pixels (N, C, H, W) -> all that a module says of them, differentiable."""


@contextmanager
def channels_last(module: nn.Module, ask: Ask, pixels: Tensor) -> Iterator[bool]:
    """Hold the weights of a module's convolutions in channels-last layout; gives whether that is so.

    A module that fails in this layout on ``pixels`` (N, C, H, W), by a ``view`` between its layers, say, or whose
    answers or their gradients are not the same but for rounding, stays as it is; so does one on another device.
    Afterwards the weights are the tensors that they were.
    """
    held = [(weight, weight.data) for weight in module.parameters() if weight.ndim == 4 and weight.is_cpu]
    try:
        used = bool(held) and _answers_alike(ask, pixels, held)
        if not used:
            _put_back(held)
        yield used
    finally:
        _put_back(held)


def ways_through(purifier: Purifier) -> Ask:
    """All that attacks ask of a purifier."""

    def ask(pixels: Tensor) -> Sequence[Tensor]:
        noise = purifier.draw(pixels, SampleGenerator(0, range(len(pixels))))
        found = [*purifier.purify_and_score(pixels, noise), purifier.purify(pixels, noise)]
        if type(purifier).surrogate is not Purifier.surrogate:
            found.append(purifier.surrogate(pixels, noise))
        if isinstance(purifier, LatentSpace):
            found.append(purifier.decoded(purifier.latent_of(pixels)))
        return found

    return ask


def _answers_alike(ask: Ask, pixels: Tensor, held: Sequence[tuple[nn.Parameter, Tensor]]) -> bool:
    """Put the weights into channels-last layout, and say whether the answers stay."""
    try:
        before = _answers(ask, pixels)
        for weight, value in held:
            weight.data = value.contiguous(memory_format=torch.channels_last)
        after = _answers(ask, pixels)
    except Exception:  # noqa: BLE001 - somebody else's module can fail in any way; where it matters it will again
        return False
    return all(
        new.shape == old.shape and torch.allclose(new, old, rtol=0, atol=ROUNDING * float(old.abs().max()))
        for new, old in zip(after, before, strict=True)
    )


def _answers(ask: Ask, pixels: Tensor) -> list[Tensor]:
    """The answers, and the gradient of the sum of each that has one."""
    leaf = pixels.clone().requires_grad_()
    with torch.enable_grad():
        answers = ask(leaf)
    live = [answer.sum() for answer in answers if answer.requires_grad]
    gradients = [torch.autograd.grad(total, leaf, retain_graph=True, allow_unused=True)[0] for total in live]
    return [*(answer.detach() for answer in answers), *(one for one in gradients if one is not None)]


def _put_back(held: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
    for weight, value in held:
        weight.data = value
