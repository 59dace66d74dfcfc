"""Muon: an optimizer that steps along the orthogonal matrix closest to the mean gradient of a weight."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

MUON_MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""The coefficients of the Newton-Schulz iteration."""
ITERATIONS = 5
SMALLEST = 1e-7
"""The smallest norm that is divided by, and the smallest entry, as a share of the norm, that is not taken for 0."""
LENGTH = 0.2
"""The root mean square of Adam's steps, in learning rates."""


class Muon(torch.optim.Optimizer):
    """Jordan et al. 2024, with Nesterov momentum and steps as long as Adam's, so that one learning rate serves both
    (Liu et al. 2025, "Muon is scalable for LLM training", equation 4).

    It takes the same steps as ``torch.optim.Muon(weight_decay=0, adjust_lr_fn="match_rms_adamw")``. That one always
    iterates in bfloat16, which is slow on CPUs that only emulate it (``tests/benchmarks/step_speed.py``); this one
    iterates in ``dtype``.

    Parameters
    ----------
    matrices
        Weights with two dimensions.
    lr
        Learning rate.
    dtype
        The dtype that the iteration computes in.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(matrices, {"lr": lr})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no caller passes a closure
        """Update every weight that has a gradient; its state is one tensor, ``momentum_buffer``."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                mean = state["momentum_buffer"].lerp_(weight.grad, 1 - MUON_MOMENTUM)
                direction = orthogonal(weight.grad.lerp(mean, MUON_MOMENTUM).to(self.dtype))
                weight.add_(direction, alpha=-group["lr"] * LENGTH * max(weight.shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """Bring the singular values of a matrix (m, n) near 1, by Newton-Schulz iteration.

    Singular values of at least 0.002 of the Frobenius norm end between 0.68 and 1.21; smaller ones grow, and zeros
    stay zero.
    """
    first, third, fifth = COEFFICIENTS
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=SMALLEST)
    # What units that have died leave in the mean shrinks to numbers too small for CPUs to multiply fast.
    wide = wide.masked_fill(wide.abs() < SMALLEST, 0)
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), wide, beta=first)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
