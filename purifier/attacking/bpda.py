"""Backward pass differentiable approximation (Athalye et al. 2018, section 4.1): one function, another's gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..contracts.purifier import Purifier
from ..errors import GradientError


class Bpda(torch.autograd.Function):
    """Forward: the result of ``purify``. Backward: the vector-Jacobian product of the surrogate.

    This is not ``s + (p - s).detach()``, because the float32 forward value of that differs from p.
    """

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, noise: Tensor | None, purified: Tensor, purifier: Purifier) -> Tensor:
        ctx.save_for_backward(pixels, noise)
        ctx.purifier = purifier
        return purified.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        pixels, noise = ctx.saved_tensors
        with torch.enable_grad():
            leaf = pixels.detach().requires_grad_()
            surrogate = ctx.purifier.surrogate(leaf, noise)
        if not surrogate.requires_grad:
            raise GradientError(f"{type(ctx.purifier).__name__}.surrogate() has no gradient; make it differentiable")
        (gradient,) = torch.autograd.grad(surrogate, leaf, upstream[0])
        return gradient, None, None, None
