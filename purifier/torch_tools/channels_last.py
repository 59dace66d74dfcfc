"""Convolutions in channels-last layout, in which a CPU computes them faster, while a module is attacked or trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..foreign_code import Attempt
from .freezing import evaluating

LAYOUT_ROUNDING = 1e-4
"""How far answers in another layout may be from the first, in shares of the largest."""

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)

M = TypeVar("M", bound=nn.Module)

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

    def change() -> None:
        for weight, value in held:
            weight.data = value.contiguous(memory_format=torch.channels_last)

    try:
        used = bool(held) and _answers_alike(ask, pixels, change)
        if not used:
            _put_back(held)
        yield used
    finally:
        _put_back(held)


@contextmanager
def fed_channels_last(module: M, ask: Callable[[M], Ask], pixels: Tensor) -> Iterator[bool]:
    """Hand a module's convolutions their images in channels-last layout, on the CPU; gives whether that is so.

    Its weights, which an optimizer holds, stay as they lie, and so do their gradients. As :func:`channels_last` does,
    it leaves alone what fails or answers otherwise then on ``pixels`` (N, C, H, W). That is seen on a copy, which is
    asked in evaluation mode and then in training mode: a module that is trained may count how often it was asked.
    """
    layers = _feedable(module, ask, pixels)
    weights = {weight for layer in layers for weight in layer.parameters() if weight.requires_grad}
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(_hand_over).remove)
        for weight in weights:
            # A size of 1 hides from autograd in which layout the gradient comes; data-parallel training minds.
            if 1 in weight.shape:
                hook = weight.register_hook(partial(_lying_as, weight))  # type: ignore[no-untyped-call]  # torch's
                stack.callback(hook.remove)
        yield bool(layers)


def _answers_alike(ask: Ask, pixels: Tensor, change: Callable[[], None]) -> bool:
    """Change the layout, and say whether the answers stay."""
    with Attempt():  # where a failure matters, it comes again
        before = _answers(ask, pixels)
        change()
        after = _answers(ask, pixels)
        return all(
            new.shape == old.shape and bool(((new - old).abs() <= LAYOUT_ROUNDING * old.abs().max()).all())
            for new, old in zip(after, before, strict=True)
        )
    return False


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


def _feedable(module: M, ask: Callable[[M], Ask], pixels: Tensor) -> list[nn.Module]:
    """The convolutions that were handed images when a copy was asked; none, if it took that amiss."""
    if not pixels.is_cpu or any(is_lazy(weight) for weight in module.parameters()):
        return []
    handed: set[str] = set()
    fit = False
    with Attempt():  # trained as it is, the module may never fail
        copied = copy.deepcopy(module)
        evaluating(copied)
        parts = {name: part for name, part in copied.named_modules() if isinstance(part, CONVOLUTIONS)}

        def change() -> None:
            for name, part in parts.items():
                part.register_forward_pre_hook(partial(_noting, handed, name))

        with torch.random.fork_rng(devices=[]):
            if _answers_alike(ask(copied), pixels, change):
                copied.train()
                _answers(ask(copied), pixels)
                fit = True
    return [module.get_submodule(name) for name in sorted(handed)] if fit else []


def _noting(handed: set[str], name: str, layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    handed.add(name)
    return _hand_over(layer, given)


def _hand_over(layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if not given or given[0].ndim != 4:
        return given
    images, *more = given
    if images.shape[1] != 1:
        return images.contiguous(memory_format=torch.channels_last), *more
    # With one channel both layouts are the same memory, and strides alone tell the convolution which is meant.
    count, _, height, width = images.shape
    return images.reshape(count, height, width, 1).permute(0, 3, 1, 2), *more


def _lying_as(weight: Tensor, gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else torch.empty_like(weight).copy_(gradient)
