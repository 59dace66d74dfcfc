"""Run a module's convolutions in channels-last layout, which is faster on the CPU, during attacks or training."""

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
"""Largest difference allowed between outputs in the two layouts, relative to the largest output."""

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)

M = TypeVar("M", bound=nn.Module)

Ask = Callable[[Tensor], Sequence[Tensor]]
"""Pixels (N, C, H, W) -> all of a module's outputs for them, differentiable."""


@contextmanager
def channels_last(module: nn.Module, ask: Ask, pixels: Tensor) -> Iterator[bool]:
    """Hold the weights of a module's convolutions in channels-last layout; yields whether this is used.

    It is not used if the module fails on ``pixels`` (N, C, H, W) in this layout (for example because of a ``view``
    between its layers), if its outputs or their gradients differ by more than rounding, or if it is not on the CPU.
    Afterwards the weights are the original tensors again.
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
    """Pass channels-last inputs to a module's convolutions, on the CPU; yields whether this is used.

    The layout of its weights, which an optimizer holds, and of their gradients does not change. As with
    ``channels_last``, it is not used if the module fails or its outputs change on ``pixels`` (N, C, H, W). This is
    tried on a copy, in evaluation and then in training mode, because a module in training may count its calls.
    """
    layers = _convertible(module, ask, pixels)
    weights = {weight for layer in layers for weight in layer.parameters() if weight.requires_grad}
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(_to_channels_last).remove)
        for weight in weights:
            # With a size of 1, autograd may choose the other layout for the gradient, and data-parallel training
            # complains.
            if 1 in weight.shape:
                hook = weight.register_hook(partial(_in_layout_of, weight))  # type: ignore[no-untyped-call]  # torch's
                stack.callback(hook.remove)
        yield bool(layers)


def _answers_alike(ask: Ask, pixels: Tensor, change: Callable[[], None]) -> bool:
    """Change the layout; whether the outputs stay the same."""
    with Attempt():  # a failure that matters will happen again outside
        before = _answers(ask, pixels)
        change()
        after = _answers(ask, pixels)
        return all(
            new.shape == old.shape and bool(((new - old).abs() <= LAYOUT_ROUNDING * old.abs().max()).all())
            for new, old in zip(after, before, strict=True)
        )
    return False


def _answers(ask: Ask, pixels: Tensor) -> list[Tensor]:
    """The outputs, and the gradient of the sum of each that has one."""
    leaf = pixels.clone().requires_grad_()
    with torch.enable_grad():
        answers = ask(leaf)
    live = [answer.sum() for answer in answers if answer.requires_grad]
    gradients = [torch.autograd.grad(total, leaf, retain_graph=True, allow_unused=True)[0] for total in live]
    return [*(answer.detach() for answer in answers), *(one for one in gradients if one is not None)]


def _put_back(held: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
    for weight, value in held:
        weight.data = value


def _convertible(module: M, ask: Callable[[M], Ask], pixels: Tensor) -> list[nn.Module]:
    """The convolutions that got images when a copy ran; none if the copy failed or its outputs changed."""
    if not pixels.is_cpu or any(is_lazy(weight) for weight in module.parameters()):
        return []
    reached: set[str] = set()
    fit = False
    with Attempt():  # the module itself may train without failing
        copied = copy.deepcopy(module)
        evaluating(copied)
        parts = {name: part for name, part in copied.named_modules() if isinstance(part, CONVOLUTIONS)}

        def change() -> None:
            for name, part in parts.items():
                part.register_forward_pre_hook(partial(_record, reached, name))

        with torch.random.fork_rng(devices=[]):
            if _answers_alike(ask(copied), pixels, change):
                copied.train()
                _answers(ask(copied), pixels)
                fit = True
    return [module.get_submodule(name) for name in sorted(reached)] if fit else []


def _record(reached: set[str], name: str, layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    reached.add(name)
    return _to_channels_last(layer, given)


def _to_channels_last(layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if not given or given[0].ndim != 4:
        return given
    images, *more = given
    if images.shape[1] != 1:
        return images.contiguous(memory_format=torch.channels_last), *more
    # With one channel both layouts have the same memory, and only the strides tell the convolution which one it is.
    count, _, height, width = images.shape
    return images.reshape(count, height, width, 1).permute(0, 3, 1, 2), *more


def _in_layout_of(weight: Tensor, gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else torch.empty_like(weight).copy_(gradient)
